"""JSON Lines read one row at a time, and what is wrong with a row, in our words."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import ValidationError

from shared.errors import SteerHealError, in_one_line
from shared.record import Record
from shared.strict import BOM, Convertible, explained, parse_json

Row = TypeVar("Row", bound=Record)


def placed_jsonl(
    path: Path, row: type[Row], *, made_by: str, begin: int = 0, end: int | None = None
) -> Iterator[tuple[int, int, Row]]:
    """Every row of a JSONL file with its line number, from 1, and the byte at which it begins.

    Rows are read and validated lazily. A byte-order mark before the first row is skipped. Raises SteerHealError for a missing or empty
    file and a bad line.

    Args:
        path: of the file.
        row: the record that a line holds.
        made_by: the command that makes the file, for the error.
        begin, end: the range of rows to read, counted from 0, without end.
    """
    count, byte = 0, 0
    with open_rows_file(path, row, "JSONL", made_by=made_by) as handle:
        for index, line in enumerate(handle, start=1):
            place, byte = byte, byte + len(line)
            if not line.removeprefix(BOM).strip():
                continue
            count += 1
            if count <= begin:
                continue
            if end is not None and count > end:
                return
            try:
                value = row.model_validate(parse_json(line))
            except ValueError as error:
                raise refused_row(path, index, line, error, row, made_by) from None
            yield index, place, value
    if not count:
        raise SteerHealError("a JSONL file has no rows", given=path, expected=f"rows{row_shape(row)}", next=made_by)


def open_rows_file(path: Path, row: type[Record], kind: str, *, made_by: str) -> BinaryIO:
    """A file of rows, opened for reading bytes.

    Raises SteerHealError for a file that is missing, that cannot be read, or that is a pipe and so can be read only once.

    Args:
        path: of the file.
        row: the record that each line holds, for the error.
        kind: of the file, in words, for the error.
        made_by: the command that makes such a file.
    """
    expected = f"a {kind} file of rows{row_shape(row)}"
    try:
        if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.ESPIPE, "a pipe or a device, which cannot be read twice", str(path))
        return open(path, "rb")
    except IsADirectoryError:
        raise SteerHealError(
            "a file of rows is a folder",
            given=path,
            expected=f"{expected}, or a data set in a folder, named {path}:<split>",
            next=f"name a file in it, or a data set such as {path}:train; or make the file: {made_by}",
        ) from None
    except FileNotFoundError:
        raise SteerHealError("a file is missing", given=path, expected=expected, next=made_by) from None
    except (OSError, ValueError) as error:  # no permission, a name too long or with a NUL
        raise SteerHealError(
            "a file could not be read",
            given=f"{str(path)[:200]!r}: {in_one_line(error)}",
            expected=expected,
            next=f"cat {shlex.quote(str(path))} > rows.jsonl, and name that"
            if isinstance(error, OSError) and error.errno == errno.ESPIPE
            else made_by,
        ) from None


def refused_row(
    path: Path, index: int, line: bytes, error: ValueError, row: type[Record], made_by: str
) -> SteerHealError:
    """The error of line `index`, from 1, of a JSONL file, with the command that mends it."""
    error = explained(error, line)
    problem, command = problem_of(error), conversion_of(error, path)
    if command is None and not isinstance(error, ValidationError) and not line.endswith(b"\n"):
        problem += " (the file ends here: truncated?)"
    return SteerHealError(
        f"line {index} of a JSONL file could not be read",
        given=f"{path}:{index}: {problem}",
        expected=f"a row of version {row.model_fields['version'].default}{row_shape(row)}",
        next=f"{command or 'mend or remove the line'}, or make the file again: {made_by}",
    )


def conversion_of(error: Exception, path: Path) -> str | None:
    """The command that converts a file to what is read, where an error knows one."""
    inner = error.errors()[0].get("ctx", {}).get("error") if isinstance(error, ValidationError) else error
    return inner.command(path) if isinstance(inner, Convertible) else None


def row_shape(row: type[Record]) -> str:
    """The required fields of a row, as the end of a sentence."""
    if row.shape:
        return f": {row.shape}"
    names = [name for name, field in row.model_fields.items() if field.is_required()]
    return f": {', '.join(names)}" if names else ""


def problem_of(error: Exception) -> str:
    """The problem of a row, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg'].removeprefix('Value error, ')}"
    return str(error)
