"""Prompts, and rows to train on, of a JSONL file or a data set, read lazily and as often as asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from shared.conversations import BESIDE, FOREIGN, THOUGHTS
from shared.errors import SteerHealError
from shared.records import Asked, Prompt, data_file, numbered_jsonl, problem_of, read_jsonl
from shared.sets import names_set, open_set

MADE_BY = "write a JSONL with a prompt or messages field per line, or name a data set: <id>:<configuration>:<split>"
COLUMNS = (
    "id",
    "genre",
    "domain",
    "kind",
    "prompt",
    "messages",
    "completion",
    "label",
    "version",
    *BESIDE,
    *THOUGHTS,
    *FOREIGN,
)

Row = TypeVar("Row", bound=Asked)

Located = tuple[str, Prompt]


@dataclass(frozen=True)
class Prompts:
    """Prompts that can be gone through again and again, each with the place it comes from, for errors."""

    read: Callable[[], Iterator[Located]]

    def __iter__(self) -> Iterator[Located]:
        return self.read()


@contextmanager
def open_prompts(name: str) -> Iterator[Prompts]:
    """The prompts of a JSONL path, or of '<id>:<configuration>:<split>' or '<id>:<split>', while the context lasts."""
    if not names_set(name):
        yield Prompts(lambda: _of_file(Path(name)))
        return
    with open_set(name, what="a prompt set could not be loaded", next=MADE_BY) as rows:
        if not {"prompt", "messages"} & set(rows.column_names):
            raise SteerHealError(
                "a data set has no prompts",
                given=f"{name}: columns {', '.join(rows.column_names)}",
                expected="a column prompt or messages",
                next="name another data set, or write its prompts to a JSONL",
            )
        if not len(rows):
            raise SteerHealError(
                "a data set has no prompts", given=f"{name}: no rows", expected="at least one row", next=MADE_BY
            )
        yield Prompts(lambda: rows_of_set(name, rows, Prompt))


def _of_file(path: Path) -> Iterator[Located]:
    for line, prompt in numbered_jsonl(path, Prompt, made_by=MADE_BY):
        yield f"{path}:{line}", prompt


def rows_of_set(name: str, rows: Any, kind: type[Row]) -> Iterator[tuple[str, Row]]:
    """The rows of a data set as those of a file with the same columns would be, each with its place. Raises SteerHealError for a bad one."""
    for index, row in enumerate(rows.select_columns([column for column in COLUMNS if column in rows.column_names])):
        place = f"{name} row {index}"
        try:
            yield place, kind.model_validate({key: value for key, value in row.items() if value is not None})
        except ValidationError as error:
            raise SteerHealError(
                f"a row of a data set is no {kind.__name__.lower()}",
                given=f"{place}: {problem_of(error)}",
                expected=kind.shape,
                next="name another data set, or write its rows to a JSONL",
            ) from None


def load_heldout(name: str) -> list[Prompt]:
    """The held-out prompts that eval.heldout names. Raises SteerHealError unless each has an id of its own, by which rows are known,
    and asks something of its own, as one under two ids would count twice."""
    path = data_file(name, "heldout.jsonl")
    rows = read_jsonl(path, Prompt, made_by="set eval.heldout to a prompts JSONL")
    ids = Counter(row.id for row in rows)
    if bad := [identifier for identifier, times in ids.items() if identifier is None or times > 1]:
        raise SteerHealError(
            "held-out prompts are not told apart",
            given=f"{path}: {'no id' if bad[0] is None else f'id {bad[0]} twice'}",
            expected="an id of its own in every row",
            next=f"mend {path}",
        )
    first: dict[str, str | None] = {}
    for row in rows:
        if (other := first.setdefault(json.dumps(row.turns), row.id)) != row.id:
            raise SteerHealError(
                "a held-out prompt is there twice",
                given=f"{path}: {other} and {row.id} ask the same",
                expected="a prompt of its own in every row",
                next=f"leave one of them out of {path}",
            )
    return rows
