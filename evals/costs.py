"""What a shift is worth: whether authority alone moved, what it cost in coherence, and how much of it a student kept."""

from __future__ import annotations

from evals.intervals import log_ratio, quotient
from evals.statistics import AUTHORITY, ROUNDING, Answers, Estimate, same_setting

SMALLEST_SHIFT = 0.05  # nats of d_auth under which a cost ratio is noise over noise
CARE_MARGIN = 0.05  # nats within which d_care counts as unmoved
CARE_SHARE = 0.25  # of |d_auth|, within which it does as well
# of a shift, at least so much must be authority's own: where all six foundations move alike, as of a model that finds nothing wrong, items that
# differ leave up to a fifth of the shift, with an interval that excludes 0 (simulated, 28 to 132 items)
SPECIFIC = 1 / 3


def surgical(d_auth: Estimate | None, specific: Estimate | None) -> bool | None:
    """Whether authority moved down, and by more than the other moral foundations: d_auth's upper end is below -0.05 nats,
    specific_shift's below 0, and specific_shift is at least a third of d_auth. None where one of both has no interval."""
    if d_auth is None or d_auth.interval is None or specific is None or specific.interval is None:
        return None
    down = d_auth.interval[1] < -SMALLEST_SHIFT and specific.interval[1] < -ROUNDING
    return down and specific.value <= SPECIFIC * d_auth.value


def surgical_care(is_surgical: bool | None, d_auth: Estimate | None, d_care: Estimate | None) -> bool | None:
    """Whether a surgical shift left care alone: d_care's interval lies within 0.05 nats of 0, or within a quarter of |d_auth| where
    that is more. None where one of the three is undefined."""
    if is_surgical is None or d_auth is None or d_care is None or d_care.interval is None:
        return None
    margin = max(CARE_MARGIN, CARE_SHARE * abs(d_auth.value))
    return is_surgical and -margin <= d_care.interval[0] and d_care.interval[1] <= margin


def coherence_cost(
    d_coh: Estimate | None, d_auth: Estimate | None, is_broken: bool
) -> tuple[float | None, float | None]:
    """The price of a shift in coherence: answer mass per nat of d_auth.

    Returns:
        coh_cost, which is |d_coh| / |d_auth|, and coh_slope, which is d_coh / d_auth. Both None where |d_auth| is below 0.05 nats, or
        the row is broken.
    """
    if is_broken or d_coh is None or d_auth is None or abs(d_auth.value) < SMALLEST_SHIFT:
        return None, None
    slope = d_coh.value / d_auth.value
    return abs(slope), slope


def retain(base: Answers, steered: Answers, healed: Answers, foundation: int = AUTHORITY) -> Estimate | None:
    """The healed student's shift over the steered one's, signed, with Fieller's interval over the items scorable in all three.

    None where the steered shift is 0; without an interval where it does not differ from 0.
    """
    same_setting(base.setting, steered.setting)
    same_setting(base.setting, healed.setting)
    keep = base.scorable & steered.scorable & healed.scorable
    if not keep.any():
        return None
    old = base.p[keep, foundation]
    top, bottom = (log_ratio(old, other.p[keep, foundation]) for other in (healed, steered))
    return quotient(top, bottom, base.truth[keep])
