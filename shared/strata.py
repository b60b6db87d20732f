"""Selections in turn over strata, from lists and from streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, TypeVar

from shared.records import Record

T = TypeVar("T")
Row = TypeVar("Row", bound=Record)


def stratified(rows: list[Row], count: int, stratum: str) -> list[Row]:
    """The first `count` rows in turn over the strata, each stratum in file order; the result keeps file order."""
    key = attrgetter(stratum)
    return list(take_quota(rows, quotas(Counter(map(key, rows)), count), key))


def quotas(sizes: Mapping[Any, int], count: int) -> dict[Any, int]:
    """The rows that each stratum gives to `count` picked round-robin. sizes: rows of each, in order of first appearance.

    Sizes are all it takes: a selection from any number of rows is known without holding them.
    """
    low, high = 0, max(sizes.values(), default=0)
    while low < high:  # the most whole turns that fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(size, middle) for size in sizes.values()) <= count else (low, middle - 1)
    quota = {name: min(size, low) for name, size in sizes.items()}
    rest = count - sum(quota.values())
    for name in [name for name, size in sizes.items() if size > low][:rest]:
        quota[name] += 1
    return quota


def take_quota(rows: Iterable[T], quota: Mapping[Any, int], stratum: Callable[[T], Any]) -> Iterator[T]:
    """The first rows of each stratum up to its quota, in file order."""
    remaining = dict(quota)
    for row in rows:
        name = stratum(row)
        if remaining.get(name, 0):
            remaining[name] -= 1
            yield row
