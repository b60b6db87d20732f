"""The prompts of a round: chosen over domains, and rendered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain

from shared.chat import Chat, neutral_for
from shared.prompts import Prompts, open_prompts, prompts_name
from shared.records import Prompt
from shared.schema import SweepConfig
from shared.strata import quotas, take_quota
from shared.traits import Trait


@dataclass(frozen=True)
class PromptRenderer:
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
                prompts = stack.enter_context(open_prompts(prompts_name(value, embedded)))
                parts.append((prompts, quotas(Counter(prompt.domain for _, prompt in prompts), count)))
        yield Prompts(
            lambda: chain.from_iterable(
                take_quota(prompts, quota, lambda item: item[1].domain) for prompts, quota in parts
            )
        )
