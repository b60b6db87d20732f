"""The evidence of both verdicts, gathered from scored conditions: answers of the forced choice, and free text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evals.costs import retain
from evals.intervals import estimate_of, log_ratio
from evals.ladder import Evidence, Price
from evals.measures.forced_choice.contrast import rank_p, specific_shift
from evals.measures.forced_choice.levels import moral_share
from evals.measures.free_text.texts import Texts, text_delta, text_levels, text_retain
from evals.statistics import AUTHORITY, Answers, Estimate, interval_text, same_setting
from evals.verdict import preflight
from shared.instrument import FOUNDATIONS
from shared.traits import ReadFor

TRAIT: Literal["llr_opposite"] = "llr_opposite"
NO_LLR = (
    "there is no llr_opposite of the free text: the trait file has no paraphrases, or the rows are of an earlier version; "
    "add paraphrases to it and score again with REBUILD=1"
)
NO_FOUNDATION = (
    "the trait file names no foundation: the forced choice says nothing of this trait, its verdict is that on free text"
)


@dataclass(frozen=True)
class Target:
    """What a trait is read for in the forced choice: a foundation, and the sign of the shift that is more trait."""

    foundation: int = AUTHORITY
    sign: int = -1

    @property
    def measure(self) -> str:
        """The column of results.json with the shift of this foundation, such as d_auth."""
        return "d_auth" if self.foundation == AUTHORITY else f"d_{FOUNDATIONS[self.foundation]}"


AUTHORITY_FALLS = Target()


def target_of(read_for: ReadFor | None) -> Target | None:
    """The foundation and sign that a trait is read for in the forced choice; None for a trait that concerns no foundation."""
    return None if read_for is None else Target(FOUNDATIONS.index(read_for.foundation), read_for.sign)


def shift(base: Answers, other: Answers, foundation: int = AUTHORITY) -> Estimate | None:
    """Change of ln of a foundation's mean probability over the items scorable in both, nats."""
    same_setting(base.setting, other.setting)
    keep = base.scorable & other.scorable
    if not keep.any():
        return None
    return estimate_of(log_ratio(base.p[keep, foundation], other.p[keep, foundation]), base.truth[keep])


def rank_among(base: Answers, steered: Answers, draws: Sequence[Answers], target: Target) -> float | None:
    """`rank_p` of the steered shift among those of random directions, over the items scorable in all of them.

    Args:
        base, steered: answers to the same items.
        draws: the answers under random directions of equal norm.
        target: the foundation, and the sign that is more of the trait.
    """
    keep = np.logical_and.reduce([a.scorable for a in (base, steered, *draws)])
    if not keep.any() or not draws:
        return None
    f = target.foundation
    steered_shift, *others = (log_ratio(base.p[keep, f], a.p[keep, f]).value for a in (steered, *draws))
    return rank_p(steered_shift, others, target.sign)


def forced_choice_evidence(
    base: Answers,
    steered: Answers,
    healed: Answers,
    *,
    draws: Sequence[Answers] = (),
    before: Answers | None = None,
    broken: str | None = None,
    degraded: Sequence[str] = (),
    coherence: Estimate | None = None,
    price: Price | None = None,
    over_decoy: Estimate | None = None,
    target: Target = AUTHORITY_FALLS,
) -> Evidence:
    """The forced choice's evidence on a healed student.

    Args:
        draws: the steered weights with random directions of the vector's norm.
        before: the student of the round before, None in the first round or where it was not scored likewise.
        broken, degraded: what free text and retention say against the student; coherence: its answer mass over the base's.
        price: the student's against plain steering at the same shift.
        over_decoy: the steered shift less that of another persona's vector, where one was scored.
    """
    for other in (*draws, *([before] if before else [])):
        same_setting(base.setting, other.setting)
    f, keep = target.foundation, base.scorable & healed.scorable
    refused = preflight(base, f)
    moral = None
    if keep.any():
        gap = moral_share(healed.p[keep], f) - moral_share(base.p[keep], f)
        moral = estimate_of(gap, base.truth[keep])
    name = FOUNDATIONS[f]
    return Evidence(
        measure=target.measure,
        sign=target.sign,
        broken=broken,
        no_format=refused.reason if refused and refused.state == "no_format" else None,
        no_axis=refused.reason if refused and refused.state == "no_axis" else None,
        steered=shift(base, steered, f),
        healed=shift(base, healed, f),
        retained=retain(base, steered, healed, f),
        rank=rank_among(base, steered, draws, target),
        draws=len(draws),
        over_decoy=over_decoy,
        later=before is not None,
        increment=shift(before, steered, f) if before is not None else None,
        specific={"specific_shift": specific_shift(base, healed, f), f"{target.measure}_moral": moral},
        confounded=f"the options were asked in reversed orders alone, where {name} keeps its place or its mirror: a preference for the place looks the same; score with --debias rotating"
        if base.setting.debias == "reversal"
        else None,
        coherence=coherence,
        degraded=degraded,
        price=price,
    )


def of_texts(
    base: Texts,
    steered: Texts,
    healed: Texts,
    *,
    prompted: Texts | None,
    decoy: Texts | None = None,
    draws: Sequence[Texts] = (),
    before: Texts | None = None,
    broken: str | None = None,
    degraded: Sequence[str] = (),
    price: Price | None = None,
    over_decoy: Estimate | None = None,
) -> Evidence:
    """Free text's evidence on a healed student, of llr_opposite, nats per token: more is more trait.

    Args:
        prompted: the original model under the trait prompt, where it was scored: what it does not raise, the measure does not see.
        decoy: the original model under a persona of another trait; the trait prompt must raise the measure further.
        draws, before, broken, degraded, price, over_decoy: as in `forced_choice_evidence`.
    """
    prompted_shift = text_delta(base, prompted, TRAIT) if prompted is not None else None
    over_persona = text_delta(decoy, prompted, TRAIT) if prompted is not None and decoy is not None else None
    no_axis = None
    if over_persona is not None and (over_persona.interval is None or over_persona.interval[0] <= 0):
        no_axis = f"the trait prompt's {TRAIT} less that of a persona of another trait is {interval_text(over_persona)}, not above 0: the measure does not tell the trait from another persona"
    if prompted_shift is not None and (prompted_shift.interval is None or prompted_shift.interval[0] <= 0):
        no_axis = f"the trait prompt itself moves {TRAIT} by {interval_text(prompted_shift)}, not above 0: the measure does not see the trait"
    moved = text_delta(base, steered, TRAIT)
    draw_deltas = [text_delta(base, draw, TRAIT) for draw in draws]
    draw_shifts = [delta.value for delta in draw_deltas if delta is not None]
    return Evidence(
        measure=f"d_{TRAIT}",
        sign=1,
        smallest=0.0,
        broken=broken,
        no_format="the base's free text has no perplexity" if text_levels(base, 1, 0)["perplexity"] is None else None,
        no_axis=no_axis,
        steered=moved,
        healed=text_delta(base, healed, TRAIT),
        retained=text_retain(base, steered, healed, TRAIT),
        rank=rank_p(moved.value, draw_shifts, 1) if moved is not None else None,
        draws=len(draw_shifts),
        over_decoy=over_decoy,
        later=before is not None,
        increment=text_delta(before, steered, TRAIT) if before is not None else None,
        degraded=degraded,
        price=price,
    )
