"""What a shift is worth: whether authority alone moved, what it cost in coherence, and how much of it a student kept."""

from __future__ import annotations

import numpy as np

from evals.statistics import (
    AUTHORITY,
    ROUNDING,
    Answers,
    Estimate,
    Statistic,
    clr,
    estimate,
    log_shift,
    mean,
    resample,
    same_setting,
)
from shared.instrument import FOUNDATIONS

SMALLEST_SHIFT = 0.05  # nats of d_auth under which a cost ratio is noise over noise
CARE_MARGIN = 0.05  # nats within which d_care counts as unmoved
CARE_SHARE = 0.25  # of |d_auth|, within which it does as well


def surgical(base: Answers, other: Answers, count: int, seed: int) -> bool | None:
    """Whether authority alone moved, and in the trait's direction, which is down; None where there are no intervals.

    True when d_auth's upper end is below -0.05 nats, and authority fell on clr (score minus its mean over the seven) by more than any
    other foundation moved either way, each by a paired bootstrap at 95 %.
    """
    same_setting(base.setting, other.setting)
    keep = base.scorable & other.scorable
    if not keep.any():
        return None
    change = clr(other.score[keep]) - clr(base.score[keep])
    weights = resample(base.truth[keep], count, seed)

    def margin(f: int) -> Statistic:
        return lambda w: -mean(w, change[:, AUTHORITY]) - np.abs(mean(w, change[:, f]))

    d_auth = estimate(log_shift(base.p[keep, AUTHORITY], other.p[keep, AUTHORITY]), weights)
    margins = [estimate(margin(f), weights) for f in range(len(FOUNDATIONS)) if f != AUTHORITY]
    intervals = [margin.interval for margin in margins if margin is not None]
    if d_auth is None or d_auth.interval is None or len(intervals) < len(margins) or None in intervals:
        return None
    return d_auth.interval[1] < -SMALLEST_SHIFT and all(ends is not None and ends[0] > ROUNDING for ends in intervals)


def surgical_care(is_surgical: bool | None, d_auth: Estimate | None, d_care_90: Estimate | None) -> bool | None:
    """Whether a surgical shift left care alone: d_care's 90 % interval lies within 0.05 nats of 0, or within a quarter of |d_auth| where
    that is more (two one-sided tests at 5 %). None where one of the three is undefined."""
    if is_surgical is None or d_auth is None or d_care_90 is None or d_care_90.interval is None:
        return None
    margin = max(CARE_MARGIN, CARE_SHARE * abs(d_auth.value))
    return is_surgical and -margin <= d_care_90.interval[0] and d_care_90.interval[1] <= margin


def cost(d_coh: Estimate | None, d_auth: Estimate | None, is_broken: bool) -> tuple[float | None, float | None]:
    """(coh_cost = |d_coh| / |d_auth|, d_coh / d_auth), answer mass per nat; None where |d_auth| < 0.05 or the row is broken."""
    if is_broken or d_coh is None or d_auth is None or abs(d_auth.value) < SMALLEST_SHIFT:
        return None, None
    slope = d_coh.value / d_auth.value
    return abs(slope), slope


def retain(healed: Estimate | None, steered: Estimate | None) -> float | None:
    """d_auth of healed over that of steered, signed."""
    return None if healed is None or steered is None or abs(steered.value) <= ROUNDING else healed.value / steered.value
