"""The student's vector as a cause, in a report: a table and a sentence a round. evals/student_vector.py says what the conditions are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.conditions import ADDED, REMOVED
from evals.measures.registry import headlines_of
from evals.table import Table, label, ranged, trait_column
from shared.console import format_number

STAGES = (ADDED, REMOVED)


def tables(rows: Sequence[Mapping[str, Any]], extra: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The base, the student and both conditions, round by round; none where they were not scored."""
    shown = [row for row in extra if row["stage"] in STAGES]
    if not shown:
        return []
    healed = {row["round"]: row for row in rows if row["stage"] == "healed"}
    lines = [row for row in rows if row["stage"] == "base"]
    for round_ in dict.fromkeys(row["round"] for row in shown):
        mine = {row["stage"]: row for row in shown if row["round"] == round_}
        lines += [mine[ADDED], healed[round_], mine[REMOVED]]
    trait = trait_column(lines)
    headlines = headlines_of(lines)
    return [
        Table(
            "The student's vector as a cause",
            ["round, stage", trait, "share of the student's", "d_auth", "share of the student's d_auth", "perplexity", "coherence", *(headline.column for headline in headlines)],
            [
                [
                    label(dict(row)),
                    ranged(dict(row), trait, f"{trait}_ci", 3, signed=True),
                    ranged(dict(row), "share_of_student", "share_of_student_ci", 2),
                    ranged(dict(row), "d_auth", "d_auth_ci", 3, signed=True),
                    ranged(dict(row), "auth_share_of_student", "auth_share_of_student_ci", 2),
                    ranged(dict(row), "perplexity", "perplexity_ci", 2),
                    format_number(row["coherence"]),
                    *(headline.cell(row) for headline in headlines),
                ]
                for row in lines
            ],
            "student_vector: the original model with the student's mean shift of activations added. student_without_vector: the student with it subtracted. "
            "Shares are of the healed student's shift from the base, with Fieller's intervals: near 1 in the first row the vector suffices, near 0 in the last it is needed.",
        )
    ]  # fmt: skip


def sentences(extra: Sequence[Mapping[str, Any]]) -> list[str]:
    """What both conditions say of one round's student."""
    mine = {row["stage"]: row for row in extra if row["stage"] in STAGES}
    if len(mine) < len(STAGES):
        return []
    for column, name in (("share_of_student", "llr_opposite"), ("auth_share_of_student", "auth_nats")):
        if all(row[f"{column}_ci"] is not None for row in mine.values()):  # none where the student's shift may be 0
            added, left = (ranged(dict(mine[stage]), column, f"{column}_ci", 2) for stage in STAGES)
            return [
                f"the student's vector alone, added to the original model, gives {added} of the student's shift of {name}; with it subtracted, the student keeps {left}."
            ]
    return ["the student's vector was scored, but the student's own shift may be 0, or was not measured: no share of it is given."]  # fmt: skip
