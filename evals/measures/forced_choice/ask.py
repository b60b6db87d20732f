"""The two-phase read: T think tokens, then the log-probabilities of the seven labels at the answer slot.

All vignettes, orders, samples and conditions that share a set of weights are one continuous batch per phase.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.conditions import Condition
from evals.measures.forced_choice.free_answer import prefill_key, valid
from evals.measures.forced_choice.instrument import ORDERS, InstrumentRenderer, orders, rotations_of
from evals.measures.forced_choice.labels import answer_of
from shared.instrument import FOUNDATIONS
from shared.records import Vignette
from shared.seeds import seed_of
from shared.vignettes import raters_distribution

if TYPE_CHECKING:
    from gen.engine.engine import Engine
    from gen.engine.sampling import Output, Request


@dataclass(frozen=True)
class Read:
    """How the question is put.

    debias: the orders, 'reversal', 'rotating' or 'cyclic'. think: tokens of thought before the answer, exactly this many as in the published
    evaluator, or with stop at most this many: the model may end its thought. samples: thoughts per item and order, greedy at
    temperature 0, else from the top_k likeliest tokens; 50 is what Hugging Face's generate samples from unless a model says otherwise.
    """

    debias: str
    think: int
    samples: int = 1
    temperature: float = 0.0
    top_k: int = 50
    seed: int = 0
    stop: bool = False
    nll_prefill: bool = True

    @property
    def thoughts(self) -> int:
        """Requests before an answer: 1, or 0 without a thought."""
        return 1 if self.think else 0


@dataclass(frozen=True)
class Free:
    """An answer in the model's own words instead of the forced prefill: greedy, at most `tokens` tokens."""

    tokens: int


@dataclass(frozen=True)
class ForcedChoiceQuestion:
    """One question of one condition: a vignette in one order, and the number of the sample; rotation as in instrument.rotations."""

    condition: Condition
    vignette: Vignette
    order: int
    sample: int
    question: list[int]
    rotation: int | None


def forced_choice(
    engine: Engine,
    renderer: InstrumentRenderer,
    vignettes: Sequence[Vignette],
    conditions: Sequence[Condition],
    read: Read,
    tokenizer: Any,
    advance: Callable[[], None],
    free: Free | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """One row per vignette for every condition, by condition name. advance is called once for each of `reads`.

    Each thought is followed at once by its answer, so that the question is still in the prefix cache. With free, the first sample of
    the first order also gives free_text, the model's own words, and free_valid, whether they are the JSON that was asked for.
    """
    turned = rotations_of(read.debias, vignettes)
    cells = [
        ForcedChoiceQuestion(
            condition, vignette, order, sample, renderer.question(vignette.text, listing, condition.system), rotation
        )
        for condition in conditions
        for vignette, rotation in zip(vignettes, turned, strict=True)
        for order, listing in enumerate(orders(read.debias, rotation))
        for sample in range(read.samples)
    ]
    key = prefill_key(renderer.instrument) if free else ""
    asking = _Asking(renderer, read, tokenizer, free, cells)
    chains = engine.chain([asking.first(cell) for cell in cells], asking.then, on_done=lambda *_: advance())
    rows: dict[str, list[dict[str, Any]]] = {condition.name: [] for condition in conditions}
    assert len(rows) == len(
        conditions
    )  # names are told apart before anything runs: evals.conditions.refuse_duplicate_conditions
    block = ORDERS[read.debias] * read.samples
    for begin in range(0, len(cells), block):
        answers = [chain[read.thoughts] for chain in chains[begin : begin + block]]
        labels = np.array([answer.label_logprobs for answer in answers])
        # An answer after a thought that overflowed is not read after an empty one.
        labels[[chain[0].finish_reason == "error" for chain in chains[begin : begin + block]]] = np.nan
        listings = orders(read.debias, cells[begin].rotation)
        by_sample = labels.reshape(len(listings), read.samples, -1)
        canonical = np.stack([by_sample[order][:, np.argsort(listing)] for order, listing in enumerate(listings)])
        forced = [answer.prompt_logprobs for answer in answers if answer.prompt_logprobs is not None]
        texts = [tokenizer.decode(thought) for thought in asking.thoughts[begin : begin + block]]
        score_row = row(
            cells[begin].vignette, canonical, read, -float(np.mean(forced)) if forced else None, texts,
            [len(thought) for thought in asking.thoughts[begin : begin + block]], cells[begin].rotation,
        )  # fmt: skip
        score_row["instrument"], score_row["template"] = renderer.instrument.identity, renderer.chat.arguments
        if free:
            score_row["free_text"] = chains[begin][-1].text
            score_row["free_valid"] = valid(chains[begin][-1].text, key, renderer.instrument.labels)
        rows[cells[begin].condition.name].append(score_row)
    return rows


def reads(vignettes: int, conditions: int, read: Read, free: Free | None = None) -> int:
    """Requests of a forced choice, each of which advances its progress by one.

    Args:
        vignettes, conditions: their numbers.
        read: how a question is asked.
        free: settings of free answers; None for none.
    """
    per_vignette = ORDERS[read.debias] * read.samples * (read.thoughts + 1) + (1 if free else 0)
    return vignettes * conditions * per_vignette


class _Asking:
    """The requests of a cell, one following from another: thought, forced answer, and for some a free answer."""

    def __init__(
        self,
        renderer: InstrumentRenderer,
        read: Read,
        tokenizer: Any,
        free: Free | None,
        cells: Sequence[ForcedChoiceQuestion],
    ):
        self._renderer, self._read, self._tokenizer, self._free, self._cells = renderer, read, tokenizer, free, cells
        self.thoughts: list[list[int]] = [[] for _ in cells]

    def first(self, cell: ForcedChoiceQuestion) -> Request:
        from gen.engine.sampling import Request

        read = self._read
        if not read.think:
            return self._answer(cell, [])
        return Request(
            cell.question,
            read.think,
            read.temperature,
            top_k=read.top_k,
            seed=seed_of(read.seed, cell.vignette.id, cell.order, cell.sample),
            min_tokens=0 if read.stop else read.think,
            stop_ids=self._renderer.stop_ids,
            **cell.condition.steering(len(cell.question) - 1),
        )

    def then(self, index: int, outputs: Sequence[Output]) -> Request | None:
        from gen.engine.sampling import Request

        cell, read = self._cells[index], self._read
        if len(outputs) == read.thoughts:
            ids = outputs[0].token_ids
            self.thoughts[index] = cut_thought(ids, self._renderer, self._tokenizer) if read.stop else ids
            return self._answer(cell, self.thoughts[index])
        if self._free and cell.order == cell.sample == 0 and len(outputs) == read.thoughts + 1:
            prompt = self._renderer.free_answer(cell.question, self.thoughts[index], read.stop)
            return Request(
                prompt,
                self._free.tokens,
                stop_ids=self._renderer.chat.stop_ids,
                **cell.condition.steering(len(cell.question) - 1),
            )
        return None

    def _answer(self, cell: ForcedChoiceQuestion, thought: Sequence[int]) -> Request:
        from gen.engine.sampling import Request

        return Request(
            self._renderer.answer(cell.question, thought, self._read.stop),
            label_ids=self._renderer.label_ids,
            tail=len(self._renderer.prefill) if self._read.nll_prefill else 0,
            **cell.condition.steering(len(cell.question) - 1),
        )


def cut_thought(ids: Sequence[int], renderer: InstrumentRenderer, tokenizer: Any) -> list[int]:
    """A thought up to where the model ended it: before a stop token, or before the closing mark where that is several tokens."""
    stop = next((place for place, token in enumerate(ids) if token in renderer.stop_ids), len(ids))
    thought = list(ids[:stop])
    end = tokenizer.decode(thought).find(renderer.close)
    while end >= 0 and len(tokenizer.decode(thought)) > end:
        thought.pop()
    return thought


def row(
    vignette: Vignette,
    lp: np.ndarray,
    read: Read,
    nll_prefill: float | None,
    texts: Sequence[str],
    thought_tokens: Sequence[int] | None = None,
    rotation: int | None = None,
) -> dict[str, Any]:
    """A score row from lp [orders, samples, 7], canonical order, nats; texts and thought_tokens are [orders * samples]; rotation is the
    item's, under rotating orders.

    score, p and pmass_allowed, the answer mass, as in evals.measures.forced_choice.labels. Not finite means unscorable: nulls, never imputed.
    label is the human distribution, where the vignette has one.
    """
    scorable = bool(np.isfinite(lp).all())
    score, p, mass = answer_of(lp)
    second, first = np.sort(score)[-2:]
    listed = [[[float(value) if np.isfinite(value) else None for value in sample] for sample in order] for order in lp]
    mirrored, samples = ORDERS[read.debias] == 2, read.samples  # the second order is the first reversed
    coarse = vignette.foundation_coarse.replace(" ", "")  # the published rows write SocialNorms
    return {
        "version": 1,
        "id": vignette.id,
        "condition": vignette.condition,
        "foundation": coarse,
        "foundation_coarse": coarse,
        "lp": listed,
        "lp_fwd": listed[0],
        "lp_rev": listed[1] if mirrored else None,
        "p": p.tolist() if scorable else None,
        "score": score.tolist() if scorable else None,
        "top1": FOUNDATIONS[int(score.argmax())] if scorable else None,
        "margin": float(first - second) if scorable else None,
        "label": raters_distribution(vignette),
        "pmass_allowed": mass if scorable else None,
        "nll_prefill": nll_prefill if nll_prefill is not None and np.isfinite(nll_prefill) else None,
        "think_tokens": read.think,
        "thought_tokens": list(thought_tokens) if thought_tokens is not None else None,
        "gen_text": _text(texts[:samples]),
        "gen_text_rev": _text(texts[samples : 2 * samples]) if mirrored else None,
        "text": hashlib.sha256(vignette.text.encode()).hexdigest()[:12],
        "debias": read.debias,
        "rotation": rotation,
        "stop": read.stop,
        "temperature": read.temperature,
        "top_k": read.top_k if read.temperature > 0 else None,
    }


def _text(texts: Sequence[str]) -> str | list[str]:
    return texts[0] if len(texts) == 1 else list(texts)
