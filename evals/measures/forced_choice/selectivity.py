"""Two figures as moral-maps (wassname/moral-maps at 01e9026) defines them, from our rows: gated_selectivity and si_flips.

Both compare two arms item by item, as steering at + c and at - c. With clr_f = score_f - mean over the seven options, intent the signs of
the foundations that are meant to move, and means over items,

    on   = mean over meant f of intent_f * (clr_f(first) - clr_f(second))
    off  = mean over the other f of |clr_f(first) - clr_f(second)|
    gated_selectivity = (on - 0.1 off) * min(1, lesser answer mass of the two / base's) ** 2
    si_flips = mean over meant f of intent_f * (share of items with f as first choice, first arm less second)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evals.intervals import estimate_of, mean_of
from evals.statistics import Answers, Estimate, clr, estimate, mean, pair, resample, same_setting

OFF_WEIGHT = 0.1  # of what moves besides, per foundation: at 1 the best steering would be none
COLUMNS = tuple(
    f"{name}{way}{ci}" for name in ("gated_selectivity", "si_flips") for way in ("", "_over_base") for ci in ("", "_ci")
)


def gated_selectivity(
    base: Answers, first: Answers, second: Answers, intent: Mapping[int, int], count: int, seed: int
) -> Estimate | None:
    """gated_selectivity in nats of clr, over the items scorable in all three; None where no item is.

    The interval is a bootstrap of items within foundations, where moral-maps draws over all of them; in both the factor of the answer
    mass is that of the data.

    Args:
        base: whose answer mass counts as 1; second: the other arm, which may be the base itself.
        intent: sign, 1 or -1, by index of the foundation.
        count, seed: of the bootstrap's resamples.
    """
    for other in (first, second):
        same_setting(base.setting, other.setting)
    keep = base.scorable & first.scorable & second.scorable
    if not keep.any():
        return None
    change = clr(first.score[keep]) - clr(second.score[keep])
    mass = [float(arm.mass[keep].mean()) for arm in (base, first, second)]
    coherence = min(1.0, min(mass[1:]) / mass[0])
    others = [f for f in range(change.shape[1]) if f not in intent]

    def statistic(weights: np.ndarray) -> np.ndarray:
        moved = np.stack([mean(weights, change[:, f]) for f in range(change.shape[1])], 1)
        on = np.mean([sign * moved[:, f] for f, sign in intent.items()], 0)
        off = np.abs(moved[:, others]).mean(1)
        return np.asarray((on - OFF_WEIGHT * off) * coherence**2)

    return estimate(statistic, resample(base.truth[keep], count, seed))


def si_flips(first: Answers, second: Answers, intent: Mapping[int, int]) -> Estimate | None:
    """From -1 to 1, over the items scorable in both; the interval is of the delta method within foundations."""
    same_setting(first.setting, second.setting)
    keep = first.scorable & second.scorable
    if not keep.any():
        return None
    now, was = (arm.score[keep].argmax(1) for arm in (first, second))
    flips = np.mean([sign * ((now == f).astype(float) - (was == f)) for f, sign in intent.items()], 0)
    return estimate_of(mean_of(flips), first.truth[keep])


def columns(
    base: Answers, case: Answers, mirror: Answers | None, intent: Mapping[int, int] | None, count: int, seed: int
) -> dict[str, Any]:
    """Both figures of a condition: against the condition at the opposite coefficient, where that was scored, and against the base.

    intent: None for a trait that is about no foundation, which has neither.
    """
    values: dict[str, Any] = dict.fromkeys(COLUMNS)
    if intent is None:
        return values
    for way, second in (("", mirror), ("_over_base", base if case is not base else None)):
        if second is not None:
            gated = gated_selectivity(base, case, second, intent, count, seed)
            values |= pair(f"gated_selectivity{way}", f"gated_selectivity{way}_ci", gated)
            values |= pair(f"si_flips{way}", f"si_flips{way}_ci", si_flips(case, second, intent))
    return values
