"""Rows of a JSON Lines, CSV or Parquet file by its ending, one at a time; and Parquet written."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from shared.conversations import COLUMNS, plain_field
from shared.errors import SteerHealError
from shared.lines import conversion_of, open_rows_file, placed_jsonl, problem_of, row_shape
from shared.publish import atomic_file
from shared.records import Record, refuse_duplicate_rows
from shared.strict import BOM, Convertible, not_utf8, parse_json, refuse_other_kinds, repeated

CELL = 2**24  # characters of a CSV's cell: one whose quote is never closed ends here, not with the memory
HEAD = 4096  # bytes that tell what a file is
BATCH = 64  # rows of a Parquet file that are held
TYPED = ("label", "version")  # columns of a CSV that are no text: true, false or a number
CONVERSED = ("messages", "prompt", "completion")  # columns of a CSV that may hold a conversation, as JSON
REPR = re.compile(r"\s*\[\s*\{\s*'(?:role|content)'\s*:")
AS_JSON = """python -c "import ast, csv, json, sys; rows = list(csv.reader(open(sys.argv[1], newline='', encoding='utf-8-sig'))); csv.writer(open(sys.argv[2], 'x', newline='', encoding='utf-8')).writerows([json.dumps(ast.literal_eval(c)) if c.startswith('[{') else c for c in row] for row in rows)" FILE NEW"""
DIVIDERS = {".csv": ",", ".tsv": "\t"}
TABLES = (*DIVIDERS, ".parquet")

Row = TypeVar("Row", bound=Record)


def numbered_rows(
    path: Path, row: type[Row], *, made_by: str, begin: int = 0, end: int | None = None
) -> Iterator[tuple[int, Row]]:
    """The rows of a file, each after its number: the line it begins on, from 1, or in Parquet the row, from 0.

    A file of any length is read in constant memory. An empty cell of a CSV and a null of a Parquet file are fields that the row has not.

    Args:
        path: a file whose ending is .csv, .tsv or .parquet; JSON Lines for any other.
        row: what a row holds.
        made_by: the command that makes the file, for errors.
        begin, end: rows before begin and from end on, counted from 0, are not looked at.

    Raises:
        SteerHealError: for a file that is missing or empty, and for the first bad row, by file, row and field.
    """
    read: Callable[..., Iterator[tuple[int, Row]]] = {
        ".parquet": _parquet,
        **dict.fromkeys(DIVIDERS, _csv),
    }.get(path.suffix.lower(), _jsonl)
    return read(path, row, made_by, begin, end)


def unit(path: Path) -> str:
    """The word for a numbered part of a file: `row` of Parquet, else `line`."""
    return "row" if path.suffix.lower() == ".parquet" else "line"


def located(path: Path, number: int) -> str:
    """The place of a row, for errors."""
    return f"{path}:{number}" if unit(path) == "line" else f"{path} row {number}"


def count_rows(path: Path) -> int:
    """The number of rows of a file; none is validated. Raises OSError or ValueError for a file that cannot be read."""
    if unit(path) == "row":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(path).num_rows)
    if (divider := DIVIDERS.get(path.suffix.lower())) is not None:
        csv.field_size_limit(CELL)
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as text:
            try:
                return max(0, sum(1 for cells in csv.reader(text, delimiter=divider) if cells) - 1)
            except csv.Error as error:
                raise ValueError(f"{path}: {error}") from None
    with open(path, "rb") as handle:
        return sum(1 for line in handle if line.removeprefix(BOM).strip())


def first_fields(path: Path) -> set[str]:
    """The names of the first row's fields; none of a file that its reader will refuse."""
    try:
        if unit(path) == "row":
            import pyarrow.parquet

            return set(pyarrow.parquet.read_schema(path).names)
        if (divider := DIVIDERS.get(path.suffix.lower())) is not None:
            with open(path, encoding="utf-8-sig", newline="") as text:
                return set(next(csv.reader(text, delimiter=divider), []))
        with open(path, "rb") as handle:
            row = parse_json(next((line for line in handle if line.removeprefix(BOM).strip()), b""))
        return set(row) if isinstance(row, dict) else set()
    except (OSError, ValueError, csv.Error):
        return set()


def _jsonl(path: Path, row: type[Row], made_by: str, begin: int, end: int | None) -> Iterator[tuple[int, Row]]:
    for line, _, value in placed_jsonl(path, row, made_by=made_by, begin=begin, end=end):
        yield line, value


def _csv(path: Path, row: type[Row], made_by: str, begin: int, end: int | None) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(CELL)
    number, count = 1, 0
    with open_rows_file(path, row, "CSV", made_by=made_by) as handle:
        try:
            refuse_other_kinds(handle.read(HEAD))
            handle.seek(0)
            text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
            reader = csv.reader(text, delimiter=DIVIDERS[path.suffix.lower()], strict=True)
            names = _header(next(reader, []))
            while True:
                number = reader.line_num + 1
                if (cells := next(reader, None)) is None:
                    break
                if not cells:
                    continue
                count += 1
                if count <= begin:
                    continue
                if end is not None and count > end:
                    return
                if len(cells) != len(names):
                    raise ValueError(f"{len(cells)} cells, where the header has {len(names)}")
                filled = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
                if "prompt" in filled and "completion" in names:
                    filled.setdefault(
                        "completion", ""
                    )  # empty, and not missing: left out and counted, as of JSON Lines
                fields = {name: _cell(name, cell) for name, cell in filled.items()}
                yield number, row.model_validate(fields)
        except UnicodeDecodeError as error:
            raise _refused(path, number, not_utf8(error), row, made_by) from None
        except (ValueError, csv.Error) as error:
            raise _refused(path, number, error, row, made_by) from None
    if not count:
        raise SteerHealError("a CSV file has no rows", given=path, expected=f"rows{row_shape(row)}", next=made_by)


def _header(names: list[str]) -> list[str]:
    if twice := repeated(names):
        raise ValueError(f"column {twice[0]!r} twice")
    if len(names) == 1 and (divider := next((divider_ for divider_ in ";\t|" if divider_ in names[0]), None)):
        raise Convertible(
            f"columns are divided by {divider!r}, where a CSV has commas",
            f"""python -c "import csv, sys; csv.writer(open(sys.argv[2], 'w', newline='')).writerows(csv.reader(open(sys.argv[1], newline=''), delimiter={divider!r}))" FILE NEW""",
        )
    return names


def _cell(name: str, text: str) -> Any:
    """A cell's value: text, as JSON Lines has it between quotes; a label and a version are no text there."""
    if name in TYPED:
        try:
            return json.loads(text.lower())
        except ValueError:
            return text
    if name in CONVERSED and text.lstrip().startswith(("[{", "[ {")):
        try:
            turns = json.loads(text)
        except ValueError:
            pass
        else:
            return (
                turns
                if name == "messages" or all(isinstance(turn, dict) and "role" in turn for turn in turns)
                else text
            )
        if name == "messages" or REPR.match(text):
            raise Convertible(f"{name} is a list as Python prints it", AS_JSON)
    return text


def _parquet(path: Path, row: type[Row], made_by: str, begin: int, end: int | None) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    with open_rows_file(path, row, "Parquet", made_by=made_by) as handle:
        try:
            table = pyarrow.parquet.ParquetFile(handle, pre_buffer=False)
            columns = {*row.model_fields, *COLUMNS}
            for batch in table.iter_batches(
                BATCH,
                columns=[name for name in table.schema_arrow.names if name in columns or plain_field(name) in columns],
            ):
                if number + len(batch) <= begin:
                    number += len(batch)
                    continue
                for values in batch.to_pylist():
                    if end is not None and number >= end:
                        return
                    if number >= begin:
                        yield number, row.model_validate(present(values, row))
                    number += 1
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise _refused(path, number, error, row, made_by) from None
        if not table.metadata.num_rows:
            raise SteerHealError(
                "a Parquet file has no rows", given=path, expected=f"rows{row_shape(row)}", next=made_by
            )


def present(values: dict[str, Any], row: type[Record]) -> dict[str, Any]:
    """The fields that a table's row has: a null in a column that the row need not have is no field of it."""
    return {
        name: value
        for name, value in values.items()
        if value is not None or ((field := row.model_fields.get(name)) is not None and field.is_required())
    }


def _refused(path: Path, number: int, error: Exception, row: type[Record], made_by: str) -> SteerHealError:
    """What is wrong with a row of a CSV or a Parquet file, and the command that mends it."""
    kind = "Parquet" if unit(path) == "row" else "CSV"
    lines = _free(path)
    if isinstance(error, ValidationError) and (command := conversion_of(error, lines)):
        command = f"{_as_jsonl(path, lines)} && {command}"  # a shape of others, whose conversion is of JSON Lines
    else:
        command = conversion_of(error, path) or "mend or remove the row"
    return SteerHealError(
        f"{unit(path)} {number} of a {kind} file could not be read",
        given=f"{located(path, number)}: {(problem_of(error).splitlines() or [type(error).__name__])[0]}",
        expected=f"a row of version {row.model_fields['version'].default}{row_shape(row)}",
        next=f"{command}, or make the file again: {made_by}",
    )


def _as_jsonl(path: Path, lines: Path) -> str:
    """The command that writes a table as JSON Lines; the cells of a CSV stay text, as they are read here."""
    code = "import sys; from datasets import Dataset; Dataset.from_parquet(sys.argv[1]).to_json(sys.argv[2])"
    if (divider := DIVIDERS.get(path.suffix.lower())) is not None:
        table = f"csv.DictReader(open(sys.argv[1], newline='', encoding='utf-8-sig'), delimiter={divider!r})"
        code = f"import csv, json, sys; open(sys.argv[2], 'x').writelines(json.dumps({{k: v for k, v in row.items() if v}}) + chr(10) for row in {table})"
    return f'python -c "{code}" {shlex.quote(str(path))} {shlex.quote(str(lines))}'


def _free(path: Path) -> Path:
    """A name for JSON Lines beside a table that nothing has yet."""
    names = (path.with_name(f"{path.stem}{number}.jsonl") for number in ("", *(f"-{n}" for n in range(2, 10_000))))
    return next(name for name in names if not os.path.lexists(name))


def read_parquet(path: Path, row: type[Row], *, made_by: str) -> list[Row]:
    """Rows of a Parquet table with all their fields. Raises SteerHealError as read_jsonl does."""
    import pyarrow
    import pyarrow.parquet

    try:
        if os.path.isdir(path):  # which pyarrow takes for a table in parts
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        rows = [row.model_validate(value) for value in pyarrow.parquet.read_table(path).to_pylist()]
        if not rows:
            raise ValueError("no rows")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SteerHealError(
            "a Parquet file could not be used",
            given=f"{path}: {problem_of(error)}",
            expected=f"rows{row_shape(row)}",
            next=made_by,
        ) from None
    return refuse_duplicate_rows(path, rows, made_by)


def write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows atomically as one Parquet table; a field that is null in every row keeps its column."""
    import pyarrow
    import pyarrow.parquet

    with atomic_file(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), temporary)
