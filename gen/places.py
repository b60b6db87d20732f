"""Rows of sweeps by key, without holding them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from shared.errors import SteerHealError
from shared.records import Completion
from shared.strict import parse


class Places:
    """Where rows lie in their files. In memory are a key and a place of each, some 200 bytes, and no row but the one at hand."""

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._places: list[tuple[str, int, int]] = []

    def __len__(self) -> int:
        return len(self._places)

    def add(self, key: str, path: Path, begin: int) -> None:
        """A row of a file, and the byte that it begins at."""
        if path not in self._files:
            self._files.append(path)
        self._places.append((key, self._files.index(path), begin))

    def __iter__(self) -> Iterator[Completion]:
        """The rows sorted by key, those of one key in the order of their files. Raises SteerHealError for a file that changed, and for two
        rows of one key in a file."""
        self._places.sort()
        for (key, file, _), (after, other, _) in pairwise(self._places):
            if (key, file) == (after, other):
                raise SteerHealError(
                    "a row is there twice",
                    given=f"{self._files[file]}: key {key!r}",
                    expected="one row of each key",
                    next="leave one out, or make the file again: python -m gen.sweep --help",
                )
        with ExitStack() as stack:
            handles = [stack.enter_context(open(path, "rb")) for path in self._files]
            for key, file, begin in self._places:
                yield _read(handles[file], begin, key)


def _read(handle: BinaryIO, begin: int, key: str) -> Completion:
    handle.seek(begin)
    try:
        row = Completion.model_validate(parse(handle.readline()))
    except ValueError:
        row = None
    if row is None or row.key != key:
        raise SteerHealError(
            "a file changed while it was read",
            given=f"{handle.name}: another row than {key!r} at byte {begin}",
            expected="a file that stays as it is",
            next="the same command again",
        )
    return row
