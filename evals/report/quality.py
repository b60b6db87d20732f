"""Tables of what the numbers are worth: the measure itself, coherence part by part, foundations that moved, the student's own shift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evals.report.tables import Table, label, ranged
from evals.scored import Round
from shared.console import number
from shared.instrument import FOUNDATIONS

Row = dict[str, Any]


def measure(rows: Sequence[Row]) -> Table:
    against = rows[0]["informedness_against"]
    return Table(
        "The measure",
        ["round, stage", "informedness", "order effect", "position, left by reversal", "split-half reliability", "nll of the prefill"],
        [
            [
                label(row),
                ranged(row, "informedness", "informedness_ci", 3, signed=True),
                number(row["order_effect"], 2),
                ranged(row, "left_by_reversal", "left_by_reversal_ci", 2, signed=True),
                ranged(row, "reliability", "reliability_ci", 2),
                ranged(row, "nll_prefill", "nll_prefill_ci", 2),
            ]
            for row in rows
        ],
        f"Informedness, 0 guessing and 1 agreement, is against {'the human raters' if against == 'raters' else 'the foundations that the vignettes were written for, which nobody has rated'}. "
        "Order effect and position in nats of clr: the second is what seven cyclic orders take out of authority and two reversed ones leave in. Reliability: whether "
        "items differ in authority by more than the listing of the options makes them. The prefill's nll in nats per token.",
    )  # fmt: skip


def coherence(rows: Sequence[Row]) -> Table:
    return Table(
        "Coherence",
        ["round, stage", "verdict", "answer mass / base's", "perplexity / base's", "distinct-1", "distinct-2", "distinct-3", "looping", "valid JSON", "unscorable", "because"],
        [
            [
                label(row),
                row["coherence_verdict"],
                _part(row, "answer mass / base's"),
                _part(row, "perplexity / base's"),
                number(row["distinct_1"]),
                number(row["distinct_2"]),
                number(row["distinct_3"]),
                number(row["looping"]),
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
    found = next((part["value"] for part in row["coherence_parts"] if part["name"] == name), None)
    return number(found, 2)


def foundations(rows: Sequence[Row]) -> Table:
    """Shifts of all seven; a star where Holm's correction over the seven leaves it at 5 %."""
    lines = []
    for row in rows:
        if row["stage"] == "base":
            continue
        found = row["shifts"]
        cells = (
            [number(None)] * len(FOUNDATIONS)
            if found is None
            else [ranged(shift, "change", "ci", 2, signed=True) + (" *" if shift["moved"] else "") for shift in found]
        )
        lines.append([label(row), *cells, number(row["detectable"])])
    return Table(
        "Foundations",
        ["round, stage", *FOUNDATIONS, "detectable"],
        lines,
        "Change of ln of the mean mass against base, nats, paired over the items; * moved, at 5 % after Holm's correction over the seven. Detectable: the shift of "
        "auth_nats that these items would have shown four times in five.",
    )  # fmt: skip


def student(rounds: Sequence[Round]) -> Table:
    return Table(
        "The student's own shift",
        ["round, layer", "‖v_student‖ / ‖v‖", "cos to the round's vector", "cos to round 1's, from base", "split-half cosine"],
        [
            [
                f"{r.number}, {line.layer}",
                number(line.norm_ratio),
                number(line.cos_teacher, 3, signed=True),
                number(line.cos_round_1, 3, signed=True),
                number(line.split_half, 3, signed=True),
            ]
            for r in rounds
            for line in r.scores.student
        ],
        "v_student: mean change of the residual stream at the last prompt token, under the neutral prompt, from the student before to this one; from base: from the "
        "original model to this one.",
    )  # fmt: skip
