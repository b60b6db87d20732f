"""A study's curves: the dose-response of its sweeps and the healing of its arms; PNG, SVG and PDF of the same drawing."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from evals.report.looks import styled
from evals.study import FORMATS
from evals.study.collect import CellOutcome
from shared.divergences import has_barrier

LINES = ("-", "--", ":", "-.")  # of a seed


def doses(outcomes: Sequence[CellOutcome]) -> dict[str, bytes]:
    """Dose-response of the sweeps: what steering gives and costs at each relative dose, a line per arm, seed and round."""
    figure = Figure(figsize=(3.4, 5.2), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    rounds = sorted({r.number for outcome in outcomes for r in outcome.rounds})
    shades = {number: str(0.65 - 0.65 * index / max(len(rounds) - 1, 1)) for index, number in enumerate(rounds)}
    drawn: set[tuple[int, bytes, bytes]] = set()
    for outcome in outcomes:
        for r in outcome.rounds:
            lines = [line for line in r.scores.sweep if line.relative_dose is not None]
            x = np.array([line.relative_dose or 0.0 for line in lines])
            # dose 0 is the original model, which only round 1 steers: later it would join two models
            joined = np.ones(len(x), bool) if r.number == 1 else x > 0
            look = {
                "color": shades[r.number],
                "linewidth": 0.8,
                "marker": ".",
                "markersize": 3,
                "linestyle": "--" if outcome.cell.arm.role == "control" else "-",
            }
            figures = (
                [line.trait_llr for line in lines],
                [line.perplexity for line in lines],
                [line.kept / line.n if line.n else None for line in lines],
            )
            for axes, panel_lines in zip(panels, figures, strict=True):
                y = np.array(panel_lines, dtype=float)
                if (curve := (id(axes), x.tobytes(), y.tobytes())) in drawn:  # of a sweep that arms share
                    continue
                drawn.add(curve)
                axes.plot(x[joined], y[joined], **look)
                if axes is panels[1] and r.number == 1 and outcome.cell.arm.name != outcomes[0].cell.arm.name:
                    axes.annotate(outcome.cell.arm.name, (x[-1], y[-1]), xytext=(-3, 3), textcoords="offset points", fontsize=6, ha="right")  # fmt: skip
    panels[1].set_yscale("log")
    panels[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[1].yaxis.set_major_formatter(ScalarFormatter())
    panels[1].yaxis.set_minor_formatter(NullFormatter())
    for axes, words in zip(panels, ("trait_llr (nats per token)", "perplexity", "share kept"), strict=True):
        axes.set_ylabel(words, fontsize=8)
        styled(axes, size=7)
    panels[2].set_xlabel("relative dose", fontsize=8)
    panels[2].xaxis.set_major_locator(MaxNLocator(5))
    handles = [Line2D([], [], color=shades[number], label=f"round {number}") for number in rounds]
    if any(outcome.cell.arm.role == "control" for outcome in outcomes):
        handles.append(Line2D([], [], color="#555555", linestyle="--", label="control"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=7, frameon=False)
    return saved(figure)


def training(outcomes: Sequence[CellOutcome]) -> dict[str, bytes]:
    """Healing of every arm, its rounds end to end: cross-entropy (held out as points), KL to the barrier's reference, tau dashed."""
    arms = list(dict.fromkeys(outcome.cell.arm.name for outcome in outcomes if outcome.rounds))
    looks = dict(zip(dict.fromkeys(outcome.cell.seed for outcome in outcomes), itertools.cycle(LINES)))
    figure = Figure(figsize=(6.8, 1.5 * len(arms) + 0.4), layout="constrained")
    for row, arm in zip(figure.subplots(len(arms), 2, squeeze=False, sharex="row"), arms, strict=True):
        arm_outcomes = [outcome for outcome in outcomes if outcome.cell.arm.name == arm]
        for outcome in arm_outcomes:
            line = looks[outcome.cell.seed]
            begin = 0
            for r in outcome.rounds:
                x = [begin + step.step for step in r.steps]
                row[0].plot(x, [step.ce for step in r.steps], color="#0072B2", linewidth=0.8, linestyle=line)
                row[0].plot(
                    [begin + point.step for point in r.heldout],
                    [point.heldout_ce for point in r.heldout],
                    "o",
                    color="#D55E00",
                    markersize=2.5,
                    fillstyle="full" if outcome is arm_outcomes[0] else "none",
                )
                kl = [getattr(step, f"kl_{r.training.reference}_rmse") for step in r.steps]
                row[1].plot(x, kl, color="#009E73", linewidth=0.8, linestyle=line)
                if has_barrier(r.training.divergence):
                    row[1].plot([x[0], x[-1]], [r.training.tau] * 2, color="#444444", linewidth=0.8, linestyle="--")
                begin = x[-1]
                for axes in row:
                    axes.axvline(begin, color="#cccccc", linewidth=0.6, linestyle=line)
        row[0].set_ylabel(arm, fontsize=8)
        for axes in row:
            styled(axes, size=6.5)
    top = figure.axes[:2]
    top[0].set_title("cross-entropy (nats); points: held out", loc="left", fontsize=8)
    top[1].set_title("D to the reference, rmse (nats); dashed: tau", loc="left", fontsize=8)
    if len(looks) > 1:
        styles = [Line2D([], [], color="#444444", linestyle=line, label=f"seed {seed}") for seed, line in looks.items()]
        figure.legend(handles=styles, loc="outside upper right", ncols=4, fontsize=7, frameon=False)
    figure.supxlabel("optimiser steps, rounds end to end", fontsize=8)
    return saved(figure)


def saved(figure: Figure) -> dict[str, bytes]:
    """By format, the same bytes for the same figure; text in SVG and PDF stays text."""
    files = {}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "steer-heal", "pdf.fonttype": 42}):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # keeps the layout, which each format would otherwise find again
        for kind in FORMATS:
            buffer = io.BytesIO()
            metadata = {
                "png": {"Software": None},
                "svg": {"Date": None, "Creator": None},
                "pdf": {"CreationDate": None, "Producer": None},
            }[kind]
            figure.savefig(buffer, format=kind, dpi=250, metadata=metadata)
            files[kind] = buffer.getvalue()
    return files
