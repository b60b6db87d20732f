"""Trait against price of two runs as one panel: base and prompted base, teachers and students of every round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evals.report.panel import Panel, Plot

SYMBOLS = ("●", "■")  # of the first run and of the second, in text


@dataclass(frozen=True)
class Dot:
    """A condition of one of the two runs.

    Args:
        side: 0 or 1.
        label: such as `2 healed`.
        trait: nats a token.
        price: perplexity under the original model.
        trait_ends, price_ends: their intervals, None where they are undefined.
    """

    side: int
    label: str
    trait: float
    price: float
    trait_ends: tuple[float, float] | None = None
    price_ends: tuple[float, float] | None = None


def overlay(dots: Sequence[Dot], names: tuple[str, str], trait: str) -> Panel:
    """Perplexity from left to right on a logarithmic axis, the trait from below, 95 % intervals as lines.

    Args:
        dots: of both runs, at least one.
        names: of the runs.
        trait: name of the measure on the vertical axis.
    """
    from evals.report.looks import BLUE, ORANGE, log_scale
    from evals.report.panel import Mark, Panel

    def figures_at(dot: Dot) -> str:
        return f"{dot.label}: {trait} {dot.trait:+.3f} at perplexity {dot.price:.2f}"

    def draw(plot: Plot) -> None:
        for dot in dots:
            plot.point(
                dot.price,
                dot.trait,
                marker="os"[dot.side],
                colour=(BLUE, ORANGE)[dot.side],
                mark=Mark({"run": str(dot.side + 1)}, f"{names[dot.side]}, {figures_at(dot)}"),
                x_interval=dot.price_ends,
                y_interval=dot.trait_ends,
            )
            plot.axes.annotate(dot.label, (dot.price, dot.trait), xytext=(6, 5), textcoords="offset points", fontsize=8)
        log_scale(plot.axes)
        plot.axes.set_xlabel("perplexity under the original model (log)", fontsize=8)
        plot.axes.set_ylabel(f"{trait} (nats per token)", fontsize=8)

    runs = [
        f"{symbol} {name}: {'; '.join(figures_at(dot) for dot in dots if dot.side == side) or 'no figures'}."
        for side, (symbol, name) in enumerate(zip(SYMBOLS, names, strict=True))
    ]
    finding = f"Up is more trait, left is better text; lines are 95 % intervals. {' '.join(runs)}"
    return Panel("Trait against price", finding, draw, (6.4, 3.8))
