"""The conditions of a round judged against the base: which are broken, and both verdicts on the healed student."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from evals.coherence import CoherencePart, Measures, coherence_parts
from evals.costs import SMALLEST_SHIFT, retain
from evals.evidence import (
    AUTHORITY_FALLS,
    NO_FOUNDATION,
    NO_LLR,
    TRAIT,
    Target,
    forced_choice_evidence,
    of_texts,
    rank_among,
    shift,
)
from evals.ladder import Price, verdict_of
from evals.measures.free_text.measure import looping, mean_of_known
from evals.measures.free_text.rows import Generation
from evals.measures.free_text.texts import Texts, pooled_distinct_3, stock_openings, text_delta, text_retain, texts_of
from evals.measures.measure import Damage
from evals.routes import BASE, Axis, Point, less_steering, shift_and_price
from evals.rows import OF_THE_STUDENT, ConditionLine
from evals.statistics import Answers, Estimate
from evals.verdict import broken, preflight

ANSWER_MASS = "answer mass / base's"  # the part of coherence that the ladder judges by its own limit


@dataclass(frozen=True)
class Case:
    """One condition of a round with all that its row needs.

    data: as each measure reads it, by the measure's name. columns, estimates, damages: what the measures say of it against the base.
    """

    number: int
    line: ConditionLine
    data: Mapping[str, Any]
    columns: Mapping[str, Any]
    estimates: Mapping[str, Estimate | None]
    damages: Sequence[Damage] = ()

    @property
    def answers(self) -> Answers:
        """The answers in the forced choice."""
        return self.data["forced_choice"]

    @property
    def generations(self) -> Sequence[Generation]:
        """Empty where none was asked for, as of random directions beyond the first."""
        rows: Sequence[Generation] = self.data.get("free_text", ())
        return rows

    @cached_property
    def texts(self) -> Texts:
        """The statistics of the generations."""
        return texts_of(self.generations)

    @cached_property
    def coherence(self) -> Measures:
        """The figures that the coherence verdict compares: point estimates over the texts with tokens."""
        texts = self.texts
        tokens, nll = float(texts.tokens.sum()), float(texts.nll.sum())
        return Measures(
            perplexity=float(np.exp(nll / tokens)) if tokens and np.isfinite(nll) else None,
            distinct_3=mean_of_known(texts.distinct_3),
            looping=looping(texts),
            valid=mean_of_known(self.answers.valid),
            empty=float((texts.tokens == 0).mean()) if len(texts.tokens) else None,
            unscorable=float((~self.answers.scorable).mean()),
            relevance=mean_of_known(texts.of("relevance")),
            across=pooled_distinct_3(texts),
            stock=stock_openings(texts),
        )

    @property
    def broken(self) -> str | None:
        """Why the condition no longer answers, or None: by the forced choice, and texts without a perplexity."""
        must = ["auth_nats", "p_ans_any", *(["perplexity"] if self.generations else [])]
        undefined = [name for name in must if self.estimates[name] is None]
        unscorable = int((~self.answers.scorable).sum())
        return broken(undefined, unscorable, len(self.answers.truth), self.estimates["coherence"])


@dataclass(frozen=True)
class Verdicts:
    """Of one row; None where there is nothing to say. price, text_price: of the healed student against plain
    steering, at the same shift of the forced choice and of free text."""

    verdict: str | None = None
    reason: str | None = None
    text_verdict: str | None = None
    text_reason: str | None = None
    price: Price | None = None
    text_price: Price | None = None


@dataclass(frozen=True)
class Judging:
    """The conditions of a round by their parts in the verdict.

    Args:
        draws: the round's steered weights with random directions; decoys: with the vectors of other personas. before: the student of the round before, where it was scored.
        prompted: the original model under the trait prompt, decoy: under a persona of another trait. doses: the original model steered by round 1's vector.
        target: what the forced choice is read for, None for a trait that is about no foundation.
        count, seed: of the bootstrap's resamples.
    """

    base: Case
    steered: Case
    healed: Case
    draws: Sequence[Case]
    decoys: Sequence[Case]
    before: Case | None
    prompted: Case | None
    decoy: Case | None
    doses: Sequence[Case]
    target: Target | None
    count: int
    seed: int

    def parts(self, case: Case) -> list[CoherencePart]:
        base = self.base.coherence
        if not case.generations:  # what was not asked for is no part
            base = Measures(None, None, None, base.valid, None, base.unscorable)
        return coherence_parts(base, case.coherence, case.estimates["coherence"])

    def share_of_prompted(self, case: Case) -> Estimate | None:
        """The shift of llr_opposite over that of the trait prompt; None where either was not scored."""
        if self.prompted is None or not case.generations or case.line.stage == "base":
            return None
        return text_retain(self.base.texts, self.prompted.texts, case.texts, TRAIT)

    def share_of_student(self, case: Case) -> Estimate | None:
        """The shift of llr_opposite of a condition of the student's vector over the healed student's; None of other conditions."""
        if case.line.stage not in OF_THE_STUDENT or not case.generations or not self.base.texts.has(TRAIT):
            return None
        return text_retain(self.base.texts, self.healed.texts, case.texts, TRAIT)

    def auth_share_of_student(self, case: Case) -> Estimate | None:
        """The same of the foundation's ln of mean mass; None as well under 0.05 nats of the student's shift."""
        foundation = (self.target or AUTHORITY_FALLS).foundation
        student = shift(self.base.answers, self.healed.answers, foundation)
        if case.line.stage not in OF_THE_STUDENT or student is None or abs(student.value) < SMALLEST_SHIFT:
            return None
        return retain(self.base.answers, self.healed.answers, case.answers, foundation)

    @cached_property
    def retained(self) -> Estimate | None:
        """The share of the steered shift of auth_nats that the student keeps; None under 0.05 nats of it, where it is noise."""
        steered = shift(self.base.answers, self.steered.answers)
        if steered is None or abs(steered.value) < SMALLEST_SHIFT:
            return None
        return retain(self.base.answers, self.steered.answers, self.healed.answers)

    @cached_property
    def rank(self) -> float | None:
        """Rank p of the steered shift among the random draws."""
        draws = [case.answers for case in self.draws]
        return rank_among(self.base.answers, self.steered.answers, draws, self.target or AUTHORITY_FALLS)

    @cached_property
    def over_random(self) -> Estimate | None:
        """The steered shift less that of the headline draw, paired."""
        first = next((case for case in self.draws if case.line.headline), None)
        return None if first is None else shift(first.answers, self.steered.answers)

    @cached_property
    def over_decoy(self) -> Estimate | None:
        """The steered shift less that of the decoy's vector that moves the foundation most in the trait's way, paired."""
        target = self.target or AUTHORITY_FALLS
        gaps = [shift(decoy.answers, self.steered.answers, target.foundation) for decoy in self.decoys]
        return min((gap for gap in gaps if gap is not None), key=lambda gap: target.sign * gap.value, default=None)

    @cached_property
    def over_decoy_llr(self) -> Estimate | None:
        """The same of llr_opposite in free text, more of which is more trait."""
        decoys = [decoy.texts for decoy in self.decoys if decoy.texts.has(TRAIT)]
        if not self.steered.texts.has(TRAIT):
            return None
        gaps = [text_delta(texts, self.steered.texts, TRAIT) for texts in decoys]
        return min((gap for gap in gaps if gap is not None), key=lambda gap: gap.value, default=None)

    def increment(self, case: Case) -> Estimate | None:
        """Shift of auth_nats of the steered and the healed headline over the student before; None in the first round."""
        if self.before is None or case not in (self.steered, self.healed):
            return None
        return shift(self.before.answers, case.answers)

    def verdicts(self, case: Case) -> Verdicts:
        """The verdicts of a row: both ladders on a healed student; of the base whether there is an axis; of others whether they are broken."""
        problem = case.broken
        if case.line.stage == "base":
            refused = preflight(case.answers, (self.target or AUTHORITY_FALLS).foundation)
            if problem is not None:
                return Verdicts("broken", problem)
            return Verdicts(refused.state, refused.reason) if refused and self.target else Verdicts()
        if case.line.stage != "healed":
            return Verdicts("broken", problem) if problem is not None else Verdicts()
        parts = self.parts(case)
        states = {
            state: "; ".join(str(part) for part in parts if part.state == state and part.name != ANSWER_MASS)
            for state in ("broken", "degraded")
        }
        lost = {state: [each.reason for each in case.damages if each.state == state] for state in states}
        broken = problem or states["broken"] or "; ".join(lost["broken"]) or None
        degraded = [why for why in (states["degraded"], *lost["degraded"]) if why]
        text, reason, text_price = self._text(case, broken, degraded)
        if self.target is None:
            return Verdicts(None, NO_FOUNDATION, text, reason, text_price=text_price)
        evidence = forced_choice_evidence(
            self.base.answers,
            self.steered.answers,
            case.answers,
            draws=[draw.answers for draw in self.draws],
            before=self.before.answers if self.before else None,
            broken=broken,
            degraded=degraded,
            coherence=case.estimates["coherence"],
            price=self._price(case, "authority"),
            over_decoy=self.over_decoy,
            target=self.target,
        )
        return Verdicts(*verdict_of(evidence), text, reason, evidence.price, text_price)

    def _text(
        self, case: Case, broken: str | None, degraded: Sequence[str]
    ) -> tuple[str | None, str | None, Price | None]:
        if not case.generations:
            return None, None, None
        if not all(condition.texts.has(TRAIT) for condition in (self.base, self.steered, case)):
            return None, NO_LLR, None
        evidence = of_texts(
            self.base.texts,
            self.steered.texts,
            case.texts,
            prompted=self.prompted.texts if self.prompted else None,
            decoy=self.decoy.texts if self.decoy else None,
            draws=[draw.texts for draw in self.draws if draw.generations],
            before=self.before.texts if self.before else None,
            broken=broken,
            degraded=degraded,
            price=self._price(case, TRAIT),
            over_decoy=self.over_decoy_llr,
        )
        return *verdict_of(evidence), evidence.price

    def _price(self, case: Case, axis: Axis) -> Price | None:
        """Against plain steering at the same shift: ln of perplexity where there are texts, else the answer mass lost."""
        way = math.copysign(1.0, self.steered.line.coefficient or 1.0)  # a dose on the other side is no lower dose
        doses = sorted((dose for dose in self.doses if _along(dose, way) > 0), key=lambda dose: _along(dose, way))
        alive: list[Case] = []
        for dose in doses:
            if dose.broken or any(part.state == "broken" for part in self.parts(dose)):
                break  # beyond it a route would be drawn through a model that no longer answers
            alive.append(dose)
        points: list[Point] = [(BASE, point.answers, point.texts) for point in (self.base, *alive, case)]
        coefficients = [_along(dose, way) for dose in alive]
        if len(set(coefficients)) < len(coefficients):
            return None
        keep = np.logical_and.reduce([answers.scorable for _, answers, _ in points])
        moved, paid = shift_and_price(points, axis, self.count, self.seed, keep, self.target or AUTHORITY_FALLS)
        name = "answer mass lost"
        if case.generations:
            _, paid = shift_and_price(
                points, "trait_llr", self.count, self.seed, keep
            )  # whose price is any text axis's
            name = "ln of perplexity over the base's"
        difference = less_steering(coefficients, moved, paid)
        return None if difference is None else Price(name, difference)


def _along(dose: Case, way: float) -> float:
    return way * (dose.line.coefficient or 0.0)
