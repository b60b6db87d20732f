"""The terminal ends with the answer and with commands that can be typed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import build

from evals.ending import answer, next_commands, show_ending, trait_name
from evals.results import results_of
from evals.scored import scored_rounds
from shared.main import command_in, options_of
from shared.run import Run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[dict[str, Any]]]:
    run = build(tmp_path_factory.mktemp("ending") / "run", 2, personas=True, overrides="eval.bootstrap=300")
    return run, results_of(run, scored_rounds(run, "round"))["rows"]


def test_it_says_trait_price_verdicts_and_prompting(made: tuple[Run, list[dict[str, Any]]]) -> None:
    rows = made[1]
    healed = next(row for row in rows if (row["round"], row["stage"]) == (2, "healed"))
    said = answer(rows, read_for=True)
    assert [label for label, _ in said] == ["trait", "price", "free text", "forced choice", "prompting"]
    text = dict(said)
    assert text["trait"].startswith(f"llr_opposite {healed['llr_opposite']:+.3f} [") and "base -0.076" in text["trait"]
    assert text["price"].startswith(f"perplexity {healed['perplexity']:.2f} [")
    assert text["free text"] == f"{healed['text_verdict']}: {healed['text_verdict_reason']}"
    assert text["forced choice"] == f"{healed['verdict']}: {healed['verdict_reason']}"
    assert f"{healed['share_of_prompted']:.0%}" in text["prompting"]


@pytest.mark.parametrize(
    ("ends", "words"),
    [([0.2, 0.8], "less than prompting"), ([1.1, 1.4], "more than prompting"), ([0.8, 1.2], "not told apart")],
)
def test_prompting_is_compared_by_the_interval(
    ends: list[float], words: str, made: tuple[Run, list[dict[str, Any]]]
) -> None:
    rows = [{**row, "share_of_prompted": sum(ends) / 2, "share_of_prompted_ci": ends} for row in made[1]]
    assert words in dict(answer(rows, read_for=True))["prompting"]


def test_what_was_not_measured_is_said(made: tuple[Run, list[dict[str, Any]]]) -> None:
    gone = dict.fromkeys(("llr_opposite", "trait_llr", "perplexity", "verdict", "verdict_reason", "text_verdict", "text_verdict_reason"))  # fmt: skip
    said = dict(answer([{**row, **gone} for row in made[1]], read_for=False))
    assert said["trait"] == said["price"] == "no free text was sampled"
    assert "about no foundation" in said["forced choice"] and "prompting" not in said


def test_every_next_command_is_taken(made: tuple[Run, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    run = made[0]
    monkeypatch.setenv("STEER_HEAL_FORM", "steer-heal")
    monkeypatch.delenv("STEER_HEAL_PROGRAM", raising=False)
    lines = next_commands(run, 2, run.folder / "report" / "index.html", "round")
    assert len(lines) == 5
    for _, line in lines[1:]:
        program, *words = shlex.split(line)
        name = command_in(words)
        assert program == "steer-heal" and name is not None, line
        arguments = options_of(name).parse_args(words[len(name.split()) :])
        assert arguments.run == run.folder
        if name == "round" and not arguments.report:
            assert arguments.rounds == 3


def test_the_terminal(made: tuple[Run, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    run, rows = made
    show_ending(run, rows, Path("runs/x/report/index.html"), "full", read_for=True)
    said = capsys.readouterr().out
    assert f"{trait_name(run)}, round 2 of" in said and "care over authority" in said
    assert said.index("trait ") < said.index("price ") < said.index("next") < said.index("runs/x/report/index.html")
    assert "another round" not in said  # EVAL=full trains nothing
