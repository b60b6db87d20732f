"""Rows to train on, read and not yet rendered: the sampler's, with token ids, or prompts and completions as others write them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from shared.errors import SteerHealError
from shared.records import Completion, Pair
from shared.sources import RowSource, open_rows
from shared.strict import BOM, parse_json
from shared.tables import TABLES

MADE_BY = "python -m gen.filter --help (or rows of prompt and completion)"
T = TypeVar("T")
FIELD = "completion_ids"  # of the sampler's rows alone


@contextmanager
def open_data(name: str | Path) -> Iterator[RowSource]:
    """The rows that --data names, while the context lasts: a JSONL, CSV or Parquet file, or a data set."""
    with open_rows(str(name), what="a data set to train on could not be loaded", made_by=MADE_BY) as source:
        yield source


def is_sampled(source: RowSource) -> bool:
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
        parse_json(first)
    except ValueError:
        return f'"{FIELD}"'.encode() in first
    return False


def draw(names: Iterable[tuple[str, str]], count: int, seed: int) -> list[int]:
    """Places of `count` rows, ascending: prompts in turn, each giving its rows in the order of their hashes.

    So no prompt has two rows more than another that has rows left. Which rows they are does not depend on their order. In memory are
    16 bytes a row, until the rows are chosen.

    Args:
        names: of every row, its own name and its prompt.
        count: how many.
        seed: another one draws others.

    Raises:
        TooFew: there are fewer rows.
    """
    rows, prompts = array("Q"), array("Q")
    for name, prompt in names:
        rows.append(_hash(f"{seed} {name}"))
        prompts.append(_hash(f"{seed} {prompt}"))
    if len(rows) < count:
        raise TooFew(len(rows))
    by_row, by_prompt = np.frombuffer(rows, np.uint64), np.frombuffer(prompts, np.uint64)
    order = np.lexsort((by_row, by_prompt))
    begins = np.flatnonzero(np.r_[True, np.diff(by_prompt[order]) != 0])
    turn = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
    in_turn = np.lexsort((by_prompt[order], turn))
    return sorted(order[in_turn[:count]].tolist())


class TooFew(Exception):
    """A draw of more rows than there are, which `args` holds."""


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def completions(source: RowSource, keep: Iterable[int] | None = None) -> Iterator[Completion]:
    """The sampler's rows, or those at the places that `draw` gives.

    Raises SteerHealError for a bad one and for a key that repeats, of a draw among those drawn.
    """
    keys: set[str] = set()
    for _, row in _at(source.rows(Completion), keep):
        if row.key in keys:
            raise SteerHealError(
                "a row is there twice",
                given=f"{source.name}: key {row.key!r}",
                expected="one row a key",
                next=f"make the file again: {MADE_BY}",
            )
        keys.add(row.key)
        yield row


def pairs(source: RowSource, keep: Iterable[int] | None = None) -> Iterator[tuple[str, Pair]]:
    """Prompts and completions, or those at the places that `draw` gives, each with the name of its row: the line or the row that it is."""
    return ((f"{source.unit} {number}", row) for number, row in _at(source.rows(Pair), keep))


def _at(rows: Iterable[T], keep: Iterable[int] | None) -> Iterator[T]:
    """The rows at some places, ascending; all where there are no places."""
    if keep is None:
        yield from rows
        return
    indices = iter(keep)
    place = next(indices, None)
    for number, row in enumerate(rows):
        if number == place:
            yield row
            place = next(indices, None)


def refuse_unusable_rows(name: str | Path, count: int | None = None) -> None:
    """Raise SteerHealError for the first row that training would refuse, before anything heavy is imported.

    With count, the number of rows to draw, only the first row is checked: the draw reads all of them anyway.
    """
    with open_data(name) as source:
        for _ in completions(source) if is_sampled(source) else pairs(source):
            if count is not None:
                return
