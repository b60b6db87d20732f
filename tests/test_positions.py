"""Order effects, what cyclic orders remove, and reliability, on answers whose position effect is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_statistics import COUNT, answers, interval, value

from evals.instrument import orders
from evals.positions import by_position, left_by_reversal, order_effect, position_effect, reliability, single_orders
from evals.statistics import AUTHORITY, Answers, clr

EFFECT = np.array([1.5, 0.2, -0.4, 0.9, -0.7, -0.5, -1.0])  # sums to 0: what a position adds to clr


def placed(debias: str, noise: float = 0.0, signal: float = 0.0, seed: int = 0) -> Answers:
    """Answers with EFFECT at the listed positions, an item's own inclination to authority, and noise in single orders."""
    a = answers(seed, per=8, debias=debias)
    draws = np.random.default_rng(seed)
    lp = draws.normal(0, noise, a.lp.shape) if noise else np.zeros_like(a.lp)
    lp[..., AUTHORITY] += signal * draws.normal(0, 1, len(lp))[:, None, None]
    for order, listing in enumerate(orders(debias)):
        lp[:, order, 0, listing] += EFFECT
    return replace(a, lp=lp, score=lp[:, :, 0].mean(1))


def test_cyclic_orders_show_the_position_effect_and_take_it_out() -> None:
    a = placed("cyclic")
    np.testing.assert_allclose(position_effect(a), EFFECT, atol=1e-12)
    assert order_effect(a) == pytest.approx(EFFECT.max() - EFFECT.min())
    np.testing.assert_allclose(clr(a.score), 0, atol=1e-12)


def test_what_reversal_leaves_in_authority_is_the_effect_of_the_middle() -> None:
    assert value(left_by_reversal(placed("cyclic"), COUNT, 0)) == pytest.approx(EFFECT[3])
    reversal = placed("reversal")
    assert clr(reversal.score)[:, AUTHORITY] == pytest.approx(EFFECT[3] - (EFFECT + EFFECT[::-1]).mean() / 2)
    assert position_effect(reversal) is None and left_by_reversal(reversal, COUNT, 0) is None


@given(st.permutations(range(7)))
def test_the_sequence_of_the_orders_changes_nothing(sequence: list[int]) -> None:
    """A sequence of the seven rotations is the same square: what is said of the positions does not depend on it."""
    a = placed("cyclic", noise=0.5, signal=1.0)
    listings = orders("cyclic")
    again = np.stack([by_position(a)[:, order] for order in sequence], 1).mean((0, 1))
    np.testing.assert_allclose(again, position_effect(a))
    lp = a.lp[:, sequence]
    np.testing.assert_allclose(lp.mean((1, 2)), a.lp.mean((1, 2)))
    assert sorted(listings[k][0] for k in sequence) == list(range(7))


def test_a_constant_on_all_log_probabilities_leaves_no_trace() -> None:
    a = placed("cyclic", noise=0.5, signal=1.0)
    moved = replace(a, lp=a.lp + 3.0)
    np.testing.assert_allclose(single_orders(moved), single_orders(a), atol=1e-12)
    assert value(reliability(moved, COUNT, 0)) == pytest.approx(value(reliability(a, COUNT, 0)))


def test_reliability_is_one_without_noise_and_near_zero_of_noise_alone() -> None:
    assert value(reliability(placed("cyclic", signal=1.0), COUNT, 0)) == pytest.approx(1.0)
    low, high = interval(reliability(placed("cyclic", noise=1.0), COUNT, 0))
    assert low < 0.3 and high < 0.7
    some = value(reliability(placed("cyclic", noise=1.0, signal=1.0), COUNT, 0))
    assert 0.6 < some < 1.0
    assert reliability(placed("cyclic"), COUNT, 0) is None  # no item differs from another


def test_reliability_of_two_orders_is_the_stepped_up_correlation() -> None:
    a = placed("reversal", noise=1.0, signal=1.0)
    x, y = single_orders(a)[:, :, AUTHORITY].T
    r = np.corrcoef(x, y)[0, 1]
    assert value(reliability(a, COUNT, 0)) == pytest.approx(2 * r / (1 + r))
