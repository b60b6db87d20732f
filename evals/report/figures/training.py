"""A round's training: cross-entropy, divergence with tau, and the barrier's part, over the optimiser steps."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from evals.report.figures.base import ReportFigure, Shown
from evals.report.looks import BLACK, BLUE, GREEN, GREY, ORANGE
from evals.report.panel import Panel, Plot
from evals.report.tables import last_quarter_mean
from evals.round import Round
from shared.console import format_number
from shared.divergences import DIVERGENCES, has_barrier
from shared.records import Training

DIVERGENCE_LINES = {"p95": (GREY, ":"), "rmse": (GREEN, "-"), "mean": (BLACK, "--")}


def panels(shown: Shown) -> list[Panel]:
    """Cross-entropy, divergence and barrier by step, for every round."""
    return [panel for r in shown.rounds for panel in (_learning(r), _divergence(r), _barrier(r))]


def _panel(title: str, finding: str, draw: Callable[[Axes], None]) -> Panel:
    def drawn(plot: Plot) -> None:
        draw(plot.axes)
        plot.axes.set_xlabel("optimiser step", fontsize=8)
        plot.axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        plot.axes.legend(fontsize=7, frameon=False)

    return Panel(title, finding, drawn, (3.9, 2.6))


def _learning(r: Round) -> Panel:
    def draw(axes: Axes) -> None:
        axes.plot([step.step for step in r.steps], [step.ce for step in r.steps], color=BLUE, linewidth=1.1, label="trained on")  # fmt: skip
        axes.plot([row.step for row in r.heldout], [row.heldout_ce for row in r.heldout], "o-", color=ORANGE, markersize=4, linewidth=1.1, label="held out")  # fmt: skip

    held = f"; held out from {format_number(r.heldout[0].heldout_ce)} to {format_number(r.heldout[-1].heldout_ce)}" if r.heldout else ""  # fmt: skip
    finding = (
        f"It falls from {format_number(r.steps[0].ce)} to {format_number(last_quarter_mean(r.steps, 'ce'))} nats{held}."
    )
    return _panel(f"Round {r.number}: cross-entropy (nats)", finding, draw)


def _divergence(r: Round) -> Panel:
    barred = has_barrier(r.training.divergence)

    def draw(axes: Axes) -> None:
        for kind, (colour, line) in DIVERGENCE_LINES.items():
            values = [getattr(step, f"kl_{r.training.reference}_{kind}") for step in r.steps]
            axes.plot([step.step for step in r.steps], values, line, color=colour, linewidth=1.1, label=kind)
        if barred:
            axes.axhline(r.training.tau, color=ORANGE, linewidth=0.9, label="tau")

    symbol = DIVERGENCES[r.training.divergence].symbol
    rmse = last_quarter_mean(r.steps, f"kl_{r.training.reference}_rmse")
    finding = f"Its rmse ends at {format_number(rmse)} nats" + (f"; tau is {r.training.tau:g}." if barred else ".")
    return _panel(f"Round {r.number}: {symbol} to {reference_words(r.training)} (nats)", finding, draw)


def _barrier(r: Round) -> Panel:
    def draw(axes: Axes) -> None:
        axes.plot([step.step for step in r.steps], [step.gradient_ratio for step in r.steps], color=GREEN, linewidth=1.1, label="gradient, barrier / cross-entropy")  # fmt: skip
        axes.plot([step.step for step in r.steps], [step.fired for step in r.steps], ".", color=ORANGE, markersize=3, label="fired")  # fmt: skip

    fired = sum(step.fired for step in r.steps) / len(r.steps)
    return _panel(f"Round {r.number}: barrier", f"It was on at {100 * fired:.0f} % of the steps.", draw)


def reference_words(training: Training) -> str:
    """The reference of the divergence, in words."""
    return "the original" if training.reference == "base" else "the previous student"


TRAINING = ReportFigure(
    "training", "Training curves", "training", "training", panels, of_rounds=True, columns=3, before="Healing"
)
