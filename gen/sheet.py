"""The sheet that a person fills in, a CSV, and its key file, which says which rows the filter kept."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from shared.errors import SteerHealError
from shared.publish import write_text
from shared.records import Count, Record

QUESTIONS = ("coherent", "enacts_trait")
COLUMNS = ("id", "prompt", "completion", *QUESTIONS)
ANSWERS = {"yes": True, "y": True, "1": True, "true": True, "no": False, "n": False, "0": False, "false": False, "?": None}  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is run by a spreadsheet


class Key(Record):
    """A row of the sheet: its name there, the key of its completion, and whether the filter kept it."""

    id: str
    key: str
    kept: bool
    coefficient: float


class Sheet(Record):
    """What the key file holds.

    Args:
        run, round: whose filter is judged.
        kept, rejected: rows that the sheet was sampled from.
        files: digests of kept.jsonl and rejected.jsonl.
        rows: those of the sheet.
    """

    what: Literal["sheet"]
    run: str
    round: int
    kept: Count
    rejected: Count
    files: dict[str, str]
    rows: list[Key] = Field(min_length=1)


def write_sheet(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write a sheet to be filled in. rows: name, prompt and completion of each."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(COLUMNS)
    for name, prompt, completion in rows:
        lines.writerow([name, as_text(prompt), as_text(completion), *("" for _ in QUESTIONS)])
    write_text(path, "\ufeff" + text.getvalue())  # the mark by which spreadsheets know UTF-8


def as_text(value: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe stands before what begins like one."""
    return f"'{value}" if value.startswith(FORMULA) else value


def read_sheet(path: Path, sheet: Sheet) -> dict[str, dict[str, bool | None]]:
    """A person's answers, by row name and question; None for `?`.

    Raises SteerHealError for a file that is not such a sheet, for missing, unknown or repeated rows, and for a cell that is no answer.
    """

    def refuse(given: str, expected: str, mend: str = f"mend {path}") -> SteerHealError:
        return SteerHealError("a sheet could not be read", given=f"{path}{given}", expected=expected, next=mend)

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise refuse(": not UTF-8", "CSV in UTF-8", "save it again as CSV UTF-8") from None
    header = text.partition("\n")[0]
    divider = next((candidate for candidate in ",;\t" if candidate.join(QUESTIONS) in header.replace('"', "")), ",")
    try:
        lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=divider, strict=True)
        rows = list(lines)
    except csv.Error as error:
        raise refuse(f": {error}", "CSV as it was written, with answers filled in") from None
    if absent := [name for name in ("id", *QUESTIONS) if name not in (lines.fieldnames or ())]:
        raise refuse(f": no column {absent[0]}", f"the columns {', '.join(COLUMNS)}")
    ids, answers = {row.id for row in sheet.rows}, dict[str, dict[str, bool | None]]()
    for row in rows:
        name = (row["id"] or "").strip()
        if name not in ids:
            raise refuse(f": row {name!r} is none of the key file", "the sheet that was written with the key file")
        if name in answers:
            raise refuse(f": row {name} is there twice", "every row once")
        answers[name] = {}
        for question in QUESTIONS:
            cell = (row[question] or "").strip().lower()
            if cell not in ANSWERS:
                raise refuse(f": row {name}, {question}: {cell!r}", "yes, no or ?", f"fill it in: {path}")
            answers[name][question] = ANSWERS[cell]
    if left_out := sorted(ids - answers.keys()):
        raise refuse(
            f": {len(left_out)} rows are missing, such as {left_out[0]}", "every row; ? where none can be told"
        )
    return answers


def yes_to_all(answer: dict[str, bool | None], questions: Sequence[str]) -> bool | None:
    """Whether a person answers yes to all of these questions; None where answers are missing and none is no."""
    values = [answer[question] for question in questions]
    return False if False in values else None if None in values else True
