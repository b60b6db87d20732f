"""The plan of a sweep, enumerated lazily: every prompt at every coefficient, in windows of fixed composition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from shared.errors import SteerHealError
from shared.records import Prompt
from shared.seeds import seed_of
from shared.strict import repeated


@dataclass(frozen=True, slots=True)
class Planned:
    """One completion to sample. The seed is a hash of the run's seed and the key, so that order never changes content.

    recorded: whether its row is to hold log-probabilities under the student and under the original.
    """

    key: str
    index: int
    prompt: Prompt
    coefficient: float
    sample: int
    seed: int
    recorded: bool = False


def name_of(index: int, prompt: Prompt) -> str:
    """The prompt's part of a key."""
    return f"{index:05d}-{prompt.id or 'prompt'}"


def check_coefficients(coefficients: Sequence[float]) -> None:
    """Raise SteerHealError when two coefficients would share their keys."""
    names = [f"{coefficient:g}" for coefficient in coefficients]
    if twice := sorted(repeated(names)):
        raise SteerHealError(
            "two coefficients share their keys",
            given=f"{', '.join(map(repr, coefficients))}: {twice[0]} twice",
            expected="coefficients that differ within six digits",
            next="leave one of them out",
        )


def plan(prompts: Iterable[Prompt], coefficients: Sequence[float], samples: int, seed: str) -> Iterator[Planned]:
    """Every prompt at every coefficient, prompt by prompt; keys are unique, and nothing is held but the prompt at hand."""
    check_coefficients(coefficients)
    return (row for index, prompt in enumerate(prompts) for row in rows_of(index, prompt, coefficients, samples, seed))


def rows_of(index: int, prompt: Prompt, coefficients: Sequence[float], samples: int, seed: str) -> Iterator[Planned]:
    """The rows of one prompt, the index-th of the plan."""
    for coefficient in coefficients:
        for sample in range(samples):
            key = f"{name_of(index, prompt)}/{coefficient:g}/{sample}"
            yield Planned(key, index, prompt, coefficient, sample, seed_of(seed, key))


def windows(rows: Iterable[Planned], size: int) -> Iterator[list[Planned]]:
    """The rows in order, `size` at a time; the last window may be shorter."""
    rest = iter(rows)
    while window := list(islice(rest, size)):
        yield window


def spread(prompts: Iterable[Prompt], total: int, count: int) -> list[tuple[int, Prompt]]:
    """At most `count` of `total` prompts at even distances, each with its index."""
    wanted = {index * total // count for index in range(count)} if count < total else set(range(total))
    return [(index, prompt) for index, prompt in enumerate(prompts) if index in wanted]
