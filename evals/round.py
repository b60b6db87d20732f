"""A scored round, as the report and the study take it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.measures.free_text.rows import Generation
from evals.measures.measure import Measure
from evals.rows import Heldout, Scores, TokenRow, TrainingStep
from evals.statistics import Answers
from shared.filter_record import FilterRecord
from shared.records import Completion, Manifest, Training


@dataclass(frozen=True)
class Round:
    """A scored round.

    data: what each measure reads of its files, by the measure's name; of most measures by condition. manifests by stage, those there are.
    """

    number: int
    scores: Scores
    measures: Sequence[Measure]
    data: Mapping[str, Any]
    kept: list[Completion]
    rejected: list[Completion]
    steps: list[TrainingStep]
    heldout: list[Heldout]
    training: Training
    tokens: list[TokenRow]
    manifests: dict[str, Manifest]
    filter_record: FilterRecord | None  # None for a run of an earlier version, which has no filter.json

    @property
    def limits(self) -> dict[str, float]:
        """The limits of the filter by rule; empty without filter.json."""
        return self.filter_record.limits if self.filter_record else {}

    @property
    def causes(self) -> Counter[str]:
        """How many candidates each rule of the filter rejected; without filter.json they are counted in the rejected rows."""
        return Counter(self.filter_record.causes) if self.filter_record else self.counted_causes

    @property
    def counted_causes(self) -> Counter[str]:
        """The same, counted in the rejected rows, with which filter.json must agree."""
        return Counter(reason.rule for row in self.rejected for reason in row.reasons)

    @property
    def answers(self) -> dict[str, Answers]:
        """The forced choice, by condition."""
        return dict(self.data["forced_choice"])

    @property
    def generations(self) -> dict[str, list[Generation]]:
        """The free text, by condition."""
        return dict(self.data["free_text"])

    @property
    def healed(self) -> str:
        """The condition of the whole student, at no dialled gate."""
        return next(line.name for line in self.scores.conditions if line.stage == "healed" and line.headline)
