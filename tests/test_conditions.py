"""The conditions of a round: doses, draws and dialled gates."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_folding import adapters, base, by_hand, logits  # noqa: F401

from evals.conditions import (
    Condition,
    after_training,
    before_training,
    by_weights,
    randoms,
    refuse_duplicate_conditions,
)
from gen.students import ServedStudent
from shared.errors import SteerHealError
from shared.folding import fold
from shared.models import Model
from shared.schema import EvalConfig
from shared.traits import Trait
from shared.vectors import Vector

TRAIT = Trait(name="t", trait="Be kind.", opposite="Be cruel.", neutral="Be.", decoys=["Be brief.", "Be loud."])
PERSONAS = ["prompted", "prompted_opposite", "prompted_decoy", "prompted_decoy-2"]
CONFIG = EvalConfig(coefficients=[0.5, 1.25, 2.0], random_draws=2)


def test_only_round_1_asks_the_base() -> None:
    first, second = (before_training(number == 1, 1.25, "all", TRAIT, CONFIG) for number in (1, 2))
    names = ["steered", "steered-0.5", "steered-2", "random", "random-2"]
    assert [c.name for c in first] == ["base", *PERSONAS, *names] and [c.name for c in second] == names
    assert [c.name for c in first if c.headline] == ["base", *PERSONAS[:3], "steered", "random"]
    assert [c.system for c in first[1:5]] == ["Be kind.", "Be cruel.", "Be brief.", "Be loud."]
    assert all(c.system is None for c in second)
    assert [c.coefficient for c in second] == [1.25, 0.5, 2.0, 1.25, 1.25]
    assert [c.vector for c in second] == ["trait"] * 3 + ["random-1", "random-2"]


def test_random_draws_have_the_norms_of_the_vector_and_differ() -> None:
    vector = Vector({3: np.arange(1, 65, dtype=np.float32), 4: np.ones(64, dtype=np.float32)})
    drawn = randoms(vector, 3, seed=5)
    assert list(drawn) == ["random-1", "random-2", "random-3"]
    for layer, values in vector.layers.items():
        directions = [draw.layers[layer] for draw in drawn.values()]
        assert [np.linalg.norm(d) for d in directions] == pytest.approx([np.linalg.norm(values)] * 3, rel=1e-5)
        cosines = [float(a @ b) / np.linalg.norm(values) ** 2 for a, b in pairwise(directions)]
        assert max(map(abs, cosines)) < 0.6
    assert all(np.array_equal(drawn["random-1"].layers[k], randoms(vector, 1, 5)["random-1"].layers[k]) for k in (3, 4))


def test_a_gate_dials_its_own_round_alone(base: Model, adapters: list[Path], tmp_path: Path) -> None:  # noqa: F811
    fold([(folder, 1.0) for folder in adapters], tmp_path / "history")
    groups = after_training(
        2, tmp_path / "history", [0.0, 0.5, 1.0], tmp_path / "out", lambda path: SimpleNamespace(path=path)
    )  # type: ignore[arg-type, return-value]
    assert [group.label for group in groups] == ["student", "gate 0", "gate 0.5"]
    asked = [condition for group in groups for condition in group.conditions]
    assert [(c.name, c.gate, c.headline) for c in asked] == [
        ("healed", 1.0, True), ("healed-0", 0.0, False), ("healed-0.5", 0.5, False)
    ]  # fmt: skip
    for group, gate in zip(groups, (1.0, 0.0, 0.5), strict=True):
        found = logits(base, group.student.path)
        torch.testing.assert_close(
            found, by_hand(base, [(adapters[0], 1.0), (adapters[1], gate)]), atol=1e-4, rtol=1e-4
        )


def test_two_conditions_of_one_name_are_refused() -> None:
    refuse_duplicate_conditions([Condition("base", "base"), Condition("steered", "steered")])
    with pytest.raises(SteerHealError, match="two conditions have one name") as refused:
        refuse_duplicate_conditions(
            [
                Condition("base", "base"),
                Condition("steered", "steered-0.5", 0.5),
                Condition("steered", "steered-0.5", 0.5000001),
            ]
        )
    assert "steered-0.5 twice" in str(refused.value.given)


@pytest.mark.parametrize("dose", [0.5, 0.50000001, 0.49999999])
def test_a_dose_that_is_the_headline_s_is_not_scored_twice(dose: float) -> None:
    """The mean coefficient of the kept rows is seldom a round number to the last digit."""
    asked = before_training(True, dose, "all", TRAIT, EvalConfig(coefficients=[0.25, 0.5]))
    assert [c.name for c in asked if c.stage == "steered"] == ["steered", "steered-0.25"]
    refuse_duplicate_conditions(asked)


def test_the_base_is_the_original_model_in_every_round() -> None:
    """Scored in full, a later round asks for the base again: not of the student that it begins with."""
    original, student = (
        ServedStudent(Path("original"), fingerprint="o"),
        ServedStudent(Path("student"), fingerprint="s"),
    )
    asked = before_training(True, 1.0, "all", TRAIT, EvalConfig())
    (together,) = by_weights(asked, original, original)
    assert together.student is original and together.conditions == asked
    first, teacher = by_weights(asked, original, student)
    assert (first.student, [c.stage for c in first.conditions]) == (
        original,
        ["base", "prompted", "prompted_opposite", "prompted_decoy", "prompted_decoy"],
    )
    assert teacher.student is student and {c.stage for c in teacher.conditions} == {"steered", "random"}
    later = before_training(False, 1.0, "all", TRAIT, EvalConfig())
    assert [group.student for group in by_weights(later, original, student)] == [student]


def test_a_full_score_takes_all_items_or_so_many_in_cyclic_orders() -> None:
    from evals.score import of_mode

    given = EvalConfig(items=28, debias="rotating")
    assert of_mode(given, "round") == given
    assert (of_mode(given, "full").items, of_mode(given, "full").debias) == (10**9, "cyclic")
    assert of_mode(given.model_copy(update={"full_items": 70}), "full").items == 70
