"""Free generations on the held-out prompts, and their scores under the original model.

Of a model that thinks, the answer is measured and not the thought: a row's text, tokens and scores are those of what comes behind the
thought, scored behind prompt and thought. A thought that does not end leaves an empty answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.cache import Cache, Row, WeightsKey
from evals.conditions import Condition
from evals.measures.free_text.rows import Generation
from gen.prompts import Renderer
from gen.scoring import score
from shared.chat import Chat
from shared.console import counting
from shared.records import Prompt
from shared.schema import Config
from shared.seeds import seed_of
from shared.text import distinct_n, loop_share
from shared.vectors import Vector

if TYPE_CHECKING:
    from gen.engine.engine import Engine


class Generations:
    """Generations of conditions, judged once all are sampled; what a cache holds is not made again."""

    def __init__(self, engine: Engine, renderer: Renderer, prompts: Sequence[Prompt], config: Config):
        self._engine, self._renderer, self._prompts, self._config = engine, renderer, prompts, config
        self.tokens = 0  # sampled here, not taken from a cache; known once judged
        self._found: dict[str, list[dict[str, Any]]] = {}
        self._fresh: list[tuple[Condition, Cache | None]] = []

    def sample(self, label: str, conditions: Sequence[Condition], cache: Cache | None) -> None:
        """Sample under the weights that the engine serves; label is for the progress bar."""
        for condition in conditions:
            known = cache.get(condition) if cache else None
            self._found[condition.name] = [{**row, "name": condition.name} for row in known or []]
        missing = [condition for condition in conditions if not self._found[condition.name]]
        if not missing:
            return
        self._fresh += [(condition, cache) for condition in missing]
        total = len(missing) * len(self._prompts) * self._config.eval.generation_samples
        with counting(f"generations, {label}", total) as advance:
            made = generate(self._engine, self._renderer, self._prompts, missing, self._config, advance)
        for row in made:
            self._found[row["name"]].append(row)

    def judged(self) -> list[dict[str, Any]]:
        """All rows in the order sampled, with their scores; the engine must hold the original weights."""
        fresh = [row for condition, _ in self._fresh for row in self._found[condition.name]]
        with counting("scoring generations", 2 * len(fresh)) as advance:
            judged = judge(self._engine, self._renderer, self._prompts, fresh, advance)
        self.tokens += sum(row["tokens"] for row in judged)
        for condition, cache in self._fresh:
            self._found[condition.name] = [row for row in judged if row["name"] == condition.name]
            if cache:
                cache.put(condition, self._found[condition.name])
        self._fresh = []
        return [row for rows in self._found.values() for row in rows]


def generate(
    engine: Engine,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    config: Config,
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """Sample every held-out prompt under every condition; a prompt's seed is the same under all of them."""
    from gen.engine.sampling import Request

    asked = {prompt.id: renderer(prompt) for prompt in prompts}
    cells = [
        (condition, prompt, sample)
        for condition in conditions
        for prompt in prompts
        for sample in range(config.eval.generation_samples)
    ]
    outputs = engine.run(
        [
            Request(
                asked[prompt.id][1 if condition.system else 0],
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
    return [
        {
            "version": 1,
            "name": condition.name,
            "prompt_id": prompt.id,
            "prompt": prompt.turns[-1]["content"],
            "sample": sample,
            **said(renderer.chat, output.token_ids, output.text),
            "finish_reason": output.finish_reason,
        }
        for (condition, prompt, sample), output in zip(cells, outputs, strict=True)
    ]


def said(chat: Chat, ids: Sequence[int], text: str) -> dict[str, Any]:
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


def judge(
    engine: Engine,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    rows: Sequence[dict[str, Any]],
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """The rows with nll (total nats), tokens, perplexity, trait_llr, distinct_1 to 3 and loop_share; the engine must hold the original weights."""
    asked = {prompt.id: renderer(prompt) for prompt in prompts}
    neutral, towards = (
        [[*asked[row["prompt_id"]][which], *row.get("thought_ids", ())] for row in rows] for which in (0, 1)
    )
    scores = score(engine, neutral, towards, [row["completion_ids"] for row in rows], advance)
    return [
        {
            **row,
            "nll": found.nll,
            "tokens": found.tokens,
            "perplexity": found.perplexity,
            "trait_llr": found.trait_llr,
            "distinct_1": distinct(row["completion_ids"], 1),
            "distinct_2": distinct(row["completion_ids"], 2),
            "distinct_3": found.distinct_3,
            "loop_share": loop_share(row["completion_ids"]) if row["completion_ids"] else None,
        }
        for row, found in zip(rows, scores, strict=True)
    ]


def distinct(tokens: Sequence[int], n: int) -> float | None:
    return distinct_n(tokens, n) if tokens else None


def of_generations(
    weights: WeightsKey,
    judge: WeightsKey,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    config: Config,
    vectors: Mapping[str, Vector],
    folder: Path | None = None,
    *,
    fresh: bool = False,
) -> Cache:
    """Free generations, judged under the original model."""
    samples = config.eval.generation_samples
    rendered = [renderer(prompt) for prompt in prompts]
    content = {
        "kind": "generations",
        "judge": judge,
        "rendered": rendered,  # both ways: judged by both, whatever a condition is asked under
        "asked": [[prompt.id, prompt.turns] for prompt in prompts],
        "sampling": [config.sweep.temperature, config.sweep.top_p, samples, config.eval.generation_tokens],
        "stop_ids": list(renderer.chat.stop_ids),
        "seeds": [seed_of(config.seed, prompt.id, sample) for prompt in prompts for sample in range(samples)],
    }
    return Cache(
        weights,
        content,
        lambda condition: bool(condition.system),
        lambda rows: _check_generations(rows, prompts, config),
        __name__,
        vectors,
        folder,
        fresh,
    )


def _check_generations(rows: Sequence[Row], prompts: Sequence[Prompt], config: Config) -> None:
    made = [Generation.model_validate(row) for row in rows]
    wanted = [
        (prompt.id, prompt.turns[-1]["content"], sample)
        for prompt in prompts
        for sample in range(config.eval.generation_samples)
    ]
    if [(row.prompt_id, row.prompt, row.sample) for row in made] != wanted:
        raise ValueError(f"other prompts or samples than the {len(wanted)} asked")
    if any(len(row["completion_ids"]) != one.tokens for row, one in zip(rows, made, strict=True)):
        raise ValueError("completion_ids of other lengths than their tokens")
