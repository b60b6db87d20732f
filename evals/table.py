"""A table of text cells, and how a row of results.json is named and shown in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shared.console import format_number

TraitMeasure = Literal["trait_llr", "llr_opposite"]


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; the first column is a label, the others are figures, or words where prose is set."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    prose: bool = False


def label(row: dict[str, Any]) -> str:
    """The name of a row: round and stage, with its coefficient, draw or gate."""
    draw = f", draw {row['draw']}" if row["stage"] in ("random", "decoy") else ""
    dose = (
        f" at {row['coefficient']:.2f}"
        if row["stage"] in ("steered", "random", "decoy") and row["coefficient"] is not None
        else ""
    )
    gate = f" at gate {row['gate']:g}" if row["gate"] not in (None, 1.0) else ""
    return f"{row['round']} {row['stage']}{dose}{draw}{gate}"


def ranged(row: dict[str, Any], name: str, interval: str, digits: int = 3, signed: bool = False) -> str:
    """A figure of a row with its interval in brackets, as text.

    Args:
        row: of results.json.
        name, interval: the columns of the figure and of its interval.
        digits: decimals.
        signed: write a plus before positive figures.
    """
    low_high = row[interval]
    figure = format_number(row[name], digits, signed)
    return (
        figure
        if low_high is None
        else f"{figure} [{', '.join(format_number(end, digits, signed) for end in low_high)}]"
    )


def yes_no(value: bool | None) -> str:
    """A truth value as a cell; a dash for None."""
    return format_number(None) if value is None else "yes" if value else "no"


def markdown(table: Table) -> str:
    """A table under its title, in Markdown."""
    lines = [table.columns, ["---", *["---" if table.prose else "---:"] * (len(table.columns) - 1)], *table.rows]
    body = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
    return f"## {table.title}\n\n{body}\n" + (f"\n{table.note}\n" if table.note else "")


def _cell(text: str) -> str:
    """Text of a Markdown table: one line, without column separators and markup."""
    line = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def trait_column(rows: Sequence[Mapping[str, Any]]) -> TraitMeasure:
    """The column that says how much of the trait there is.

    llr_opposite where every row whose texts were scored has it, as a trait file with paraphrases gives it; else trait_llr.
    """
    scored = [row for row in rows if any(row.get(name) is not None for name in ("llr_opposite", "trait_llr"))]
    return "llr_opposite" if scored and all(row.get("llr_opposite") is not None for row in scored) else "trait_llr"
