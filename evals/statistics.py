"""Scored conditions as arrays, when two may be compared, and the paired bootstrap. numpy and scipy only.

Nats are natural-log units. An undefined number is None, never NaN and never zero. The bootstrap is for what is no smooth function of
means over items, or whose units differ in weight: perplexity, matched shifts, informedness. Means: evals.intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from shared.commands import round_command
from shared.errors import SteerHealError
from shared.instrument import FOUNDATIONS

CARE, AUTHORITY = FOUNDATIONS.index("care"), FOUNDATIONS.index("authority")
ROUNDING = 1e-12  # of float64: nats, shares and ratios below it are 0, and so is the spread of numbers of about 1


@dataclass(frozen=True)
class Setting:
    """What must agree before two conditions may be compared. texts are digests of the vignettes, foundations what each was written for and
    labels what its raters said and rotations how its options were listed, in the order of items; model is the original's fingerprint; top_k is None for greedy thoughts;
    template is the chat template's arguments, None in rows from before they were written, which are compared with rows under any."""

    items: tuple[str, ...]
    texts: tuple[str, ...]
    debias: str
    orders: int
    think: int
    stop: bool
    samples: int
    temperature: float
    instrument: str
    top_k: int | None = None
    model: str | None = None
    dtype: str | None = None
    foundations: tuple[str, ...] = ()
    labels: tuple[tuple[float, ...] | None, ...] = ()
    template: str | None = None
    rotations: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Answers:
    """The forced choice of one condition over n items, foundations in canonical order, NaN where an item is unscorable.

    truth [n] is the index of the item's foundation; p [n, 7] the answer probabilities; score [n, 7] log-probabilities, nats;
    mass [n] the answer mass; lp [n, orders, samples, 7] log-probabilities by option order, nats; label [n, 7] the human
    distribution, NaN where nobody rated; nll_prefill [n] nats per token and valid [n], whether a free answer was valid JSON, are NaN
    where not taken.
    """

    setting: Setting
    truth: np.ndarray
    p: np.ndarray
    score: np.ndarray
    mass: np.ndarray
    lp: np.ndarray
    label: np.ndarray
    nll_prefill: np.ndarray
    valid: np.ndarray

    @property
    def scorable(self) -> np.ndarray:
        """For each item [n], whether all its log-probabilities are finite."""
        return np.isfinite(self.p).all(1) & np.isfinite(self.score).all(1) & np.isfinite(self.mass)

    @property
    def rated(self) -> bool:
        """True where people have rated every item."""
        return bool(np.isfinite(self.label).all())

    @property
    def target(self) -> np.ndarray:
        """[n] what a right answer is: the raters' most frequent choice, or the foundation an unrated set was written for."""
        return np.asarray(self.label.argmax(1)) if self.rated else self.truth


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; the interval is None where a resample is undefined or no stratum has two units to resample."""

    value: float
    interval: tuple[float, float] | None

    def excludes_zero(self) -> bool:
        """Whether both ends lie on one side of 0, beyond rounding."""
        return self.interval is not None and (self.interval[0] > ROUNDING or self.interval[1] < -ROUNDING)


Statistic = Callable[[np.ndarray], np.ndarray]


def resampling_strata(strata: np.ndarray) -> np.ndarray | None:
    """Groups [n] to resample units of strata [n] within: each of two units at least, or None where there can be none.

    Strata of one unit are one group together; a stratum that is alone in having one unit joins the smallest other (Cochran 1977,
    5A.12, collapsed strata). None for no unit or one, and where every one of several strata has a single unit: nothing says how far
    units of one stratum lie apart.
    """
    if len(strata) < 2:
        return None
    names, inverse, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    if sizes.max() == 1:
        return None
    groups = np.where(sizes[inverse] == 1, len(names), inverse)
    if (sizes == 1).sum() == 1:
        groups[groups == len(names)] = np.where(sizes == 1, len(strata), sizes).argmin()
    return groups


def resample(strata: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Bootstrap weights [count, n] of n units in strata [n]; a group of `resampling_strata` of m units keeps weight m.

    m - 1 units are drawn and scaled up (Rao and Wu 1988): drawing m understates the variance by (m - 1) / m, a quarter at four
    items a stratum. The weights are NaN where `resampling_strata` finds no groups, so that no interval has a width of zero for want of a second
    unit. The same strata and seed give the same weights, which pairs conditions.
    """
    generator = np.random.default_rng(seed)
    groups = resampling_strata(strata)
    if groups is None:
        return np.full((count, len(strata)), np.nan)
    weights = np.empty((count, len(strata)))
    for name in np.unique(groups):
        units = np.flatnonzero(groups == name)
        size = len(units)
        weights[:, units] = generator.multinomial(size - 1, np.full(size, 1 / size), size=count) * (size / (size - 1))
    return weights


def on_resamples(statistic: Statistic, weights: np.ndarray) -> tuple[float, np.ndarray] | None:
    """A statistic on the units as they are and on each resample [r]; it maps weights [r, n] to [r]. None where the first is not finite."""
    if not weights.shape[1]:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(np.ones((1, weights.shape[1])))[0])
        draws = statistic(weights) if np.isfinite(weights).all() else np.full(len(weights), np.nan)
    return (value, draws) if np.isfinite(value) else None


def estimate(statistic: Statistic, weights: np.ndarray, level: float = 0.95) -> Estimate | None:
    """A statistic with its percentile interval.

    Args:
        statistic: maps weights [r, n] to [r].
        weights: of the resamples [r, n].
        level: of the interval.
    """
    both = on_resamples(statistic, weights)
    return None if both is None else summarised(*both, level=level)


def summarised(value: float, draws: np.ndarray, level: float = 0.95) -> Estimate:
    """The result of `on_resamples` with its percentile interval; None for the interval where a resample is undefined.

    Args:
        value: on the units as they are.
        draws: on the resamples [r].
        level: of the interval.
    """
    if not np.isfinite(draws).all():
        return Estimate(value, None)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, (float(low), float(high)))


def spread_of_draws(draws: np.ndarray) -> float:
    """Standard deviation of draws [r]; 0 where it is rounding, which a ratio to it would make infinite or arbitrary.

    Equal draws differ in the last digits where each is a sum over other weights.
    """
    error = float(draws.std(ddof=1))
    return error if error > ROUNDING * max(1.0, float(np.abs(draws).max())) else 0.0


def same_setting(first: Setting, second: Setting) -> None:
    """Raise SteerHealError, naming the difference, unless both were scored on the same items, orders and think budget."""
    for field in fields(Setting):
        old, new = getattr(first, field.name), getattr(second, field.name)
        if old == new or (field.name == "template" and None in (old, new)):
            continue
        if field.name == "items":
            extra, lacking = sorted({*new} - {*old}), sorted({*old} - {*new})
            given = f"items: {len(new)} against {len(old)}; only in one: {', '.join([*extra, *lacking][:4]) or 'none, but in another sequence'}"
        elif field.name in (
            of_items := {
                "texts": "text",
                "foundations": "foundation",
                "labels": "raters' label",
                "rotations": "rotation",
            }
        ):
            differ = [item for item, ours, theirs in zip(first.items, old, new, strict=True) if ours != theirs]
            given = f"the {of_items[field.name]} of {len(differ)} items, the first {differ[0]}"
        else:
            given = f"{field.name}: {new} against {old}"
        raise SteerHealError(
            "conditions scored differently are not comparable",
            given=given,
            expected="the same items, orders, think tokens and instrument",
            next=f"score both in the same way; in a run: {round_command('DIR', mode='full', target='report')}",
        )


def informedness(p: np.ndarray, truth: np.ndarray) -> Statistic:
    """Mean over the foundations that occur of TPR - FPR of argmax p [n, 7] against truth [n]: 0 is guessing, 1 is agreement.

    A resample counts the foundations that occur in it; one of a single foundation says nothing and counts as guessing. NaN where the
    items themselves are of one foundation.
    """
    picked, occurring = p.argmax(1), np.unique(truth)

    def statistic(weights: np.ndarray) -> np.ndarray:
        if len(occurring) < 2:
            return np.full(len(weights), np.nan)
        total, count = np.zeros(len(weights)), np.zeros(len(weights))
        for f in occurring:
            pick, real = (picked == f).astype(float), (truth == f).astype(float)
            rate = (weights @ (pick * real)) / (weights @ real) - (weights @ (pick * (1 - real))) / (
                weights @ (1 - real)
            )
            total += np.nan_to_num(rate)
            count += np.isfinite(rate)
        return total / np.maximum(count, 1)

    return statistic


def pair(name: str, interval: str, result: Estimate | None) -> dict[str, Any]:
    """An estimate as two fields of a row: the value, and its interval [low, high]. None where undefined."""
    return {
        name: result.value if result else None,
        interval: list(result.interval) if result and result.interval else None,
    }


def interval_text(result: Estimate, digits: int = 3) -> str:
    """An estimate with its interval in brackets, as text with `digits` decimals."""
    interval = f" [{result.interval[0]:.{digits}f}, {result.interval[1]:.{digits}f}]" if result.interval else ""
    return f"{result.value:.{digits}f}{interval}"


def mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weighted means [r] of values [n] under weights [r, n]."""
    return np.asarray(weights @ values / weights.sum(1))


def clr(score: np.ndarray) -> np.ndarray:
    """Scores minus their mean over the last axis, nats: a shift common to all options leaves no trace."""
    return np.asarray(score - score.mean(axis=-1, keepdims=True))
