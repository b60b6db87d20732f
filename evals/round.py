"""A scored round, as the report and the study take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.measures.free_text.rows import Generation
from evals.measures.measure import Measure
from evals.rows import Heldout, Scores, TokenRow, TrainingStep
from evals.statistics import Answers
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
    limits: dict[str, float]  # of filter.json; empty for a run of an earlier version, which has none

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
