"""Free generations on the held-out prompts, and their scores under the original model.

Of a model that thinks, the answer is measured and not the thought: a row's text, tokens and scores are those of what comes after the
thought, scored after prompt and thought. A thought that does not end leaves an empty answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.cache import Cache, Row, WeightsKey
from evals.conditions import Condition
from evals.measures.free_text.rows import Generation
from evals.measures.free_text.under_original import others_of, under_original
from gen.prompts import PromptRenderer
from shared.chat import Chat
from shared.console import counting
from shared.records import Prompt
from shared.schema import Config
from shared.seeds import seed_of
from shared.vectors import Vector

if TYPE_CHECKING:
    from gen.engine.engine import Engine


class Generations:
    """Generations of conditions, judged once all are sampled; what a cache holds is not made again."""

    def __init__(self, engine: Engine, renderer: PromptRenderer, prompts: Sequence[Prompt], config: Config):
        self._engine, self._renderer, self._prompts, self._config = engine, renderer, prompts, config
        self.tokens = 0  # sampled here, not taken from a cache; known once judged
        self._found: dict[str, list[dict[str, Any]]] = {}
        self._fresh: list[tuple[Condition, Cache | None]] = []

    def sample(self, label: str, conditions: Sequence[Condition], cache: Cache | None) -> None:
        """Sample under the weights that the engine serves; label is for the progress bar."""
        for condition in conditions:
            cached = cache.get(condition) if cache else None
            self._found[condition.name] = [{**row, "name": condition.name} for row in cached or []]
        missing = [condition for condition in conditions if not self._found[condition.name]]
        if not missing:
            return
        self._fresh += [(condition, cache) for condition in missing]
        total = len(missing) * len(self._prompts) * self._config.eval.generation_samples
        with counting(f"generations, {label}", total) as advance:
            new = generate(self._engine, self._renderer, self._prompts, missing, self._config, advance)
        for row in new:
            self._found[row["name"]].append(row)

    def judged(self) -> list[dict[str, Any]]:
        """All rows in the order sampled, with their scores; the engine must hold the original weights."""
        fresh = [row for condition, _ in self._fresh for row in self._found[condition.name]]
        ways = 2 + others_of(self._renderer, self._prompts)
        with counting("scoring generations", ways * len(fresh)) as advance:
            judged = under_original(self._engine, self._renderer, self._prompts, fresh, advance)
        self.tokens += sum(row["tokens"] for row in judged)
        for condition, cache in self._fresh:
            self._found[condition.name] = [row for row in judged if row["name"] == condition.name]
            if cache:
                cache.put(condition, self._found[condition.name])
        self._fresh = []
        return [row for rows in self._found.values() for row in rows]


def generate(
    engine: Engine,
    renderer: PromptRenderer,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    config: Config,
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """Sample every held-out prompt under every condition; a prompt's seed is the same under all of them."""
    from gen.engine.sampling import Request

    cells = [
        (condition, prompt, sample)
        for condition in conditions
        for prompt in prompts
        for sample in range(config.eval.generation_samples)
    ]
    rendered = {(prompt.id, c.system): renderer.under(prompt, c.system) for c in conditions for prompt in prompts}
    outputs = engine.run(
        [
            Request(
                rendered[prompt.id, condition.system],
                config.eval.generation_tokens,
                config.sweep.temperature,
                config.sweep.top_p,
                seed_of(config.seed, prompt.id, sample),
                condition.vector,
                condition.coefficient,
                condition.positions,
                stop_ids=renderer.chat.stop_ids,
            )
            for condition, prompt, sample in cells
        ],
        on_done=lambda *_: advance(),
    )
    rows = [
        {
            "version": 1,
            "name": condition.name,
            "prompt_id": prompt.id,
            "prompt": prompt.turns[-1]["content"],
            "kind": prompt.kind,
            "sample": sample,
            **answer_fields(renderer.chat, output.token_ids, output.text),
            "finish_reason": output.finish_reason,
        }
        for (condition, prompt, sample), output in zip(cells, outputs, strict=True)
    ]
    behind = [rendered[prompt.id, condition.system] for condition, prompt, _ in cells]
    own_losses = own_nll(engine, rows, behind, [condition for condition, _, _ in cells])
    return [{**row, "own_nll": value} for row, value in zip(rows, own_losses, strict=True)]


def own_nll(
    engine: Engine, rows: Sequence[Row], prompts: Sequence[Sequence[int]], conditions: Sequence[Condition]
) -> list[float | None]:
    """Total nats of each row's text under the condition that said it, at temperature 1: its weights, its system prompt and its steering.
    None where a log-probability is not finite."""
    from gen.engine.sampling import Request

    full = [index for index, row in enumerate(rows) if row["completion_ids"]]
    engine.reset_cache()  # as in gen/scoring.py
    outputs = engine.run(
        [
            Request(
                [*prompts[index], *rows[index].get("thought_ids", ()), *rows[index]["completion_ids"]],
                tail=len(rows[index]["completion_ids"]),
                **conditions[index].steering(len(prompts[index]) - 1),
            )
            for index in full
        ]
    )
    losses: list[float | None] = [0.0] * len(rows)
    for index, output in zip(full, outputs, strict=True):
        assert output.prompt_logprobs is not None
        total = float(-output.prompt_logprobs.sum())
        losses[index] = total if math.isfinite(total) else None
    return losses


def answer_fields(chat: Chat, ids: Sequence[int], text: str) -> dict[str, Any]:
    """text and completion_ids of an answer; of a model that thinks, thought_ids besides.

    Args:
        ids, text: of all that the model said, without the end of the turn in the text.
    """
    thought, answer = chat.parted(ids)
    if not thought:
        return {"text": text, "completion_ids": list(ids)}
    words = answer[:-1] if chat.ends(answer) else answer
    return {
        "text": str(chat.tokenizer.decode(words, skip_special_tokens=True)),
        "completion_ids": answer,
        "thought_ids": thought,
    }


def of_generations(
    weights: WeightsKey,
    judge: WeightsKey,
    renderer: PromptRenderer,
    prompts: Sequence[Prompt],
    config: Config,
    vectors: Mapping[str, Vector],
    folder: Path | None = None,
    *,
    fresh: bool = False,
) -> Cache:
    """The cache of free generations with their scores under the original model, with a key over everything that they depend on."""
    samples = config.eval.generation_samples
    rendered = [[*renderer(prompt), *renderer.heldout(prompt)] for prompt in prompts]
    content = {
        "kind": "generations",
        "judge": judge,
        "rendered": rendered,  # all ways: judged by all, whatever a condition is asked under
        "asked": [[prompt.id, prompt.turns, prompt.kind] for prompt in prompts],
        "sampling": [config.sweep.temperature, config.sweep.top_p, samples, config.eval.generation_tokens],
        "stop_ids": list(renderer.chat.stop_ids),
        "seeds": [seed_of(config.seed, prompt.id, sample) for prompt in prompts for sample in range(samples)],
    }
    return Cache(
        weights,
        content,
        lambda condition: [renderer.under(prompt, condition.system) for prompt in prompts],
        lambda rows: _check_generations(rows, prompts, config),
        __name__,
        vectors,
        folder,
        fresh,
    )


def _check_generations(rows: Sequence[Row], prompts: Sequence[Prompt], config: Config) -> None:
    generations = [Generation.model_validate(row) for row in rows]
    expected = [
        (prompt.id, prompt.turns[-1]["content"], sample)
        for prompt in prompts
        for sample in range(config.eval.generation_samples)
    ]
    if [(row.prompt_id, row.prompt, row.sample) for row in generations] != expected:
        raise ValueError(f"other prompts or samples than the {len(expected)} asked")
    if any(len(row["completion_ids"]) != generation.tokens for row, generation in zip(rows, generations, strict=True)):
        raise ValueError("completion_ids of other lengths than their tokens")
