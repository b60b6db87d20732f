"""The student's own shift against a student whose shift is known."""

from __future__ import annotations

import numpy as np
import pytest

from evals.measures.activations import student_vector
from shared.vectors import Vector

CONTEXTS, HIDDEN = 6, 8
DRAWS = np.random.default_rng(0)
TEACHER = Vector({layer: DRAWS.standard_normal(HIDDEN).astype(np.float32) for layer in (2, 3)})
FIRST = Vector({2: DRAWS.standard_normal(HIDDEN).astype(np.float32)})
BASE = {layer: DRAWS.standard_normal((CONTEXTS, HIDDEN)).astype(np.float32) for layer in (2, 3)}


def shifted(states: dict[int, np.ndarray], by: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    return {layer: values + by[layer] for layer, values in states.items()}


def test_a_student_that_learned_half_the_vector() -> None:
    half = {layer: values / 2 for layer, values in TEACHER.layers.items()}
    for row in student_vector(BASE, BASE, shifted(BASE, half), TEACHER, FIRST):
        assert row["norm_ratio"] == pytest.approx(0.5, rel=1e-5)
        assert row["cos_teacher"] == pytest.approx(1.0) and row["split_half"] == pytest.approx(1.0)
    first, second = student_vector(BASE, BASE, shifted(BASE, half), TEACHER, FIRST)
    a, b = TEACHER.layers[2].astype(float), FIRST.layers[2].astype(float)
    assert first["cos_round_1"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert second["layer"] == 3 and second["cos_round_1"] is None  # round 1 had no vector there


def test_this_round_and_all_rounds_are_told_apart() -> None:
    """Round 1 learned its own vector, round 2 went against its teacher's."""
    before = shifted(BASE, {2: FIRST.layers[2], 3: np.zeros(HIDDEN)})
    after = shifted(before, {layer: -values for layer, values in TEACHER.layers.items()})
    row = student_vector(BASE, before, after, TEACHER, FIRST)[0]
    total = FIRST.layers[2].astype(float) - TEACHER.layers[2]
    assert row["cos_teacher"] == pytest.approx(-1.0)
    expected = total @ FIRST.layers[2] / np.linalg.norm(total) / np.linalg.norm(FIRST.layers[2])
    assert row["cos_round_1"] == pytest.approx(expected, abs=1e-5)


def test_a_student_that_learned_nothing_has_no_direction() -> None:
    row = student_vector(BASE, BASE, BASE, TEACHER, FIRST)[0]
    assert row["norm_ratio"] == 0.0 and row["cos_teacher"] is row["cos_round_1"] is row["split_half"] is None
