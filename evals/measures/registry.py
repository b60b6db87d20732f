"""The measures there are, and those that a configuration asks for."""

from __future__ import annotations

from evals.measures.activations import Activations
from evals.measures.forced_choice.measure import ForcedChoice
from evals.measures.free_text.measure import FreeText
from evals.measures.measure import Measure
from shared.schema import EvalConfig

MEASURES: tuple[type[Measure], ...] = (
    ForcedChoice,
    FreeText,
    Activations,
)


def measures_of(config: EvalConfig) -> list[Measure]:
    """The measures of a scoring, in the order of MEASURES."""
    return [measure() for measure in MEASURES]
