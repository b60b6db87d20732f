"""Rows of a sweep that hold the sampler's log-probabilities, for the comparison where none of those trained on does."""

from __future__ import annotations

from pathlib import Path

from shared.chat import Chat
from shared.records import Completion, iterate_jsonl
from train.data import Example, sampled_example
from train.rows import MADE_BY, is_sampled, open_data


def recorded_beside(data: str | Path, chat: Chat) -> list[Example]:
    """Rows with recorded log-probabilities, from a file of kept rows and the file of rejected rows beside it.

    Sampler and trainer are compared on any text, so that a rejected row serves as well as a kept one. Empty for data that was not
    sampled by gen.sweep.

    Args:
        data: as `train.data.load_examples` takes it.
        chat: of the model.
    """
    with open_data(data) as source:
        if not is_sampled(source):
            return []
    kept = Path(data)
    files = [file for file in (kept, _rejected(kept)) if file.suffix == ".jsonl" and file.is_file()]
    rows = (row for file in files for row in iterate_jsonl(file, Completion, made_by=MADE_BY) if row.logprobs)
    return [example for row in rows if (example := sampled_example(row, chat)) is not None and example.logprobs]


def _rejected(kept: Path) -> Path:
    """As gen.filter names it: rejected.jsonl beside kept.jsonl, or NAME.rejected.jsonl beside NAME.jsonl."""
    return kept.with_name("rejected.jsonl" if kept.name == "kept.jsonl" else f"{kept.stem}.rejected.jsonl")
