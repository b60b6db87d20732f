"""What the numbers allow to be said of a condition: whether the base has an axis to move along, and what counts as broken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from evals.intervals import mean_of
from evals.measures.forced_choice.contrast import contrast, nearest_foundation
from evals.statistics import AUTHORITY, Answers, Estimate, interval_text
from shared.instrument import FOUNDATIONS

MASS = (0.005, 0.95)  # base mass on the foundation outside which there is nowhere to move
FORMAT = 0.5  # base answer mass under which the model does not answer in the format
AXIS = 0.5  # nats that the lower end of the base's contrast must exceed
NEAREST = (
    0.25  # nats by which the foundation's own items must draw its option more than any other foundation's items do
)
ROUNDING = 1e-9  # what exceeds a limit by less does not exceed it
BROKEN = 0.85  # coherence under which a model no longer answers


class Refusal(NamedTuple):
    """Why the forced choice says nothing of this model."""

    state: Literal["no_format", "no_axis"]
    reason: str


def preflight(answers: Answers, foundation: int = AUTHORITY) -> Refusal | None:
    """Why the base leaves no axis to move along, or None.

    The rule: mean answer mass of 0.5 at least; mean mass on the foundation within 0.005 to 0.95; the lower end of its contrast above
    0.5 nats; and its own items draw its option by 0.25 nats more than those of any other moral foundation, since a mean over five
    others hides one that is taken for it.
    """
    keep, name = answers.scorable, FOUNDATIONS[foundation]
    if not keep.any():
        return Refusal("no_format", "no base item is scorable")
    format_ = float(answers.mass[keep].mean())
    if format_ < FORMAT:
        return Refusal(
            "no_format",
            f"the base gives the seven labels {format_:.3f} of its next token (needs {FORMAT}): it does not answer in the format",
        )
    mass = mean_of(answers.p[keep][:, foundation]).value
    if not MASS[0] <= mass <= MASS[1]:
        side = "floor" if mass < MASS[0] else "ceiling"
        return Refusal("no_axis", f"base mass on {name} is {mass:.4f}, at its {side} (needs {MASS[0]} to {MASS[1]})")
    authority, likeness = contrast(answers, foundation), nearest_foundation(answers, foundation)
    if authority is None or authority.interval is None or likeness is None:
        return Refusal("no_axis", f"the base's contrast on {name} has no interval (needs a lower end above {AXIS})")
    if authority.interval[0] <= AXIS + ROUNDING:
        return Refusal(
            "no_axis",
            f"the base's contrast on {name} is {interval_text(authority)} nats, its lower end must lie above {AXIS}: whether {name} is chosen does not follow the vignettes",
        )
    if likeness[1] <= NEAREST + ROUNDING:
        return Refusal(
            "no_axis",
            f"vignettes of {likeness[0]} draw {name} about as much as its own ({likeness[1]:+.3f} nats, needs {NEAREST}): the base does not tell them apart",
        )
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
        return f"coherence {interval_text(coherence)} lies below {BROKEN}"
    return None
