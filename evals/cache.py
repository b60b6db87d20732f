"""Content-addressed cache of scored rows, so that the same weights are never asked the same thing twice.

One file per condition, under a digest of all that determines its rows: the weights, the steering, the rendered token ids, how they are
read, the versions of the packages that compute, the processor with its instruction set, and the code. Safe to remove. How a condition
is batched with others is not part of the name: it moves the last digits, so that rows taken from here are those of the run that made
them first, to the byte, and a scoring killed between two files of one batch makes the rest in a smaller one.

A file is a line with the digest of the others, and a row per line. What it gives back is checked against what was asked; an entry that
is something else is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.conditions import Condition
from shared.code import code_of
from shared.console import say
from shared.lines import problem_of
from shared.machine import device
from shared.models import cache_folder
from shared.provenance import versions
from shared.publish import write_text
from shared.strict import parse_json
from shared.vectors import Vector

VERSION = 1
Row = dict[str, Any]
WeightsKey = tuple[str, str]  # fingerprint of a student or model, and its dtype


class Cache:
    """Rows of conditions of one student.

    Args:
        weights: of the student.
        depends: what the rows depend on beside it and the condition.
        prompts: token ids that a condition puts to the model.
        check: raises ValueError for rows that are no answer to what a condition asks.
        module: that makes the rows; what it imports is the code that they depend on.
        vectors: by the names that conditions know them under.
        folder: of the cache; None is the user's.
        fresh: take nothing from it, and write what is made in its place.
    """

    def __init__(
        self,
        weights: WeightsKey,
        depends: Mapping[str, Any],
        prompts: Callable[[Condition], Any],
        check: Callable[[Sequence[Row]], None],
        module: str,
        vectors: Mapping[str, Vector],
        folder: Path | None = None,
        fresh: bool = False,
    ):
        self.folder = folder or cache_folder() / "scores"
        self._prompts, self._check, self._vectors, self._fresh = prompts, check, vectors, fresh
        self.taken = 0  # conditions whose rows were there
        self._common = {
            "weights": weights,
            **depends,
            "versions": versions(),
            "device": device(),
            "code": code_of(module),
        }

    def _path(self, condition: Condition) -> Path:
        vector = self._vectors[condition.vector] if condition.vector is not None else None
        steering = [] if vector is None else [condition.coefficient, condition.positions, vector.digest()]
        content = {**self._common, "steering": steering, "prompts": self._prompts(condition)}
        return self.folder / f"{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}.jsonl"

    def get(self, condition: Condition) -> list[Row] | None:
        """The rows of a condition, None where they are to be made."""
        path = self._path(condition)
        if self._fresh or not path.is_file():
            return None
        try:
            rows = _read(path)
            self._check(rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"{path}, kept rows of {condition.name}: {problem_of(error)}; they are made again", "yellow")
            return None
        self.taken += 1
        return rows

    def put(self, condition: Condition, rows: Sequence[Row]) -> None:
        """Keep rows. A cache that cannot be written costs the next scoring time, and this one nothing: it says so."""
        body = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        head = json.dumps({"version": VERSION, "rows": len(rows), "sha256": text_digest(body)})
        try:
            write_text(self._path(condition), f"{head}\n{body}")
        except OSError as error:
            say(f"{self.folder}, where rows of {condition.name} were to be kept: {error.strerror}", "yellow")


def text_digest(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _read(path: Path) -> list[Row]:
    """The rows of an entry. Raises OSError and ValueError where it is not, to the byte, what was written."""
    head, _, body = path.read_bytes().decode("utf-8").partition("\n")
    entry = parse_json(head)
    if entry["version"] != VERSION or entry["sha256"] != text_digest(body):
        raise ValueError("it is not what was written there")
    rows = [parse_json(line) for line in body.split("\n")[:-1]]  # what a model wrote may hold other line ends
    if len(rows) != entry["rows"]:
        raise ValueError(f"{len(rows)} rows instead of {entry['rows']}")
    return rows
