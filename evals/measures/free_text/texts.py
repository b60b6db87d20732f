"""Statistics of free generations, whose units are the prompts: perplexity with a bootstrap, trait_llr with Student's t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.intervals import Smooth, estimate_of, quotient
from evals.measures.free_text.rows import Generation
from evals.statistics import Estimate, estimate, resample
from shared.errors import SteerHealError


@dataclass(frozen=True)
class Texts:
    """Free generations [m]: prompt ids, total nll (nats) and tokens; trait_llr (nats per token), distinct-n and the share of tokens
    in a verbatim loop are NaN where there are no tokens."""

    prompt: Sequence[str]
    nll: np.ndarray
    tokens: np.ndarray
    trait_llr: np.ndarray
    distinct_1: np.ndarray
    distinct_2: np.ndarray
    distinct_3: np.ndarray
    loop_share: np.ndarray


def texts_of(rows: Sequence[Generation]) -> Texts:
    """Arrays of the rows of one condition."""

    def values(name: str) -> np.ndarray:
        return np.array([np.nan if (value := getattr(row, name)) is None else value for row in rows], dtype=float)

    return Texts(
        [row.prompt_id for row in rows],
        *[
            values(name)
            for name in ("nll", "tokens", "trait_llr", "distinct_1", "distinct_2", "distinct_3", "loop_share")
        ],
    )


def text_levels(texts: Texts, count: int, seed: int) -> dict[str, Estimate | None]:
    """perplexity, exp of the token-weighted mean nll, and the mean trait_llr; over prompts."""
    names = sorted(set(texts.prompt))
    (nll, tokens, llr, full), weights = by_prompt(texts, names), resample(np.zeros(len(names)), count, seed)
    return {
        "perplexity": estimate(lambda w: np.exp((w @ nll) / (w @ tokens)), weights),
        "trait_llr": estimate_of(per_text(llr, full), np.zeros(len(names))),
    }


def per_text(sums: np.ndarray, counts: np.ndarray) -> Smooth:
    """The ratio of two sums over prompts, as of trait_llr [prompts] over completions [prompts]; prompts are the units."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(sums.sum() / counts.sum())
        if (counts > 0).sum() < 2:  # one prompt alone says nothing of how far prompts lie apart
            return Smooth(value, np.full(len(sums), np.nan))
        return Smooth(value, (sums - value * counts) / counts.sum())


def text_delta(base: Texts, other: Texts) -> Estimate | None:
    """other's mean trait_llr minus base's, nats per token, paired over the prompts."""
    found = _shift(base, other)
    return estimate_of(found, np.zeros(len(found.influence)))


def text_retain(base: Texts, steered: Texts, healed: Texts) -> Estimate | None:
    """The healed student's shift of trait_llr over the steered one's, signed, with Fieller's interval over the prompts."""
    top, bottom = _shift(base, healed), _shift(base, steered)
    return quotient(top, bottom, np.zeros(len(top.influence)))


def _shift(base: Texts, other: Texts) -> Smooth:
    names = sorted(set(base.prompt))
    if names != sorted(set(other.prompt)):
        raise SteerHealError(
            "free generations of different prompts are not comparable",
            given=f"{len(set(other.prompt))} prompts against {len(names)}",
            expected="the same held-out prompts",
            next="score every round of the run with the same eval.heldout",
        )
    (_, _, was, had), (_, _, now, has) = by_prompt(base, names), by_prompt(other, names)
    return per_text(now, has) - per_text(was, had)


def by_prompt(texts: Texts, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Sums over each prompt's completions with tokens: nll, tokens, trait_llr, completions; each [prompts]."""
    place = np.array([names.index(name) for name in texts.prompt], dtype=int)
    full = texts.tokens > 0
    values = (texts.nll, texts.tokens, texts.trait_llr, np.ones(len(place)))
    return tuple(np.bincount(place[full], weights=value[full], minlength=len(names)) for value in values)
