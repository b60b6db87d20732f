"""Order effects, what cyclic orders remove, and reliability, on answers whose position effect is known."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_statistics import COUNT, answers, interval, value

from evals.measures.forced_choice.ask import Read, row
from evals.measures.forced_choice.instrument import orders
from evals.measures.forced_choice.positions import (
    left_by_reversal,
    order_effect,
    position_effect,
    reliability,
    single_orders,
)
from evals.statistics import AUTHORITY, Answers, clr
from shared.records import Vignette

VIGNETTE = Vignette(id="x", foundation="Care", foundation_coarse="Care", text="x")
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


@pytest.mark.parametrize("debias", ["reversal", "cyclic"])
@given(data=st.data())
def test_renaming_the_orders_changes_nothing(debias: str, data: st.DataObject) -> None:
    """The same answers under the same listings in another sequence, through every function that looks at orders."""
    a, listings = placed(debias, noise=0.5, signal=1.0), orders(debias)
    sequence = data.draw(st.permutations(range(len(listings))))
    renamed = replace(a, lp=a.lp[:, sequence])

    def said(of: Answers) -> list[float]:
        left = left_by_reversal(of, 100, 0)
        return [
            order_effect(of),
            value(reliability(of, 100, 0)),
            *(position_effect(of) or []),
            *([left.value] if left else []),
        ]

    before = said(a)
    with mock.patch("evals.measures.forced_choice.positions.orders", lambda _: [listings[k] for k in sequence]):
        assert said(renamed) == pytest.approx(before)
    rows = [row(VIGNETTE, lp, Read(debias, 4), None, [""] * len(listings)) for lp in (a.lp[0], renamed.lp[0])]
    for key in ("p", "score", "pmass_allowed", "margin"):
        assert rows[1][key] == pytest.approx(rows[0][key])


def test_a_constant_on_all_log_probabilities_leaves_no_trace() -> None:
    a = placed("cyclic", noise=0.5, signal=1.0)
    moved = replace(a, lp=a.lp + 3.0)
    np.testing.assert_allclose(single_orders(moved), single_orders(a), atol=1e-12)
    assert value(reliability(moved, COUNT, 0)) == pytest.approx(value(reliability(a, COUNT, 0)))


def test_reliability_is_one_without_noise_and_near_zero_of_noise_alone() -> None:
    assert value(reliability(placed("cyclic", signal=1.0), COUNT, 0)) == pytest.approx(1.0)
    low, high = interval(reliability(placed("cyclic", noise=1.0), COUNT, 0))
    assert -1 <= low < 0.3 and high < 0.7
    some = value(reliability(placed("cyclic", noise=1.0, signal=1.0), COUNT, 0))
    assert 0.6 < some < 1.0
    assert reliability(placed("cyclic"), COUNT, 0) is None  # no item differs from another


def test_reliability_of_answers_that_contradict_each_other_has_a_floor() -> None:
    a = placed("reversal", noise=0.1)
    lp = a.lp.copy()
    lp[:, 1] = -lp[:, 0]
    assert value(reliability(replace(a, lp=lp), COUNT, 0)) == pytest.approx(-1.0)


def test_reliability_of_two_orders_is_the_stepped_up_correlation() -> None:
    a = placed("reversal", noise=1.0, signal=1.0)
    x, y = single_orders(a)[:, :, AUTHORITY].T
    r = np.corrcoef(x, y)[0, 1]
    assert value(reliability(a, COUNT, 0)) == pytest.approx(2 * r / (1 + r))
