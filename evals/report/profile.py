"""The human reference: how the answers' profile lies to that of the people who rated the vignettes (Clifford et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from evals.intervals import estimate_of, mean_of
from evals.report.figure import LOOKS, png, styled
from evals.statistics import Answers, Estimate
from shared.instrument import FOUNDATIONS

HUMAN = ("raters", "#CC79A7")


def profile(values: np.ndarray, truth: np.ndarray) -> list[Estimate | None]:
    """Mean over the items of a distribution [n, 7], with intervals over items within foundations."""
    return [estimate_of(mean_of(column), truth) for column in values.T]


def profiles(conditions: Mapping[str, Answers]) -> dict[str, list[Estimate | None]]:
    """By name, over the items scorable in every condition; the raters first, where every item was rated."""
    every = np.logical_and.reduce([a.scorable for a in conditions.values()])
    first = next(iter(conditions.values()))
    truth = first.truth[every]
    found = {HUMAN[0]: profile(first.label[every], truth)} if first.rated else {}
    return {**found, **{name: profile(a.p[every], truth) for name, a in conditions.items()}}


def bars(found: Mapping[str, list[Estimate | None]]) -> bytes:
    """A PNG of grouped bars with intervals, a group per foundation."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(found)
    for index, (name, values) in enumerate(found.items()):
        color = HUMAN[1] if name == HUMAN[0] else LOOKS[name.split()[0]][0]
        x = np.arange(len(FOUNDATIONS)) + (index - (len(found) - 1) / 2) * width
        heights = [value.value if value else np.nan for value in values]
        axes.bar(x, heights, width, label=name, color=color, alpha=0.85 if name == HUMAN[0] else 0.6)
        for place, value in zip(x, values, strict=True):
            if value and value.interval:
                axes.plot([place, place], value.interval, color="#222222", linewidth=0.9)
    axes.set_xticks(range(len(FOUNDATIONS)), FOUNDATIONS, fontsize=9)
    axes.set_ylabel("mean mass")
    styled(axes, grid="y")
    figure.legend(loc="outside upper center", ncols=len(found), fontsize=8.5, frameon=False)
    return png(figure)
