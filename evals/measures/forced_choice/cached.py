"""Answers of the forced choice by condition: what the cache has, and the rest in one batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.cache import Cache, Row, WeightsKey, text_digest
from evals.conditions import Condition, Weights
from evals.measures.forced_choice.answers import answers
from evals.measures.forced_choice.ask import Free, Read, forced_choice, reads
from evals.measures.forced_choice.instrument import InstrumentRenderer, orders, rotations_of
from evals.measures.forced_choice.rows import ScoreRow
from evals.measures.measure import from_cache_or_made
from shared.console import counting
from shared.errors import SteerHealError
from shared.records import Vignette
from shared.vectors import Vector


def free_of(tokens: int) -> Free | None:
    """The settings of free answers with at most this many tokens; None for 0, without free answers."""
    return Free(tokens) if tokens else None


def cached_or_asked(
    model: Any,
    renderer: InstrumentRenderer,
    vignettes: Sequence[Any],
    group: Weights,
    read: Read,
    tokenizer: Any,
    free: Free | None,
    cache: Cache | None,
) -> dict[str, list[Row]]:
    """Rows by condition of one set of weights, in the order asked: what the cache has, and the rest in one batch.

    Args:
        model: the engine.
        renderer: of the questions.
        vignettes: to ask.
        group: the weights with their conditions.
        read: how a question is asked.
        tokenizer: of the model.
        free: settings of free answers; None for none.
        cache: None takes nothing and keeps nothing.
    """

    def made(missing: Sequence[Condition]) -> dict[str, list[Row]]:
        with counting(f"forced choice, {group.label}", reads(len(vignettes), len(missing), read, free)) as advance:
            return forced_choice(model, renderer, vignettes, missing, read, tokenizer, advance, free)

    return from_cache_or_made("forced choice", group, cache, made)


def answers_key(
    weights: WeightsKey,
    renderer: InstrumentRenderer,
    items: Sequence[Vignette],
    read: Read,
    free: Free | None,
    vectors: Mapping[str, Vector],
    folder: Path | None = None,
    *,
    fresh: bool = False,
) -> Cache:
    """The cache of answers in the forced choice, with a key over everything that they depend on."""
    questions: dict[str | None, str] = {}  # digests of the token ids, by system prompt

    def prompts(condition: Condition) -> str:
        system = condition.system
        if system not in questions:
            turned = zip(items, rotations_of(read.debias, items), strict=True)
            ids = [[renderer.question(item.text, listing, system) for listing in orders(read.debias, rotation)] for item, rotation in turned]  # fmt: skip
            questions[system] = text_digest(json.dumps(ids))
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
        __name__,
        vectors,
        folder,
        fresh,
    )


def _check_answers(
    rows: Sequence[Row], renderer: InstrumentRenderer, items: Sequence[Vignette], read: Read, free: Free | None
) -> None:
    try:
        setting = answers([ScoreRow.model_validate(row) for row in rows], Path(), "").setting
    except SteerHealError as error:
        raise ValueError(error.given) from None
    expected = {
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
    if wrong := [name for name, value in expected.items() if getattr(setting, name) != value]:
        raise ValueError(f"other {', '.join(wrong)} than asked")
    if any((row.get("free_valid") is not None) != (free is not None) for row in rows):
        raise ValueError("free answers where none were asked" if free is None else "no free answers")
