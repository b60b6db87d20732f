"""Training rows as token ids: kept completions, or prompt and completion text from elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.chat import end_of_turn, render
from shared.config import Config
from shared.console import console
from shared.errors import SteerHealError
from shared.records import Completion, Pair, read_jsonl
from shared.traits import load_trait

if TYPE_CHECKING:
    import torch

MADE_BY = "python -m gen.filter --help (or rows of prompt and completion)"
IGNORED = -100  # label of a position without loss


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of the completion trained on."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def load_examples(path: Path, tokenizer: Any, config: Config) -> list[Example]:
    """Examples in file order; those longer than train.max_length are left out and counted.

    Token ids are carried from the sampler, since joining text may merge across the boundary. The end of the turn is trained on
    only where the sampler really stopped.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            sampled = "completion_ids" in json.loads(handle.readline())
    except (OSError, ValueError, TypeError):
        sampled = True  # read_jsonl below names what is wrong
    rows = _sampled(path) if sampled else _written(path, tokenizer, config)
    fitting = [row for row in rows if len(row) <= config.train.max_length]
    if len(fitting) < len(rows):
        console.print(
            f"[yellow]{len(rows) - len(fitting)} of {len(rows)} rows are longer than train.max_length = {config.train.max_length} and are left out[/]"
        )
    if not fitting:
        raise SteerHealError(
            "no training row fits",
            given=f"{len(rows)} rows, the shortest of {min(map(len, rows))} tokens",
            expected=f"at most {config.train.max_length}",
            next="raise train.max_length",
        )
    return fitting


def _sampled(path: Path) -> list[Example]:
    """The sampler's ids hold the end of the turn where it stopped, and only there."""
    rows = read_jsonl(path, Completion, made_by=MADE_BY)
    return [Example(list(row.prompt_ids), list(row.completion_ids)) for row in rows if row.completion_ids]


def _written(path: Path, tokenizer: Any, config: Config) -> list[Example]:
    neutral = load_trait(config.vector.trait).neutral
    end = end_of_turn(tokenizer, **config.model.chat_template_kwargs)
    examples = []
    for row in read_jsonl(path, Pair, made_by=MADE_BY):
        turns = row.messages if row.messages is not None else [{"role": "user", "content": row.prompt or ""}]
        own = turns[0]["role"] == "system"
        prompt = render(tokenizer, turns, None if own else neutral, **config.model.chat_template_kwargs)
        completion = tokenizer(row.completion, add_special_tokens=False)["input_ids"]
        examples.append(Example(prompt, [*completion, end]))
    return examples


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
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
