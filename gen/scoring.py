"""Score completions under the original model, in the sampling engine: perplexity and trait_llr by prompt log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.quarters import last_quarter
from shared.records import Completion
from shared.text import distinct_n

if TYPE_CHECKING:
    from gen.engine.engine import Engine


@dataclass(frozen=True)
class Score:
    """The measures of a completion under the original model. A field that a sweep row has as well is written into it.

    All but tokens and distinct_3 are None where a log-probability is not finite.

    Args:
        nll: total negative log-probability of the completion after the neutral prompt, nats.
        tokens: of the completion.
        perplexity, perplexity_last_quarter, trait_llr, distinct_3: as in a sweep row; None for an empty completion.
        logprobs: [tokens], the terms of nll with their sign turned, nats.
        others: mean log-probability per token after each of the other prompts, nats; empty where one is not finite.
    """

    nll: float | None
    tokens: int
    perplexity: float | None
    perplexity_last_quarter: float | None
    trait_llr: float | None
    distinct_3: float | None
    logprobs: np.ndarray | None = None
    others: tuple[float, ...] = ()

    @property
    def row_fields(self) -> dict[str, Any]:
        """The measures that a sweep row has, by their names in shared.records.Completion."""
        return {
            name: value for name, value in vars(self).items() if name in Completion.model_fields and name != "logprobs"
        }


def score_completions(
    engine: Engine,
    neutral: Sequence[Sequence[int]],
    trait: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    advance: Callable[[], None],
    others: Sequence[Sequence[Sequence[int]]] = (),
) -> list[Score]:
    """Score completions [n] after their prompts under the neutral and the trait system prompt (token ids each), and after others.

    The engine must hold the original weights. trait_llr is the mean per-token log p(y | trait, x) - log p(y | neutral, x), nats.
    The prompts of many completions are computed once, in the prefix cache; it is emptied first, because the last digits of a score
    depend on what it held and a resumed sweep must find the bytes of an uninterrupted one.
    """
    from gen.engine.sampling import Request

    full = [index for index, completion in enumerate(completions) if len(completion)]
    engine.reset_cache()
    requests = [
        Request([*prompts[index], *completions[index]], tail=len(completions[index]))
        for prompts in (neutral, trait, *others)
        for index in full
    ]
    outputs = engine.run(requests, on_done=lambda *_: advance())
    scores = [Score(0.0, 0, None, None, None, None)] * len(completions)
    for place, index in enumerate(full):
        count = len(completions[index])
        logprobs = [outputs[place + way * len(full)].prompt_logprobs for way in range(2 + len(others))]
        ours, other, *rest = [values for values in logprobs if values is not None]
        assert len(rest) == len(others), "a request with a tail has its log-probabilities"
        if not (np.isfinite(ours).all() and np.isfinite(other).all()):
            scores[index] = Score(None, count, None, None, None, distinct_n(completions[index], 3))
            continue
        scores[index] = Score(
            nll=float(-ours.sum()),
            tokens=count,
            perplexity=float(np.exp(-ours.mean())),
            perplexity_last_quarter=float(np.exp(-ours[last_quarter(count)].mean())),
            trait_llr=float((other - ours).mean()),
            distinct_3=distinct_n(completions[index], 3),
            logprobs=ours,
            others=tuple(float(values.mean()) for values in rest) if all(np.isfinite(v).all() for v in rest) else (),
        )
    return scores
