"""Which foundations moved, and how small a shift the items could have shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evals.intervals import estimate_of, log_ratio, p_of, spread_of
from evals.statistics import AUTHORITY, Answers, Estimate, same_setting
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
        """Whether the shift is significant at 5 % after the correction."""
        return self.p_holm < LEVEL


def foundation_shifts(base: Answers, other: Answers) -> list[Shift] | None:
    """A shift for each foundation in canonical order, over the items scorable in both; None where one has no interval or no test.

    Interval and p are of the delta method within foundations, Student's t with Satterthwaite's degrees of freedom: an eighth of the
    items carries most of a foundation's mass, and Holm's correction asks for tails that a bootstrap of few items does not have.
    """
    same_setting(base.setting, other.setting)
    keep = base.scorable & other.scorable
    if not keep.any():
        return None
    strata, lines = base.truth[keep], []
    for f, name in enumerate(FOUNDATIONS):
        ratio = log_ratio(base.p[keep, f], other.p[keep, f])
        change, p = estimate_of(ratio, strata), p_of(ratio, strata)
        if change is None or change.interval is None or p is None:
            return None
        lines.append((name, change, p))
    return [Shift(*line, p_holm) for line, p_holm in zip(lines, holm([p for *_, p in lines]), strict=True)]


def holm(p: list[float]) -> list[float]:
    """p-values corrected for their number, step-down (Holm 1979)."""
    order = np.argsort(p)
    stepped = np.array(p)[order] * (len(p) - np.arange(len(p)))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def detectable(base: Answers, other: Answers) -> float | None:
    """The smallest shift of auth_nats, nats, that a two-sided test at 5 % would have found four times in five with these items:
    (t_0.975 + t_0.8) standard errors of the paired shift. Not a test of the shift that was found. None where every item shifts alike."""
    same_setting(base.setting, other.setting)
    keep = base.scorable & other.scorable
    if not keep.any():
        return None
    change = log_ratio(base.p[keep, AUTHORITY], other.p[keep, AUTHORITY])
    spread = spread_of(change.influence, base.truth[keep], change.value)
    if spread is None or not spread.error:
        return None
    from scipy.stats import t  # scipy takes a second to import, which a refusal does not wait for

    return float(t.ppf(1 - LEVEL / 2, spread.degrees) + t.ppf(POWER, spread.degrees)) * spread.error
