"""The table of figures that are defined elsewhere: gated_selectivity and si_flips of moral-maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.table import Table, label, ranged

NAMES = ("gated_selectivity", "si_flips", "gated_selectivity_over_base", "si_flips_over_base")


def selectivity(rows: Sequence[Mapping[str, Any]], extra: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Of every condition that has one; none for a trait that is about no foundation."""
    shown = [dict(row) for row in (*rows, *extra) if any(row[name] is not None for name in NAMES)]
    if not shown:
        return []
    return [
        Table(
            "Selectivity, as moral-maps defines it",
            ["round, stage", *NAMES],
            [[label(row), *[ranged(row, name, f"{name}_ci", 3, signed=True) for name in NAMES]] for row in shown],
            "gated_selectivity, nats: shift of the foundation meant, less a tenth of that of the others, by the square of the answer mass kept. si_flips: change of its share of first choices. "
            "Between a coefficient and its negative on the same weights, where both were scored (eval.coefficients), and over the base.",
        )
    ]
