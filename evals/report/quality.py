"""Tables of what the numbers are worth: the measure itself, coherence part by part, foundations that moved, the student's own shift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evals.table import Table, label, ranged
from shared.console import format_number

Row = dict[str, Any]


def coherence(rows: Sequence[Row]) -> Table:
    """The verdict on coherence of every condition, with the parts that it is made of."""
    return Table(
        "Coherence",
        ["round, stage", "verdict", "answer mass / base's", "perplexity / base's", "distinct-1", "distinct-2", "distinct-3", "looping", "valid JSON", "unscorable", "because"],
        [
            [
                label(row),
                row["coherence_verdict"],
                _part(row, "answer mass / base's"),
                _part(row, "perplexity / base's"),
                format_number(row["distinct_1"]),
                format_number(row["distinct_2"]),
                format_number(row["distinct_3"]),
                format_number(row["looping"]),
                ranged(row, "json_valid", "json_valid_ci", 2),
                str(row["unscorable"]),
                row["coherence_reason"],
            ]
            for row in rows
        ],
        "The worst part decides. Looping: share of the free generations of which over 30 % of the tokens lie in one verbatim loop of any period. Valid JSON: share of "
        "answers to the forced choice, without its prefill, that are the JSON asked for.",
        prose=True,
    )  # fmt: skip


def _part(row: Row, name: str) -> str:
    value = next((part["value"] for part in row["coherence_parts"] if part["name"] == name), None)
    return format_number(value, 2)
