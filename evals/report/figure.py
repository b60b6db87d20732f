"""The trajectory figure: authority, coherence, and the trade between trait and perplexity over the rounds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

Row = dict[str, Any]
# Okabe and Ito's colours, each with its own marker, so that neither hue nor print carries the meaning alone.
LOOKS = {
    "base": ("#000000", "*", 0.0),
    "prompted": ("#0072B2", "s", 0.08),
    "prompted_opposite": ("#56B4E9", "D", 0.16),
    "prompted_decoy": ("#CC79A7", "P", 0.24),
    "steered": ("#D55E00", "^", -0.08),
    "random": ("#808080", "X", 0.08),
    "decoy": ("#E69F00", "v", 0.16),
    "healed": ("#009E73", "o", 0.0),
}


def trajectory(rows: Sequence[Row], extra: Sequence[Row]) -> bytes:
    """A PNG of three panels, legible at the width of a text column. extra is drawn hollow; undefined points are left out."""
    figure = Figure(figsize=(5.2, 9.2), layout="constrained")
    authority, coherence, trade = figure.subplots(3, 1, height_ratios=[1.0, 0.8, 1.25])
    _over_rounds(authority, rows, extra, "auth_nats", "auth_ci")
    authority.set_ylabel("auth_nats (nats)")
    authority.set_title(
        "(a) mass on authority" + ("; hollow: other doses and draws" if extra else ""), loc="left", fontsize=10
    )
    _over_rounds(coherence, rows, extra, "coherence", "coherence_ci")
    coherence.axhline(0.95, color="#444444", linewidth=0.9, linestyle="--")
    coherence.annotate(
        "0.95",
        (1, 0.95),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        fontsize=8,
        va="center",
    )
    coherence.set_ylabel("answer mass / base's")
    coherence.set_title("(b) coherence", loc="left", fontsize=10)
    coherence.set_xlabel("round")
    _trade(trade, rows, extra)
    handles, labels = authority.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=len(labels),
        fontsize=8.5,
        frameon=False,
        handletextpad=0.3,
        columnspacing=1.0,
    )
    for axes in (authority, coherence, trade):
        styled(axes)
    FigureCanvasAgg(figure)
    _place_labels(figure, trade, [row for row in [*rows, *extra] if _placed(row)])
    return png(figure)


def styled(axes: Axes, size: float = 9, grid: Literal["both", "y"] = "both") -> None:
    """Axes of any figure of the report; size of the tick labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=size)


def png(figure: Figure, dpi: int = 200) -> bytes:
    """A figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _over_rounds(axes: Axes, rows: Sequence[Row], extra: Sequence[Row], name: str, interval: str) -> None:
    for stage, (colour, marker, offset) in LOOKS.items():
        mine = [row for row in rows if row["stage"] == stage and row[name] is not None]
        for row in mine:
            if row[interval] is not None:
                axes.plot(
                    [row["round"] + offset] * 2, row[interval], color=colour, linewidth=1.4, solid_capstyle="butt"
                )
        size = 13 if marker == "*" else 7
        axes.plot(
            [row["round"] + offset for row in mine],
            [row[name] for row in mine],
            marker,
            color=colour,
            markersize=size,
            label=stage if mine else None,
            zorder=3,
        )
        hollow = [row for row in extra if row["stage"] == stage and row[name] is not None]
        axes.plot(
            [row["round"] + 2 * offset for row in hollow],
            [row[name] for row in hollow],
            marker,
            color=colour,
            fillstyle="none",
            markersize=5,
        )
    path = [row for row in rows if row["stage"] in ("base", "healed") and row[name] is not None]
    axes.plot(
        [row["round"] for row in path], [row[name] for row in path], color=LOOKS["healed"][0], linewidth=1.2, zorder=1
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.4, max(row["round"] for row in rows) + 0.4)


def _placed(row: Row) -> bool:
    return row["perplexity"] is not None and row["trait_llr"] is not None


def _trade(axes: Axes, rows: Sequence[Row], extra: Sequence[Row]) -> None:
    for group, fill in ((rows, "full"), (extra, "none")):
        for row in filter(_placed, group):
            colour, marker, _ = LOOKS[row["stage"]]
            if row["perplexity_ci"] is not None and row["trait_llr_ci"] is not None and fill == "full":
                axes.plot(row["perplexity_ci"], [row["trait_llr"]] * 2, color=colour, linewidth=0.8, alpha=0.5)
                axes.plot([row["perplexity"]] * 2, row["trait_llr_ci"], color=colour, linewidth=0.8, alpha=0.5)
            axes.plot(
                row["perplexity"],
                row["trait_llr"],
                marker,
                color=colour,
                fillstyle=fill,
                markersize=12 if marker == "*" else 7,
                zorder=3,
            )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 5, 6, 8) if high < 10 * low else (1, 3)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("perplexity of free text under the original model (log scale)")
    axes.set_ylabel("trait_llr (nats per token)")
    axes.set_title("(c) trait against incoherence; up and left is better", loc="left", fontsize=10)


def _name(row: Row) -> str:
    if row["round"] == 0:
        return str(row["stage"])
    if row["name"] == row["stage"]:
        other = ""
    elif row["stage"] == "random":
        other = f", draw {row['draw']}"
    else:
        other = f" at gate {row['gate']:g}" if row["stage"] == "healed" else f" at {row['coefficient']:g}"
    return f"{row['stage']} {row['round']}{other}"


def _place_labels(figure: Figure, axes: Axes, rows: Sequence[Row]) -> None:
    """Label every point in the direction that covers the fewest points and labels so far."""
    figure.draw_without_rendering()
    taken: list[tuple[float, float]] = [
        tuple(axes.transData.transform((row["perplexity"], row["trait_llr"]))) for row in rows
    ]
    points, scale, frame = list(taken), figure.dpi / 72, axes.get_window_extent()
    for line in axes.lines:
        ends = axes.transData.transform(line.get_xydata())
        if len(ends) == 2:  # an interval
            (x0, y0), (x1, y1) = ends
            taken += [(x0 + share * (x1 - x0), y0 + share * (y1 - y0)) for share in (0.0, 0.25, 0.75, 1.0)]
    boxes: list[tuple[float, float, float]] = []
    for row, (x, y) in zip(rows, points, strict=True):
        text = _name(row)
        wide, high = 4.4 * len(text) * scale, 9 * scale
        best: tuple[float, float, float] | None = None
        for reach in (9, 18, 30, 44):
            for right, up in ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                cx = x + right * (wide / 2 + reach * scale * (0.7 if up else 1))
                cy = y + up * (high / 2 + reach * scale * 0.7)
                hits = sum(
                    abs(cx - px) < wide / 2 + 5 * scale and abs(cy - py) < high / 2 + 5 * scale for px, py in taken
                )
                covered = sum(abs(cx - bx) < (wide + other) / 2 and abs(cy - by) < high for bx, by, other in boxes)
                inside = (
                    frame.x0 < cx - wide / 2
                    and cx + wide / 2 < frame.x1
                    and frame.y0 < cy - high / 2
                    and cy + high / 2 < frame.y1
                )
                score = hits + 10 * covered + (0 if inside else 20) + reach / 100
                if best is None or score < best[0]:
                    best = score, cx, cy
        assert best is not None
        _, cx, cy = best
        boxes.append((cx, cy, wide))
        far = abs(cy - y) > 20 * scale or abs(cx - x) > wide / 2 + 20 * scale
        axes.annotate(
            text,
            (row["perplexity"], row["trait_llr"]),
            xytext=((cx - x) / scale, (cy - y) / scale),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=LOOKS[row["stage"]][0],
            path_effects=[withStroke(linewidth=1.8, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6} if far else None,
        )
