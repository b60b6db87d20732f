"""The survey of a sweep's prompts: each is read, validated and rendered once before anything is sampled.

Rendering takes about a millisecond a prompt, so that four million take an hour: long lists are rendered by a process on every core. The
digests are of the prompts in their order, whoever has rendered them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gen.plan import prompt_key, windows
from gen.processes import in_order, process_pool
from gen.prompts import PromptRenderer
from shared.chat import Chat
from shared.commands import setting
from shared.errors import SteerHealError
from shared.machine import cores
from shared.prompts import Prompts
from shared.records import Prompt
from shared.template import unheard
from shared.traits import load_trait

FEW = 8192  # prompts rendered here first: a process takes some seconds to start
BATCH = 256  # prompts handed to a process at a time
Placed = tuple[str, Prompt]


@dataclass(frozen=True)
class PromptSurvey:
    """What one pass over the prompts says of them; longest is in tokens, without a completion; digest is of ids and turns."""

    count: int
    longest: int
    digest: str
    content: str


@dataclass(frozen=True)
class RendererRecipe:
    """Makes the renderer of a sweep, in any process.

    Args:
        folder: of the model.
        arguments: of the chat template.
        day: that a template with a clock writes.
        trait: name or path of the trait.
    """

    folder: Path
    arguments: dict[str, Any] | None
    day: date | None
    trait: str

    def renderer(self) -> PromptRenderer:
        """A renderer of prompts, for use in another process."""
        return PromptRenderer(Chat.load(self.folder, self.arguments, self.day), load_trait(self.trait))

    def __call__(self) -> None:
        """The start of a process of the pool."""
        global _renderer
        _renderer = self.renderer()


_renderer: PromptRenderer | None = None  # of a process of the pool


@dataclass(frozen=True)
class Rendered:
    """A rendered prompt. tokens: length of the longer of its two forms. ids: both forms as JSON. error: why it was refused."""

    tokens: int
    ids: bytes
    error: SteerHealError | None = None


def rendered_prompt(prompt: Prompt, renderer: PromptRenderer) -> Rendered:
    """A prompt's token ids under the neutral and the trait prompt.

    Returns:
        The ids as JSON with the length of the longer one; or the SteerHealError of a prompt that cannot be rendered.
    """
    try:
        ids = renderer(prompt)
    except SteerHealError as error:
        return Rendered(0, b"", error)
    if ids[0] == ids[1]:  # a template may leave a system turn out of some conversations and not of others
        return Rendered(0, b"", unheard())
    return Rendered(max(map(len, ids)), json.dumps(ids).encode())


def _rendered_in_pool(batch: list[Placed]) -> list[Rendered]:
    """A batch, in a process of the pool."""
    assert _renderer is not None, "RendererRecipe began this process"
    return [rendered_prompt(prompt, _renderer) for _, prompt in batch]


def survey(
    prompts: Prompts,
    renderer: PromptRenderer,
    max_tokens: int,
    max_model_len: int,
    recipe: RendererRecipe | None = None,
) -> PromptSurvey:
    """Read, validate and render every prompt once.

    Args:
        prompts, renderer: of the sweep.
        max_tokens, max_model_len: tokens of a completion, and of prompt and completion together at most.
        recipe: makes the renderer in other processes; without it all are rendered here.

    Raises:
        SteerHealError: for the first bad row, a conversation that the chat template refuses, a template that drops the trait prompt, and
            prompts that are too long.
    """
    digest, content = hashlib.sha256(), hashlib.sha256()
    count = longest = over = 0
    first = ""
    for place, prompt, form in _all_rendered(prompts, renderer, recipe):
        key = f"{place} (key {prompt_key(count, prompt)})"
        if form.error:
            raise SteerHealError(
                form.error.what,
                given=f"{key}: {form.error.given}",
                expected=form.error.expected,
                next="mend or remove the row",
            )
        if form.tokens + max_tokens > max_model_len:
            over += 1
            first = first or f"{key}: {form.tokens + max_tokens} tokens with its completion"
        longest = max(longest, form.tokens)
        text = _content(prompt)
        content.update(text)
        digest.update(text + form.ids)
        count += 1
    renderer.chat.hears()
    if over:
        raise SteerHealError(
            "a prompt is too long",
            given=f"{first}; {over} of {count} prompts are too long, the longest takes {longest + max_tokens}",
            expected=f"at most model.max_model_len = {max_model_len}",
            next=f"{setting(f'model.max_model_len={longest + max_tokens}')}, a lower sweep.max_tokens, or shorter prompts",
        )
    return PromptSurvey(count, longest, digest.hexdigest(), content.hexdigest())


def _all_rendered(
    prompts: Iterable[Placed], renderer: PromptRenderer, recipe: RendererRecipe | None
) -> Iterator[tuple[str, Prompt, Rendered]]:
    """Each prompt with its place and its token ids, in order; those after the first few by a process on every core."""
    rest = iter(prompts)
    for place, prompt in islice(rest, FEW) if recipe else rest:
        yield place, prompt, rendered_prompt(prompt, renderer)
    if recipe is None or (first := next(rest, None)) is None:
        return
    size = cores()
    with process_pool(size, recipe) as pool:
        for batch, forms in in_order(pool, size, _rendered_in_pool, windows(chain([first], rest), BATCH)):
            for (place, prompt), form in zip(batch, forms, strict=True):
                yield place, prompt, form


def _content(prompt: Prompt) -> bytes:
    return json.dumps([prompt.id, prompt.turns]).encode() + b"\n"


def same_prompts(prompts: Prompts, surveyed: PromptSurvey) -> Iterator[Prompt]:
    """The prompts again. Raises SteerHealError at their end when they are not those of the survey."""
    content = hashlib.sha256()
    for _, prompt in prompts:
        content.update(_content(prompt))
        yield prompt
    if content.hexdigest() != surveyed.content:
        raise SteerHealError(
            "the prompts changed while they were being sampled",
            given="prompts other than those the sweep began with",
            expected="a file or data set that stays as it is",
            next="the same command with --rebuild (REBUILD=1) begins again",
        )
