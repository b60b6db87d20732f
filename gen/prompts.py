"""The prompts of a sweep, from a JSONL file or a data set: read lazily, as often as asked, and looked over first."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gen.plan import name_of
from shared.chat import neutral_for, render
from shared.config import SweepConfig
from shared.errors import SteerHealError
from shared.records import Prompt, data_file, numbered_jsonl, problem_of
from shared.sets import names_set, open_set
from shared.strata import quotas, take
from shared.traits import Trait

MADE_BY = "write a JSONL with a prompt or messages field per line, or name a data set: <id>:<configuration>:<split>"
COLUMNS = ("id", "domain", "prompt", "messages")

Located = tuple[str, Prompt]


@dataclass(frozen=True)
class Prompts:
    """Prompts that can be gone through again and again, each with the place it comes from, for errors."""

    read: Callable[[], Iterator[Located]]

    def __iter__(self) -> Iterator[Located]:
        return self.read()


@dataclass(frozen=True)
class Renderer:
    """Token ids of a prompt under the neutral and under the trait's system prompt.

    A system message of the prompt's own takes the neutral one's place, and stands after the trait's.
    """

    tokenizer: Any
    trait: Trait
    template: dict[str, Any]

    def __call__(self, prompt: Prompt) -> tuple[list[int], list[int]]:
        return (
            render(self.tokenizer, prompt.turns, neutral_for(prompt.turns, self.trait.neutral), **self.template),
            render(self.tokenizer, prompt.turns, self.trait.trait, **self.template),
        )


@dataclass(frozen=True)
class Survey:
    """What one pass over the prompts found; longest is in tokens, without a completion; digest is of ids and turns."""

    count: int
    longest: int
    digest: str
    content: str


@contextmanager
def open_prompts(name: str) -> Iterator[Prompts]:
    """The prompts of a JSONL path, or of '<id>:<configuration>:<split>' or '<id>:<split>', while the context lasts."""
    if not names_set(name):
        yield Prompts(lambda: _of_file(Path(name)))
        return
    with open_set(name, what="a prompt set could not be loaded", next=MADE_BY) as rows:
        if not {"prompt", "messages"} & set(rows.column_names):
            raise SteerHealError(
                "a data set has no prompts",
                given=f"{name}: columns {', '.join(rows.column_names)}",
                expected="a column prompt or messages",
                next="name another data set, or write its prompts to a JSONL",
            )
        if not len(rows):
            raise SteerHealError(
                "a data set has no prompts", given=f"{name}: no rows", expected="at least one row", next=MADE_BY
            )
        kept = rows.select_columns([column for column in COLUMNS if column in rows.column_names])
        yield Prompts(lambda: _of_set(name, kept))


def _of_file(path: Path) -> Iterator[Located]:
    for line, prompt in numbered_jsonl(path, Prompt, made_by=MADE_BY):
        yield f"{path}:{line}", prompt


def _of_set(name: str, rows: Any) -> Iterator[Located]:
    """prompt goes before messages, which then hold the answer too; either may be text or a conversation."""
    for index, row in enumerate(rows):
        place = f"{name} row {index}"
        value: dict[str, Any] = {key: str(row[key]) for key in ("id", "domain") if row.get(key) is not None}
        asked = row["prompt"] if row.get("prompt") is not None else row.get("messages")
        if isinstance(asked, list):
            value["messages"] = [
                {key: turn[key] for key in ("role", "content") if key in turn} if isinstance(turn, dict) else turn
                for turn in asked
            ]
        elif asked is not None:
            value["prompt"] = asked
        try:
            yield place, Prompt.model_validate(value)
        except ValidationError as error:
            raise SteerHealError(
                "a row of a data set is no prompt",
                given=f"{place}: {problem_of(error)}",
                expected="a prompt, or messages that end with the user's turn",
                next="name another data set, or write its prompts to a JSONL",
            ) from None


@contextmanager
def open_round(config: SweepConfig) -> Iterator[Prompts]:
    """The dilemmas and then the mundane prompts of a round, each stratified over domains, while the context lasts."""
    with ExitStack() as stack:
        parts = []
        for value, embedded, count in (
            (config.dilemmas, "dilemmas.jsonl", config.n_dilemmas),
            (config.mundane, "mundane.jsonl", config.n_mundane),
        ):
            if count:
                prompts = stack.enter_context(open_prompts(str(data_file(value, embedded))))
                parts.append((prompts, quotas(Counter(prompt.domain for _, prompt in prompts), count)))
        yield Prompts(
            lambda: chain.from_iterable(take(prompts, quota, lambda item: item[1].domain) for prompts, quota in parts)
        )


def survey(prompts: Prompts, renderer: Renderer, max_tokens: int, max_model_len: int) -> Survey:
    """Read, validate and render every prompt once, before anything is sampled.

    Raises SteerHealError for the first bad row, a conversation the chat template refuses, and prompts too long.
    """
    digest, content = hashlib.sha256(), hashlib.sha256()
    count = longest = over = 0
    first = ""
    for place, prompt in prompts:
        try:
            rendered = renderer(prompt)
        except SteerHealError as error:
            raise SteerHealError(
                error.what,
                given=f"{place} (key {name_of(count, prompt)}): {error.given}",
                expected=error.expected,
                next="mend or remove the row",
            ) from None
        tokens = max(map(len, rendered))
        if tokens + max_tokens > max_model_len:
            over += 1
            first = first or f"{place} (key {name_of(count, prompt)}): {tokens + max_tokens} tokens with its completion"
        longest = max(longest, tokens)
        content.update(_content(prompt))
        digest.update(_content(prompt) + json.dumps(rendered).encode())  # a template may render the day's date
        count += 1
    if over:
        raise SteerHealError(
            "a prompt is too long",
            given=f"{first}; {over} of {count} prompts are too long, the longest takes {longest + max_tokens}",
            expected=f"at most model.max_model_len = {max_model_len}",
            next=f"raise model.max_model_len to {longest + max_tokens}, lower sweep.max_tokens, or shorten the prompts",
        )
    return Survey(count, longest, digest.hexdigest(), content.hexdigest())


def _content(prompt: Prompt) -> bytes:
    return json.dumps([prompt.id, prompt.turns]).encode() + b"\n"


def unchanged(prompts: Prompts, found: Survey) -> Iterator[Prompt]:
    """The prompts again. Raises SteerHealError at their end when they are not those of the survey."""
    content = hashlib.sha256()
    for _, prompt in prompts:
        content.update(_content(prompt))
        yield prompt
    if content.hexdigest() != found.content:
        raise SteerHealError(
            "the prompts changed while they were being sampled",
            given="prompts other than those the sweep began with",
            expected="a file or data set that stays as it is",
            next="the same command with --rebuild (REBUILD=1) begins again",
        )
