"""Negative doses, and what moral-maps reads from a coefficient and its negative."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_run
from synthetic_run import build

from evals.conditions import before_training, refuse_duplicate_conditions
from evals.measures.forced_choice.answers import answers
from evals.measures.forced_choice.ask import Read
from evals.measures.forced_choice.rows import ScoreRow
from evals.measures.forced_choice.selectivity import COLUMNS, columns, gated_selectivity, si_flips
from evals.report.figures.base import Shown
from evals.report.figures.registry import panels_of, pngs
from evals.report.published import selectivity
from evals.results import results_of
from evals.rows import ConditionLine
from evals.scored import scored_rounds
from evals.statistics import AUTHORITY, CARE, Answers
from shared.config import resolve_config
from shared.schema import EvalConfig
from shared.traits import load_trait

READ = Read("rotating", think=4)


def made(stage: str, mass: float | None = None, grow: float = 1.0) -> Answers:
    rows = [ScoreRow.model_validate(row) for row in synthetic_run.answers(stage, READ, 0.8, mass, grow)]
    found = answers(rows, Path("rows"), "again")
    noise = np.random.default_rng([len(stage), int(grow > 0)]).normal(0, 0.3, found.score.shape)
    return replace(found, score=found.score + (0 if stage == "base" else noise))


def naive(base: Answers, first: Answers, second: Answers, intent: dict[int, int]) -> tuple[float, float]:
    """Item by item, as the definition has it."""
    moved = {f: 0.0 for f in range(7)}
    flips = {f: 0.0 for f in intent}
    for a, b in zip(first.score, second.score, strict=True):
        for f in range(7):
            moved[f] += ((a[f] - sum(a) / 7) - (b[f] - sum(b) / 7)) / len(first.score)
        for f, sign in intent.items():
            flips[f] += sign * ((max(a) == a[f]) - int(max(b) == b[f])) / len(first.score)
    on = sum(sign * moved[f] for f, sign in intent.items()) / len(intent)
    off = sum(abs(moved[f]) for f in moved if f not in intent) / (7 - len(intent))
    gate = min(1.0, min(sum(first.mass), sum(second.mass)) / sum(base.mass)) ** 2
    return (on - 0.1 * off) * gate, sum(flips.values()) / len(flips)


@pytest.mark.parametrize("intent", [{AUTHORITY: -1}, {AUTHORITY: -1, CARE: 1}, {CARE: 1}])
@pytest.mark.parametrize("mass", [0.6, 1.3])
def test_both_are_the_naive_formula(intent: dict[int, int], mass: float) -> None:
    base, up, down = made("base"), made("steered", mass), made("steered", 0.9, -1.0)
    gated, flips = naive(base, up, down, intent)
    found, flipped = gated_selectivity(base, up, down, intent, 300, 0), si_flips(up, down, intent)
    assert found is not None and found.interval is not None and flipped is not None
    assert found.value == pytest.approx(gated) and flipped.value == pytest.approx(flips) != 0
    assert found.interval[0] < found.value < found.interval[1]


def test_the_worked_example() -> None:
    """Of docs/measures.md: authority down by 1.4 nats of clr, each other foundation up by 1.4 / 6, three quarters of the answer mass left."""
    base = made("base", 1.0)
    score = base.score.copy()
    score[:, AUTHORITY] -= 1.4 * 7 / 6
    moved = Answers(**{**vars(base), "score": score, "mass": 0.75 * base.mass})
    found = gated_selectivity(base, moved, base, {AUTHORITY: -1}, 100, 0)
    assert found is not None and found.value == pytest.approx((1.4 - 0.1 * 1.4 / 6) * 0.75**2)
    assert round(found.value, 3) == 0.774


def test_more_answer_mass_is_no_gain_and_nothing_moved_is_nothing() -> None:
    base, more = made("base"), made("steered", 1.2)
    same = gated_selectivity(base, base, base, {AUTHORITY: -1}, 100, 0)
    assert same is not None and same.value == 0 and si_flips(base, base, {AUTHORITY: -1}).value == 0  # type: ignore[union-attr]
    gated = gated_selectivity(base, more, base, {AUTHORITY: -1}, 100, 0)
    assert gated is not None and gated.value == pytest.approx(naive(base, more, base, {AUTHORITY: -1})[0])


def test_a_trait_about_no_foundation_has_neither() -> None:
    base, other = made("base"), made("steered")
    assert columns(base, other, other, None, 100, 0) == dict.fromkeys(COLUMNS)
    alone = columns(base, other, None, {AUTHORITY: -1}, 100, 0)
    assert alone["gated_selectivity"] is None and alone["gated_selectivity_over_base"] > 0
    assert columns(base, base, None, {AUTHORITY: -1}, 100, 0) == dict.fromkeys(COLUMNS)


def test_a_negative_dose_is_a_condition_of_its_own() -> None:
    config = resolve_config(None, "eval.coefficients=[-1.0,1.0,-0.5]")[0].eval
    asked = [c for c in before_training(False, 0.75, "all", load_trait("embedded"), config) if c.stage == "steered"]
    assert [(c.name, c.coefficient) for c in asked] == [("steered", 0.75), ("steered--1", -1.0), ("steered-1", 1.0), ("steered--0.5", -0.5)]  # fmt: skip
    refuse_duplicate_conditions(asked)
    line = {"stage": "steered", "name": "steered--1", "coefficient": -1.0, "draw": None, "headline": False}
    assert ConditionLine.model_validate(line).coefficient == -1.0
    assert EvalConfig(coefficients=[-1.0, 1.0]).coefficients == [-1.0, 1.0]


def test_a_mirrored_dose_is_read_and_is_no_lower_dose(tmp_path: Path) -> None:
    plain, run = (build(tmp_path / name, 1, mirrored=name == "mirrored") for name in ("plain", "mirrored"))
    rounds = scored_rounds(run, "round")
    found, without = results_of(run, rounds), results_of(plain, scored_rounds(plain, "round"))
    up, down = (next(row for row in found["extra"] if row["name"] == name) for name in ("steered-0.75", "steered--0.75"))  # fmt: skip
    assert up["gated_selectivity"] == pytest.approx(-down["gated_selectivity"], abs=0.2)
    assert up["gated_selectivity"] > up["gated_selectivity_over_base"] > 0 > down["gated_selectivity_over_base"]
    assert up["si_flips"] == pytest.approx(-down["si_flips"])
    healed, as_before = (next(row for row in of["rows"] if row["stage"] == "healed") for of in (found, without))
    assert as_before["price_less_steering"] is not None and healed["gated_selectivity"] is None
    for name in ("verdict", "price_less_steering", "price_less_steering_ci", "text_price_less_steering"):
        assert healed[name] == as_before[name], name
    (table,) = selectivity(found["rows"], found["extra"])
    assert "1 steered at -0.75" in [line[0] for line in table.rows]
    shown = Shown(found["rows"], found["extra"], rounds)
    assert all(png.startswith(b"\x89PNG") for png in pngs(shown, panels_of(shown)).values())
