"""Statistics of free generations, whose units are the prompts: perplexity with a bootstrap, trait_llr with Student's t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from evals.intervals import Smooth, estimate_of, quotient
from evals.measures.free_text.rows import Generation
from evals.statistics import Estimate, estimate, resample
from shared.errors import SteerHealError

Llr = Literal["trait_llr", "llr_opposite", "llr_mundane", "relevance"]
MUNDANE = "mundane"  # kind of a prompt without a conflict: trait in its answers is leakage
OPENING = 8  # tokens by which a text counts as stock where another prompt's text has them too


def _nowhere() -> np.ndarray:
    """Of rows of an earlier version: broadcast to as many as there are."""
    return np.array(np.nan)


@dataclass(frozen=True)
class Texts:
    """Free generations [m]: prompt ids, total nll (nats) and tokens; trait_llr (nats per token), distinct-n and the share of tokens
    in a verbatim loop are NaN where there are no tokens.

    own_nll: total nats under the condition that said it. llr_opposite and llr_mundane (nats per token) are one measure, of texts on
    other prompts than mundane ones and on mundane ones; NaN on the others. relevance: nats per token. ids: tokens.
    """

    prompt: Sequence[str]
    nll: np.ndarray
    tokens: np.ndarray
    trait_llr: np.ndarray
    distinct_1: np.ndarray
    distinct_2: np.ndarray
    distinct_3: np.ndarray
    loop_share: np.ndarray
    own_nll: np.ndarray = field(default_factory=_nowhere)
    llr_opposite: np.ndarray = field(default_factory=_nowhere)
    llr_mundane: np.ndarray = field(default_factory=_nowhere)
    relevance: np.ndarray = field(default_factory=_nowhere)
    ids: Sequence[Sequence[int] | None] = ()

    def of(self, name: Llr) -> np.ndarray:
        """A measure by its name, [m]; NaN throughout where it was not taken."""
        return np.broadcast_to(getattr(self, name), (len(self.prompt),))

    def has(self, name: Llr) -> bool:
        """Whether some text has this measure."""
        return bool(np.isfinite(self.of(name)).any())


def texts_of(rows: Sequence[Generation]) -> Texts:
    """Arrays of the rows of one condition."""

    def values(name: str) -> np.ndarray:
        return np.array([np.nan if (value := getattr(row, name)) is None else value for row in rows], dtype=float)

    llr = values("llr_opposite")
    mundane = np.array([row.kind == MUNDANE for row in rows], dtype=bool)
    if mundane.all():  # nothing else was asked
        mundane[:] = False
    return Texts(
        prompt=[row.prompt_id for row in rows],
        nll=values("nll"),
        tokens=values("tokens"),
        trait_llr=values("trait_llr"),
        distinct_1=values("distinct_1"),
        distinct_2=values("distinct_2"),
        distinct_3=values("distinct_3"),
        loop_share=values("loop_share"),
        own_nll=values("own_nll"),
        llr_opposite=np.where(mundane, np.nan, llr),
        llr_mundane=np.where(mundane, llr, np.nan),
        relevance=values("relevance"),
        ids=[row.completion_ids for row in rows],
    )


def text_levels(texts: Texts, count: int, seed: int) -> dict[str, Estimate | None]:
    """Means over prompts, by name: perplexity, the two parts of its logarithm, and log-likelihood ratios.

    perplexity is exp of the token-weighted mean nll. Its logarithm is the sum of entropy, the mean of -ln p under the condition that wrote
    the text, and of kl_on_policy, the mean of that ln p minus ln p under the original model.
    """
    names = sorted(set(texts.prompt))
    (nll, tokens, llr, full), weights = by_prompt(texts, names), resample(np.zeros(len(names)), count, seed)
    by_prompt_sums = _own_by_prompt(texts, names)
    return {
        "perplexity": estimate(lambda w: np.exp((w @ nll) / (w @ tokens)), weights),
        "trait_llr": estimate_of(per_text(llr, full), np.zeros(len(names))),
        "entropy": estimate(lambda w: (w @ by_prompt_sums) / (w @ tokens), weights),
        "kl_on_policy": estimate(lambda w: (w @ (nll - by_prompt_sums)) / (w @ tokens), weights),
        **{name: _level(texts, name) for name in ("llr_opposite", "llr_mundane", "relevance")},
    }


def _own_by_prompt(texts: Texts, names: Sequence[str]) -> np.ndarray:
    """own_nll summed over each prompt's completions with tokens, [prompts]."""
    full = texts.tokens > 0
    place = np.array([names.index(name) for name in texts.prompt], dtype=int)
    own_nll = np.broadcast_to(texts.own_nll, (len(place),))
    return np.bincount(place[full], weights=own_nll[full], minlength=len(names))


def _level(texts: Texts, name: Llr) -> Estimate | None:
    """The mean of a measure over the texts that have it, over the prompts."""
    (level,) = _levels([texts], name)
    return None if level is None else estimate_of(level, np.zeros(len(level.influence)))


def _levels(conditions: Sequence[Texts], name: Llr) -> list[Smooth | None]:
    """The mean of a measure in each condition, over the prompts at which all conditions have it; None where there are none.

    trait_llr is of all prompts: a text with tokens and without one makes it undefined.
    """
    names = sorted(set(conditions[0].prompt))
    if other := next((set(texts.prompt) for texts in conditions if sorted(set(texts.prompt)) != names), None):
        raise SteerHealError(
            "free generations of different prompts are not comparable",
            given=f"{len(other)} prompts against {len(names)}",
            expected="the same held-out prompts",
            next="score every round of the run with the same eval.heldout",
        )
    sums = [by_prompt(texts, names, name)[2:] for texts in conditions]
    keep = np.ones(len(names), dtype=bool)
    if name != "trait_llr":
        keep = np.logical_and.reduce([count > 0 for _, count in sums])
    if not keep.any():
        return [None] * len(conditions)
    return [per_text(llr[keep], count[keep]) for llr, count in sums]


def per_text(sums: np.ndarray, counts: np.ndarray) -> Smooth:
    """The ratio of two sums over prompts, as of trait_llr [prompts] over completions [prompts]; prompts are the units."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(sums.sum() / counts.sum())
        if (counts > 0).sum() < 2:  # one prompt alone says nothing of how far prompts lie apart
            return Smooth(value, np.full(len(sums), np.nan))
        return Smooth(value, (sums - value * counts) / counts.sum())


def text_delta(base: Texts, other: Texts, name: Llr = "trait_llr") -> Estimate | None:
    """other's mean of a measure minus base's, nats per token, paired over the prompts."""
    was, now = _levels([base, other], name)
    if was is None or now is None:
        return None
    return estimate_of(now - was, np.zeros(len(was.influence)))


def text_retain(base: Texts, steered: Texts, healed: Texts, name: Llr = "trait_llr") -> Estimate | None:
    """The share of the steered shift of a measure that the healed student keeps, signed, with Fieller's interval over the prompts."""
    was, top, bottom = _levels([base, healed, steered], name)
    if was is None or top is None or bottom is None:
        return None
    return quotient(top - was, bottom - was, np.zeros(len(was.influence)))


def pooled_distinct_3(texts: Texts) -> float | None:
    """Share of all texts' 3-grams, taken together, that are different from each other; None where no text has one."""
    grams = [tuple(ids[i : i + 3]) for ids in texts.ids if ids for i in range(len(ids) - 2)]
    return len(set(grams)) / len(grams) if grams else None


def stock_openings(texts: Texts) -> float | None:
    """Share of the texts whose first 8 tokens (all, of a shorter text) stand in a text on another prompt; None with one prompt."""
    openings = [(prompt, tuple(ids)) for prompt, ids in zip(texts.prompt, texts.ids, strict=False) if ids]
    if len({prompt for prompt, _ in openings}) < 2:
        return None
    where: dict[tuple[int, ...], set[str]] = {}  # runs of tokens, by the prompts on which they were said
    sizes = {min(OPENING, len(ids)) for _, ids in openings}
    for prompt, ids in openings:
        for size in sizes:
            for start in range(len(ids) - size + 1):
                where.setdefault(ids[start : start + size], set()).add(prompt)
    return float(np.mean([len(where[ids[:OPENING]]) > 1 for _, ids in openings]))


def by_prompt(texts: Texts, names: Sequence[str], measure: Llr = "trait_llr") -> tuple[np.ndarray, ...]:
    """Sums over each prompt's completions with tokens: nll, tokens, the measure, completions that have it; each [prompts]."""
    place = np.array([names.index(name) for name in texts.prompt], dtype=int)
    full, llr = texts.tokens > 0, texts.of(measure)
    has = full if measure == "trait_llr" else full & np.isfinite(llr)
    values = ((texts.nll, full), (texts.tokens, full), (llr, has), (np.ones(len(place)), has))
    return tuple(np.bincount(place[where], weights=value[where], minlength=len(names)) for value, where in values)
