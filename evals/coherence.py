"""One verdict on coherence, beyond the answer slot, with its parts: each compared with the base, the worst of them decides.

The forced prefill holds the answer mass up while free text loops, and a loop has a low perplexity: no part stands for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evals.statistics import Estimate

State = Literal["coherent", "degraded", "broken"]
STATES: tuple[State, ...] = ("coherent", "degraded", "broken")
LOOPS = 0.3  # share of a text's tokens inside one verbatim loop from which it counts as looping; the filter's default


@dataclass(frozen=True)
class Measures:
    """What a condition's coherence is judged by; None where it was not taken.

    perplexity under the original model; distinct_3; looping: share of texts that loop; valid: share of free answers that are valid
    JSON; empty: share of texts without a token; unscorable: share of items. relevance: nats per token; across: distinct-3 of all texts
    together; stock: share of texts whose opening stands in a text on another prompt.
    """

    perplexity: float | None
    distinct_3: float | None
    looping: float | None
    valid: float | None
    empty: float | None
    unscorable: float
    relevance: float | None = None
    across: float | None = None
    stock: float | None = None


@dataclass(frozen=True)
class CoherencePart:
    """value as compared: a ratio to the base's or a difference from it; limits beyond which it is degraded and broken. None is a
    measure that the base has and the condition has lost, which is broken."""

    name: str
    value: float | None
    degraded: float
    broken: float
    state: State

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name} is undefined"
        sign = "at least" if self.degraded > self.broken else "at most"
        if self.broken == 0.0 and sign == "at least":  # a ratio of what is above 0 is never under it
            return f"{self.name} {self.value:.2f} (at least {self.degraded:g})"
        return f"{self.name} {self.value:.2f} ({sign} {self.degraded:g}; {self.broken:g} is broken)"


def coherence_parts(base: Measures, other: Measures, coherence: Estimate | None) -> list[CoherencePart]:
    """The parts that the base has. coherence: answer mass over the base's, paired, judged by the rules of the verdict; perplexity by
    the limit of the filter's default. More answer mass than the base has is no coherence: it counts as the base's. Text that is much
    likelier than the base's is no better text: a model that says one thing over and over has the lowest perplexity."""
    mass = _part("answer mass / base's", min(coherence.value, 1.0) if coherence else None, 0.95, 0.85)
    if mass.state == "broken" and coherence and coherence.interval and coherence.interval[1] >= mass.broken:
        mass = replace(mass, state="degraded")  # below the floor, but not by more than its interval
    measured = [mass, _part("unscorable items", other.unscorable, 0.05, 0.5)]
    if base.perplexity:
        ratio = _ratio(other.perplexity, base.perplexity)
        measured.append(_part("perplexity / base's", ratio, 2.0, 5.0))
        measured.append(_part("perplexity / base's, from below", ratio, 0.5, 0.0))
    if base.distinct_3:
        measured.append(_part("distinct-3 / base's", _ratio(other.distinct_3, base.distinct_3), 0.9, 0.5))
    if base.across:
        measured.append(_part("distinct-3 across texts / base's", _ratio(other.across, base.across), 0.8, 0.4))
    if base.stock is not None:
        measured.append(_part("stock openings - base's", _difference(other.stock, base.stock), 0.25, 0.6))
    if base.relevance is not None and base.relevance > 0:
        measured.append(_part("relevance / base's", _ratio(other.relevance, base.relevance), 0.5, 0.1))
    if base.looping is not None:
        measured.append(_part("looping texts - base's", _difference(other.looping, base.looping), 0.1, 0.5))
    if base.empty is not None:
        measured.append(_part("empty texts - base's", _difference(other.empty, base.empty), 0.1, 0.5))
    if base.valid is not None:
        measured.append(_part("valid JSON - base's", _difference(other.valid, base.valid), -0.1, -0.5))
    return measured


def coherence_verdict(measured: Sequence[CoherencePart]) -> tuple[State, str]:
    """(state, reason): the worst part's state, and the parts that are in it."""
    state = max((part.state for part in measured), key=STATES.index)
    if state == "coherent":
        return state, f"{len(measured)} parts within their limits"
    return state, "; ".join(str(part) for part in measured if part.state == state)


def _part(name: str, value: float | None, degraded: float, broken: float) -> CoherencePart:
    if value is None:
        return CoherencePart(name, None, degraded, broken, "broken")
    up = 1 if broken > degraded else -1
    state: State = "broken" if up * value > up * broken else "degraded" if up * value > up * degraded else "coherent"
    return CoherencePart(name, value, degraded, broken, state)


def _ratio(other: float | None, base: float) -> float | None:
    return None if other is None else other / base


def _difference(other: float | None, base: float) -> float | None:
    return None if other is None else other - base
