"""The verdicts of a run as a table, first on the page and at the terminal, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evals.table import Table
from shared.console import format_number


def verdicts_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Both verdicts on the healed student of every round; of the base, why the forced choice says nothing, where it does not."""
    lines = []
    for row in rows:
        if row["stage"] == "base" and row["verdict"] is not None:
            lines.append(["base", "forced choice", row["verdict"], row["verdict_reason"]])
        if row["stage"] == "healed":
            name = f"round {row['round']}"
            lines.append([name, "forced choice", format_number(row["verdict"]), row["verdict_reason"] or ""])
            lines.append(
                [
                    name,
                    "free text",
                    format_number(row["text_verdict"]),
                    row["text_verdict_reason"] or "no free text was sampled",
                ]
            )
    return Table(
        "Verdicts",
        ["healed student", "by", "verdict", "because"],
        lines,
        "The first rule that matches decides: broken, no_format, no_axis, no_shift, not_shown, undone, unspecific, degraded, kept, healed. "
        "kept: the trait is there at little cost, but a lower dose of plain steering may be as cheap. healed: the student is cheaper at the same shift.",
        prose=True,
    )
