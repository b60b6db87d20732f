"""The figures of the report, in their order. To add one, write a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evals.report.figures.base import ReportFigure, Shown, legend_of
from evals.report.figures.doses import DOSES
from evals.report.figures.profile import PROFILE
from evals.report.figures.rounds import ROUNDS
from evals.report.figures.trade import TRADE
from evals.report.figures.training import TRAINING
from evals.report.panel import Panel, panels_png

FIGURES: tuple[ReportFigure, ...] = (
    TRADE,
    ROUNDS,
    PROFILE,
    DOSES,
    TRAINING,
)


def panels_of(shown: Shown) -> dict[str, list[Panel]]:
    """By the name of a figure, those that have something to show."""
    by_figure = {figure.name: figure.panels(shown) for figure in FIGURES if shown.rounds or not figure.of_rounds}
    return {name: panels for name, panels in by_figure.items() if panels}


def pngs(shown: Shown, panels: Mapping[str, Sequence[Panel]]) -> dict[str, bytes]:
    """The PNGs of RUN/report by name without suffix: the panels of the figures that share a file, one file each."""
    by_file = {}
    for file in dict.fromkeys(figure.file for figure in FIGURES):
        figures = [figure for figure in FIGURES if figure.file == file and figure.name in panels]
        if figures:
            together = [panel for figure in figures for panel in panels[figure.name]]
            legend = legend_of(shown) if not any(figure.of_rounds for figure in figures) else None
            by_file[file] = panels_png(together, figures[0].columns, legend)
    return by_file
