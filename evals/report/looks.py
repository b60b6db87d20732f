"""Colours, markers and axes that all figures share."""

from __future__ import annotations

import io
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

# Okabe and Ito's colours, each with its own marker, so that neither hue nor print carries the meaning alone.
BLACK, BLUE, SKY, PINK, ORANGE, AMBER, GREY, GREEN, BROWN = (
    "#000000", "#0072b2", "#56b4e9", "#cc79a7", "#d55e00", "#e69f00", "#808080", "#009e73", "#8c564b",
)  # fmt: skip
# colour, marker, and the offset from its round
LOOKS = {
    "base": (BLACK, "*", 0.0),
    "prompted": (BLUE, "s", 0.08),
    "prompted_opposite": (SKY, "D", 0.16),
    "prompted_decoy": (PINK, "P", 0.24),
    "steered": (ORANGE, "^", -0.08),
    "random": (GREY, "X", 0.08),
    "decoy": (AMBER, "v", 0.16),
    "student_vector": (BROWN, "<", 0.24),
    "student_without_vector": (BROWN, ">", 0.32),
    "healed": (GREEN, "o", 0.0),
}
SYMBOLS = {
    "*": "★",
    "s": "■",
    "D": "◆",
    "P": "✚",
    "^": "▲",
    "X": "✖",
    "v": "▼",
    "<": "◀",
    ">": "▶",
    "o": "●",
}  # of a marker, in text
# of an arm, told apart without colour; the last three are also those of a stage
ARM_MARKERS = ("o", "v", "h", "<", ">", "p", "d", "^", "s", "D")
ARM_SYMBOLS = ("●", "▼", "⬢", "◀", "▶", "⬟", "♦", "▲", "■", "◆")


def styled(axes: Axes, size: float = 9, grid: Literal["both", "y"] = "both") -> None:
    """Axes of any figure of the report; size of the tick labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=size)


def log_scale(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers, few enough that they do not touch."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 5, 6, 8) if high < 10 * low else (1, 3)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def png(figure: Figure, dpi: int = 200) -> bytes:
    """A figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
