"""The figures of the page as SVG that can be pointed at: the trajectory's panels, and Care against Authority with a node a round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator

from evals.report.figure import LOOKS
from evals.table import label, ranged
from shared.console import number

Row = dict[str, Any]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 270, 52, 12, 12, 40
SHAPES = {
    "*": "M0-8 2-2.5 8-2.5 3 1 5 7 0 3.5-5 7-3 1-8-2.5-2-2.5Z",
    "s": "M-5-5H5V5H-5Z",
    "v": "M-6-5H6L0 6Z",
    "^": "M0-6 6 5H-6Z",
    "X": "M-5-3-3-5 0-2 3-5 5-3 2 0 5 3 3 5 0 2-3 5-5 3-2 0Z",
    "D": "M0-6 6 0 0 6-6 0Z",
    "P": "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "o": "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0-5 0Z",
}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """From field `name` of a row, with its interval; the round where name is 'round'."""

    name: str
    interval: str | None
    words: str
    log: bool = False


ROUND = Axis("round", None, "round")
AUTHORITY = Axis("auth_nats", "auth_ci", "auth_nats (nats)")
CARE = Axis("care_nats", "care_ci", "care_nats (nats)")
COHERENCE = Axis("coherence", "coherence_ci", "answer mass / base's")
PERPLEXITY = Axis("perplexity", "perplexity_ci", "perplexity under the original (log)", log=True)
TRAIT = Axis("trait_llr", "trait_llr_ci", "trait_llr (nats per token)")


def panels(rows: Sequence[Row], extra: Sequence[Row]) -> str:
    """The five charts with their switches, as HTML: the stages, and the arms where a study's rows have several. extra is drawn
    hollow; all text is escaped."""
    stages = [stage for stage in LOOKS if any(row["stage"] == stage for row in rows)]
    arms = list(dict.fromkeys(row["arm"] for row in rows)) if any("role" in row for row in rows) else []
    switches = "".join(
        f'<label><input type="checkbox" checked data-hides="stage" value="{stage}"> <span style="color:{LOOKS[stage][0]}">{stage}</span></label>'
        for stage in stages
    )
    if len(arms) > 1:
        switches += "<br>" + "".join(
            f'<label><input type="checkbox" checked data-hides="arm" value="{escape(arm)}"> {escape(arm)}</label>'
            for arm in arms
        )
    charts = [
        ("Trait in free text over the rounds", ROUND, TRAIT, None, ("base", "healed")),
        ("Mass on authority over the rounds", ROUND, AUTHORITY, None, ("base", "healed")),
        ("Coherence over the rounds", ROUND, COHERENCE, 0.95, ("base", "healed")),
        ("Trait against incoherence; up and left is better", PERPLEXITY, TRAIT, None, ()),
        ("Care against authority; the path of the students", AUTHORITY, CARE, None, ("base", "healed")),
    ]
    body = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{chart(rows, extra, x, y, line, path, title)}</figure>"
        for title, x, y, line, path in charts
    )
    return f'<div class="switches">{switches}</div><div class="charts">{body}</div><p class="note">Point at a mark for its figures; hollow: other doses, draws and gates.</p>'


def chart(
    rows: Sequence[Row], extra: Sequence[Row], x: Axis, y: Axis, line: float | None, path: Sequence[str], title: str
) -> str:
    """One panel; rows without either figure are left out. line: a dashed level of y. path: stages joined in the order of rounds."""
    shown = [(row, hollow) for group, hollow in ((extra, True), (rows, False)) for row in group if row[x.name] is not None and row[y.name] is not None]  # fmt: skip
    if not shown:
        return "<p>Nothing to show: no row has both figures.</p>"
    across, x_ticks = _scale(x, [row for row, _ in shown], LEFT, WIDTH - RIGHT)
    up, y_ticks = _scale(y, [row for row, _ in shown], HEIGHT - BOTTOM, TOP, [line] if line is not None else [])
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value in x_ticks:
        parts.append(f'<path class="grid" d="M{across(value):.1f} {TOP}V{HEIGHT - BOTTOM}"/><text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{value:g}</text>')  # fmt: skip
    for value in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {up(value):.1f}H{WIDTH - RIGHT}"/><text x="{LEFT - 5}" y="{up(value) + 3:.1f}" text-anchor="end">{value:g}</text>')  # fmt: skip
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.words)}</text>'
    )
    parts.append(f'<text transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{escape(y.words)}</text>')  # fmt: skip
    if line is not None:
        parts.append(f'<path class="level" d="M{LEFT} {up(line):.1f}H{WIDTH - RIGHT}"/>')
    solid = [row for row, hollow in shown if not hollow and row["stage"] in path]
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in solid:
        if row["round"]:
            groups.setdefault((row["arm"], row["seed"]), []).append(row)
    for (_, seed), found in groups.items():  # from the seed's base, which its arms share
        joined = [*(row for row in solid if row["round"] == 0 and row["seed"] == seed)][:1] + found
        if len(joined) < 2:
            continue
        corners = "L".join(f"{_place(x, across, row):.1f} {up(row[y.name]):.1f}" for row in joined)
        parts.append(f'<path class="path" data-arm="{escape(joined[-1]["arm"])}" d="M{corners}"/>')
    for row, hollow in shown:
        parts.append(_mark(row, hollow, x, y, across, up))
    return "".join(parts) + "</svg>"


def _place(x: Axis, across: Any, row: Row) -> float:
    """Stages of one round stand side by side."""
    return float(across(row[x.name] + (LOOKS[row["stage"]][2] if x is ROUND else 0.0)))


def _mark(row: Row, hollow: bool, x: Axis, y: Axis, across: Any, up: Any) -> str:
    colour, marker, _ = LOOKS[row["stage"]]
    cx, cy = _place(x, across, row), up(row[y.name])
    bars = ""
    if not hollow:
        if y.interval and row[y.interval]:
            low, high = row[y.interval]
            bars += f'<path class="bar" stroke="{colour}" d="M{cx:.1f} {up(low):.1f}V{up(high):.1f}"/>'
        if x.interval and row[x.interval]:
            low, high = row[x.interval]
            bars += f'<path class="bar" stroke="{colour}" d="M{across(low):.1f} {cy:.1f}H{across(high):.1f}"/>'
    fill = "none" if hollow else colour
    shape = f'<path transform="translate({cx:.1f} {cy:.1f})" d="{SHAPES[marker]}" fill="{fill}" stroke="{colour}"/>'
    name = str(row["round"]) if {x, y} == {AUTHORITY, CARE} and row["stage"] == "healed" and not hollow else ""
    tag = f'<text x="{cx + 8:.1f}" y="{cy - 6:.1f}">{name}</text>' if name else ""
    arm = escape(row["arm"] if row["round"] else "")  # the original model is under every arm
    return f'<g class="pt" data-stage="{row["stage"]}" data-arm="{arm}" tabindex="0" data-key="{escape(_name(row))}"><title>{escape(_said(row))}</title>{bars}{shape}{tag}</g>'


def _name(row: Row) -> str:
    """Rows of a study have a role, and are told apart by arm and seed."""
    if "role" not in row:
        return f"round {label(row)}"
    return (
        f"{row['arm']}, seed {row['seed']}, round {label(row)}"
        if row["round"]
        else f"seed {row['seed']}, {row['stage']}"
    )


def _said(row: Row) -> str:
    figures = [
        f"auth_nats {ranged(row, 'auth_nats', 'auth_ci')}",
        f"care_nats {ranged(row, 'care_nats', 'care_ci')}",
        f"coherence {ranged(row, 'coherence', 'coherence_ci')}",
        f"perplexity {ranged(row, 'perplexity', 'perplexity_ci', 2)}",
        f"trait_llr {ranged(row, 'trait_llr', 'trait_llr_ci', 3, signed=True)}",
        f"verdict {number(row['verdict'])}",
    ]
    return "\n".join([_name(row), *figures])


def _scale(
    axis: Axis, rows: Sequence[Row], start: float, end: float, more: Sequence[float] = ()
) -> tuple[Any, list[float]]:
    """(value -> pixel, ticks) over the values and their intervals."""
    values = [float(row[axis.name]) for row in rows] + list(more)
    if axis.interval:
        values += [end for row in rows for end in row[axis.interval] or []]
    if axis.log:
        values = [value for value in values if value > 0]
    low, high = min(values), max(values)
    if axis is ROUND:
        low, high = low - 0.4, high + 0.4
    warp = math.log if axis.log else float
    a, b = warp(low), warp(high)
    margin = 0.06 * (b - a) or 0.5 * abs(a) or 1.0
    a, b = a - margin, b + margin
    low, high = (math.exp(a), math.exp(b)) if axis.log else (a, b)
    locator = LogLocator(subs=(1, 2, 5)) if axis.log else MaxNLocator(5, integer=axis is ROUND)
    ticks = [round(float(tick), 10) for tick in locator.tick_values(low, high) if low <= tick <= high]
    return lambda value: start + (warp(value) - a) / (b - a) * (end - start), ticks
