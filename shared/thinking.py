"""Thoughts before an answer: how a chat template opens and closes them, read from the template."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

# How families write a thought: what opens it, and what stands between it and the answer.
MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel>thought", "<channel|>"),
)


@dataclass(frozen=True)
class Thinking:
    """Whether and how a model thinks.

    Args:
        kind: `none`: the template knows no thought. `optional`: the model may think, or the template's arguments decide. `always`: every
            answer begins within a thought.
        open, close: what opens a thought and what ends it, as text; empty where kind is none.
        open_ids, close_ids: the same as token ids.
        prompt: what the prompt of an answer does under the template's arguments: `opens` a thought, has it `closed` again, so that
            the answer comes at once, or leaves it to the `model`.
    """

    kind: Literal["none", "optional", "always"]
    open: str = ""
    close: str = ""
    open_ids: tuple[int, ...] = ()
    close_ids: tuple[int, ...] = ()
    prompt: Literal["opens", "closed", "model"] = "model"


def read(
    source: str, prompt: str, without: Callable[[], str | None], tokens: Callable[[str], Sequence[int]]
) -> Thinking:
    """How a template thinks.

    Args:
        source: the template.
        prompt: a prompt rendered by it, up to the words of the assistant.
        without: renders the prompt with thinking switched off; None where the template cannot.
        tokens: token ids of a text.
    """
    pair = next((pair for pair in MARKS if pair[0] in source), None)
    if pair is None:
        return Thinking("none")
    opening, closing = pair
    ids = tuple(tokens(opening)), tuple(tokens(closing))
    if prompt.rstrip().endswith(opening):
        off = without()
        kind: Literal["optional", "always"] = "always" if off is None or off.rstrip().endswith(opening) else "optional"
        return Thinking(kind, *pair, *ids, "opens")
    return Thinking("optional", *pair, *ids, "closed" if reopened(prompt, opening, closing) != prompt else "model")


def reopened(prompt: str, opening: str, closing: str) -> str:
    """A prompt without the empty thought that it ends with, if it ends with one."""
    return re.sub(rf"(?:{re.escape(opening)}\s*)?{re.escape(closing)}\s*\Z", "", prompt)


def parted(ids: list[int], thinking: Thinking, decode: Callable[[Sequence[int]], str]) -> tuple[list[int], list[int]]:
    """The thought, with the blanks behind it, and the answer, of the token ids that a model said. decode: their text."""
    it = thinking
    silent = it.prompt == "model" and not decode(ids).lstrip().startswith(it.open)
    if it.kind == "none" or it.prompt == "closed" or silent:
        return [], ids
    size = next((n for n in range(1, len(ids) + 1) if it.close in decode(ids[:n])), len(ids))
    while size < len(ids) and not decode(ids[size : size + 1]).strip():
        size += 1
    return ids[:size], ids[size:]
