"""Which foundations moved, against naive formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from test_statistics import COUNT, answers, without

from evals.measures.forced_choice.moved import _degrees, detectable, holm, shifts
from evals.statistics import AUTHORITY, drawn, log_shift, resample
from shared.instrument import FOUNDATIONS

NULLS = 200


def test_only_what_moved_is_said_to_have_moved() -> None:
    base, other = answers(), answers(shift=-1.0)
    found = shifts(base, other, 2000, 0)
    assert found is not None and [line.foundation for line in found] == list(FOUNDATIONS)
    authority = found[AUTHORITY]
    assert authority.moved and authority.change.value == pytest.approx(
        np.log(other.p[:, AUTHORITY].mean() / base.p[:, AUTHORITY].mean())
    )
    same = shifts(base, base, COUNT, 0)
    assert same is not None and all(line.p == 1.0 and not line.moved for line in same)


@pytest.mark.parametrize("factor", [0.9, 1 / 3, 1 - 1e-15])
def test_a_shift_alike_in_every_item_has_no_error(factor: float) -> None:
    """The draws differ by rounding alone, over which any shift is certain."""
    base = answers(per=6)
    other = replace(base, p=base.p * factor)
    draws = drawn(log_shift(base.p[:, AUTHORITY], other.p[:, AUTHORITY]), resample(base.truth, COUNT, 0))
    assert draws is not None and len(set(draws[1])) > 1, "or there is no rounding to tell from a spread"
    assert detectable(base, other, COUNT, 0) is None
    found = shifts(base, other, COUNT, 0)
    if factor > 0.99:
        assert found is not None and not any(line.moved or line.change.excludes_zero() for line in found)
    else:
        assert found is None


@pytest.mark.parametrize(("per", "most"), [(4, 0.12), (19, 0.08)])
def test_where_nothing_moved_something_is_said_to_have_moved_seldom(per: int, most: float) -> None:
    """Both conditions are drawn alike about each item: nominally one null in twenty may show any of the seven."""
    false = 0
    for seed in range(NULLS):
        draws = np.random.default_rng([seed, per])
        item = answers(seed, per).score
        pair = []
        for _ in range(2):
            p = softmax(item + draws.normal(0, 0.5, item.shape), axis=1)
            pair.append(replace(answers(seed, per), p=p))
        found = shifts(*pair, 300, seed)
        assert found is not None
        false += any(line.moved for line in found)
    assert false / NULLS < most + 2 * np.sqrt(most * (1 - most) / NULLS)


@pytest.mark.parametrize("count", [100, 278])
def test_few_resamples_can_show_a_shift(count: int) -> None:
    found = shifts(answers(per=8), answers(per=8, shift=-2.0), count, 0)
    assert found is not None and found[AUTHORITY].moved


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_steps_down(p: list[float]) -> None:
    corrected = holm(p)
    order = np.argsort(p)
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, p[index] * (len(p) - rank)))
        assert corrected[index] == pytest.approx(worst)
    assert all(after >= before for before, after in zip(p, corrected, strict=True))


def test_the_detectable_shift_falls_with_the_items() -> None:
    few = detectable(answers(per=4), answers(1, per=4), COUNT, 0)
    many = detectable(answers(per=32), answers(1, per=32), COUNT, 0)
    assert few is not None and many is not None and 2 < few / many < 4.5  # an eighth of the variance, give or take
    assert detectable(answers(), answers(), COUNT, 0) is None


@pytest.mark.parametrize("left", [(0, 1, 2), (0, 1, 2, 4, 5, 6)])
def test_foundations_of_which_one_item_is_left_cost_degrees_of_freedom(left: tuple[int, ...]) -> None:
    """One of care, then one of care and one of fairness: 25 or 22 items in six groups, or six of which one is of both."""
    base, other = without(answers(), *left), answers(shift=-1.0)
    strata = base.truth[base.scorable]
    assert _degrees(strata) == len(strata) - 6
    found = shifts(base, other, COUNT, 0)
    assert found is not None and all(
        line.change.interval and line.change.interval[0] < line.change.interval[1] for line in found
    )
    assert _degrees(np.arange(7)) == _degrees(np.zeros(1)) == 0


def test_unscorable_items_leave_both_sides() -> None:
    base, other = answers(), answers(shift=-1.0)
    assert shifts(without(base, 0, 5), other, COUNT, 0) == shifts(base, without(other, 0, 5), COUNT, 0)
