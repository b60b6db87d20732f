"""One request to the engine and what comes of it, in our terms and in vLLM's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.errors import SteerHealError


@dataclass(frozen=True)
class Request:
    """One completion to sample, or one prompt to score.

    coefficient is a multiple of the vector in `vector` (None: unsteered). positions 'all', 'generated' or 'last'; 'generated'
    starts at the prompt's last token, which makes the first sampled token steered, and 'last' is that token alone. steer_from, if given, is
    the first steered position and steer_until the first after it, as gen/engine/terms.py spells them. terms are further vectors, each
    an object of that file.
    min_tokens = max_tokens forbids every stop token. score asks for the log-probability of each prompt token, tail for those of
    only the last N, so that what stands before them may come from the prefix cache; label_ids for the full-vocabulary
    log-probabilities of these tokens at the first sampled position. top_k 0 is the whole vocabulary. read names a vector that the residual
    stream is projected on, in an engine that reads.

    Raises SteerHealError for a coefficient without a vector: the request would run unsteered.
    """

    prompt_ids: Sequence[int]
    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    vector: str | None = None
    coefficient: float = 0.0
    positions: str = "all"
    steer_from: int | str | None = None
    steer_until: int | str | None = None
    terms: Sequence[Mapping[str, Any]] = ()
    min_tokens: int = 0
    stop_ids: Sequence[int] = ()
    score: bool = False
    tail: int = 0
    label_ids: Sequence[int] = ()
    top_k: int = 0
    read: str | None = None

    def __post_init__(self) -> None:
        if self.vector is None and self.coefficient:
            raise SteerHealError(
                "a request has a coefficient and no vector",
                given=f"coefficient={self.coefficient}, vector=None",
                expected="a vector's name with every coefficient but 0",
                next='name the vector, vector="NAME" as engine.load was given it, or leave the coefficient out',
            )


@dataclass(frozen=True)
class Output:
    """token_ids sampled; text, empty where log-probabilities were asked for; prompt_logprobs [prompt tokens - 1], of tokens 1.., or [tail]; label_logprobs [labels]; nats.
    projections [prompt + sampled - 1 tokens, patched layers], <h, v> / ||v|| of the residual stream h after a layer; NaN where the cache held a
    position, and in a layer without the vector.

    A request whose logits were not finite has finish_reason "error", no tokens, and log-probabilities that are all NaN.
    """

    token_ids: list[int]
    text: str
    finish_reason: str
    prompt_logprobs: np.ndarray | None
    label_logprobs: np.ndarray | None
    projections: np.ndarray | None = None


def params_of(request: Request) -> Any:
    """As vLLM's SamplingParams, with the steering in its extra_args."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from gen.engine.terms import READ

    extra: dict[str, Any] = {}
    if request.vector is not None:
        extra = {
            "steer_vector": request.vector,
            "steer_coefficient": float(request.coefficient),
            "steer_positions": request.positions,
        }
        if request.steer_from is not None:
            extra["steer_from"] = request.steer_from
        if request.steer_until is not None:
            extra["steer_until"] = request.steer_until
    if request.read is not None:
        extra[READ] = request.read
    if request.terms:
        extra["steer_terms"] = [dict(term) for term in request.terms]
    return SamplingParams(
        max_tokens=request.max_tokens,
        min_tokens=request.min_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
        stop_token_ids=list(request.stop_ids) or None,
        prompt_logprobs=0 if request.score or request.tail else None,
        skip_reading_prefix_cache=request.score,
        # With log-probabilities vLLM spells out every token that has one, and ends at an id without a word: a padded head has such
        # ids, and so have the places of cached tokens.
        detokenize=not (request.score or request.tail or request.label_ids),
        logprob_token_ids=list(request.label_ids) or None,
        extra_args=extra or None,
        output_kind=RequestOutputKind.FINAL_ONLY,  # else every step makes an object a running request
    )


def output_of(result: Any, request: Request) -> Output | None:
    """From vLLM's RequestOutput; None where the cache held part of the tail, or a preemption dropped it: its log-probabilities
    were then not computed, or not kept."""
    sampled = result.outputs[0]
    scored = labels = None
    count = request.tail or len(request.prompt_ids) - 1
    if sampled.finish_reason == "error":
        return Output(
            [],
            "",
            "error",
            np.full(count, np.nan) if request.score or request.tail else None,
            np.full(len(request.label_ids), np.nan) if request.label_ids else None,
        )
    if request.score or request.tail:
        if not request.score and (
            result.num_cached_tokens >= len(request.prompt_ids) - count or len(result.prompt_logprobs) <= count
        ):
            return None
        pairs = list(zip(request.prompt_ids[-count:], result.prompt_logprobs[-count:], strict=True))
        if not request.score and not all(token in entry for token, entry in pairs):
            return None
        scored = np.array([entry[token].logprob for token, entry in pairs])
    if request.label_ids:
        labels = np.array([sampled.logprobs[0][token].logprob for token in request.label_ids])
    projections = projections_by_position(sampled.routed_experts, len(request.prompt_ids) + len(sampled.token_ids) - 1)
    return Output(list(sampled.token_ids), sampled.text, sampled.finish_reason, scored, labels, projections)


def projections_by_position(rows: np.ndarray | None, count: int) -> np.ndarray | None:
    """Projections [count, layers] of the positions from 0 on; NaN for those that were not computed, since the cache held them.

    Args:
        rows: [n, 1 + layers] as Readings.take has them, in the order of the steps: of a position that a preemption made compute
            again the last counts. None for a request that was not read.
    """
    if rows is None:
        return None
    table = np.full((count, rows.shape[1] - 1), np.nan, dtype=np.float32)
    within = rows[rows[:, 0] < count]
    table[within[:, 0].astype(int)] = within[:, 1:]
    return table
