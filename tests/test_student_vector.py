"""The student's own vector: what it is made of, what it makes of the two models, and how a report reads the two conditions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command
from pydantic import ValidationError
from safetensors.torch import save_file
from scorings import scoring_of
from synthetic_run import build

from evals.conditions import ADDED, REMOVED, after_training, before_training, by_weights
from evals.measures.activations import neutral_prompts, states
from evals.measures.measure import Scoring
from evals.report import cause
from evals.report.figures.base import Shown, legend_of
from evals.report.figures.registry import panels_of, pngs
from evals.report.reading import run_reading
from evals.results import results_of
from evals.rows import ConditionLine
from evals.scored import scored_rounds
from evals.student_vector import student_vectors
from gen.extract import activations, in_fp32
from gen.forward import steered
from gen.students import ServedStudent
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.models import Model
from shared.preconditions import student_shifts
from shared.schema import EvalConfig
from shared.traits import load_trait
from shared.vectors import Vector

LAYERS, TRAINED = [0, 2, 3], 1
ON = EvalConfig(student_vector=True)


@pytest.fixture(params=["all", "generated"])
def scoring(tmp_path: Path, small_model: Model, request: pytest.FixtureRequest) -> Scoring:
    """Of a student that differs from the small model in one projection of layer 1."""
    draws = np.random.default_rng(0)
    vector = Vector({layer: draws.standard_normal(192).astype(np.float32) for layer in LAYERS}, {"positions": request.param})  # fmt: skip
    scoring = scoring_of(tmp_path, small_model, vector, "eval.contexts=5 vector.batch_size=4 eval.student_vector=true")
    history = scoring.run.round(1) / "history"
    history.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    name = f"base_model.model.model.layers.{TRAINED}.mlp.down_proj"
    factors = {"A": torch.randn(2, 384, generator=generator), "B": torch.randn(192, 2, generator=generator)}
    save_file({f"{name}.lora_{kind}.weight": 0.2 * value for kind, value in factors.items()}, history / "adapter_model.safetensors", metadata={"format": "pt"})  # fmt: skip
    (history / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    return replace(scoring, vectors={"trait": vector})


def test_with_it_the_original_s_mean_is_the_student_s_and_without_it_the_student_s_the_original_s(
    scoring: Scoring,
) -> None:
    found, prompts = student_vectors(scoring), neutral_prompts(scoring)
    history = scoring.run.history(1)
    base, student = (states(scoring.origin, of, LAYERS, prompts, 1) for of in (None, history))
    start = 0 if found[ADDED].metadata["positions"] == "all" else -1
    for name, of, sign, wanted in ((ADDED, None, 1.0, student), (REMOVED, history, -1.0, base)):
        assert [*found[name].layers] == [2, 3], "nothing is trained at or below layer 0"
        network = in_fp32(scoring.origin, of)
        with steered(network, scoring.origin.depth, found[name], sign, start):
            moved = activations(network, scoring.origin.depth, LAYERS, prompts, 1, name)
        for layer in LAYERS:
            mean, other = wanted[layer].mean(0), (base if of is None else student)[layer].mean(0)
            np.testing.assert_allclose(moved[layer].mean(0), mean, atol=1e-4)
            assert layer == 0 or np.abs(other - mean).max() > 0.01
    difference = student[2].mean(0) - base[2].mean(0)
    for name in (ADDED, REMOVED):  # in the lowest layer, the plain difference of means
        np.testing.assert_allclose(found[name].layers[2], difference, atol=1e-5)
    raw = student[3].mean(0) - base[3].mean(0)
    assert np.abs(found[ADDED].layers[3] - raw).max() > 0.01, "the shift of layer 2 has reached layer 3 already"


def test_a_student_that_is_the_original_has_none(scoring: Scoring) -> None:
    path = scoring.run.round(1) / "history" / "adapter_model.safetensors"
    name = f"base_model.model.model.layers.{TRAINED}.mlp.down_proj"
    save_file({f"{name}.lora_A.weight": torch.ones(2, 384), f"{name}.lora_B.weight": torch.zeros(192, 2)}, path, metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(SteerHealError, match="are the original model's"):
        student_vectors(scoring)


def test_its_conditions_belong_to_the_original_and_to_the_student(tmp_path: Path) -> None:
    trait, original, before = load_trait("embedded"), ServedStudent(Path("o"), fingerprint="o"), ServedStudent(Path("b"), fingerprint="b")  # fmt: skip
    later = before_training(False, 1.0, "generated", trait, ON)
    first, teacher = by_weights(later, original, before)
    assert first.student == original and [c.name for c in first.conditions] == [ADDED]
    assert all(c.stage != ADDED for c in teacher.conditions)
    (added,) = first.conditions
    assert (added.coefficient, added.vector, added.positions, added.headline) == (1.0, ADDED, "generated", False)
    (group,) = after_training(2, tmp_path, [], tmp_path, lambda _: before, "generated")
    healed, removed = group.conditions
    assert (removed.stage, removed.coefficient, removed.vector, removed.headline) == (REMOVED, -1.0, REMOVED, False)
    assert healed.stage == "healed" and removed.positions == "generated"
    assert not any(c.stage == ADDED for c in before_training(True, 1.0, "all", trait, EvalConfig()))
    assert "student_vector" not in EvalConfig().determining()  # as manifests of earlier versions have it
    assert ON.determining()["student_vector"] is True


@pytest.mark.parametrize(("stage", "coefficient", "headline"), [(ADDED, -1.0, False), (REMOVED, 1.0, False), (ADDED, 1.0, True)])  # fmt: skip
def test_a_line_of_another_coefficient_is_refused(stage: str, coefficient: float, headline: bool) -> None:
    with pytest.raises(ValidationError):
        ConditionLine.model_validate({"stage": stage, "name": stage, "coefficient": coefficient, "draw": None, "headline": headline})  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "match"),
    [("eval.contexts=0", "contexts"), ("train.layers=0.8-1 vector.layers=[3,4]", "does not reach")],
)
def test_what_can_have_no_vector_is_refused_before_it_is_frozen(overrides: str, match: str) -> None:
    with pytest.raises(SteerHealError, match=match):
        student_shifts(resolve_config(None, f"eval.student_vector=true {overrides}")[0], 30)
    student_shifts(resolve_config(None, overrides)[0], 30)


def test_a_report_says_what_it_suffices_for_and_what_is_left_without_it(tmp_path: Path) -> None:
    run = build(tmp_path / "run", 2, cause=True)
    rounds = scored_rounds(run, "round")
    found = results_of(run, rounds)
    mine = {row["stage"]: row for row in found["extra"] if row["stage"] in cause.STAGES and row["round"] == 1}
    base, healed = (next(row for row in found["rows"] if row["stage"] == stage) for stage in ("base", "healed"))
    for stage, row in mine.items():
        share = (row["llr_opposite"] - base["llr_opposite"]) / (healed["llr_opposite"] - base["llr_opposite"])
        assert row["share_of_student"] == pytest.approx(share), stage
        assert row["auth_share_of_student"] == pytest.approx(row["d_auth"] / healed["d_auth"])
        ends = row["auth_share_of_student_ci"]
        assert ends[0] < row["auth_share_of_student"] < ends[1]
        assert row["coefficient"] == (1.0 if stage == ADDED else -1.0) and row["verdict"] is None
    assert healed["share_of_student"] is None and healed["auth_share_of_student"] is None
    (table,) = cause.tables(found["rows"], found["extra"])
    stages = ["0 base", *[f"{k} {stage}" for k in (1, 2) for stage in (ADDED, "healed", REMOVED)]]
    assert [line[0] for line in table.rows] == stages
    said = [line for line in run_reading(found["rows"], found["extra"], rounds) if "student's vector" in line]
    assert len(said) == 2 and f"{mine[ADDED]['share_of_student']:.2f}" in said[0] and "with it subtracted" in said[0]
    shown = Shown(found["rows"], found["extra"], rounds)
    assert {ADDED, REMOVED} <= {*legend_of(shown)}
    assert all(png.startswith(b"\x89PNG") for png in pngs(shown, panels_of(shown)).values())


def test_without_it_there_is_no_table(tmp_path: Path) -> None:
    found = results_of(run := build(tmp_path / "run", 1), scored_rounds(run, "round"))
    assert cause.tables(found["rows"], found["extra"]) == [] and cause.sentences(found["extra"]) == []


SMALL = (
    "vector.n_contexts=16 sweep.coefficients=[1.0] sweep.n_dilemmas=8 sweep.n_mundane=2 sweep.max_tokens=24 filter.off=true filter.min_kept=4 train.epochs=2 train.rank=8 "
    "train.learning_rate=1e-3 eval.student_vector=true eval.contexts=8 eval.items=14 eval.think=0 eval.free_tokens=0 eval.random_draws=1 eval.generation_samples=1 "
    "eval.generation_tokens=24 eval.coefficients=[-1.0] eval.bootstrap=200"
)


@pytest.mark.long
def test_a_round_of_the_embedded_model_has_both_conditions(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = command("shared.begin", "--run", run, "--set", SMALL)
    assert made.returncode == 0, made.stderr
    for module in ("gen.extract", "gen.sweep", "gen.filter", "train.heal", "evals.score"):
        made = command(module, "--run", run, "--round", 1)
        assert made.returncode == 0, f"{module}: {made.stderr[-3000:]}"
    made = command("evals.report", "--run", run)
    assert made.returncode == 0, made.stderr
    text = (run / "report" / "results.md").read_text()
    assert "## The student's vector as a cause" in text and "student_without_vector" in text and "steered at -1" in text
