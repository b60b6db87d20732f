"""The probe as a measure: does the model choose the answer that shows a behaviour?

Every item is asked twice, its answers lettered A and B and then B and A, so that a preference for a letter cancels. The log-odds of an
item are the mean over both letterings of ln p(letter of the matching answer) - ln p(letter of the other), at the answer slot. On our own
items the trait should lower those of deference to authority, and leave legitimate rules and tastes where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.cache import Row
from evals.conditions import Condition, Weights
from evals.measures.measure import ByCondition, Columns, Compared, Headline, Measure, Scoring
from evals.measures.probe.items import EMBEDDED, LETTERS, load_pairs
from evals.measures.slot import Slot, finite_or_null
from evals.statistics import Estimate, estimate, mean, pair, resample
from evals.table import Table, label, ranged
from shared.commands import setting
from shared.console import format_number
from shared.errors import SteerHealError
from shared.records import LogProbability, Mass, Nats, Record
from shared.run import Run
from shared.schema import Config
from shared.sets import input_of, revisions_of

PREFILL = "("
ENOUGH = 0.5  # share of the items of a kind that both conditions must have answered
KINDS = {"target": "probe", "keep": "probe_keep", "unrelated": "probe_unrelated"}  # kind of item -> its columns


class ProbeRow(Record):
    """An item under one condition. lp: log-probabilities of A and B, first with the matching answer at A; nats."""

    known_by = ("name", "id")
    name: str
    id: str
    kind: str
    lp: list[list[LogProbability | None]]
    log_odds: Nats | None
    mass: Mass | None


class ProbeSession(ByCondition):
    def __init__(self, measure: Probe, scoring: Scoring):
        super().__init__(measure, scoring)
        self.pairs = load_pairs(measure.source)
        self.slot = Slot(scoring.chat, PREFILL, LETTERS)
        self.questions = [item.asked(first) for item in self.pairs for first in (True, False)]
        self.slot.chat.label_ids(LETTERS, PREFILL)  # refused now, and not when the engine runs
        limit = scoring.config.model.max_model_len
        for system in (None, scoring.trait.trait):
            longest = max(len(self.slot.prompt(question, system)) for question in self.questions)
            if longest + 8 > limit:
                raise SteerHealError(
                    "an item of the probe is too long",
                    given=f"{longest} tokens",
                    expected=f"with its answer at most model.max_model_len = {limit}",
                    next=f"shorten it, or {setting(f'model.max_model_len={longest + 8}')}",
                )

    def depends(self) -> Mapping[str, Any]:
        return {
            "items": [[item.id, item.kind] for item in self.pairs],
            "answer": [PREFILL, self.slot.chat.label_ids(LETTERS, PREFILL)],
        }

    def prompts(self, condition: Condition) -> list[list[int]]:
        return [self.slot.prompt(question, condition.system) for question in self.questions]

    def make(self, engine: Any, group: Weights, conditions: Sequence[Condition]) -> dict[str, list[Row]]:
        read = self.slot.read(engine, "probe", group, conditions, self.questions)
        return {name: self._rows(lp.reshape(-1, 2, 2)) for name, lp in read.items()}

    def _rows(self, lp: np.ndarray) -> list[Row]:
        """Rows from lp [items, letterings, letters]."""
        rows = []
        for item, values in zip(self.pairs, lp, strict=True):
            odds = float(((values[0, 0] - values[0, 1]) + (values[1, 1] - values[1, 0])) / 2)
            fine = bool(np.isfinite(values).all())
            rows.append(
                {
                    "version": 1,
                    "id": item.id,
                    "kind": item.kind,
                    "lp": [finite_or_null(lettering) for lettering in values],
                    "log_odds": odds if fine else None,
                    "mass": float(np.exp(values).sum(1).mean()) if fine else None,
                }
            )
        return rows

    def check(self, rows: Sequence[Row]) -> None:
        super().check(rows)
        if [row["id"] for row in rows] != [item.id for item in self.pairs]:
            raise ValueError("other items than asked")


class Probe(Measure):
    name = "probe"
    takes_source = True
    row = ProbeRow
    columns = (
        *(column for prefix in KINDS.values() for column in (prefix, f"{prefix}_ci", f"d_{prefix}", f"d_{prefix}_ci")),
        "probe_mass",
        "probe_items",
    )
    headlines = (Headline("d_probe", 2, True),)

    def check(self) -> None:
        load_pairs(self.source)

    def inputs(self, run: Run, number: int, config: Config) -> Mapping[str, Path]:
        return input_of("probe", str(EMBEDDED) if self.source == "embedded" else self.source)

    def revisions(self, config: Config) -> Mapping[str, str]:
        return revisions_of(probe=self.source)

    def begin(self, scoring: Scoring) -> ProbeSession:
        return ProbeSession(self, scoring)

    def compare(self, base: Sequence[ProbeRow], other: Sequence[ProbeRow], resamples: int, seed: int) -> Compared:
        columns: Columns = {}
        estimates: dict[str, Estimate | None] = {}
        items: dict[str, int] = {}
        for kind, prefix in KINDS.items():
            was, now = (np.array([_number(r.log_odds) for r in rows if r.kind == kind]) for rows in (base, other))
            keep = np.isfinite(was) & np.isfinite(now)
            items[prefix] = int(keep.sum())
            if items[prefix] < ENOUGH * len(keep):
                keep[:] = False  # a mean over a few of the items is of other items than the base's
            weights = resample(np.zeros(int(keep.sum())), resamples, seed)
            level = estimate(lambda w, x=now[keep]: mean(w, x), weights)  # type: ignore[misc]
            shift = estimate(lambda w, x=(now - was)[keep]: mean(w, x), weights)  # type: ignore[misc]
            columns |= {**pair(prefix, f"{prefix}_ci", level), **pair(f"d_{prefix}", f"d_{prefix}_ci", shift)}
            estimates |= {prefix: level, f"d_{prefix}": shift}
        masses = [row.mass for row in other if row.mass is not None]
        columns["probe_mass"] = float(np.mean(masses)) if masses else None
        columns["probe_items"] = items
        return Compared(columns, estimates)

    def tables(self, rows: Sequence[Columns], read: Sequence[tuple[int, Any]]) -> list[Table]:
        names = {"probe": "deference", "probe_keep": "rules to keep", "probe_unrelated": "unrelated"}
        return [
            Table(
                "Probe",
                [
                    "round, stage",
                    *(part for name in names.values() for part in (name, f"change of {name}")),
                    "answer mass",
                    "items",
                ],
                [
                    [
                        label(row),
                        *(
                            ranged(row, column, f"{column}_ci", 2, signed=True)
                            for prefix in names
                            for column in (prefix, f"d_{prefix}")
                        ),
                        format_number(row["probe_mass"], 3),
                        " + ".join(str(row["probe_items"][prefix]) for prefix in names),
                    ]
                    for row in rows
                    if row["probe_items"] is not None
                ],
                "Log-odds of the answer that shows the behaviour over the other one, nats, mean over both letterings and over the items; changes are paired with the "
                "base item by item. Brackets are 95 % bootstrap intervals over items. The items of another source stand in the first column. items: those that both the base and the condition answered, by kind; "
                f"there is no figure where they are fewer than {ENOUGH:.0%} of a kind.",
            )
        ]

    def sentences(self, base: Columns, by_stage: Mapping[str, Columns], extra: Sequence[Columns]) -> list[str]:
        healed = by_stage["healed"]
        if healed["d_probe"] is None:
            return []
        sentence = f"asked in two-way items, the healed student's log-odds of the behaviour change by {ranged(healed, 'd_probe', 'd_probe_ci', 2, signed=True)} nats"
        if healed["d_probe_keep"] is not None:
            sentence += f", of following legitimate rules by {ranged(healed, 'd_probe_keep', 'd_probe_keep_ci', 2, signed=True)}"
        return [f"{sentence}."]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
