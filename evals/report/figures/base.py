"""What a figure of the report is, and what it is drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.report.looks import ARM_MARKERS, LOOKS
from evals.report.panel import Mark, Panel
from evals.round import Round
from evals.table import label, ranged, trait_column
from shared.console import format_number

Row = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """What figures are drawn from.

    Args:
        rows, extra: those of results.json.
        rounds: of a run; empty for a study, whose rows have a role.
    """

    rows: Sequence[Row]
    extra: Sequence[Row]
    rounds: Sequence[Round] = ()

    @property
    def arms(self) -> list[str]:
        """The arms of a study, in their order; empty where there is one."""
        names = list(dict.fromkeys(row["arm"] for row in self.rows)) if any("role" in row for row in self.rows) else []
        return names if len(names) > 1 else []

    @property
    def stages(self) -> list[str]:
        """The stages that the rows have, in the order in which they are drawn."""
        return [stage for stage in LOOKS if any(row["stage"] == stage for row in (*self.rows, *self.extra))]

    def marker(self, row: Row) -> str:
        """The marker of a row: its stage's; for conditions that the arms of a study do not share, its arm's."""
        arms = self.arms
        if arms and row["round"]:
            return ARM_MARKERS[arms.index(row["arm"]) % len(ARM_MARKERS)]
        return LOOKS[row["stage"]][1]

    def beside(self, row: Row) -> float:
        """The place of a row on the axis of rounds: stages of a run, or arms of a study, side by side."""
        arms = self.arms
        if not arms:
            return LOOKS[row["stage"]][2]
        return (arms.index(row["arm"]) - (len(arms) - 1) / 2) * min(0.12, 0.7 / len(arms)) if row["round"] else 0.0


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report.

    Args:
        name: in ids of the page.
        title: of its section.
        group: of the page, where it stands; `answer` is under the card.
        file: it is part of this PNG in RUN/report.
        panels: its panels, none where there is nothing to show.
        of_rounds: drawn from files of a run's rounds, so that a study has none.
        columns: of the panels in the PNG.
        before: the title of the section that it stands before; without one it comes first in its group.
    """

    name: str
    title: str
    group: str
    file: str
    panels: Callable[[Shown], list[Panel]]
    of_rounds: bool = False
    columns: int = 1
    before: str | None = None


def mark_of(row: Row) -> Mark:
    """The mark of a row's point: its text, and the stage and arm by which it is hidden."""
    arm = row["arm"] if row["round"] else ""  # the original model is under every arm
    return Mark({"stage": row["stage"], "arm": arm, "key": row_name(row)}, _said(row))


def row_name(row: Row) -> str:
    """Rows of a study have a role, and are told apart by arm and seed."""
    if "role" not in row:
        return f"round {label(row)}"
    if row["round"]:
        return f"{row['arm']}, seed {row['seed']}, round {label(row)}"
    return f"seed {row['seed']}, {row['stage']}"


def _said(row: Row) -> str:
    figures = [
        f"verdict {format_number(row['verdict'])}",
        f"trait_llr {ranged(row, 'trait_llr', 'trait_llr_ci', 3, signed=True)}",
        f"perplexity {ranged(row, 'perplexity', 'perplexity_ci', 2)}",
        f"coherence {ranged(row, 'coherence', 'coherence_ci')}",
        f"auth_nats {ranged(row, 'auth_nats', 'auth_ci')}",
        f"care_nats {ranged(row, 'care_nats', 'care_ci')}",
    ]
    return "\n".join([row_name(row), *figures])


def legend_of(shown: Shown) -> Mapping[str, tuple[str, str]]:
    """Colour and marker by stage."""
    return {stage: LOOKS[stage][:2] for stage in shown.stages}


def trait_of(rows: Sequence[Row]) -> tuple[str, str, str]:
    """(field, field of its interval, words) of the trait in free text: on held-out wordings where they were scored."""
    column = trait_column([row for row in rows if row["stage"] == "healed"])
    return column, f"{column}_ci", f"{column} (nats per token)"


def levels_said(rows: Sequence[Row], field: str, digits: int = 3, signed: bool = False) -> str:
    """The figures of the last round by stage, as a finding says them.

    Args:
        rows: of results.json.
        field: the column.
        digits: decimals.
        signed: write a plus.
    """
    last = max(row["round"] for row in rows)
    chosen = [row for row in rows if row[field] is not None and row["round"] in (0, last) and row["stage"] in ("base", "prompted", "steered", "healed")]  # fmt: skip
    by: dict[str, list[float]] = {}
    for row in chosen:
        arm = f"{row['arm']} " if "role" in row and row["round"] else ""
        by.setdefault(f"{arm}{row['stage']}", []).append(row[field])
    levels = ", ".join(
        f"{name} {format_number(sum(values) / len(values), digits, signed)}" for name, values in list(by.items())[:8]
    )
    return levels or "no row has a figure"


def moved_said(rows: Sequence[Row], change: str, words: str) -> str:
    """Whether the healed student of the last round differs from the base by its interval; empty for a study.

    Args:
        rows: of results.json.
        change: the column of the change against the base.
        words: for what has changed.
    """
    if any("role" in row for row in rows):
        return ""
    last = max(row["round"] for row in rows)
    healed = next((row for row in rows if (row["round"], row["stage"]) == (last, "healed")), None)
    interval = healed.get(f"{change}_ci") if healed else None
    if interval is None:
        return ""
    if interval[0] > 0 or interval[1] < 0:
        return f" The healed student's {words} is {'above' if interval[0] > 0 else 'below'} the base's."
    return f" The healed student's {words} is not told from the base's."
