"""The measures there are, and those that a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.measures.activations import Activations
from evals.measures.forced_choice.measure import ForcedChoice
from evals.measures.free_text.measure import FreeText
from evals.measures.measure import Headline, Measure
from evals.measures.probe.measure import Probe
from evals.measures.retention.measure import Retention
from evals.measures.survey import Survey
from shared.commands import nearest_command, setting
from shared.errors import SteerHealError
from shared.schema import EvalConfig

MEASURES: tuple[type[Measure], ...] = (
    ForcedChoice,
    FreeText,
    Activations,
    Retention,
    Probe,
    Survey,
)


ALWAYS = ("forced_choice", "free_text", "activations")  # what verdicts and the report are made of


def measures_of(config: EvalConfig) -> list[Measure]:
    """The measures of a scoring, in the order of MEASURES: those of every round, and those that eval.measures names.

    Raises SteerHealError for an unknown name and for a repeated one.
    """
    named = [entry.partition("=") for entry in config.measures]
    others = {measure.name: measure for measure in MEASURES if measure.name not in ALWAYS}
    names = [name for name, _, _ in named]
    source_of = {name: source for name, _, source in named}
    for name in names:
        if name not in others or names.count(name) > 1:
            meant = nearest_command(name, others)
            raise SteerHealError(
                "eval.measures names a measure that cannot be added",
                given=f"{name}{' twice' if names.count(name) > 1 else ', which every round has' if name in ALWAYS else ''}",
                expected=f"did you mean {meant}?"
                if meant and name not in others
                else f"some of {', '.join(others)}, each once",
                next=setting(
                    f"eval.measures=[{','.join(dict.fromkeys(n for n in [meant if n == name else n for n in names] if n in others))}]"
                ),
            )
        if source_of[name] and not others[name].takes_source:
            raise SteerHealError(
                "a measure takes no source",
                given=f"{name}={source_of[name]}",
                expected=f"{name} alone: its items are its own",
                next=setting(f"eval.measures=[{','.join(names)}]"),
            )
    return [
        measure(source_of.get(measure.name) or "embedded") for measure in MEASURES if measure.name in (*ALWAYS, *names)
    ]


def headlines_of(rows: Sequence[Mapping[str, Any]]) -> list[Headline]:
    """The headlines of all measures that some of these rows of results.json has a figure for."""
    headlines = [headline for measure in MEASURES for headline in measure.headlines]
    return [headline for headline in headlines if any(row[headline.column] is not None for row in rows)]


def check_measures(config: EvalConfig) -> None:
    """Raise SteerHealError for a measure that there is not, or whose source cannot be had."""
    for measure in measures_of(config):
        measure.check()
