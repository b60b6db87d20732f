"""Trait against price of two runs in one SVG, without script: base and prompted base, teachers and students of every round."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640.0, 380.0, 64.0, 48.0, 16.0, 24.0
COLOURS = ("#0072b2", "#d55e00")  # Okabe and Ito's, legible on light and dark
TICKS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 70.0, 100.0, 200.0, 500.0, 1000.0)

Scale = Callable[[float], float]  # a value's place, pixels


@dataclass(frozen=True)
class Dot:
    """A condition of one of the two runs.

    side: 0 or 1. label: such as `2 healed`. price: perplexity. Intervals are None where they are undefined.
    """

    side: int
    label: str
    trait: float
    price: float
    trait_ends: tuple[float, float] | None = None
    price_ends: tuple[float, float] | None = None


def overlay(dots: Sequence[Dot], names: tuple[str, str], trait: str) -> str:
    """The chart as SVG: perplexity from left to right on a logarithmic axis, the trait from below, 95 % intervals as lines.

    Args:
        dots: of both runs; none gives no chart.
        names: of the runs.
        trait: name of the measure on the vertical axis.
    """
    if not dots:
        return ""
    across = [value for dot in dots for value in (dot.price, *(dot.price_ends or ())) if value > 0]
    up = [value for dot in dots for value in (dot.trait, *(dot.trait_ends or ()))]
    low_x, high_x = math.log(min(across) / 1.05), math.log(max(across) * 1.05)
    room = 0.05 * (max(up) - min(up)) or 0.01
    low_y, high_y = min(up) - room, max(up) + room

    def x(value: float) -> float:
        return LEFT + (math.log(value) - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low_y) / (high_y - low_y) * (HEIGHT - BOTTOM - TOP)

    parts = [_axes(x, y, (low_x, high_x), (low_y, high_y), trait)]
    for dot in dots:
        parts.append(_dot(dot, x, y))
    for side, name in enumerate(names):
        parts.append(_mark(side, LEFT + 12, TOP + 10 + 18 * side) + f'<text x="{LEFT + 24:.0f}" y="{TOP + 14 + 18 * side:.0f}">{escape(name)}</text>')  # fmt: skip
    said = "; ".join(f"{names[dot.side]} {dot.label}: {trait} {dot.trait:+.3f} at perplexity {dot.price:.2f}" for dot in dots)  # fmt: skip
    return (
        f'<figure><svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(said)}" font-size="12" fill="currentColor">'
        + "".join(parts)
        + "</svg><figcaption>Trait against price. Up is more trait, left is better text; lines are 95 % intervals.</figcaption></figure>"
    )


def _axes(x: Scale, y: Scale, across: tuple[float, float], up: tuple[float, float], trait: str) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="currentColor"/>']
    for tick in (value for value in TICKS if across[0] <= math.log(value) <= across[1]):
        parts.append(f'<path d="M{x(tick):.1f} {bottom}v5" stroke="currentColor"/><text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')  # fmt: skip
    step = 10 ** math.floor(math.log10(up[1] - up[0]))
    step = next(step * share for share in (0.1, 0.2, 0.5, 1.0) if (up[1] - up[0]) / (step * share) <= 8)
    for index in range(math.ceil(up[0] / step), math.floor(up[1] / step) + 1):
        parts.append(f'<path d="M{LEFT} {y(index * step):.1f}h-5" stroke="currentColor"/><text x="{LEFT - 8}" y="{y(index * step) + 4:.1f}" text-anchor="end">{index * step:.3g}</text>')  # fmt: skip
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">perplexity under the original model</text>')  # fmt: skip
    parts.append(f'<text x="14" y="{(TOP + bottom) / 2}" text-anchor="middle" transform="rotate(-90 14 {(TOP + bottom) / 2})">{escape(trait)}</text>')  # fmt: skip
    return "".join(parts)


def _dot(dot: Dot, x: Scale, y: Scale) -> str:
    colour, lines = COLOURS[dot.side], ""
    if dot.price_ends:
        lines += f"M{x(dot.price_ends[0]):.1f} {y(dot.trait):.1f}H{x(dot.price_ends[1]):.1f}"
    if dot.trait_ends:
        lines += f"M{x(dot.price):.1f} {y(dot.trait_ends[0]):.1f}V{y(dot.trait_ends[1]):.1f}"
    path = f'<path d="{lines}" stroke="{colour}" stroke-opacity="0.6" fill="none"/>' if lines else ""
    label = f'<text x="{x(dot.price) + 8:.1f}" y="{y(dot.trait) - 6:.1f}">{escape(dot.label)}</text>'
    return path + _mark(dot.side, x(dot.price), y(dot.trait)) + label


def _mark(side: int, x: float, y: float) -> str:
    """A circle of the first run, a square of the second."""
    if side == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLOURS[0]}"/>'
    return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{COLOURS[1]}"/>'
