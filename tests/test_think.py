"""eval.think of a run that was not told it: the preflight's answer is frozen, and what a user says stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import command
from synthetic_run import IDENTITY

from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument
from evals.preflight import plan_of_run, reads_that_fit
from shared.chat import Chat
from shared.config import sources_of
from shared.errors import SteerHealError
from shared.models import Model
from shared.run import Run, open_run
from shared.stage import Stage
from shared.think import FILE, KEY, SOURCE, adopt, may_adopt, wants_preflight

PLAIN = "[sweep]\nn_dilemmas = 8\n"


def begun(folder: Path, text: str = PLAIN, overrides: str = "") -> tuple[Run, Path]:
    path = folder / "config.toml"
    path.write_text(text)
    return open_run(folder / "run", path, overrides), path


def test_the_answer_is_frozen_with_its_source_and_need_not_be_named_again(tmp_path: Path) -> None:
    run, path = begun(tmp_path)
    assert may_adopt(run.folder) and wants_preflight(run.folder, run.config) and run.config.eval.think == 16
    run.config = adopt(run.folder, run.config, 48)
    frozen = tmp_path / "run" / "config.toml"
    assert "think = 48 # the preflight" in frozen.read_text() and sources_of(frozen)[KEY] == SOURCE
    assert run.config.eval.think == open_run(run.folder).config.eval.think == 48
    assert open_run(run.folder, path).config.eval.think == 48  # the same command goes on
    assert open_run(run.folder, path, "sweep.workers=2").config.eval.think == 48  # which writes the file anew
    assert sources_of(frozen)[KEY] == SOURCE
    with pytest.raises(SteerHealError, match="differs from the one frozen") as refused:
        open_run(run.folder, path, "eval.think=8")
    assert "eval.think = 8 (was 48)" in str(refused.value.given)


def test_it_is_another_models_answer_where_the_model_is_another(tmp_path: Path, model: Model) -> None:
    run, path = begun(tmp_path)
    run.config = adopt(run.folder, run.config, 48)
    other = open_run(run.folder, path, f"model.name={model.folder}", rebuild=True)
    assert other.config.eval.think == 16


@pytest.mark.parametrize(("text", "overrides"), [(f"{PLAIN}[eval]\nthink = 16\n", ""), (PLAIN, "eval.think=16")])
def test_what_a_user_says_stands_even_where_it_is_the_default(text: str, overrides: str, tmp_path: Path) -> None:
    run, _ = begun(tmp_path, text, overrides)
    assert not may_adopt(run.folder) and not wants_preflight(run.folder, run.config)


def test_a_run_that_has_begun_keeps_what_it_has(tmp_path: Path) -> None:
    run, _ = begun(tmp_path)
    (run.folder / FILE).write_text("{}")
    assert may_adopt(run.folder) and not wants_preflight(run.folder, run.config)  # once
    (run.folder / FILE).unlink()
    Stage(run, 1, "extract", settings={}, inputs={}, outputs=[]).finish(IDENTITY)
    assert not may_adopt(run.folder) and not wants_preflight(run.folder, run.config)


def test_a_trait_that_the_forced_choice_is_not_read_for_needs_none(tmp_path: Path) -> None:
    trait = {"version": 1, "name": "x", "trait": "You rhyme.", "opposite": "You do not rhyme.", "neutral": "You help."}
    (tmp_path / "trait.json").write_text(json.dumps(trait))
    run, _ = begun(tmp_path, overrides=f"vector.trait={tmp_path / 'trait.json'}")
    assert may_adopt(run.folder) and not wants_preflight(run.folder, run.config)


def test_budgets_beyond_the_context_are_not_tried(tmp_path: Path, tokenizer: object) -> None:
    run, _ = begun(tmp_path, overrides="eval.items=7 eval.debias=cyclic")
    asked = plan_of_run(run, [128, 0, 4, 4, 100_000])
    assert [read.think for read in asked.reads] == [0, 4, 128, 100_000] and len(asked.vignettes) == 7
    assert {read.debias for read in asked.reads} == {"cyclic"} and asked.out == run.folder / FILE
    renderer = InstrumentRenderer(Chat(tokenizer), load_instrument("embedded"))
    assert [read.think for read in reads_that_fit(asked, renderer, 2048)] == [0, 4, 128]
    with pytest.raises(SteerHealError, match="does not fit"):
        reads_that_fit(asked, renderer, 64)


def test_options_that_a_run_has_settings_for_are_refused(tmp_path: Path) -> None:
    run, _ = begun(tmp_path)
    done = command("evals.preflight", "--run", run.folder, "--items", 7)
    assert done.returncode == 2 and "--items" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.long
def test_a_preflight_of_a_run_is_in_the_run(tmp_path: Path) -> None:
    run, _ = begun(tmp_path, overrides="eval.items=7 eval.debias=reversal model.max_model_len=2048")
    done = command("evals.preflight", "--run", run.folder, "--think", 0, 2)
    assert done.returncode == 0, done.stderr
    record = json.loads((run.folder / FILE).read_text())
    assert [budget["think"] for budget in record["budgets"]] == [0, 2] and record["items"] == 7
    frozen = run.folder / "config.toml"
    if record["least"] is None:
        assert "eval.think stays 16" in done.stdout and sources_of(frozen)[KEY] == "default"
    else:
        assert open_run(run.folder).config.eval.think == record["least"]
