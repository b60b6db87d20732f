"""The results of a study: the rows of every cell's run under its arm and seed, and what became of the cells that stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evals.report.tables import dose
from evals.results import results_of
from evals.round import Round
from evals.routes import Axis, Student
from evals.scored import STEP, read_round, scored_rounds
from evals.study.plan import Plan, StudyCell
from evals.study.stopped import STOPPED, Stopped
from evals.table import TraitMeasure, trait_column
from shared.commands import removal
from shared.console import console
from shared.records import Manifest, read_record

Row = dict[str, Any]
OF_TEXTS = {"perplexity / base's", "distinct-3 / base's", "looping texts - base's", "empty texts - base's",
    "distinct-3 across texts / base's", "stock openings - base's", "relevance / base's"}  # fmt: skip
NONE = dict.fromkeys(("n_kept", "n_rejected", "dose_kept", "dose_sweep"))  # of the original model, round 0


def why_broken(row: Row, axis: Axis) -> str:
    """Why a row is no progress whatever it moved, empty where it is sound.

    On the axis of texts the texts decide: answer mass is the other instrument's, and on a model without its axis says little.
    """
    if axis == "authority":
        state = "broken" in (row["verdict"], row["coherence_verdict"])
        return row["verdict_reason"] or row["coherence_reason"] or "broken" if state else ""
    bad = [part for part in row["coherence_parts"] if part["name"] in OF_TEXTS and part["state"] == "broken"]
    return "; ".join(
        f"{part['name']} {'undefined' if part['value'] is None else format(part['value'], '.2f')}" for part in bad
    )


@dataclass(frozen=True)
class CellOutcome:
    """What a cell came to. rows and extra as in a run's results.json; full: rows of the last round in cyclic orders, if it was reached;
    manifests by round and stage."""

    cell: StudyCell
    rounds: list[Round]
    rows: list[Row]
    extra: list[Row]
    full: list[Row]
    manifests: dict[str, Manifest]
    stopped: Stopped | None

    def broken(self, axis: Axis) -> dict[Student, str]:
        """Students that are broken, by round and gate, and why."""
        reasons = {
            (row["round"], 1.0 if row["gate"] is None else row["gate"]): why_broken(row, axis)
            for row in [*self.rows, *self.extra]
            if row["stage"] == "healed"
        }
        return {student: why for student, why in reasons.items() if why}

    def broken_doses(self, axis: Axis) -> dict[Student, str]:
        """Doses of plain steering in round 1 that are broken, by round and coefficient, and why."""
        reasons = {
            (1, float(row["coefficient"])): why_broken(row, axis)
            for row in [*self.rows, *self.extra]
            if row["stage"] == "steered" and row["round"] == 1
        }
        return {dose: why for dose, why in reasons.items() if why}

    def at(self, number: int, stage: str) -> Row | None:
        """The row of results.json of a round and stage; None where that stage was not scored."""
        return next((row for row in self.rows if (row["round"], row["stage"]) == (number, stage)), None)


def trait_measure(outcomes: Sequence[CellOutcome]) -> TraitMeasure:
    """The column that free text is read by in all of them."""
    return trait_column([row for outcome in outcomes for row in outcome.rows])


def collect(plan: Plan) -> list[CellOutcome]:
    """The outcomes of a study's cells, as far as they are."""
    outcomes = []
    for cell in plan.cells:
        with console.status(f"reading {cell.name}"):
            outcomes.append(_outcome(cell))
    return outcomes


def _outcome(cell: StudyCell) -> CellOutcome:
    path = cell.folder / STOPPED
    stopped = (
        read_record(path, Stopped, what="a cell's end could not be read", next=removal(path))
        if path.is_file()
        else None
    )
    if stopped and cell.run.manifest(stopped.round, stopped.stage).is_file():  # made since, as by `make round`
        stopped = None
    scored = [number for number in cell.run.rounds(STEP["round"]) if number <= cell.rounds]
    last = max((number for number in scored if all(earlier in scored for earlier in range(1, number))), default=0)
    if not last:
        return CellOutcome(cell, [], [], [], [], {}, stopped)
    rounds = scored_rounds(cell.run, "round", last)
    results = results_of(cell.run, rounds)
    manifests = {f"{r.number} {stage}": manifest for r in rounds for stage, manifest in r.manifests.items()}
    full: list[Row] = []
    if cell.run.manifest(cell.rounds, STEP["full"]).is_file():
        cyclic = read_round(cell.run, cell.rounds, "full")
        full = results_of(cell.run, [cyclic])["rows"]
        manifests[f"{cyclic.number} {STEP['full']}"] = cyclic.manifests[STEP["full"]]
    counts = {r.number: _counts(r) for r in rounds}

    def named(rows: Sequence[Row]) -> list[Row]:
        return [{**row, "arm": cell.arm.name, "role": cell.arm.role, **counts.get(row["round"], NONE)} for row in rows]

    return CellOutcome(cell, rounds, named(results["rows"]), named(results["extra"]), named(full), manifests, stopped)


def _counts(r: Round) -> Row:
    """kept and rejected rows of the round, and the mean coefficient and relative dose of those kept beside the sweep's."""
    return {
        "n_kept": len(r.kept),
        "n_rejected": len(r.rejected),
        "dose_kept": dose(r.scores.sweep, "relative_dose", True),
        "dose_sweep": dose(r.scores.sweep, "relative_dose", False),
    }


def document(plan: Plan, outcomes: Sequence[CellOutcome]) -> dict[str, Any]:
    """results.json of a study: as a run's, with full beside rows and extra, and the cells that stopped."""
    return {
        "version": 1,
        "title": plan.study.title,
        "rows": [row for outcome in outcomes for row in outcome.rows],
        "extra": [row for outcome in outcomes for row in outcome.extra],
        "full": [row for outcome in outcomes for row in outcome.full],
        "cells": [
            {
                "arm": each.cell.arm.name,
                "seed": each.cell.seed,
                "role": each.cell.arm.role,
                "set": each.cell.arm.set,
                "rounds": each.cell.rounds,
                "scored": len(each.rounds),
                "stopped": each.stopped.model_dump() if each.stopped else None,
                "commits": sorted({manifest.commit or "unknown" for manifest in each.manifests.values()}),
            }
            for each in outcomes
        ],
    }
