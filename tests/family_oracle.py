"""What Transformers says of a family's model, by plain forwards with hooks: all of it before an engine starts in the process.

vLLM runs some families, such as OLMo-2, by Transformers' own classes, and changes these when it starts: none can be built afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hooked import Hooked

from evals.conditions import Condition
from evals.measures.forced_choice.ask import Read
from shared.vectors import Vector

LENGTH = 4  # greedy tokens behind a prompt
LABELS = list(range(20, 30))  # any ids
READ = Read("reversal", 3)
CONDITIONS = [Condition("base", "base"), Condition("steered", "steered", 1.0, "v")]


@dataclass(frozen=True)
class Case:
    """A prompt under a coefficient of the vector, from its first token ('all') or its last one ('generated') on."""

    ids: list[int]
    coefficient: float
    positions: str


@dataclass(frozen=True)
class Answer:
    """Log-probabilities of a prompt's tokens 1.. and of LABELS behind it, nats, and LENGTH greedy tokens."""

    prompt: np.ndarray
    labels: np.ndarray
    greedy: list[int]


def cases(prompts: list[list[int]]) -> list[Case]:
    return [Case(ids, c, positions) for ids in prompts for c in (0.0, 0.5, 1.5) for positions in ("all", "generated")]


class Oracle:
    """A model folder, under an adapter or not, with hooks that add a vector to the outputs of its blocks."""

    def __init__(self, folder: Path, vector: Vector, adapter: Path | None = None):
        self.hooked = Hooked(folder, vector, adapter)
        ends = self.hooked.network.generation_config.eos_token_id
        self.ends = ends if isinstance(ends, list) else [ends]

    def answer(self, case: Case) -> Answer:
        ids, size = list(case.ids), len(case.ids)
        start = 0 if case.positions == "all" else size - 1
        first = table = self.hooked.logprobs(ids, case.coefficient, start)
        while len(ids) < size + LENGTH:
            last = table[-1].clone()
            last[self.ends] = -np.inf  # as the engine's min_tokens forbids them
            ids.append(int(last.argmax()))
            table = self.hooked.logprobs(ids, case.coefficient, start)
        own = first[np.arange(size - 1), case.ids[1:]].numpy()
        return Answer(own, first[-1, LABELS].numpy(), ids[size:])

    def choice(self, folder: Path, renderer: Any, items: list[Any], condition: Condition) -> list[dict[str, Any]]:
        """Rows of the forced choice by generate, steered at every position."""
        from evals.bridges.huggingface import HuggingFace

        tokenizer = renderer.chat.tokenizer
        peer = HuggingFace(folder, "float32", len(tokenizer))  # a row of the embedding that is no token
        peer._model, self.hooked.coefficient, self.hooked.start = self.hooked.network, condition.coefficient, 0
        return peer.forced_choice(renderer, items, READ, tokenizer, 1)
