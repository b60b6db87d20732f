"""Rows to train on, read and not yet rendered: the sampler's, with token ids, or prompts and completions as others write them."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from shared.errors import SteerHealError
from shared.records import Completion, Pair
from shared.sources import Source, open_rows
from shared.strict import BOM, parse
from shared.tables import TABLES

MADE_BY = "python -m gen.filter --help (or rows of prompt and completion)"
T = TypeVar("T")
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


def draw(rows: Iterable[tuple[str, T]], count: int, seed: int) -> Iterator[tuple[str, T]]:
    """So many of the rows, in their order, of which no others are held: those whose hash of seed and name is lowest.

    Which rows they are does not depend on the order, and of two rows of one name both are drawn or none.

    Args:
        rows: each behind its name.
        count: how many; all where there are fewer.
        seed: another one draws others.
    """
    lowest: list[tuple[bytes, int, str, T]] = []  # a heap whose first entry has the highest hash

    for place, (name, row) in enumerate(rows):
        rank = bytes(255 - byte for byte in hashlib.sha256(f"{seed} {name}".encode()).digest())
        if len(lowest) < count:
            heapq.heappush(lowest, (rank, -place, name, row))
        else:
            heapq.heappushpop(lowest, (rank, -place, name, row))
    return ((name, row) for _, _, name, row in sorted(lowest, key=lambda entry: -entry[1]))


def completions(source: Source, count: int | None = None, seed: int = 0) -> Iterator[Completion]:
    """The sampler's rows, or `count` of them as `draw` has it.

    Raises SteerHealError for a bad one and for a key that repeats, of a draw among those drawn.
    """
    named = ((row.key, row) for _, row in source.rows(Completion))
    keys: set[str] = set()
    for _, row in named if count is None else draw(named, count, seed):
        if row.key in keys:
            raise SteerHealError(
                "a row is there twice",
                given=f"{source.name}: key {row.key!r}",
                expected="one row a key",
                next=f"make the file again: {MADE_BY}",
            )
        keys.add(row.key)
        yield row


def pairs(source: Source, count: int | None = None, seed: int = 0) -> Iterator[tuple[str, Pair]]:
    """Prompts and completions, or `count` of them as `draw` has it, each with the name of its row: the line or the row that it is."""
    named = ((f"{source.unit} {number}", row) for number, row in source.rows(Pair))
    return named if count is None else draw(named, count, seed)


def look_over(name: str | Path, count: int | None = None) -> None:
    """Raise SteerHealError for the first row that training would refuse, before anything heavy is imported.

    With a count, of rows to draw, only the first one is looked at: there may be many, and all of them are read for the draw.
    """
    with open_data(name) as source:
        for _ in completions(source) if is_sampled(source) else pairs(source):
            if count is not None:
                return
