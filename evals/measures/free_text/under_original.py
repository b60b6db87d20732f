"""Scores of sampled texts under the original model: perplexity, the trait's log-likelihood ratios, relevance to their prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gen.prompts import PromptRenderer
from gen.scoring import score_completions
from shared.records import Prompt
from shared.text import distinct_n, loop_share

if TYPE_CHECKING:
    from gen.engine.engine import Engine

OTHER_PROMPTS = 3  # number of other prompts that a text is scored under, for its relevance


def others_of(renderer: PromptRenderer, prompts: Sequence[Prompt]) -> int:
    """Further scores of a text: under the paraphrases, and after other prompts."""
    paraphrases = renderer.trait.paraphrases
    return (2 * len(paraphrases.trait) if paraphrases else 0) + min(OTHER_PROMPTS, len(prompts) - 1)


def under_original(
    engine: Engine,
    renderer: PromptRenderer,
    prompts: Sequence[Prompt],
    rows: Sequence[dict[str, Any]],
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """The rows with nll (total nats), tokens, perplexity, trait_llr, llr_opposite, relevance, distinct_1 to 3 and loop_share.

    The engine must hold the original weights. All log-probabilities are of one batch. A text's other prompts are those that follow its
    own in their order, the first after the last.
    """
    places = {prompt.id: place for place, prompt in enumerate(prompts)}
    rendered = [renderer(prompt) for prompt in prompts]
    heldout = [renderer.heldout(prompt) for prompt in prompts]
    k, others = len(heldout[0][0]), min(OTHER_PROMPTS, len(prompts) - 1)

    def ways(place: int) -> list[list[int]]:
        after = [rendered[(place + step) % len(prompts)][0] for step in range(1, others + 1)]
        return [*rendered[place], *heldout[place][0], *heldout[place][1], *after]

    by_row = [[[*prompt, *row.get("thought_ids", ())] for prompt in ways(places[row["prompt_id"]])] for row in rows]
    neutral, towards, *rest = ([ids[way] for ids in by_row] for way in range(2 + 2 * k + others))
    scores = score_completions(engine, neutral, towards, [row["completion_ids"] for row in rows], advance, rest)
    judged = []
    for row, measured in zip(rows, scores, strict=True):
        ids, mean = row["completion_ids"], measured.others
        own_llr = -measured.nll / measured.tokens if measured.nll is not None and measured.tokens else None
        judged.append(
            {
                **row,
                "nll": measured.nll,
                "tokens": measured.tokens,
                "perplexity": measured.perplexity,
                "trait_llr": measured.trait_llr,
                "llr_opposite": (sum(mean[:k]) - sum(mean[k : 2 * k])) / k if k and mean else None,
                "relevance": own_llr - sum(mean[2 * k :]) / others if others and mean and own_llr is not None else None,
                "distinct_1": distinct_n(ids, 1) if ids else None,
                "distinct_2": distinct_n(ids, 2) if ids else None,
                "distinct_3": measured.distinct_3,
                "loop_share": loop_share(ids) if ids else None,
            }
        )
    return judged
