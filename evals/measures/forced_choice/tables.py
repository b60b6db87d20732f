"""Tables of the forced choice: what the measure is worth, and which foundations moved."""

from __future__ import annotations

from collections.abc import Sequence

from evals.measures.measure import Columns
from evals.table import Table, label, ranged
from shared.console import format_number
from shared.instrument import FOUNDATIONS


def foundations_table(rows: Sequence[Columns]) -> Table:
    """The shifts of all seven foundations; a star marks those significant at 5 % after Holm's correction."""
    lines = []
    for row in rows:
        if row["stage"] == "base":
            continue
        shifts = row["shifts"]
        cells = (
            [format_number(None)] * len(FOUNDATIONS)
            if shifts is None
            else [ranged(shift, "change", "ci", 2, signed=True) + (" *" if shift["moved"] else "") for shift in shifts]
        )
        lines.append([label(row), *cells, format_number(row["detectable"])])
    return Table(
        "Foundations",
        ["round, stage", *FOUNDATIONS, "detectable"],
        lines,
        "Change of ln of the mean mass against base, nats, paired over the items; * moved, at 5 % after Holm's correction over the seven. Detectable: the shift of "
        "auth_nats that these items would have shown four times in five.",
    )  # fmt: skip


def measure_table(rows: Sequence[Columns]) -> Table:
    """The table on the instrument: informedness, order effects and reliability of every condition."""
    against = rows[0]["informedness_against"]
    return Table(
        "The measure",
        ["round, stage", "informedness", "order effect", "position, left by reversal", "split-half reliability", "nll of the prefill"],
        [
            [
                label(row),
                ranged(row, "informedness", "informedness_ci", 3, signed=True),
                format_number(row["order_effect"], 2),
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
