"""A round's training in the report: the curves of its log, and the tokens its barrier punishes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evals.report.figure import png, styled
from evals.round import Round
from evals.rows import TokenRow
from shared.divergences import DIVERGENCES, has_barrier
from shared.records import Training

BLACK, BLUE, ORANGE, GREEN, GREY = "#000000", "#0072B2", "#D55E00", "#009E73", "#808080"  # Okabe and Ito's, and grey


def curves(rounds: Sequence[Round]) -> bytes:
    """A PNG with a row of three panels per round: cross-entropy, divergence with tau, and the barrier's part."""
    figure = Figure(figsize=(9.6, 2.6 * len(rounds)), layout="constrained")
    for row, r in zip(figure.subplots(len(rounds), 3, squeeze=False), rounds, strict=True):
        _learning(row[0], r)
        _divergence(row[1], r)
        _barrier(row[2], r)
        for axes in row:
            axes.set_xlabel("optimiser step", fontsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            styled(axes, 8)
            axes.legend(fontsize=7, frameon=False)
    return png(figure, 160)


def _learning(axes: Axes, r: Round) -> None:
    axes.plot(
        [step.step for step in r.steps], [step.ce for step in r.steps], color=BLUE, linewidth=1.1, label="trained on"
    )
    axes.plot([row.step for row in r.heldout], [row.heldout_ce for row in r.heldout], "o-", color=ORANGE, markersize=4, linewidth=1.1, label="held out")  # fmt: skip
    axes.set_title(f"round {r.number}: cross-entropy (nats)", loc="left", fontsize=9)


def _divergence(axes: Axes, r: Round) -> None:
    looks = {"p95": (GREY, ":"), "rmse": (GREEN, "-"), "mean": (BLACK, "--")}
    for kind, (colour, line) in looks.items():
        values = [getattr(step, f"kl_{r.training.reference}_{kind}") for step in r.steps]
        axes.plot([step.step for step in r.steps], values, line, color=colour, linewidth=1.1, label=kind)
    if has_barrier(r.training.divergence):
        axes.axhline(r.training.tau, color=ORANGE, linewidth=0.9, label="tau")
    axes.set_title(
        f"{DIVERGENCES[r.training.divergence].symbol} to {_reference(r.training)} (nats)", loc="left", fontsize=9
    )


def _barrier(axes: Axes, r: Round) -> None:
    axes.plot([step.step for step in r.steps], [step.gradient_ratio for step in r.steps], color=GREEN, linewidth=1.1, label="gradient, barrier / cross-entropy")  # fmt: skip
    axes.plot([step.step for step in r.steps], [step.fired for step in r.steps], ".", color=ORANGE, markersize=3, label="fired")  # fmt: skip
    axes.set_title("barrier", loc="left", fontsize=9)


def _reference(training: Training) -> str:
    return "the original" if training.reference == "base" else "the previous student"


def strips(rounds: Sequence[Round]) -> str:
    """HTML: completions of every round as text, each token the deeper in colour the more nats of KL it has; all text is escaped."""
    parts = []
    for r in rounds:
        name = _reference(r.training)
        body = "".join(_strip(row, r.training) for row in r.tokens)
        parts.append(
            f"<details{' open' if r is rounds[-1] else ''}><summary>Round {r.number}: {DIVERGENCES[r.training.divergence].symbol} per token to {name}</summary>{body}</details>"
        )
    note = "<p class='note'>Completions trained on, from the highest KL at one token to the lowest. Colour deepens with KL / (KL + 1 nat); outlined tokens have a KL above tau; the barrier acts on D, their aggregate over a micro-batch. Hover for the figures.</p>"
    return "\n".join(parts) + note


def _strip(row: TokenRow, training: Training) -> str:
    spans = []
    for token, ce, base, previous in zip(row.tokens, row.ce, row.kl_base, row.kl_previous, strict=True):
        kl = max(base if training.reference == "base" else previous, 0.0)
        title = f"{DIVERGENCES[training.divergence].symbol} to the original {base:.3f}, to the previous student {previous:.3f}, cross-entropy {ce:.3f}"
        kind = ' class="over"' if has_barrier(training.divergence) and kl > training.tau else ""
        text = escape(token.encode("utf-8", "replace").decode("utf-8")).replace("\n", "&#8629;<br>")
        spans.append(f'<span{kind} title="{title}" style="background:rgba(213,94,0,{kl / (kl + 1):.2f})">{text}</span>')
    return f'<p class="strip">{"".join(spans)}</p><div class="figures">{escape(row.key)}</div>'
