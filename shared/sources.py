"""Rows of a file or a data set by one name, read the same way from both, lazily and as often as asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from shared.conversations import COLUMNS, plain_field
from shared.errors import SteerHealError
from shared.lines import conversion_of, problem_of, row_shape
from shared.publish import digest
from shared.records import Record
from shared.sets import FilePart, local_parts, names_set, open_set, revision_of, set_folder
from shared.tables import first_fields, located, numbered_rows, present, unit

Row = TypeVar("Row", bound=Record)


@dataclass(frozen=True)
class RowSource:
    """Rows that can be gone through again and again, each after its number.

    read: the rows of a kind, from the first on. fields: names of the first row's fields. place: where the row of a number is, for errors.
    unit: what a number counts, lines or rows.
    """

    name: str
    read: Callable[[type[Any]], Iterator[tuple[int, Any]]]
    fields: Callable[[], set[str]]
    place: Callable[[int], str]
    unit: str

    def rows(self, kind: type[Row]) -> Iterator[tuple[int, Row]]:
        """Every row as a record of a kind, with its number.

        Raises SteerHealError for a bad row, with its file, row and field, and for a source without rows.
        """
        return self.read(kind)


@contextmanager
def open_rows(name: str, *, what: str, made_by: str) -> Iterator[RowSource]:
    """The rows of a JSON Lines, CSV or Parquet path, or of a data set as `shared.sets` names it, while the context lasts.

    Args:
        name: of the file or the data set.
        what: what could not be done, in the error of a data set that cannot be had.
        made_by: the command or edit that makes such rows, for errors.
    """
    if not names_set(name):
        path = Path(name)
        yield RowSource(
            name,
            lambda kind: numbered_rows(path, kind, made_by=made_by),
            lambda: first_fields(path),
            lambda number: located(path, number),
            unit(path),
        )
    elif (parts := local_parts(name, what=what, next=made_by)) is not None:
        yield RowSource(
            name,
            lambda kind: _of_parts(name, parts, kind, made_by),
            lambda: first_fields(parts[0].path) if parts else set(),
            lambda number: f"{name} row {number}",
            "row",
        )
    else:
        with open_set(name, what=what, next=made_by) as table:
            yield RowSource(
                name,
                lambda kind: _of_table(name, table, kind, made_by),
                lambda: set(table.column_names),
                lambda number: f"{name} row {number}",
                "row",
            )


def origin_of(name: str) -> dict[str, str]:
    """The identity of a file or a data set as it was read, for a record: its name without folders, and its sha256 or the hub's commit."""
    if not names_set(name):
        return {"name": Path(name).name, "sha256": digest(Path(name))}
    if (folder := set_folder(name)) is None:
        return {"name": name, "revision": revision_of(name)}
    return {"name": f"{folder.name}:{name.partition(':')[2]}", "sha256": digest(folder)}


def _of_parts(name: str, parts: list[FilePart], kind: type[Row], made_by: str) -> Iterator[tuple[int, Row]]:
    """The rows of a local data set's files, by the reader of files."""
    number = 0
    for part in parts:
        try:
            for _, row in numbered_rows(part.path, kind, made_by=made_by, begin=part.begin, end=part.end):
                yield number, row
                number += 1
        except SteerHealError as error:
            error.given = f"{name} row {number}: {error.given}"
            raise
    if not number:
        raise _no_rows(name, kind, made_by)


def _of_table(name: str, table: Any, kind: type[Row], made_by: str) -> Iterator[tuple[int, Row]]:
    """The rows of a data set as `datasets` reads it, its nulls as in a Parquet file."""
    columns = {*kind.model_fields, *COLUMNS}
    if not len(table):
        raise _no_rows(name, kind, made_by)
    for number, row in enumerate(
        table.select_columns(
            [column for column in table.column_names if column in columns or plain_field(column) in columns]
        )
    ):
        try:
            yield number, kind.model_validate(present(row, kind))
        except ValidationError as error:
            lines = Path("rows.jsonl")
            command = conversion_of(error, lines)
            raise SteerHealError(
                f"a row of a data set is no {kind.__name__.lower()}",
                given=f"{name} row {number}: {problem_of(error)}",
                expected=f"a row{row_shape(kind)}; the columns are {', '.join(table.column_names)}",
                next=f"write its rows to {lines} (Dataset.to_json), and then: {command}" if command else made_by,
            ) from None


def _no_rows(name: str, kind: type[Record], made_by: str) -> SteerHealError:
    return SteerHealError(
        "a data set has no rows", given=f"{name}: no rows", expected=f"rows{row_shape(kind)}", next=made_by
    )
