"""Intervals of means over items against naive formulas, and how often they cover what they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import t

from evals.intervals import (
    Smooth,
    crossed,
    estimate_of,
    exponential,
    log_mean,
    log_ratio,
    mean_of,
    of_units,
    p_of,
    quotient,
    spread_of,
)
from evals.statistics import AUTHORITY, Estimate

STRATA = np.repeat(np.arange(7), 4)


def shares(draws: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """Invented raters' shares [n, 7]: most on the item's own foundation, the rest mostly "not wrong", so that some 60 % of all authority
    lies on the items of authority and their number decides an interval, not the number of all items."""
    own = draws.beta(6, 2.5, len(truth))
    rest = draws.dirichlet([0.6] * 6 + [3.0], len(truth))
    rest[np.arange(len(truth)), truth] = 0
    found = rest / rest.sum(axis=1, keepdims=True) * (1 - own)[:, None]
    found[np.arange(len(truth)), truth] = own
    return found


def simulated(
    items: int, sims: int, delta: float, sigma: float, null: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p before and after [sims, items, 7] and the foundations: each condition adds noise to seven logits; null: both do."""
    draws = np.random.default_rng([items, sims])
    truth = np.sort(np.arange(items) % 7)
    score = 0.8 * np.log(shares(draws, np.tile(truth, sims)) + 0.01).reshape(sims, items, 7)
    after = score + draws.normal(0, sigma, score.shape)
    after[..., AUTHORITY] += delta
    before = score + draws.normal(0, sigma, score.shape) if null else score
    return softmax(before, axis=2), softmax(after, axis=2), truth


def true_shift(items: int, delta: float, sigma: float, per: int) -> float:
    """The shift over endlessly many items of which as many are of each foundation."""
    sizes = np.bincount(np.arange(items) % 7, minlength=7)
    p, q, truth = simulated(7 * per, 1, delta, sigma, null=False)
    means = [sum(n * of[0, truth == f, AUTHORITY].mean() for f, n in enumerate(sizes)) for of in (p, q)]
    return float(np.log(means[1] / means[0]))


def rates(items: int, sims: int, per: int) -> tuple[float, float]:
    """(coverage of d_auth, share of nulls in which some foundation is said to have moved)."""
    covered = []
    for delta in (0.0, -0.5):
        p, q, truth = simulated(items, sims, delta, 0.5, null=False)
        wanted = true_shift(items, delta, 0.5, per)
        for k in range(sims):
            found = estimate_of(log_ratio(p[k, :, AUTHORITY], q[k, :, AUTHORITY]), truth)
            assert found is not None and found.interval is not None
            covered.append(found.interval[0] <= wanted <= found.interval[1])
    p, q, truth = simulated(items, sims, 0.0, 0.5, null=True)
    first = [min(p_of(log_ratio(p[k, :, f], q[k, :, f]), truth) or 0.0 for f in range(7)) for k in range(sims)]
    return float(np.mean(covered)), float(
        np.mean(np.array(first) < 0.05 / 7)
    )  # Holm's first step: some foundation moved


@pytest.mark.parametrize("items", [21, 70])
def test_intervals_cover_where_few_items_carry_the_mass(items: int) -> None:
    """250 simulated comparisons of each; the long test has the sharp bounds."""
    coverage, false = rates(items, 250, 20_000)
    assert 0.92 <= coverage <= 0.975 and false <= 0.085


@pytest.mark.long
@pytest.mark.parametrize("items", [21, 28, 70, 132])
def test_intervals_cover_95_percent(items: int) -> None:
    coverage, false = rates(items, 4000, 200_000)
    assert 0.93 <= coverage <= 0.97 and 0.035 <= false <= 0.07


def test_the_spread_is_that_of_a_stratified_mean() -> None:
    values = np.random.default_rng(0).normal(size=28) * np.repeat(np.arange(1, 8), 4)
    parts = [4 * np.var(values[h == STRATA] / 28, ddof=1) for h in range(7)]
    found = spread_of(mean_of(values).influence, STRATA)
    assert found is not None and found.error == pytest.approx(np.sqrt(sum(parts)))
    assert found.degrees == pytest.approx(sum(parts) ** 2 / sum(part**2 / 3 for part in parts)) and found.degrees < 21
    half = t.ppf(0.975, found.degrees) * found.error
    assert estimate_of(mean_of(values), STRATA) == Estimate(
        pytest.approx(values.mean()), (pytest.approx(values.mean() - half), pytest.approx(values.mean() + half))
    )


def test_influence_is_the_derivative_by_the_weight_of_an_item() -> None:
    draws = np.random.default_rng(1)
    p, q = draws.uniform(0.1, 0.9, (2, 28))
    weights = np.ones(28)
    for found, statistic in (
        (log_mean(p), lambda w: np.log(w @ p / w.sum())),
        (log_ratio(p, q), lambda w: np.log((w @ q) / (w @ p))),
    ):
        assert found.value == pytest.approx(statistic(weights))
        for item in (0, 9):
            moved = weights.copy()
            moved[item] += 1e-6
            centred = found.influence[item] - found.influence.mean()
            assert (statistic(moved) - statistic(weights)) / 1e-6 == pytest.approx(centred, abs=1e-5)


def test_every_item_alike_has_no_spread_and_a_lone_item_no_interval() -> None:
    assert estimate_of(mean_of(np.full(28, 0.3)), STRATA) == Estimate(pytest.approx(0.3), (pytest.approx(0.3),) * 2)
    assert p_of(mean_of(np.zeros(28)), STRATA) == 1.0 and p_of(mean_of(np.full(28, 0.3)), STRATA) is None
    assert estimate_of(mean_of(np.ones(7)), np.arange(7)) == Estimate(1.0, None)
    assert estimate_of(log_mean(np.zeros(28)), STRATA) is None
    collapsed = spread_of(mean_of(np.array([0.0, 1, 0, 1, 5, 9])).influence, np.array([0, 0, 1, 1, 2, 3]))
    assert collapsed is not None and collapsed.error == pytest.approx(np.sqrt(2 * (0.5 + 0.5 + 8)) / 6)


def test_a_ratio_has_the_interval_of_its_logarithm() -> None:
    found = exponential(Estimate(0.0, (-1.0, 1.0)))
    assert found == Estimate(1.0, (pytest.approx(np.exp(-1)), pytest.approx(np.e))) and exponential(None) is None


def test_a_quotient_knows_that_its_denominator_is_uncertain() -> None:
    """Fieller's ends are where top - r bottom stops to differ from 0; with a bottom that may be 0 there is no interval."""
    draws = np.random.default_rng(2)
    item = draws.normal(1.0, 0.6, 28)
    bottom, top = mean_of(item), mean_of(0.5 * item + draws.normal(0, 0.2, 28))
    found = quotient(top, bottom, STRATA)
    assert found is not None and found.interval is not None
    assert found.value == pytest.approx(top.value / bottom.value)
    for end in found.interval:
        gap = Smooth(top.value - end * bottom.value, top.influence - end * bottom.influence)
        assert p_of(gap, STRATA) == pytest.approx(0.05, abs=0.02)
    assert quotient(top, mean_of(item - item.mean() + 1e-3), STRATA).interval is None  # type: ignore[union-attr]
    assert quotient(top, mean_of(np.zeros(28)), STRATA) is None
    exact = quotient(mean_of(0.5 * item), bottom, STRATA)
    assert exact is not None and exact.interval is not None and np.ptp(exact.interval) < 1e-9


def test_prompts_have_students_t() -> None:
    values = np.array([0.1, 0.4, 0.2, np.nan, 0.7])
    known = values[np.isfinite(values)]
    half = t.ppf(0.975, 3) * known.std(ddof=1) / 2
    found = of_units(values)
    assert found == Estimate(pytest.approx(known.mean()), (pytest.approx(known.mean() - half), pytest.approx(known.mean() + half)))  # fmt: skip
    assert of_units(np.array([np.nan])) is None and of_units(np.array([0.5])) == Estimate(0.5, None)


def test_seeds_and_prompts_are_crossed() -> None:
    table = np.random.default_rng(3).normal(size=(3, 5))
    found = crossed(table)
    error = np.sqrt(table.mean(1).var(ddof=1) / 3 + table.mean(0).var(ddof=1) / 5)
    assert found is not None and found.interval is not None
    assert found.interval[1] - found.value == pytest.approx(t.ppf(0.975, 2) * error)
    assert crossed(table[:1]) == Estimate(pytest.approx(table[0].mean()), None)


def test_an_interval_for_a_new_seed_covers_it() -> None:
    """sd of 0.02 over seeds and 0.05 over prompts, as measured; resampled prompts of fixed seeds cover 80 % of it."""
    draws, hits = np.random.default_rng(4), 0
    for _ in range(500):
        table = draws.normal(0, 0.02, (3, 1)) + draws.normal(0, 0.05, (1, 16)) + draws.normal(0, 0.05, (3, 16))
        found = crossed(table)
        assert found is not None and found.interval is not None
        hits += found.interval[0] <= 0 <= found.interval[1]
    assert hits / 500 >= 0.95
