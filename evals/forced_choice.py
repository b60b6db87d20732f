"""The two-phase read: T think tokens, then the log-probabilities of the seven labels at the answer slot.

All vignettes, orders, samples and conditions that share a set of weights are one continuous batch per phase.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import logsumexp, softmax

from evals.instrument import Renderer, orders
from shared.records import Vignette

if TYPE_CHECKING:
    from gen.engine.engine import Engine


@dataclass(frozen=True)
class Condition:
    """What is done to the model while it answers.

    stage and name as in scores.json; vector names one that the engine has loaded, None for unsteered; system is a system
    prompt for the question. headline conditions are rows of the results, the others go to its extra.
    """

    stage: str
    name: str
    coefficient: float = 0.0
    vector: str | None = None
    positions: str = "all"
    system: str | None = None
    draw: int | None = None
    headline: bool = True


@dataclass(frozen=True)
class Read:
    """How the question is put: orders ('reversal' or 'cyclic'), think tokens, samples of the thought (greedy at temperature 0)."""

    debias: str
    think: int
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    nll_prefill: bool = True


def forced_choice(
    engine: Engine,
    renderer: Renderer,
    vignettes: Sequence[Vignette],
    conditions: Sequence[Condition],
    read: Read,
    tokenizer: Any,
    advance: Callable[[], None],
) -> dict[str, list[dict[str, Any]]]:
    """One row per vignette for every condition, by condition name. advance is called 2 * n_reads times."""
    from gen.engine.engine import Request

    listings = orders(read.debias)
    cells = [
        (condition, vignette, order, sample, renderer.question(vignette.text, listings[order], condition.system))
        for condition in conditions
        for vignette in vignettes
        for order in range(len(listings))
        for sample in range(read.samples)
    ]

    def steering(condition: Condition, question: Sequence[int]) -> dict[str, Any]:
        start = len(question) - 1 if condition.positions == "generated" else None
        return {
            "vector": condition.vector,
            "coefficient": condition.coefficient,
            "positions": condition.positions,
            "steer_from": start,
        }

    thoughts = (
        [[] for _ in cells]
        if read.think == 0
        else [
            output.token_ids
            for output in engine.run(
                [
                    Request(
                        question,
                        read.think,
                        read.temperature,
                        seed=_seed(read.seed, vignette.id, order, sample),
                        min_tokens=read.think,
                        stop_ids=renderer.stop_ids,
                        **steering(condition, question),
                    )
                    for condition, vignette, order, sample, question in cells
                ],
                on_done=lambda *_: advance(),
            )
        ]
    )
    answers = engine.run(
        [
            Request(
                renderer.answer(question, thought),
                label_ids=renderer.label_ids,
                score=read.nll_prefill,
                **steering(condition, question),
            )
            for (condition, _, _, _, question), thought in zip(cells, thoughts, strict=True)
        ],
        on_done=lambda *_: advance(),
    )
    rows: dict[str, list[dict[str, Any]]] = {condition.name: [] for condition in conditions}
    block = len(listings) * read.samples
    for begin in range(0, len(cells), block):
        condition, vignette = cells[begin][:2]
        found = np.array([output.label_logprobs for output in answers[begin : begin + block]]).reshape(
            len(listings), read.samples, -1
        )
        canonical = np.stack([found[order][:, np.argsort(listing)] for order, listing in enumerate(listings)])
        forced = [
            output.prompt_logprobs[-len(renderer.prefill) :]
            for output in answers[begin : begin + block]
            if output.prompt_logprobs is not None
        ]
        texts = [tokenizer.decode(thought) for thought in thoughts[begin : begin + block]]
        rows[condition.name].append(row(vignette, canonical, read, -float(np.mean(forced)) if forced else None, texts))
    return rows


def row(
    vignette: Vignette, lp: np.ndarray, read: Read, nll_prefill: float | None, texts: Sequence[str]
) -> dict[str, Any]:
    """A score row from lp [orders, samples, 7], canonical order, nats.

    An order's lp with N samples is logsumexp over samples minus ln N; score is the mean over orders, p its softmax over the
    seven; pmass_allowed is the mean over orders of the seven labels' mass. Not finite means unscorable: nulls, never imputed.
    """
    scorable = bool(np.isfinite(lp).all())
    by_order = logsumexp(lp, axis=1) - np.log(lp.shape[1]) if scorable else np.full((lp.shape[0], lp.shape[2]), np.nan)
    score = by_order.mean(axis=0)
    listed = [[[float(value) if np.isfinite(value) else None for value in sample] for sample in order] for order in lp]
    reversal = read.debias == "reversal"
    return {
        "version": 1,
        "id": vignette.id,
        "condition": vignette.condition,
        "foundation": vignette.foundation_coarse.replace(" ", ""),  # the published rows write SocialNorms
        "lp": listed,
        "lp_fwd": listed[0],
        "lp_rev": listed[1] if reversal else None,
        "p": softmax(score).tolist() if scorable else None,
        "score": score.tolist() if scorable else None,
        "pmass_allowed": float(np.exp(by_order).sum(axis=1).mean()) if scorable else None,
        "nll_prefill": nll_prefill,
        "think_tokens": read.think,
        "gen_text": texts[0],
        "gen_text_rev": texts[read.samples] if reversal else None,
    }


def _seed(seed: int, name: str, order: int, sample: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}\0{order}\0{sample}".encode()).digest()[:4]) >> 1
