"""Order effects, what cyclic orders remove, and reliability, on answers whose position effect is known."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from test_statistics import COUNT, answers, interval, value

from evals.measures.forced_choice.ask import Read, row
from evals.measures.forced_choice.instrument import orders, rotations
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
    for item, rotation in enumerate(rotations(debias, a.truth.tolist())):
        for order, listing in enumerate(orders(debias, rotation)):
            lp[item, order, 0, listing] += EFFECT
    return replace(a, lp=lp, score=lp[:, :, 0].mean(1))


def test_cyclic_orders_show_the_position_effect_and_take_it_out() -> None:
    a = placed("cyclic")
    np.testing.assert_allclose(position_effect(a), EFFECT, atol=1e-12)
    assert order_effect(a) == pytest.approx(EFFECT.max() - EFFECT.min())
    np.testing.assert_allclose(clr(a.score), 0, atol=1e-12)


def test_what_reversal_leaves_in_authority_is_the_effect_of_the_middle() -> None:
    assert value(left_by_reversal(placed("cyclic"))) == pytest.approx(EFFECT[3])
    reversal = placed("reversal")
    assert clr(reversal.score)[:, AUTHORITY] == pytest.approx(EFFECT[3] - (EFFECT + EFFECT[::-1]).mean() / 2)
    assert position_effect(reversal) is None and left_by_reversal(reversal) is None


def test_rotating_orders_show_mirrored_positions_and_leave_a_mean_alone() -> None:
    """Within an item a foundation stands at two mirrored places, whose difference is position alone, whatever the item says."""
    a = placed("rotating", signal=1.0)
    assert order_effect(a) == pytest.approx(np.abs(EFFECT - EFFECT[::-1]).max())
    assert position_effect(a) is None and left_by_reversal(a) is None
    left = [np.abs(clr(placed(debias).score).mean(0)).max() for debias in ("rotating", "reversal")]
    assert left[0] < 0.05 < 0.4 < left[1], "eight items a foundation: one rotation occurs twice"


def test_position_errors_of_a_shift() -> None:
    """Position effects N(0, 1.2) at each slot that a condition changes by N(0, 0.5), and no moral change: the spread of d_auth over
    200 conditions is that of the instrument. Two rotating orders come near seven cyclic ones, at reversal's price."""
    draws = np.random.default_rng(0)
    truth = np.repeat(np.arange(7), 4)
    moral = draws.normal(0, 0.5, (28, 7)) + 2.0 * np.eye(7)[truth]
    slots = draws.normal(0, 1.2, (200, 7))
    changed = slots + draws.normal(0, 0.5, slots.shape)
    spread = {}
    for debias in ("reversal", "rotating", "cyclic"):
        listings = np.array([orders(debias, rotation) for rotation in rotations(debias, truth.tolist())])
        place = np.argsort(listings, axis=2)  # [items, orders, foundations]: where each stood

        def authority(effect: np.ndarray, place: np.ndarray = place) -> np.ndarray:
            score = moral + effect[:, place].mean(axis=2)
            return np.log(softmax(score, axis=2)[:, :, AUTHORITY].mean(axis=1))

        spread[debias] = float((authority(changed) - authority(slots)).std())
    assert spread["cyclic"] < 1e-12 and spread["rotating"] < 0.1 * spread["reversal"] and spread["reversal"] > 0.25


@pytest.mark.parametrize("debias", ["reversal", "cyclic"])
@given(data=st.data())
def test_renaming_the_orders_changes_nothing(debias: str, data: st.DataObject) -> None:
    """The same answers under the same listings in another sequence, through every function that looks at orders."""
    a, listings = placed(debias, noise=0.5, signal=1.0), orders(debias)
    sequence = data.draw(st.permutations(range(len(listings))))
    renamed = replace(a, lp=a.lp[:, sequence])

    def said(of: Answers) -> list[float]:
        left = left_by_reversal(of)
        return [
            order_effect(of),
            value(reliability(of, 100, 0)),
            *(position_effect(of) or []),
            *([left.value] if left else []),
        ]

    before = said(a)
    with mock.patch("evals.measures.forced_choice.positions.orders", lambda *_: [listings[k] for k in sequence]):
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
