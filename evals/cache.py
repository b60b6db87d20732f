"""Content-addressed cache of scored rows, so that the same weights are never asked the same thing twice.

One file per condition, under a digest of all that determines its rows: the weights, the steering, the rendered token ids, how they are
read, the versions of the packages that compute, the processor with its instruction set, and the code. Safe to remove. How a condition
is batched with others is not part of the name: it moves the last digits, so that rows taken from here are those of the run that made
them first, to the byte, and a scoring killed between two files of one batch makes the rest in a smaller one.

A file is a line with the digest of the others, and a row per line. What it gives back is checked against what was asked; an entry that
is something else is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.measures.forced_choice.answers import answers
from evals.measures.forced_choice.ask import Condition, Free, Read
from evals.measures.forced_choice.instrument import Renderer, orders, rotations_of
from evals.rows import Generation, ScoreRow
from gen.prompts import Renderer as PromptRenderer
from shared.code import code_digest
from shared.console import say
from shared.errors import SteerHealError
from shared.lines import problem_of
from shared.machine import device
from shared.models import cache_folder
from shared.provenance import versions
from shared.publish import write_text
from shared.records import Prompt, Vignette
from shared.schema import Config
from shared.seeds import seed_of
from shared.strict import parse
from shared.vectors import Vector

VERSION = 1
Row = dict[str, Any]
Weights = tuple[str, str]  # fingerprint of a student or model, and its dtype


class Cache:
    """Rows of conditions of one student.

    Args:
        weights: of the student.
        asked: what the rows depend on beside it and the condition.
        prompts: token ids that a condition puts to the model.
        check: raises ValueError for rows that are no answer to what a condition asks.
        vectors: by the names that conditions know them under.
        folder: of the cache; None is the user's.
        fresh: take nothing from it, and write what is made in its place.
    """

    def __init__(
        self,
        weights: Weights,
        asked: Mapping[str, Any],
        prompts: Callable[[Condition], Any],
        check: Callable[[Sequence[Row]], None],
        vectors: Mapping[str, Vector],
        folder: Path | None = None,
        fresh: bool = False,
    ):
        self.folder = folder or cache_folder() / "scores"
        self._prompts, self._check, self._vectors, self._fresh = prompts, check, vectors, fresh
        self.taken = 0  # conditions whose rows were there
        self._common = {
            "weights": weights,
            **asked,
            "versions": versions(),
            "device": device(),
            "code": code_digest("evals"),
        }

    def _path(self, condition: Condition) -> Path:
        vector = self._vectors[condition.vector] if condition.vector is not None else None
        steering = [] if vector is None else [condition.coefficient, condition.positions, vector.digest()]
        content = {**self._common, "steering": steering, "prompts": self._prompts(condition)}
        return self.folder / f"{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}.jsonl"

    def get(self, condition: Condition) -> list[Row] | None:
        """The rows of a condition, None where they are to be made."""
        path = self._path(condition)
        if self._fresh or not path.is_file():
            return None
        try:
            rows = _read(path)
            self._check(rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"{path}, kept rows of {condition.name}: {problem_of(error)}; they are made again", "yellow")
            return None
        self.taken += 1
        return rows

    def put(self, condition: Condition, rows: Sequence[Row]) -> None:
        """Keep rows. A cache that cannot be written costs the next scoring time, and this one nothing: it says so."""
        body = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        head = json.dumps({"version": VERSION, "rows": len(rows), "sha256": _digest(body)})
        try:
            write_text(self._path(condition), f"{head}\n{body}")
        except OSError as error:
            say(f"{self.folder}, where rows of {condition.name} were to be kept: {error.strerror}", "yellow")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _read(path: Path) -> list[Row]:
    """The rows of an entry. Raises OSError and ValueError where it is not, to the byte, what was written."""
    head, _, body = path.read_bytes().decode("utf-8").partition("\n")
    found = parse(head)
    if found["version"] != VERSION or found["sha256"] != _digest(body):
        raise ValueError("it is not what was written there")
    rows = [parse(line) for line in body.split("\n")[:-1]]  # what a model wrote may hold other line ends
    if len(rows) != found["rows"]:
        raise ValueError(f"{len(rows)} rows instead of {found['rows']}")
    return rows


def of_answers(
    weights: Weights,
    renderer: Renderer,
    items: Sequence[Vignette],
    read: Read,
    free: Free | None,
    vectors: Mapping[str, Vector],
    folder: Path | None = None,
    *,
    fresh: bool = False,
) -> Cache:
    """The forced choice."""
    questions: dict[str | None, str] = {}  # digests of the token ids, by system prompt

    def prompts(condition: Condition) -> str:
        system = condition.system
        if system not in questions:
            turned = zip(items, rotations_of(read.debias, items), strict=True)
            ids = [[renderer.question(item.text, listing, system) for listing in orders(read.debias, rotation)] for item, rotation in turned]  # fmt: skip
            questions[system] = _digest(json.dumps(ids))
        return questions[system]

    content = {
        "kind": "forced choice",
        "instrument": renderer.instrument.identity,
        "template": renderer.chat.arguments,
        "answer": [renderer.suffix, renderer.prefill, renderer.label_ids, renderer.stop_ids],
        "vignettes": [item.model_dump() for item in items],
        "read": asdict(read),
        "free": asdict(free) if free else None,
    }
    return Cache(
        weights,
        content,
        prompts,
        lambda rows: _check_answers(rows, renderer, items, read, free),
        vectors,
        folder,
        fresh,
    )


def _check_answers(
    rows: Sequence[Row], renderer: Renderer, items: Sequence[Vignette], read: Read, free: Free | None
) -> None:
    try:
        found = answers([ScoreRow.model_validate(row) for row in rows], Path(), "").setting
    except SteerHealError as error:
        raise ValueError(error.given) from None
    wanted = {
        "items": tuple(item.id for item in items),
        "texts": tuple(hashlib.sha256(item.text.encode()).hexdigest()[:12] for item in items),
        "debias": read.debias,
        "rotations": tuple(rotations_of(read.debias, items)),
        "think": read.think,
        "stop": read.stop,
        "samples": read.samples,
        "temperature": read.temperature,
        "top_k": read.top_k if read.temperature > 0 else None,
        "instrument": renderer.instrument.identity,
        "template": renderer.chat.arguments,
    }
    if wrong := [name for name, value in wanted.items() if getattr(found, name) != value]:
        raise ValueError(f"other {', '.join(wrong)} than asked")
    if any((row.get("free_valid") is not None) != (free is not None) for row in rows):
        raise ValueError("free answers where none were asked" if free is None else "no free answers")


def of_generations(
    weights: Weights,
    judge: Weights,
    renderer: PromptRenderer,
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
