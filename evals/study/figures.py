"""The figures of a study for print, one line each: its file, its page and the results folder are made from this list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evals.routes import Axis
from evals.study.collect import CellOutcome


@dataclass(frozen=True)
class StudyFigure:
    """name: of its files. title, finding: on the page. group: of the page. draw: its bytes by format."""

    name: str
    title: str
    finding: str
    group: str
    draw: Callable[[Sequence[CellOutcome], Axis], dict[str, bytes]]


# matplotlib takes seconds to import, which whoever asks for the names alone does not wait for
def _trajectories(outcomes: Sequence[CellOutcome], axis: Axis) -> dict[str, bytes]:
    from evals.study.figure import trajectories

    return trajectories(outcomes, axis)


def _doses(outcomes: Sequence[CellOutcome], axis: Axis) -> dict[str, bytes]:
    from evals.study.curves import doses

    return doses(outcomes)


def _training(outcomes: Sequence[CellOutcome], axis: Axis) -> dict[str, bytes]:
    from evals.study.curves import training

    return training(outcomes)


STUDY_FIGURES = (
    StudyFigure("study", "The figure for print", "Trait, answer mass lost, and their trade, over the rounds of every arm.", "results", _trajectories),
    StudyFigure("doses", "Doses", "Trait, perplexity and share kept by relative dose, a line per sweep.", "training", _doses),
    StudyFigure("training", "Training curves", "Cross-entropy and divergence over the steps of every arm, its rounds end to end.", "training", _training),
)  # fmt: skip
