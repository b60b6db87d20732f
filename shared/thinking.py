"""Thoughts before an answer: how a chat template opens and closes them, read from the template."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from shared.commands import setting
from shared.errors import SteerHealError
from shared.families import THOUGHTS
from shared.template import PROBE, Template

MARK = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])")  # how a template may write a thought that is not among THOUGHTS
SWITCHES = ("enable_thinking", "thinking")  # arguments that turn thinking on or off


@dataclass(frozen=True)
class Thinking:
    """Whether and how a model thinks.

    Args:
        kind: `none`: the template knows no thought. `optional`: the model may think, or the template's arguments decide. `always`: every
            answer begins within a thought.
        open, close: the text that opens a thought, and the text that ends it; empty where kind is none.
        open_ids, close_ids: the same as token ids.
        prompt: what the prompt of an answer does under the template's arguments: `opens` a thought, has it `closed` again, so that
            the answer comes at once, or leaves it to the `model`.
        closed: the thought that the template closes, with what stands in it, as text: the end of every prompt; else empty.
    """

    kind: Literal["none", "optional", "always"]
    open: str = ""
    close: str = ""
    open_ids: tuple[int, ...] = ()
    close_ids: tuple[int, ...] = ()
    prompt: Literal["opens", "closed", "model"] = "model"
    closed: str = ""


def read_thinking(template: Template, tokens: Callable[[str], Sequence[int]]) -> Thinking:
    """The marks between which a template puts a thought, and whether its prompt opens or closes one.

    Args:
        template: under the arguments that prompts are rendered with.
        tokens: token ids of a text.

    Raises:
        SteerHealError: the prompt of an answer opens a thought, and what would end it is not to be told.
    """
    pair = _pair(template)
    if pair is None:
        return Thinking("none")
    opening, closing = pair
    ids = tuple(tokens(opening)), tuple(tokens(closing))
    prompt = template.render(PROBE, True)
    if prompt.rstrip().endswith(opening):
        always = all(_opens(other, opening) for other in _switched(template, False))
        return Thinking("always" if always else "optional", *pair, *ids, "opens")
    if not prompt.rstrip().endswith(closing):
        return Thinking("optional", *pair, *ids)
    end = template.added or prompt
    place = end.rfind(opening)
    return Thinking("optional", *pair, *ids, "closed", end[place if place >= 0 else end.rfind(closing) :])


def _pair(template: Template) -> tuple[str, str] | None:
    """The marks of a template: those at the end of a prompt, under its arguments or with thinking switched, or known ones in its source."""
    for one in (template, *_switched(template, False), *_switched(template, True)):
        end = one.added.lstrip()
        if pair := next((pair for pair in THOUGHTS if end.startswith(pair)), None):
            return pair
        if mark := MARK.match(end):
            return mark[1], _closing(one, mark[1])
    return next((pair for pair in THOUGHTS if pair[0] in template.source), None)


def _closing(template: Template, opening: str) -> str:
    """What ends a thought that a mark opens. Raises SteerHealError where no such mark is in the template."""
    word = opening.strip("<>[]|")
    for closing in (f"{opening[0]}/{opening[1:]}", f"<|/{word}|>", f"<|end_{word}|>", f"<|end_of_{word}|>"):
        if closing in template.source:
            return closing
    raise SteerHealError(
        "a chat template opens an answer with a mark that is not known",
        given=f"{opening!r} at the end of {template.render(PROBE, True)!r}",
        expected=f"a thought as {', '.join(opening for opening, _ in THOUGHTS)}, or a template that also writes what ends it",
        next=f"choose a chat model whose thoughts can be told from its answers: {setting('model.name=embedded')}",
    )


def _switched(template: Template, on: bool) -> Iterator[Template]:
    """The template with thinking switched on or off, by each switch that is in it, where it renders so."""
    for switch in SWITCHES:
        if re.search(rf"\b{switch}\b", template.source):
            other = template.with_arguments(**{switch: on})
            with suppress(SteerHealError):
                other.render(PROBE, True)
                yield other


def _opens(template: Template, opening: str) -> bool:
    return template.render(PROBE, True).rstrip().endswith(opening)


def parted(ids: list[int], thinking: Thinking, decode: Callable[[Sequence[int]], str]) -> tuple[list[int], list[int]]:
    """The thought, with the blanks after it, and the answer, of the token ids that a model said. decode: their text."""
    marks = thinking
    silent = marks.prompt == "model" and not decode(ids).lstrip().startswith(marks.open)
    if marks.kind == "none" or marks.prompt == "closed" or silent:
        return [], ids
    size = next((n for n in range(1, len(ids) + 1) if marks.close in decode(ids[:n])), len(ids))
    while size < len(ids) and not decode(ids[size : size + 1]).strip():
        size += 1
    return ids[:size], ids[size:]
