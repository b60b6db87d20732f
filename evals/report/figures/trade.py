"""Trait against perplexity: what a condition gives, and what it costs."""

from __future__ import annotations

from evals.report.figures.base import ReportFigure, Shown, levels_said, mark_of, moved_said, trait_of
from evals.report.looks import LOOKS, ORANGE, log_scale
from evals.report.panel import Mark, Panel, Plot


def panels(shown: Shown) -> list[Panel]:
    """Trait against perplexity, one panel; none where no row has both."""
    field, interval, words = trait_of(shown.rows)
    rows = [row for row in shown.rows if row[field] is not None and row["perplexity"] is not None]
    extra = [row for row in shown.extra if row[field] is not None and row["perplexity"] is not None]
    if not rows:
        return []

    def draw(plot: Plot) -> None:
        if not shown.arms:
            dosed = [row for row in (*rows, *extra) if row["stage"] == "steered" and row["round"] == 1]
            origin = [row for row in rows if row["stage"] == "base"][
                :1
            ]  # at coefficient 0, between those below it and above
            route = sorted((*origin, *dosed), key=lambda row: row["coefficient"])
            plot.path([row["perplexity"] for row in route], [row[field] for row in route], colour=ORANGE, mark=Mark({"stage": "steered"}), line=":")  # fmt: skip
        for group, hollow in ((extra, True), (rows, False)):
            for row in group:
                plot.point(
                    row["perplexity"],
                    row[field],
                    marker=shown.marker(row),
                    colour=LOOKS[row["stage"]][0],
                    mark=mark_of(row),
                    hollow=hollow,
                    x_interval=row["perplexity_ci"],
                    y_interval=row[interval],
                )
                if not hollow and row["round"] and not shown.arms:
                    plot.axes.annotate(str(row["round"]), (row["perplexity"], row[field]), xytext=(6, 5), textcoords="offset points", fontsize=8)  # fmt: skip
        log_scale(plot.axes)
        plot.axes.set_xlabel("perplexity under the original model (log)", fontsize=8)
        plot.axes.set_ylabel(words, fontsize=8)

    name = field
    trait, price = levels_said(rows, field, 3, True), levels_said(rows, "perplexity", 2)
    finding = f"{name}: {trait}. Perplexity: {price}.{moved_said(shown.rows, f'd_{field}', 'trait')}"
    return [Panel("Trait against perplexity; up and left is better", finding, draw, (4.8, 3.1))]


TRADE = ReportFigure("trade", "What it gives and what it costs", "answer", "trajectory", panels)
