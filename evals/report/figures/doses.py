"""The sweep: trait, perplexity and share kept by the coefficient."""

from __future__ import annotations

from collections.abc import Callable

from evals.report.figures.base import ReportFigure, Shown
from evals.report.looks import ARM_MARKERS, BLUE, GREEN, ORANGE, PINK
from evals.report.panel import Mark, Panel, Plot
from shared.console import format_number
from shared.filter_record import SweepLine

BY_ROUND = (GREEN, ORANGE, BLUE, PINK)


def panels(shown: Shown) -> list[Panel]:
    """Trait, perplexity and share kept by coefficient."""
    return [
        _panel(shown, "trait_llr (nats per token)", "Trait by coefficient", lambda line: line.trait_llr),
        _panel(shown, "perplexity", "Perplexity by coefficient", lambda line: line.perplexity),
        _panel(shown, "share kept", "Share kept by coefficient", lambda line: line.kept / line.n if line.n else None),
    ]


def _panel(shown: Shown, words: str, title: str, figure_of: Callable[[SweepLine], float | None]) -> Panel:
    def values(lines: list[SweepLine]) -> list[tuple[SweepLine, float]]:
        return [(line, value) for line in lines if (value := figure_of(line)) is not None]

    def draw(plot: Plot) -> None:
        for index, r in enumerate(shown.rounds):
            points = values(sorted(r.scores.sweep, key=lambda line: line.coefficient))
            # coefficient 0 is the original model, which only round 1 steers
            joined = [(line, value) for line, value in points if line.coefficient or r.number == 1]
            colour = BY_ROUND[index % len(BY_ROUND)]
            plot.path([line.coefficient for line, _ in joined], [value for _, value in joined], colour=colour, mark=Mark({}))  # fmt: skip
            for line, value in points:
                label = f"round {r.number}, coefficient {line.coefficient:g}\n{words} {format_number(value)}\n{line.kept} of {line.n} kept"
                plot.point(line.coefficient, value, marker=ARM_MARKERS[index % len(ARM_MARKERS)], colour=colour, mark=Mark({"key": f"{r.number} at {line.coefficient:g}"}, label))  # fmt: skip
        plot.axes.set_xlabel("coefficient", fontsize=8)
        plot.axes.set_ylabel(words, fontsize=8)

    last = shown.rounds[-1]
    points = values(sorted(last.scores.sweep, key=lambda line: line.coefficient))
    label = ", ".join(f"{format_number(value, 2)} at {line.coefficient:g}" for line, value in points[:8])
    return Panel(title, f"Round {last.number}, {words}: {label or 'no figure'}.", draw)


DOSES = ReportFigure("doses", "Dose and response", "training", "doses", panels, of_rounds=True, columns=3)
