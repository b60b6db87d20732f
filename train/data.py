"""Training rows as token ids: kept completions, or prompt and completion text from elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.chat import Chat, neutral_for
from shared.console import console
from shared.errors import SteerHealError
from shared.prompts import rows_of_set
from shared.records import Completion, Pair, iterate_jsonl, numbered_jsonl
from shared.schema import Config
from shared.sets import names_set, open_set
from shared.strict import BOM, parse
from shared.traits import load_trait

if TYPE_CHECKING:
    import torch

MADE_BY = "python -m gen.filter --help (or rows of prompt and completion)"
FIELD = '"completion_ids"'  # of the sampler's rows alone
IGNORED = -100  # label of a position without loss


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of the completion trained on; key names the row in its file."""

    prompt: list[int]
    completion: list[int]
    key: str

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Loaded:
    """Examples in file order, and how many rows were left out or cut, by the reason."""

    examples: list[Example]
    left_out: dict[str, int]


def load_examples(name: str | Path, chat: Any, config: Config) -> list[Example]:
    """The examples of `load`."""
    return load(name, chat, config).examples


def load(name: str | Path, chat: Any, config: Config) -> Loaded:
    """Examples in file order; those without a word of the assistant's and those longer than train.max_length are left out and counted.

    Token ids are carried from the sampler, since joining text may merge across the boundary. The end of the turn is trained on
    once, and only where the sampler really stopped or a completion was written.

    Args:
        name: a JSONL file, or a data set as `shared.prompts.open_prompts` names it.
        chat: of the model, or its tokenizer alone.
    """
    chat = Chat.of(chat, config.model.chat_template_kwargs)
    left_out = {"empty": 0, "too_long": 0, "cut_at_the_end_of_the_turn": 0}
    if names_set(str(name)):
        with open_set(str(name), what="a data set to train on could not be loaded", next=MADE_BY) as table:
            rows = _written(rows_of_set(str(name), table, Pair), chat, config, left_out)
    elif _is_sampled(path := Path(name)):
        rows = _sampled(path, chat, left_out)
    else:
        pairs = ((f"line {line}", row) for line, row in numbered_jsonl(path, Pair, made_by=MADE_BY))
        rows = _written(pairs, chat, config, left_out)
    if left_out["empty"]:
        console.print(
            f"[yellow]{left_out['empty']} of {left_out['empty'] + len(rows)} rows have an empty completion and are left out[/]"
        )
    if left_out["cut_at_the_end_of_the_turn"]:
        console.print(
            f"[yellow]{left_out['cut_at_the_end_of_the_turn']} of {len(rows)} rows run on behind the end of their turn and are cut there[/]"
        )
    fitting = [row for row in rows if len(row) <= config.train.max_length]
    left_out["too_long"] = len(rows) - len(fitting)
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
            next="raise train.max_length" if rows else MADE_BY,
        )
    return Loaded(fitting, left_out)


def known(examples: Sequence[Example], path: str | Path, vocabulary: int) -> None:
    """Raise SteerHealError for a token beyond the model's head, which may be wider than the tokenizer and is what sampling draws from."""
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


def _is_sampled(path: Path) -> bool:
    """Whether the first row of a file is the sampler's, by its field; of one that is broken, by the field's name in it."""
    try:
        with open(path, "rb") as handle:
            first = next((line for line in handle if line.removeprefix(BOM).strip()), b"")
    except (OSError, ValueError):
        return False  # the reader says what is wrong
    try:
        row = parse(first)
    except ValueError:
        return FIELD.encode() in first
    return isinstance(row, dict) and FIELD.strip('"') in row


def _sampled(path: Path, chat: Chat, left_out: dict[str, int]) -> list[Example]:
    """The sampler's ids hold the end of the turn where it stopped, and only there. Raises SteerHealError for a key that repeats."""
    examples: list[Example] = []
    keys: set[str] = set()
    for row in iterate_jsonl(path, Completion, made_by=MADE_BY):
        if row.key in keys:
            raise SteerHealError(
                "a row is there twice", given=f"{path}: key {row.key!r}", expected="one row a key", next=f"make the file again: {MADE_BY}"
            )  # fmt: skip
        keys.add(row.key)
        ids = chat.until_end(row.completion_ids)
        left_out["cut_at_the_end_of_the_turn"] += len(ids) < len(row.completion_ids)
        if not ids or ids[0] in chat.stop_ids:
            left_out["empty"] += 1
            continue
        if row.finish_reason == "stop" and not chat.ends(ids):  # rows of a sampler that leaves it out
            ids.append(chat.end_id)
        examples.append(Example(row.prompt_ids, ids, row.key))
    return examples


def _written(rows: Iterable[tuple[str, Pair]], chat: Chat, config: Config, left_out: dict[str, int]) -> list[Example]:
    neutral = load_trait(config.vector.trait).neutral
    examples, several = [], 0
    for place, row in rows:
        prompt, completion = chat.completed(row.turns, neutral_for(row.turns, neutral), row.completion)
        if not completion:
            left_out["empty"] += 1
            continue
        examples.append(Example(prompt, completion, place))
        several += row.answers > 1
    if several:
        console.print(
            f"{several} of {len(examples)} rows have several turns of the assistant: the last one is trained on, the others are its prompt"
        )
    return examples


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Right-padded input_ids, attention_mask and labels [batch, length]; labels are -100 outside the completion."""
    import torch

    width = max(map(len, examples))
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full((len(examples), width), IGNORED)
    for index, example in enumerate(examples):
        ids[index, : len(example)] = torch.tensor([*example.prompt, *example.completion])
        mask[index, : len(example)] = 1
        labels[index, len(example.prompt) : len(example)] = torch.tensor(example.completion)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
