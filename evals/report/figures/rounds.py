"""Trait, authority and coherence over the rounds, and the path of the students between care and authority."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from evals.report.figures.base import ReportFigure, Row, Shown, levels_said, mark_of, moved_said, trait_of
from evals.report.looks import LOOKS
from evals.report.panel import Mark, Panel, Plot

COHERENT = 0.95  # answer mass over the base's under which the answer slot counts as degraded


def panels(shown: Shown) -> list[Panel]:
    """Trait, auth_nats, answer mass and Care over the rounds, those that were measured."""
    trait, trait_interval, words = trait_of(shown.rows)
    drawn = [
        _over_rounds(shown, trait, trait_interval, words, "Trait in free text over the rounds", f"d_{trait}", "trait"),
        _over_rounds(shown, "auth_nats", "auth_ci", "auth_nats (nats)", "Authority over the rounds; lower is less", "d_auth", "auth_nats"),
        _over_rounds(shown, "coherence", "coherence_ci", "answer mass / base's", "Answer mass over the rounds", "d_coh", "answer mass", COHERENT),
        _care(shown),
    ]  # fmt: skip
    return [panel for panel in drawn if panel is not None]


def _groups(rows: list[Row]) -> list[list[Row]]:
    """The base and healed rows of each arm and seed, in the order of rounds."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["stage"] == "healed":
            groups.setdefault((row["arm"], row["seed"]), []).append(row)
    bases = {row["seed"]: row for row in reversed(rows) if row["stage"] == "base"}
    return [([bases[seed]] if seed in bases else []) + healed for (_, seed), healed in groups.items()]


def _over_rounds(
    shown: Shown,
    field: str,
    interval: str,
    words: str,
    title: str,
    change: str,
    what: str,
    level: float | None = None,
) -> Panel | None:
    rows = [row for row in shown.rows if row[field] is not None]
    extra = [row for row in shown.extra if row[field] is not None]
    if not rows:
        return None

    def draw(plot: Plot) -> None:
        for joined in _groups(rows):
            if len(joined) > 1:
                places = [row["round"] + shown.beside(row) for row in joined]
                mark = Mark({"arm": joined[-1]["arm"], "stage": "healed"})
                plot.path(places, [row[field] for row in joined], colour=LOOKS["healed"][0], mark=mark)
        for group, hollow in ((extra, True), (rows, False)):
            for row in group:
                plot.point(
                    row["round"] + shown.beside(row) * (2 if hollow else 1),
                    row[field],
                    marker=shown.marker(row),
                    colour=LOOKS[row["stage"]][0],
                    mark=mark_of(row),
                    hollow=hollow,
                    y_interval=row[interval],
                )
        if level is not None:
            plot.axes.axhline(level, color="#808080", linewidth=0.9, linestyle="--")
            plot.axes.annotate(f"{level:g}", (1, level), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points", fontsize=8, va="center")  # fmt: skip
        plot.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plot.axes.set_xlim(-0.45, max(row["round"] for row in shown.rows) + 0.45)
        plot.axes.set_xlabel("round", fontsize=8)
        plot.axes.set_ylabel(words, fontsize=8)

    finding = f"{what}: {levels_said(rows, field, 3, field != 'coherence')}.{moved_said(shown.rows, change, what)}"
    return Panel(title, finding, draw)


def _care(shown: Shown) -> Panel | None:
    rows = [row for row in shown.rows if row["auth_nats"] is not None and row["care_nats"] is not None]
    extra = [row for row in shown.extra if row["auth_nats"] is not None and row["care_nats"] is not None]
    if not rows:
        return None

    def draw(plot: Plot) -> None:
        for joined in _groups(rows):
            if len(joined) > 1:
                mark = Mark({"arm": joined[-1]["arm"], "stage": "healed"})
                plot.path([row["auth_nats"] for row in joined], [row["care_nats"] for row in joined], colour=LOOKS["healed"][0], mark=mark)  # fmt: skip
        for group, hollow in ((extra, True), (rows, False)):
            for row in group:
                plot.point(
                    row["auth_nats"],
                    row["care_nats"],
                    marker=shown.marker(row),
                    colour=LOOKS[row["stage"]][0],
                    mark=mark_of(row),
                    hollow=hollow,
                    x_interval=row["auth_ci"],
                    y_interval=row["care_ci"],
                )
        plot.axes.set_xlabel("auth_nats (nats)", fontsize=8)
        plot.axes.set_ylabel("care_nats (nats)", fontsize=8)

    finding = f"care_nats: {levels_said(rows, 'care_nats', 3, True)}.{moved_said(shown.rows, 'd_care', 'care_nats')}"
    return Panel("Care against authority; the path of the students", finding, draw)


ROUNDS = ReportFigure("rounds", "Over the rounds", "results", "trajectory", panels, before="Levels")
