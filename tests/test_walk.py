"""The walk's search on survival curves, monotone and not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen.walk import DoseProbe, Walk, find_dose_by_survival
from shared.errors import SteerHealError

N = 1000


def probe(curve: Callable[[float], float]) -> Callable[[float], DoseProbe]:
    return lambda coefficient: DoseProbe(coefficient, N, round(N * curve(coefficient)))


def hill(coefficient: float) -> float:
    """The shape met in practice: half at 0, more while the trait comes in, none once the text falls apart."""
    return max(0.0, min(0.5 + 0.3 * coefficient, 0.8, 1.7 - 0.6 * coefficient))


def test_a_ceiling_that_survives_is_the_answer() -> None:
    found = find_dose_by_survival(probe(lambda c: 0.9), target=0.5, ceiling=4.0, steps=6)
    assert found.coefficient == 4.0 and len(found.probes) == 1


@given(st.floats(0.08, 3.99), st.floats(0.05, 1.0))
def test_a_falling_curve_is_bisected_to_its_edge(edge: float, target: float) -> None:
    found = find_dose_by_survival(probe(lambda c: 1.0 if c <= edge else 0.0), target=target, ceiling=4.0, steps=6)
    assert found.coefficient <= edge < found.coefficient * (1 + 2**-6) * (1 + 1e-9)
    assert len(found.probes) <= 1 + 6 + 6


@pytest.mark.parametrize("target", [0.55, 0.6, 0.7, 0.79])
def test_the_upper_edge_of_a_hill(target: float) -> None:
    """At the target the curve is crossed twice, and low doses fail it: from below the search would end at once."""
    found = find_dose_by_survival(probe(hill), target=target, ceiling=4.0, steps=6)
    assert hill(0.0) < target
    edge = (1.7 - target) / 0.6
    assert found.coefficient <= edge + 0.001 and edge - found.coefficient < 2.0 / 2**6 + 0.001


def test_a_band_below_the_first_halvings_is_found() -> None:
    found = find_dose_by_survival(probe(lambda c: float(0.2 <= c <= 0.3)), target=1.0, ceiling=4.0, steps=6)
    assert 0.3 * (1 - 2**-6) <= found.coefficient <= 0.3


def test_the_answer_is_a_probe_that_reached_the_target() -> None:
    jagged = probe(lambda c: 0.5 + 0.4 * (-1) ** int(c * 16) if c < 2.5 else 0.0)
    found = find_dose_by_survival(jagged, target=0.6, ceiling=4.0, steps=6)
    assert next(p for p in found.probes if p.coefficient == found.coefficient).survival >= 0.6


def test_a_walk_without_an_answer_names_every_probe() -> None:
    with pytest.raises(SteerHealError) as caught:
        find_dose_by_survival(probe(lambda c: 0.25 if c < 1 else 0.0), target=0.5, ceiling=4.0, steps=3)
    text = caught.value.render()
    assert "0/1000 at 4, 0/1000 at 2, 0/1000 at 1, 250/1000 at 0.5" in text and "sweep.survival" in text
    assert "from 0.5 to 4" in text


def test_an_answer_survives_its_file() -> None:
    found = find_dose_by_survival(probe(hill), target=0.6, ceiling=4.0, steps=2)
    assert Walk.from_dict(found.as_dict()) == found
