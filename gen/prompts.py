"""The prompts of a round: chosen over domains, rendered, and looked over before anything is sampled."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain

from gen.plan import name_of
from shared.chat import Chat, neutral_for
from shared.errors import SteerHealError
from shared.prompts import Prompts, named, open_prompts
from shared.records import Prompt
from shared.schema import SweepConfig
from shared.strata import quotas, take
from shared.traits import Trait


@dataclass(frozen=True)
class Renderer:
    """Token ids of a prompt under the neutral and under the trait's system prompt.

    A system message of the prompt's own takes the neutral one's place, and stands after the trait's.
    """

    chat: Chat
    trait: Trait

    def __call__(self, prompt: Prompt) -> tuple[list[int], list[int]]:
        return (
            self.chat.ids(prompt.turns, neutral_for(prompt.turns, self.trait.neutral)),
            self.chat.ids(prompt.turns, self.trait.trait),
        )

    def under(self, prompt: Prompt, system: str | None) -> list[int]:
        """Token ids under another system prompt; None is the neutral one."""
        return self(prompt)[0] if system is None else self.chat.ids(prompt.turns, system)

    def heldout(self, prompt: Prompt) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids under each paraphrase of the trait, and of the opposite; empty for a trait file without paraphrases."""
        paraphrases = self.trait.paraphrases
        return tuple(  # type: ignore[return-value]
            [self.under(prompt, system) for system in systems]
            for systems in ((paraphrases.trait, paraphrases.opposite) if paraphrases else ((), ()))
        )


@dataclass(frozen=True)
class Survey:
    """What one pass over the prompts found; longest is in tokens, without a completion; digest is of ids and turns."""

    count: int
    longest: int
    digest: str
    content: str


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
                prompts = stack.enter_context(open_prompts(named(value, embedded)))
                parts.append((prompts, quotas(Counter(prompt.domain for _, prompt in prompts), count)))
        yield Prompts(
            lambda: chain.from_iterable(take(prompts, quota, lambda item: item[1].domain) for prompts, quota in parts)
        )


def survey(prompts: Prompts, renderer: Renderer, max_tokens: int, max_model_len: int) -> Survey:
    """Read, validate and render every prompt once, before anything is sampled.

    Raises SteerHealError for the first bad row, a conversation the chat template refuses, a template that drops the trait prompt, and
    prompts too long.
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
        digest.update(_content(prompt) + json.dumps(rendered).encode())
        count += 1
    renderer.chat.hears()
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
