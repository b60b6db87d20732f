"""Rows kept by what determines them, so that the same weights are never asked the same thing twice.

One JSONL per condition, under a name made of the weights, the steering, all that was asked, the versions of the packages that compute,
the processor with its instruction set, and the code that asks. Safe to remove. How a condition is batched with others is not part of the name: it moves the last digits, so
that rows taken from here are those of the run that made them first, to the byte, and a scoring killed between two files of one batch
makes the rest in a smaller one.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import gen.engine
from evals import forced_choice, free_answer, generations
from evals import instrument as rendering
from evals.forced_choice import Condition, Free, Read
from gen import scoring
from shared import chat, instrument, text, vignettes
from shared.console import say
from shared.instrument import Instrument
from shared.machine import device
from shared.models import cache_folder
from shared.provenance import versions
from shared.publish import digest
from shared.records import Prompt, Vignette, write_jsonl
from shared.schema import Config
from shared.traits import Trait
from shared.vectors import Vector

Weights = tuple[str, str]  # fingerprint of a student or model, and its dtype


@functools.cache
def digest_of_engine() -> str:
    folder = Path(str(gen.engine.__file__)).parent
    return hashlib.sha256("".join(digest(path) for path in sorted(folder.glob("*.py"))).encode()).hexdigest()


class Cache:
    """Rows of conditions of one student. asked: what they depend on beside it and the condition's steering and system prompt."""

    def __init__(
        self,
        weights: Weights,
        asked: Mapping[str, Any],
        code: Sequence[ModuleType],
        vectors: Mapping[str, Vector],
        folder: Path | None = None,
    ):
        self.folder = folder or cache_folder() / "scores"
        self._vectors, self.taken = vectors, 0  # taken: conditions whose rows were there
        self._common = {
            "weights": weights,
            **asked,
            "versions": versions(),
            "device": device(),
            "code": [digest(Path(str(module.__file__))) for module in code] + [digest_of_engine()],
        }

    def _path(self, condition: Condition) -> Path:
        vector = self._vectors[condition.vector] if condition.vector is not None else None
        steering = [] if vector is None else [condition.coefficient, condition.positions, vector.digest()]
        content = {**self._common, "steering": steering, "system": condition.system}
        return self.folder / f"{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}.jsonl"

    def get(self, condition: Condition) -> list[dict[str, Any]] | None:
        path = self._path(condition)
        if not path.is_file():
            return None
        try:
            with open(path, encoding="utf-8", newline="\n") as lines:  # what a model wrote may hold other line ends
                rows = [json.loads(line) for line in lines]
        except ValueError:
            say(f"{path} is damaged: its rows are made again", "yellow")
            return None
        self.taken += 1
        return rows

    def put(self, condition: Condition, rows: Sequence[dict[str, Any]]) -> None:
        write_jsonl(self._path(condition), rows)


def of_answers(
    weights: Weights,
    template: Mapping[str, Any],
    asked: Instrument,
    items: Sequence[Vignette],
    read: Read,
    free: Free | None,
    vectors: Mapping[str, Vector],
    folder: Path | None = None,
) -> Cache:
    """The forced choice; template: the chat template's arguments."""
    content = {
        "template": dict(template),
        "instrument": asked.identity,
        "vignettes": [vignette.model_dump() for vignette in items],
        "read": asdict(read),
        "free": asdict(free) if free else None,
    }
    return Cache(
        weights, content, (forced_choice, free_answer, rendering, instrument, vignettes, chat), vectors, folder
    )


def of_generations(
    weights: Weights,
    judge: Weights,
    prompts: Sequence[Prompt],
    trait: Trait,
    config: Config,
    vectors: Mapping[str, Vector],
    folder: Path | None = None,
) -> Cache:
    """Free generations, judged under the original model."""
    content = {
        "judge": judge,
        "template": config.model.chat_template_kwargs,
        "prompts": [prompt.model_dump() for prompt in prompts],
        "trait": [trait.trait, trait.neutral],
        "sampling": [config.sweep.temperature, config.sweep.top_p, config.eval.generation_samples, config.eval.generation_tokens],
        "seed": config.seed,
    }  # fmt: skip
    return Cache(weights, content, (generations, scoring, text, chat), vectors, folder)
