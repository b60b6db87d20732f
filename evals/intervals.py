"""Intervals of means over items by the delta method in strata, of means over prompts by Student's t, and of seeds by prompts.

A smooth function of means over items changes, to first order, by the sum of what each item adds: its influence. Items are drawn within
foundations, so that with m items in stratum h

    SE^2 = sum_h v_h,   v_h = m var_h(influence, ddof 1),   df = (sum_h v_h)^2 / sum_h [v_h^2 / (m - 1)]

(Satterthwaite 1946), and the interval is value +- t(df) SE. Where most of a foundation's mass lies on few items, df is near their
number and not near the number of all items, which is what a percentile bootstrap of few items does not know. numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.statistics import ROUNDING, Estimate, resampling_strata


@dataclass(frozen=True)
class Smooth:
    """A function of means over items: its value and what each item adds to it, influence [n], in the same unit."""

    value: float
    influence: np.ndarray

    def __sub__(self, other: Smooth) -> Smooth:
        return Smooth(self.value - other.value, self.influence - other.influence)

    def times(self, factor: float) -> Smooth:
        """The function times a number."""
        return Smooth(factor * self.value, factor * self.influence)


def mean_of(values: np.ndarray) -> Smooth:
    """The mean of values [n]."""
    return Smooth(float(values.mean()), values / len(values))


def log_mean(values: np.ndarray) -> Smooth:
    """ln of the mean of values [n], nats; -inf where the mean is 0."""
    mean = values.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        return Smooth(float(np.log(mean)), values / (mean * len(values)))


def log_ratio(old: np.ndarray, new: np.ndarray) -> Smooth:
    """ln of the mean of new [n] over the mean of old [n], nats, paired over the items."""
    return log_mean(new) - log_mean(old)


def average(parts: Sequence[Smooth]) -> Smooth:
    """The mean of several functions of the same items."""
    return Smooth(
        float(np.mean([part.value for part in parts])), np.asarray(np.mean([part.influence for part in parts], axis=0))
    )


@dataclass(frozen=True)
class Spread:
    """Standard error and degrees of freedom. An error of 0 is rounding: every item says the same."""

    error: float
    degrees: float

    def t(self, level: float = 0.95) -> float:
        """Half the width of a two-sided interval."""
        from scipy.stats import t  # scipy takes a second to import, which a refusal does not wait for

        return float(t.ppf((1 + level) / 2, self.degrees)) * self.error if self.error else 0.0


def spread_of(influence: np.ndarray, strata: np.ndarray, scale: float = 1.0) -> Spread | None:
    """The standard error, and its degrees of freedom, of a sum of influence [n] over items in strata [n].

    Strata of one item are one group together, as in `statistics.resampling_strata`: their means differ, so that the error is rather too large.
    None where nothing says how far items of a stratum lie apart. An error below 1e-12 of scale counts as 0.
    """
    groups = resampling_strata(strata)
    if groups is None or not np.isfinite(influence).all():
        return None
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.bincount(place, influence) / sizes
    squares = np.bincount(place, (influence - means[place]) ** 2)
    variances = sizes * squares / (sizes - 1)
    total = float(variances.sum())
    if np.sqrt(total) <= ROUNDING * max(1.0, abs(scale)):
        return Spread(0.0, float(len(strata) - len(sizes)))
    return Spread(float(np.sqrt(total)), total**2 / float((variances**2 / (sizes - 1)).sum()))


def estimate_of(smooth: Smooth, strata: np.ndarray, level: float = 0.95) -> Estimate | None:
    """The value of a function of means, with its confidence interval.

    Args:
        smooth: the value, and the influence [n] of every item on it.
        strata: stratum of each item [n].
        level: of the interval.

    Returns:
        None where the value is not finite. The estimate has no interval where `spread_of` returns none.
    """
    if not np.isfinite(smooth.value):
        return None
    spread = spread_of(smooth.influence, strata, smooth.value)
    if spread is None:
        return Estimate(smooth.value, None)
    half = spread.t(level)
    return Estimate(smooth.value, (smooth.value - half, smooth.value + half))


def exponential(estimate: Estimate | None) -> Estimate | None:
    """exp of a logarithm and of both its ends."""
    if estimate is None:
        return None
    ends = estimate.interval
    return Estimate(
        float(np.exp(estimate.value)), None if ends is None else (float(np.exp(ends[0])), float(np.exp(ends[1])))
    )


def p_of(smooth: Smooth, strata: np.ndarray) -> float | None:
    """p of the two-sided test that a function of means is 0; None where its error is unknown, or 0 for a value that is not."""
    spread = spread_of(smooth.influence, strata, smooth.value)
    if spread is None or not np.isfinite(smooth.value):
        return None
    if not spread.error:
        return 1.0 if abs(smooth.value) <= ROUNDING else None
    from scipy.stats import t

    return float(2 * t.sf(abs(smooth.value) / spread.error, spread.degrees))


def quotient(top: Smooth, bottom: Smooth, strata: np.ndarray, level: float = 0.95) -> Estimate | None:
    """top over bottom with Fieller's interval (1954), which knows that the denominator is uncertain too.

    The values r for which top - r bottom does not differ from 0. Without an interval where bottom itself does not differ from 0: then
    no quotient can be excluded. None where bottom is 0.

    Args:
        top, bottom: functions of means over the same items.
        strata: of the items [n].
        level: of the interval.
    """
    if not np.isfinite(top.value) or not np.isfinite(bottom.value) or abs(bottom.value) <= ROUNDING:
        return None
    value = top.value / bottom.value
    residual = spread_of(top.influence - value * bottom.influence, strata, top.value)
    if residual is None:
        return Estimate(value, None)
    if not residual.error:
        return Estimate(value, (value, value))
    half = residual.t(level) / residual.error
    a = bottom.value**2 - half**2 * _covariance(bottom, bottom, strata)
    b = top.value * bottom.value - half**2 * _covariance(top, bottom, strata)
    c = top.value**2 - half**2 * _covariance(top, top, strata)
    if a <= 0 or b * b < a * c:
        return Estimate(value, None)
    root = float(np.sqrt(b * b - a * c))
    return Estimate(value, ((b - root) / a, (b + root) / a))


def _covariance(first: Smooth, second: Smooth, strata: np.ndarray) -> float:
    plus = spread_of(first.influence + second.influence, strata, 0.0)
    minus = spread_of(first.influence - second.influence, strata, 0.0)
    assert plus is not None and minus is not None, "the caller has asked for one spread of these strata"
    return (plus.error**2 - minus.error**2) / 4


def of_units(values: np.ndarray, level: float = 0.95) -> Estimate | None:
    """The mean of values [n] over prompts or passages with Student's t of n - 1 degrees of freedom; None for no values."""
    values = values[np.isfinite(values)]
    return estimate_of(mean_of(values), np.zeros(len(values)), level) if len(values) else None


def crossed(table: np.ndarray, level: float = 0.95) -> Estimate | None:
    """The mean over seeds and units of paired differences [seeds, units], for a new seed and new units.

    SE^2 = s_seed^2 / S + s_unit^2 / n of the means of rows and of columns, Student's t with S - 1 degrees of freedom: conservative,
    since what neither explains is in both terms. Without an interval for one seed.
    """
    seeds, units = table.shape
    if not table.size or not np.isfinite(table).all():
        return None
    value = float(table.mean())
    if seeds < 2:
        return Estimate(value, None)
    by_unit = float(table.mean(axis=0).var(ddof=1)) / units if units > 1 else 0.0
    half = Spread(float(np.sqrt(table.mean(axis=1).var(ddof=1) / seeds + by_unit)), seeds - 1).t(level)
    return Estimate(value, (value - half, value + half))
