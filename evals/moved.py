"""Which foundations moved, and how small a shift the items could have shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from evals.instrument import FOUNDATIONS
from evals.statistics import AUTHORITY, Answers, Estimate, drawn, log_shift, resample, same_setting, summarised

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

    p from the bootstrap: twice the smaller share of resamples on either side of 0, each counted with one more, so that it is
    never 0 (Davison and Hinkley 1997, section 4.2).
    """
    same_setting(base.setting, other.setting)
    keep = base.scorable & other.scorable
    weights = resample(base.truth[keep], count, seed)
    found = []
    for f, name in enumerate(FOUNDATIONS):
        both = drawn(log_shift(base.p[keep, f], other.p[keep, f]), weights)
        if both is None or (change := summarised(*both, units=weights.shape[1])).interval is None:
            return None
        sides = (both[1] <= 0).sum(), (both[1] >= 0).sum()
        found.append((name, change, min(1.0, 2 * (int(min(sides)) + 1) / (count + 1))))
    return [Shift(*line, p_holm) for line, p_holm in zip(found, holm([p for *_, p in found]), strict=True)]


def holm(p: list[float]) -> list[float]:
    """p-values corrected for their number, step-down (Holm 1979)."""
    order = np.argsort(p)
    stepped = np.array(p)[order] * (len(p) - np.arange(len(p)))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def detectable(base: Answers, other: Answers, count: int, seed: int) -> float | None:
    """The smallest shift of auth_nats, nats, that a two-sided test at 5 % would have found four times in five with these items:
    (z_0.975 + z_0.8) standard errors of the paired shift. Not a test of the shift that was found."""
    same_setting(base.setting, other.setting)
    keep = base.scorable & other.scorable
    statistic = log_shift(base.p[keep, AUTHORITY], other.p[keep, AUTHORITY])
    found = drawn(statistic, resample(base.truth[keep], count, seed))
    if found is None or not np.isfinite(found[1]).all():
        return None
    error = float(found[1].std(ddof=1))
    return float(norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)) * error if error else None
