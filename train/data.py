"""Training rows as token ids: kept completions, or prompt and completion text from elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.chat import Chat, neutral_for
from shared.commands import setting
from shared.console import console
from shared.errors import SteerHealError
from shared.logprobs import Logprobs
from shared.records import Completion, Pair
from shared.schema import Config
from shared.sources import RowSource
from shared.traits import load_trait
from train.rows import MADE_BY, TooFew, completions, draw, is_sampled, open_data, pairs

if TYPE_CHECKING:
    import torch

IGNORED = -100  # label of a position without loss


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of the completion trained on; key names the row in its file, logprobs are its sampler's."""

    prompt: list[int]
    completion: list[int]
    key: str
    logprobs: Logprobs | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class LoadedExamples:
    """Examples in file order, and how many rows were left out or cut, by the reason."""

    examples: list[Example]
    left_out: dict[str, int]


def load_examples(name: str | Path, chat: Any, config: Config) -> list[Example]:
    """The examples of `load`."""
    return read_examples(name, chat, config).examples


def read_examples(name: str | Path, chat: Any, config: Config) -> LoadedExamples:
    """Examples in file order; those without a word of the assistant's and those longer than train.max_length are left out and counted.

    Token ids are carried from the sampler, since joining text may merge across the boundary. The end of the turn is trained on
    once, and only where the sampler really stopped; of rows from elsewhere nobody knows, and it is trained on, as TRL does.

    Args:
        name: a JSONL, CSV or Parquet file, or a data set, as `train.rows.open_data` names it.
        chat: of the model, or its tokenizer alone.
    """
    chat = Chat.of(chat, config.model.chat_template_kwargs)
    left_out: Counter[str] = Counter({"empty": 0, "too_long": 0, "cut_at_the_end_of_the_turn": 0})
    with open_data(name) as source:
        read = _sampled if is_sampled(source) else _written
        rows = read(source, chat, config, left_out)
    if left_out["empty"]:
        console.print(
            f"[yellow]{left_out['empty']} of {left_out['empty'] + len(rows)} rows have an empty completion and are left out[/]"
        )
    if left_out["cut_at_the_end_of_the_turn"]:
        console.print(
            f"[yellow]{left_out['cut_at_the_end_of_the_turn']} of {len(rows)} rows run on after the end of their turn and are cut there[/]"
        )
    fitting = [row for row in rows if len(row) <= config.train.max_length]
    left_out["too_long"] += len(rows) - len(fitting)
    if len(fitting) < len(rows):
        console.print(
            f"[yellow]{len(rows) - len(fitting)} of {len(rows)} rows are longer than train.max_length = {config.train.max_length} and are left out[/]"
        )
    if not fitting:
        shortest = f", the shortest of {min(map(len, rows))} tokens" if rows else " with a completion"
        raise SteerHealError(
            "no training row fits",
            given=f"{len(rows)} rows{shortest}",
            expected=f"at least one completion, with its prompt at most {config.train.max_length} tokens",
            next=f"raise train.max_length: {setting(f'train.max_length={max(map(len, rows))}')}" if rows else MADE_BY,
        )
    return LoadedExamples(fitting, dict(left_out))


def refuse_unknown_tokens(examples: Sequence[Example], path: str | Path, vocabulary: int) -> None:
    """Raise SteerHealError for a token id that the model's head does not have. The head may be wider than the tokenizer.

    Args:
        examples: to train on.
        path: of the data, for the error.
        vocabulary: number of rows of the model's head.
    """
    for example in examples:
        if (largest := max(*example.prompt, *example.completion)) >= vocabulary:
            raise SteerHealError(
                "a training row has a token that the model does not know",
                given=f"{path}, {example.key}: {largest}",
                expected=f"ids below {vocabulary}",
                next=f"make the rows from this model: {MADE_BY}",
            )


def held_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Examples to train on and those held out, each in file order; all completions of a prompt fall on one side.

    The prompts held out are the nearest whole number to the share, drawn by a hash of seed and prompt; of several prompts at
    least one falls on each side of a share above 0.
    """
    order = {
        tuple(example.prompt): hashlib.sha256(f"{seed} {example.prompt}".encode()).digest() for example in examples
    }
    count = min(max(round(share * len(order)), int(share > 0)), len(order) - 1)
    chosen = set(sorted(order, key=lambda prompt: order[prompt])[:count])
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[tuple(example.prompt) in chosen].append(example)
    return sides


def identity(examples: Sequence[Example]) -> str:
    """sha256 over the token ids of the examples, in order."""
    return hashlib.sha256(json.dumps([[e.prompt, e.completion] for e in examples]).encode()).hexdigest()


def _sampled(source: RowSource, chat: Chat, config: Config, left_out: Counter[str]) -> list[Example]:
    """The sampler's ids hold the end of the turn where it stopped, and only there."""

    def example(row: Completion, left_out: Counter[str]) -> Example | None:
        converted = sampled_example(row, chat)
        if converted is None:
            left_out["empty"] += 1
        else:
            left_out["cut_at_the_end_of_the_turn"] += len(converted.completion) < len(row.completion_ids)
        return converted

    keep = None
    if config.train.rows is not None:
        keep = _drawn((example(row, left_out) for _, row in source.rows(Completion)), config, left_out)
        left_out = Counter()  # of the rows drawn, which are counted already
    return [converted for row in completions(source, keep) if (converted := example(row, left_out))]


def sampled_example(row: Completion, chat: Chat) -> Example | None:
    """A sampler's row, cut at the end of its turn; None where nothing is said before it."""
    ids = chat.until_end(row.completion_ids)
    if not chat.says(ids):
        return None
    if row.finish_reason == "stop" and not chat.ends(ids):  # rows of a sampler that leaves it out
        ids.append(chat.end_id)
    # log-probabilities are of the sampler's ids
    return Example(row.prompt_ids, ids, row.key, row.logprobs if ids == row.completion_ids else None)


def _written(source: RowSource, chat: Chat, config: Config, left_out: Counter[str]) -> list[Example]:
    """Where a completion of others ends is its end of turn, which is trained on as TRL does."""
    neutral = load_trait(config.vector.trait).neutral
    several = 0

    def example(place: str, row: Pair, left_out: Counter[str]) -> Example | None:
        prompt, completion = chat.completed(row.turns, neutral_for(row.turns, neutral), row.completion)
        if not completion:
            left_out["empty"] += 1
            return None
        return Example(prompt, completion, place)

    keep = None
    if config.train.rows is not None:
        keep = _drawn((example(place, row, left_out) for place, row in pairs(source)), config, left_out)
        left_out = Counter()
    examples = []
    for place, row in pairs(source, keep):
        if converted := example(place, row, left_out):
            examples.append(converted)
            several += row.answers > 1
    if several:
        console.print(
            f"{several} of {len(examples)} rows have several turns of the assistant: the last one is trained on, the others are its prompt"
        )
    return examples


def _drawn(examples: Iterable[Example | None], config: Config, left_out: Counter[str]) -> list[int]:
    """Places of exactly train.rows of the rows that can be trained on. Raises SteerHealError where there are fewer."""
    count = config.train.rows
    assert count is not None
    places: list[int] = []

    def names() -> Iterator[tuple[str, str]]:
        for place, example in enumerate(examples):
            if example is not None and len(example) > config.train.max_length:
                left_out["too_long"] += 1
            elif example is not None:
                places.append(place)
                yield example.key, str(example.prompt)

    try:
        return [places[index] for index in draw(names(), count, config.seed)]
    except TooFew as error:
        (available,) = error.args
        raise SteerHealError(
            "there are fewer rows to train on than train.rows",
            given=f"{available} rows; {left_out['empty']} without a completion and {left_out['too_long']} longer than train.max_length are left out",
            expected=f"train.rows = {count}",
            next=f"sample more in a new run, with {setting(f'sweep.samples={2 * config.sweep.samples}')}"
            + (f"; or train on fewer in every arm: {setting(f'train.rows={available}')}" if available else ""),
        ) from None


def collate(examples: Sequence[Example], multiple: int = 1) -> dict[str, torch.Tensor]:
    """Right-padded input_ids, attention_mask and labels [batch, length]; labels are -100 outside the completion.

    multiple: of which the length is one. Kernels that are tuned or compiled by shape then meet few shapes.
    """
    import torch

    width = -(-max(map(len, examples)) // multiple) * multiple
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full((len(examples), width), IGNORED)
    for index, example in enumerate(examples):
        ids[index, : len(example)] = torch.tensor([*example.prompt, *example.completion])
        mask[index, : len(example)] = 1
        labels[index, len(example.prompt) : len(example)] = torch.tensor(example.completion)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
