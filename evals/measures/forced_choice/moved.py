"""Which foundations moved, and how small a shift the items could have shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evals.statistics import (
    AUTHORITY,
    ROUNDING,
    Answers,
    Estimate,
    drawn,
    log_shift,
    pooled,
    resample,
    same_setting,
    spread,
    summarised,
)
from shared.instrument import FOUNDATIONS

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Shift:
    """d ln of the mean probability of a foundation, nats; p of the two-sided test that it is 0, before and after Holm's correction over the seven."""

    foundation: str
    change: Estimate
    p: float
    p_holm: float

    @property
    def moved(self) -> bool:
        return self.p_holm < LEVEL


def shifts(base: Answers, other: Answers, count: int, seed: int) -> list[Shift] | None:
    """A shift for each foundation in canonical order, over the items scorable in both; None where one is undefined.

    p from Student's t of the shift over its bootstrap standard error, with a degree of freedom per item less one per foundation:
    what Holm's correction asks of the far tails, a percentile bootstrap of a few items a stratum does not have.
    """
    same_setting(base.setting, other.setting)
    keep = base.scorable & other.scorable
    weights, degrees = resample(base.truth[keep], count, seed), _degrees(base.truth[keep])
    lines = []
    for f, name in enumerate(FOUNDATIONS):
        both = drawn(log_shift(base.p[keep, f], other.p[keep, f]), weights)
        if both is None or (change := summarised(*both)).interval is None:
            return None
        if (p := _p(change.value, both[1], degrees)) is None:
            return None
        lines.append((name, change, p))
    return [Shift(*line, p_holm) for line, p_holm in zip(lines, holm([p for *_, p in lines]), strict=True)]


def _degrees(strata: np.ndarray) -> int:
    """Of freedom of a stratified mean: units less the groups that `resample` draws within. 0 where there are none: no test."""
    groups = pooled(strata)
    return 0 if groups is None else len(strata) - len(np.unique(groups))


def _p(value: float, draws: np.ndarray, degrees: int) -> float | None:
    """p of the two-sided test that a shift is 0; None for a shift that is the same in every item, whose error nothing tells."""
    error = spread(draws)
    if not error:
        return 1.0 if abs(value) <= ROUNDING else None
    from scipy.stats import t  # scipy takes a second to import, which a refusal does not wait for

    return float(2 * t.sf(abs(value) / error, degrees))


def holm(p: list[float]) -> list[float]:
    """p-values corrected for their number, step-down (Holm 1979)."""
    order = np.argsort(p)
    stepped = np.array(p)[order] * (len(p) - np.arange(len(p)))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def detectable(base: Answers, other: Answers, count: int, seed: int) -> float | None:
    """The smallest shift of auth_nats, nats, that a two-sided test at 5 % would have found four times in five with these items:
    (t_0.975 + t_0.8) standard errors of the paired shift. Not a test of the shift that was found. None where every item shifts alike."""
    same_setting(base.setting, other.setting)
    keep = base.scorable & other.scorable
    statistic = log_shift(base.p[keep, AUTHORITY], other.p[keep, AUTHORITY])
    both = drawn(statistic, resample(base.truth[keep], count, seed))
    if both is None or not np.isfinite(both[1]).all():
        return None
    error = spread(both[1])
    degrees = _degrees(base.truth[keep])
    from scipy.stats import t

    return float(t.ppf(1 - LEVEL / 2, degrees) + t.ppf(POWER, degrees)) * error if error else None
