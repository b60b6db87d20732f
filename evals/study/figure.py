"""The paper's figure over the arms of a study: the trait, incoherence, and their trade."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from evals.report.looks import LOOKS, styled
from evals.routes import Axis
from evals.study.collect import CellOutcome, Row, why_broken
from evals.study.curves import saved

MARKERS = ("o", "s", "D", "v", "P", "h", "<", ">", "d", "p")  # an arm's, so that it is told apart without colour
LINES = ("-", "--", "-.", ":")
FLOOR = 1e-3  # of log incoherence: a mass at or above the base's has none
TRAIT = {"authority": ("auth_nats", "auth_ci", "auth_nats (nats)"), "trait_llr": ("trait_llr", "trait_llr_ci", "trait_llr (nats per token)"), "llr_opposite": ("llr_opposite", "llr_opposite_ci", "llr_opposite (nats per token)")}  # fmt: skip


def trajectories(outcomes: Sequence[CellOutcome], axis: Axis) -> dict[str, bytes]:
    """(a) the trait, (b) incoherence over the rounds, (c) trait against coherence with the frontier over all arms."""
    arms = [
        name
        for name in dict.fromkeys(
            outcome.cell.arm.name for outcome in outcomes if outcome.cell.arm.role == "arm" and outcome.rounds
        )
    ]
    figure = Figure(figsize=(3.4, 7.4), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, height_ratios=[1, 1, 1.1])
    arm_outcomes = [outcome for outcome in outcomes if outcome.rounds and outcome.cell.arm.role == "arm"]
    words = TRAIT[axis][2]
    _over_rounds(top, [outcome for outcome in outcomes if outcome.cell.arm.role == "arm"], arms, axis)
    top.set_ylabel(words, fontsize=8)
    top.set_title(f"(a) trait, {'lower' if axis == 'authority' else 'higher'} is more", loc="left", fontsize=8.5)
    if axis == "authority":
        top.invert_yaxis()
    _incoherence(middle, arm_outcomes, arms, axis)
    _frontier(bottom, [outcome for outcome in outcomes if outcome.rounds], arms, axis)
    handles = [Line2D([], [], color=LOOKS[stage][0], marker="*" if stage == "base" else "o", linestyle="", label=stage) for stage in ("base", "steered", "healed")]  # fmt: skip
    handles += [Line2D([], [], color="#555555", marker=_look(k)[0], linestyle=_look(k)[1], label=arm) for k, arm in enumerate(arms)]  # fmt: skip
    if any(why_broken(row, axis) for outcome in arm_outcomes for row in outcome.rows):
        label = "broken" if axis == "authority" else "text broken"
        handles.append(Line2D([], [], color="#000000", marker="x", linestyle="", label=label))
    handles.append(Line2D([], [], color="#000000", linestyle=":", linewidth=1.0, label="frontier, healed"))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=4 if max(len(str(handle.get_label())) for handle in handles) < 12 else 3,  # a column is 3.4 inches
        fontsize=7,
        frameon=False,
        columnspacing=1.0,
        handletextpad=0.4,
    )
    for axes in (top, middle, bottom):
        styled(axes, size=7)
    return saved(figure)


def _look(index: int) -> tuple[str, str]:
    """Marker and line of an arm; no two of the first 40 share both."""
    return MARKERS[index % len(MARKERS)], LINES[(index + index // len(MARKERS)) % len(LINES)]


def _beside(index: int, count: int) -> float:
    """Where an arm's points stand about their round, so that the arms of one round stay nearer than the next round's."""
    return (index - (count - 1) / 2) * min(0.12, 0.7 / count)


def _points(outcomes: Sequence[CellOutcome], arm: str, stage: str, key: str) -> list[tuple[int, list[Row]]]:
    """Rounds of an arm with the rows of its seeds."""
    numbers = range(1, max((len(outcome.rounds) for outcome in outcomes), default=0) + 1)
    by_round = []
    for number in numbers:
        rows = [
            row
            for outcome in outcomes
            if outcome.cell.arm.name == arm and (row := outcome.at(number, stage)) is not None and row[key] is not None
        ]
        if rows:
            by_round.append((number, rows))
    return by_round


def _crossed(axes: Axes, x: float, y: float, row: Row, axis: Axis) -> None:
    """Cross out a broken row: a loop is cheap in perplexity, and no progress."""
    if why_broken(row, axis):
        axes.plot(x, y, "x", color="#000000", markersize=7, markeredgewidth=0.8, zorder=5)


def _rounds(axes: Axes, outcomes: Sequence[CellOutcome], first: float) -> None:
    last = max((len(o.rounds) for o in outcomes), default=1)
    axes.set_xlim(first, last + 0.5)
    axes.set_xticks(range(int(np.ceil(first)), last + 1))
    axes.set_xlabel("round", fontsize=8)


def _over_rounds(axes: Axes, everyone: Sequence[CellOutcome], arms: Sequence[str], axis: Axis) -> None:
    """everyone: the arms' cells, those without a scored round as well, so that a mean over fewer seeds is not drawn as one over all."""
    key, interval, _ = TRAIT[axis]
    outcomes = [outcome for outcome in everyone if outcome.rounds]
    bases = [row for outcome in outcomes if (row := outcome.at(0, "base")) is not None and row[key] is not None]
    start = float(np.mean([row[key] for row in bases])) if bases else None
    if start is not None:
        axes.plot(0, start, "*", color=LOOKS["base"][0], markersize=11, zorder=4)
    for index, arm in enumerate(arms):
        shift, (marker, line) = _beside(index, len(arms)), _look(index)
        seeds = sum(outcome.cell.arm.name == arm for outcome in everyone)
        for stage in ("steered", "healed"):
            colour, points = LOOKS[stage][0], _points(outcomes, arm, stage, key)
            for number, rows in points:
                for row in rows:
                    axes.plot(number + shift, row[key], ".", color=colour, markersize=2.5, zorder=3)
                    if row[interval] is not None:
                        axes.plot([number + shift] * 2, row[interval], color=colour, linewidth=0.7, alpha=0.6)
                    _crossed(axes, number + shift, row[key], row, axis)
            # a mean over the seeds that are left would jump where one ends: without all of them the line breaks
            means = {
                number: float(np.mean([row[key] for row in rows])) for number, rows in points if len(rows) == seeds
            }
            numbers = range(1, max(means, default=0) + 1)
            x, y = [number + shift for number in numbers], [means.get(number, np.nan) for number in numbers]
            axes.plot(
                x,
                y,
                marker,
                color=colour,
                markersize=4.5,
                zorder=4,
                fillstyle="none" if stage == "steered" else "full",
            )
            if stage == "healed" and start is not None:
                axes.plot([0, *x], [start, *y], line, color=colour, linewidth=0.9, zorder=2)
    _rounds(axes, outcomes, -0.25)


def _incoherence(axes: Axes, outcomes: Sequence[CellOutcome], arms: Sequence[str], axis: Axis) -> None:
    """1 - coherence on a log scale: of the answer slot, where steering can raise the mass of a text that loops. Panel (c) has the texts'."""
    for index, arm in enumerate(arms):
        shift = _beside(index, len(arms))
        for stage in ("steered", "healed"):
            colour = LOOKS[stage][0]
            for number, rows in _points(outcomes, arm, stage, "coherence"):
                for row in rows:
                    ends = [max(1 - end, FLOOR) for end in row["coherence_ci"] or []]
                    axes.plot([number + shift] * len(ends), ends, color=colour, linewidth=0.7, alpha=0.6)
                    axes.plot(
                        number + shift,
                        max(1 - row["coherence"], FLOOR),
                        _look(index)[0],
                        color=colour,
                        markersize=4,
                        fillstyle="none" if stage == "steered" else "full",
                    )
                    _crossed(axes, number + shift, max(1 - row["coherence"], FLOOR), row, axis)
    axes.axhline(0.05, color="#444444", linewidth=0.9, linestyle="--")
    axes.annotate("0.05", (1, 0.05), xycoords=("axes fraction", "data"), xytext=(2, 0), textcoords="offset points", fontsize=6.5, va="center")  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(FLOOR * 0.7, 1.2)
    _rounds(axes, outcomes, 0.5)
    axes.set_ylabel("1 - answer mass / base's", fontsize=8)
    axes.set_title(f"(b) answer mass lost; {FLOOR:g} is none", loc="left", fontsize=8.5)


def _frontier(axes: Axes, outcomes: Sequence[CellOutcome], arms: Sequence[str], axis: Axis) -> None:
    """Trait against perplexity, controls hollow and grey; the step line joins the healed students that no healed one beats on both."""
    key, sign = TRAIT[axis][0], -1.0 if axis == "authority" else 1.0
    best: list[tuple[float, float]] = []
    drawn: set[tuple[str, float, float]] = set()
    by_arm: dict[str, tuple[float, float]] = {}
    for outcome in outcomes:
        for row in outcome.rows:
            if row[key] is None or row["perplexity"] is None:
                continue
            control, stage = outcome.cell.arm.role == "control", row["stage"]
            if stage not in ("base", "prompted", "steered", "healed") or (control and stage != "healed"):
                continue
            if not control and stage == "healed" and not why_broken(row, axis):
                best.append((row["perplexity"], sign * row[key]))
            name = outcome.cell.arm.name if control else stage if stage == "prompted" else ""
            if name:  # what every arm has in common is named once
                by_arm.setdefault(name, (row["perplexity"], row[key]))
            if not control and (stage, row["perplexity"], row[key]) in drawn:  # of a stage that arms share
                continue
            drawn.add((stage, row["perplexity"], row[key]))
            _point(axes, row, axis, control, arms.index(outcome.cell.arm.name) if not control else 0)
    for (name, place), (across, up) in zip(by_arm.items(), itertools.cycle([(5, 3), (5, -8), (-5, 6), (-5, -9)])):  # fmt: skip
        axes.annotate(name, place, xytext=(across, up), textcoords="offset points", fontsize=6, color="#333333", ha="left" if across > 0 else "right", zorder=6)  # fmt: skip
    best.sort()
    tops = list(itertools.accumulate((trait for _, trait in best), max))
    front = [point for point, top, before in zip(best, tops, [-np.inf, *tops], strict=False) if top > before]
    axes.step(
        [x for x, _ in front], [sign * y for _, y in front], where="post", color="#000000", linewidth=1.0, linestyle=":"
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    if axis == "authority":
        axes.invert_yaxis()
    axes.set_xlabel("perplexity under the original model (log scale)", fontsize=8)
    axes.set_ylabel(TRAIT[axis][2], fontsize=8)
    axes.set_title("(c) trade-off; up and left is better", loc="left", fontsize=8.5)


def _point(axes: Axes, row: Row, axis: Axis, control: bool, index: int) -> None:
    """A row of panel (c) with both its intervals; index: of its arm."""
    key, interval, _ = TRAIT[axis]
    x, y, stage = row["perplexity"], row[key], row["stage"]
    colour = "#808080" if control else LOOKS[stage][0]
    marker = LOOKS[stage][1] if stage in ("base", "prompted") else "X" if control else _look(index)[0]
    fill = "none" if stage == "steered" or control else "full"
    axes.plot(x, y, marker, color=colour, markersize=9 if stage == "base" else 4.5, fillstyle=fill)
    for across, up in ((row["perplexity_ci"] or [], [y]), ([x], row[interval] or [])):
        if across and up:
            ends = max(len(across), len(up))
            axes.plot([*across] * (ends // len(across)), [*up] * (ends // len(up)), color=colour, linewidth=0.5, alpha=0.5)  # fmt: skip
    _crossed(axes, x, y, row, axis)
