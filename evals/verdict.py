"""What the numbers allow to be said of a row: the preflight of the base, what counts as broken, and the verdict with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from evals.statistics import AUTHORITY, ROUNDING, Answers, Estimate, show

AXIS = (0.005, 0.95)  # base mass on authority outside which there is nowhere to move
BROKEN, DEGRADED, UNDONE = 0.85, 0.95, 1 / 3


def preflight(a: Answers, informed: Estimate | None) -> str | None:
    """Why the base leaves no axis to move along, or None.

    The rule: mean authority mass within 0.005 to 0.95, and the lower end of informedness' 95 % interval above 0.
    """
    keep = a.scorable
    if not keep.any():
        return "no base item is scorable"
    mass = float(a.p[keep][:, AUTHORITY].mean())
    if not AXIS[0] <= mass <= AXIS[1]:
        return f"base mass on authority is {mass:.4f}, at its {'floor' if mass < AXIS[0] else 'ceiling'} (needs {AXIS[0]} to {AXIS[1]})"
    if informed is None or informed.interval is None:
        return "base informedness has no interval (needs a lower end above 0)"
    if informed.interval[0] <= ROUNDING:
        return f"base informedness is {show(informed)}, its lower end must lie above 0: the answers do not follow the vignettes"
    return None


def broken(undefined: Sequence[str], unscorable: int, items: int, coherence: Estimate | None) -> str | None:
    """Why a row is broken, or None: values that are not finite, most items unscorable, or coherence below 0.85 by more than its interval."""
    if undefined:
        return f"not finite: {', '.join(undefined)}"
    if 2 * unscorable > items:
        return f"{unscorable} of {items} items are unscorable"
    if coherence is None:
        return "not finite: coherence"
    if (coherence.interval[1] if coherence.interval else coherence.value) < BROKEN:
        return f"coherence {show(coherence)} lies below {BROKEN}"
    return None


def verdict(
    is_broken: str | None,
    no_axis: str | None,
    steered: Estimate | None,
    retained: float | None,
    coherence: Estimate | None,
) -> tuple[str, str]:
    """(verdict, reason) of a healed row; the first rule that matches. steered is d_auth of the same round's steered row."""
    if is_broken is not None:
        return "broken", is_broken
    if no_axis is not None:
        return "no_axis", no_axis
    if steered is None or steered.interval is None or steered.interval[1] >= -ROUNDING:
        return (
            "no_shift",
            "the steered d_auth is undefined"
            if steered is None
            else f"the steered d_auth is {show(steered)}, {'not below 0' if steered.interval else 'without an interval'}",
        )
    if retained is None or coherence is None:
        return "broken", "not finite: retain or coherence"
    if retained < UNDONE:
        return "undone", f"retain {retained:.2f} is under 1/3: healing took the shift back"
    if coherence.value < DEGRADED:
        return "degraded", f"coherence {show(coherence)} is under {DEGRADED}"
    return "healed", f"d_auth of the steered {show(steered)}, retain {retained:.2f}, coherence {show(coherence)}"
