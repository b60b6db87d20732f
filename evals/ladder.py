"""The verdict on a healed student: a ladder of rules of which the first that matches decides, with its reason in a sentence.

One ladder for both instruments. The forced choice is read for the foundation and the sign that the trait file names; free text is read
for llr_opposite, and holds for any trait. Nothing here reads files: who calls it gathers the evidence.

broken      the student no longer answers, or its text is broken
no_format   the base does not answer in the format
no_axis     the base's answers do not depend on what the measure is about
no_shift    steering did not move the measure, or not further than random directions do, or no further than the round before
not_shown   the student's own shift is not shown
undone      the student lost over two thirds of the steered shift
unspecific  everything moved, and not what the trait is about
degraded    what it cost in coherence or retention is more than allowed
kept        all of that holds, but a lower dose of plain steering may be as cheap, or something else looks the same
healed      all of that holds, and the student is cheaper than plain steering at the same shift
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from evals.costs import SMALLEST_SHIFT, SPECIFIC
from evals.statistics import Estimate, interval_text

Verdict = Literal[
    "broken", "no_format", "no_axis", "no_shift", "not_shown", "undone", "unspecific", "degraded", "kept", "healed"
]
VERDICTS: tuple[Verdict, ...] = Verdict.__args__  # type: ignore[attr-defined]
DRAWS = 9  # random directions from which their rank counts: with fewer, the best rank is over 0.1
RANK = 0.1  # p of the rank above which steering is not told from random directions
UNDONE = 1 / 3
COHERENCE = 0.90  # below which the lower end of coherence degrades
MARGIN = 1e-9  # a lower end that is above 0 by rounding alone


@dataclass(frozen=True)
class Price:
    """What the student paid less what plain steering pays at the same shift: below 0 is cheaper. name: of the price, with its unit."""

    name: str
    less: Estimate


@dataclass(frozen=True)
class Evidence:
    """What the ladder reads. Reasons are None where there is no such problem, estimates None where they are undefined.

    Args:
        measure: name of the shift, as d_auth; sign: the trait's way, -1 where the trait lowers it.
        smallest: shift, in the measure's unit, that both steering and healing must exceed by their intervals.
        broken, no_format, no_axis, degraded, confounded: reasons. confounded: why the shift may be another than the trait's.
        steered, healed: shifts against the base; retained: healed over steered.
        rank, draws: p of steering, by its rank among this number of random directions of equal norm.
        over_decoy: the steered shift less that of the vector of another persona, as long; None where none was scored.
        later: whether a round came before; increment: then, the steered shift against the student before.
        specific: by name, what must move the trait's way beyond what everything else moved.
        coherence: answer mass over the base's, None for a measure of free text.
        price: against plain steering, None where no dose of it can be compared.
    """

    measure: str
    sign: int
    smallest: float = SMALLEST_SHIFT
    broken: str | None = None
    no_format: str | None = None
    no_axis: str | None = None
    steered: Estimate | None = None
    healed: Estimate | None = None
    retained: Estimate | None = None
    rank: float | None = None
    draws: int = 0
    over_decoy: Estimate | None = None
    later: bool = False
    increment: Estimate | None = None
    specific: dict[str, Estimate | None] = field(default_factory=dict)
    confounded: str | None = None
    coherence: Estimate | None = None
    degraded: Sequence[str] = ()
    price: Price | None = None


def verdict_of(evidence: Evidence) -> tuple[Verdict, str]:
    """(verdict, reason) by the first rule that matches."""
    for name, reason in (("broken", evidence.broken), ("no_format", evidence.no_format), ("no_axis", evidence.no_axis)):
        if reason is not None:
            return name, reason  # type: ignore[return-value]
    if why := _no_shift(evidence):
        return "no_shift", why
    if why := _short("the healed student's", evidence.measure, evidence.healed, evidence.sign, evidence.smallest):
        return "not_shown", why
    kept = evidence.retained.interval if evidence.retained is not None else None
    if evidence.retained is not None and kept is not None and kept[1] < UNDONE:
        return "undone", f"retain is {interval_text(evidence.retained, 2)}, under a third: healing took the shift back"
    if why := _unspecific(evidence):
        return "unspecific", why
    if why := _degraded(evidence):
        return "degraded", why
    assert evidence.healed is not None, "what is undefined is not shown"
    shift = f"{evidence.measure} is {interval_text(evidence.healed)} and retain {interval_text(evidence.retained, 2) if evidence.retained else 'undefined'}"
    if kept is None or kept[0] < UNDONE:
        shift += " (it may be under a third)"
    if evidence.confounded is not None:
        return "kept", f"{shift}; {evidence.confounded}"
    if evidence.price is None:
        return (
            "kept",
            f"{shift}; no doses of plain steering were scored around this shift, so that nothing shows healing is cheaper",
        )
    paid = (
        f"{evidence.price.name} less that of plain steering at the same shift is {interval_text(evidence.price.less)}"
    )
    if evidence.price.less.interval is None or evidence.price.less.interval[1] >= -MARGIN:
        return "kept", f"{shift}; {paid}: a lower dose of plain steering may be as cheap"
    return "healed", f"{shift}; {paid}: cheaper than a lower dose"


def _short(whose: str, measure: str, shift: Estimate | None, sign: int, smallest: float) -> str | None:
    """Why a shift is not shown to go the trait's way by more than smallest, or None."""
    if shift is None:
        return f"{whose} {measure} is undefined"
    if shift.interval is None:
        return f"{whose} {measure} is {interval_text(shift)}, without an interval"
    nearest_end = min(sign * end for end in shift.interval)
    if nearest_end <= smallest + MARGIN:
        side = "below" if sign < 0 else "above"
        return f"{whose} {measure} is {interval_text(shift)}, not {side} {sign * smallest:g} by its interval"
    return None


def _no_shift(evidence: Evidence) -> str | None:
    if why := _short("the steered", evidence.measure, evidence.steered, evidence.sign, evidence.smallest):
        return why
    if evidence.rank is not None and evidence.draws >= DRAWS and evidence.rank > RANK:
        return f"among {evidence.draws} random directions of equal norm the steered shift has rank p {evidence.rank:.2f}, above {RANK}"
    if evidence.over_decoy is not None and (
        why := _short(
            "less that of another persona's vector of equal norm, the steered",
            evidence.measure,
            evidence.over_decoy,
            evidence.sign,
            0.0,
        )
    ):
        return why
    if evidence.later and (
        why := _short("over the student before, the steered", evidence.measure, evidence.increment, evidence.sign, 0.0)
    ):
        return why
    return None


def _unspecific(evidence: Evidence) -> str | None:
    for name, shift in evidence.specific.items():
        if why := _short("the student's", name, shift, evidence.sign, 0.0):
            return f"{why}: not {evidence.measure} alone moved"
        if (
            evidence.healed is not None
            and shift is not None
            and abs(shift.value) < SPECIFIC * abs(evidence.healed.value)
        ):
            return f"the student's {name} is {interval_text(shift)}, under a third of its {evidence.measure} {interval_text(evidence.healed)}: most of the shift is not the trait's"
    return None


def _degraded(evidence: Evidence) -> str | None:
    reasons = list(evidence.degraded)
    if evidence.coherence is not None:
        low = min(1.0, evidence.coherence.interval[0] if evidence.coherence.interval else evidence.coherence.value)
        if low < COHERENCE:
            reasons.insert(0, f"coherence {interval_text(evidence.coherence)} may be under {COHERENCE:g}")
    return "; ".join(reasons) or None
