"""Rows to train on, read and not yet rendered: the sampler's, with token ids, or prompts and completions as others write them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import SteerHealError
from shared.records import Completion, Pair
from shared.sources import Source, open_rows
from shared.strict import BOM, parse
from shared.tables import TABLES

MADE_BY = "python -m gen.filter --help (or rows of prompt and completion)"
FIELD = "completion_ids"  # of the sampler's rows alone


@contextmanager
def open_data(name: str | Path) -> Iterator[Source]:
    """The rows that --data names, while the context lasts: a JSONL, CSV or Parquet file, or a data set."""
    with open_rows(str(name), what="a data set to train on could not be loaded", made_by=MADE_BY) as source:
        yield source


def is_sampled(source: Source) -> bool:
    """Whether the first row is the sampler's, by its field; of one that is broken, by the field's name in it."""
    if FIELD in (fields := source.fields()):
        return True
    path = Path(source.name)
    if fields or source.unit != "line" or path.suffix.lower() in TABLES:
        return False
    try:
        with open(path, "rb") as handle:
            first = next((line for line in handle if line.removeprefix(BOM).strip()), b"")
    except (OSError, ValueError):
        return False  # the reader says what is wrong
    try:
        parse(first)
    except ValueError:
        return f'"{FIELD}"'.encode() in first
    return False


def completions(source: Source) -> Iterator[Completion]:
    """The sampler's rows. Raises SteerHealError for a bad one and for a key that repeats."""
    keys: set[str] = set()
    for _, row in source.rows(Completion):
        if row.key in keys:
            raise SteerHealError(
                "a row is there twice",
                given=f"{source.name}: key {row.key!r}",
                expected="one row a key",
                next=f"make the file again: {MADE_BY}",
            )
        keys.add(row.key)
        yield row


def pairs(source: Source) -> Iterator[tuple[str, Pair]]:
    """Prompts and completions, each with the name of its row: the line or the row that it is."""
    return ((f"{source.unit} {number}", row) for number, row in source.rows(Pair))


def look_over(name: str | Path) -> None:
    """Raise SteerHealError for the first row that training would refuse, before anything heavy is imported."""
    with open_data(name) as source:
        for _ in completions(source) if is_sampled(source) else pairs(source):
            pass
