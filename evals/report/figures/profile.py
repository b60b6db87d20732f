"""The human reference: how the answers' profile lies to that of the people who rated the vignettes (Clifford et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evals.intervals import estimate_of, mean_of
from evals.report.figures.base import ReportFigure, Shown
from evals.report.looks import GREY, LOOKS, PINK
from evals.report.panel import Panel, Plot
from evals.statistics import Answers, Estimate
from shared.instrument import FOUNDATIONS

HUMAN = ("raters", PINK)


def profile(values: np.ndarray, truth: np.ndarray) -> list[Estimate | None]:
    """Mean over the items of a distribution [n, 7], with intervals over items within foundations."""
    return [estimate_of(mean_of(column), truth) for column in values.T]


def profiles(conditions: Mapping[str, Answers]) -> dict[str, list[Estimate | None]]:
    """By name, over the items scorable in every condition; the raters first, where every item was rated."""
    every = np.logical_and.reduce([a.scorable for a in conditions.values()])
    first = next(iter(conditions.values()))
    truth = first.truth[every]
    by_name = {HUMAN[0]: profile(first.label[every], truth)} if first.rated else {}
    return {**by_name, **{name: profile(a.p[every], truth) for name, a in conditions.items()}}


def panels(shown: Shown) -> list[Panel]:
    """The shift of every foundation, steered and healed, in the last round."""
    first, last = shown.rounds[0], shown.rounds[-1]
    answers = {"base": first.answers["base"], "steered": last.answers["steered"], "healed": last.answers["healed"]}
    return [bars(profiles(answers))]


def bars(by_name: Mapping[str, list[Estimate | None]]) -> Panel:
    """Grouped bars with intervals, a group per foundation."""

    def draw(plot: Plot) -> None:
        axes, width = plot.axes, 0.8 / len(by_name)
        for index, (name, values) in enumerate(by_name.items()):
            colour = HUMAN[1] if name == HUMAN[0] else LOOKS[name][0]
            x = np.arange(len(FOUNDATIONS)) + (index - (len(by_name) - 1) / 2) * width
            heights = [value.value if value else np.nan for value in values]
            axes.bar(x, heights, width, label=name, color=colour, alpha=0.85 if name == HUMAN[0] else 0.6)
            for place, value in zip(x, values, strict=True):
                if value and value.interval:
                    axes.plot([place, place], value.interval, color=GREY, linewidth=0.9)
        axes.set_xticks(range(len(FOUNDATIONS)), FOUNDATIONS, fontsize=8)
        axes.set_ylabel("mean mass", fontsize=8)
        ends = [
            end
            for values in by_name.values()
            for value in values
            if value
            for end in (value.value, *(value.interval or ()))
        ]
        axes.set_ylim(0, 1.25 * max(ends, default=1.0))  # room for the legend
        axes.legend(fontsize=8, frameon=False, ncols=2)

    largest = "; ".join(f"{name} {_largest(values)}" for name, values in by_name.items())
    return Panel(
        "Mean mass on each foundation" + (", beside the raters" if HUMAN[0] in by_name else ""),
        f"The largest: {largest}.",
        draw,
        (6.8, 3.2),
    )


def _largest(values: list[Estimate | None]) -> str:
    defined = [(value.value, name) for value, name in zip(values, FOUNDATIONS, strict=True) if value]
    return f"{max(defined)[1]} {max(defined)[0]:.2f}" if defined else "nothing"


PROFILE = ReportFigure("profile", "Profile", "measures", "profile", panels, of_rounds=True)
