"""The texts of the page: completions side by side by prompt, and what the filter rejected, with their figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evals.measures.free_text.rows import Generation
from evals.report.borderline import nearest_to_limits
from evals.report.html import render
from evals.round import Round
from shared.console import format_number
from shared.records import Completion

PER_REASON = 3
ORDERS = (("perplexity", "perplexity"), ("trait", "trait"), ("kl", "KL from the original"))
Column = tuple[str, str, Sequence[Generation]]  # stage, heading, one completion a prompt and sample


@dataclass(frozen=True)
class TextCard:
    """One completion. tint: opacity of its colour."""

    kind: str
    heading: str
    text: str
    figures: str
    tint: float = 0.0


@dataclass(frozen=True)
class Sample:
    """A prompt's completions, one a column. figures: those of the last column, by what samples are sorted by."""

    anchor: str
    prompt: str
    number: int
    cards: Sequence[TextCard]
    figures: Mapping[str, float | None]


def of_rounds(rounds: Sequence[Round]) -> list[Column]:
    """base, then each round's steered and healed."""
    columns: list[Column] = []
    for r in rounds:
        for line in r.scores.conditions:
            if line.headline and line.stage in ("base", "steered", "healed"):
                dose = f" at {line.coefficient:.2f}" if line.stage == "steered" and line.coefficient is not None else ""
                heading = "base" if line.stage == "base" else f"round {r.number}, {line.stage}{dose}"
                columns.append((line.stage, heading, r.generations[line.name]))
    return columns


def samples_of(columns: Sequence[Column]) -> list[Sample]:
    """Held-out prompts with their completions, in the order of the first column, whose model is the measure of coherence."""
    by_place = [(stage, heading, {(row.prompt_id, row.sample): row for row in rows}) for stage, heading, rows in columns]  # fmt: skip
    first = columns[0][2]
    usual = [math.log(row.perplexity) for row in first if row.perplexity is not None]
    base = sum(usual) / len(usual) if usual else None
    samples = []
    for index, prompt_row in enumerate(first):
        place = (prompt_row.prompt_id, prompt_row.sample)
        visible = [(stage, heading, rows[place]) for stage, heading, rows in by_place if place in rows]
        cards = [
            TextCard(stage, heading, row.text, figures_of(row), _tint(row, base)) for stage, heading, row in visible
        ]
        last = visible[-1][2]
        figures = {"perplexity": last.perplexity, "trait": _trait(last), "kl": _kl(last)}
        samples.append(Sample(f"text-{index}", prompt_row.prompt, prompt_row.sample, cards, figures))
    return samples


def searchable(samples: Sequence[Sample]) -> Markup:
    """Samples that can be searched and sorted, each with its own link."""
    orders = [order for order in ORDERS if any(sample.figures[order[0]] is not None for sample in samples)]
    return render("samples.html", samples=samples, orders=orders)


def _trait(row: Generation) -> float | None:
    return row.trait_llr if row.llr_opposite is None else row.llr_opposite


def _kl(row: Generation) -> float | None:
    """Of the writing model from the original on its own text, nats per token."""
    return None if row.own_nll is None or row.nll is None or not row.tokens else (row.nll - row.own_nll) / row.tokens


def figures_of(row: Generation | Completion) -> str:
    """The figures under a text: perplexity, trait_llr, KL where it was measured, and how the text ended."""
    figures = [
        f"perplexity {format_number(row.perplexity, 1)}",
        f"trait_llr {format_number(row.trait_llr, 3, signed=True)}",
    ]
    if isinstance(row, Generation) and (kl := _kl(row)) is not None:
        figures.append(f"KL {format_number(kl, 3)}")
    return ", ".join([*figures, f"ended: {row.finish_reason}"])


def _tint(row: Generation, base: float | None) -> float:
    """Opacity, 0 at the base's mean log-perplexity and deepest at five times its perplexity."""
    if base is None or row.perplexity is None:
        return 0.0
    return 0.45 * min(max((math.log(row.perplexity) - base) / math.log(5), 0.0), 1.0)


def _rejected_card(number: int, row: Completion) -> TextCard:
    why = "; ".join(map(str, row.reasons))
    return TextCard(
        "rejected", f"round {number}, coefficient {row.coefficient:g}", row.text, f"{why}. {figures_of(row)}"
    )


def diary(rounds: Sequence[Round]) -> Markup:
    """The rejected sample of the highest dose, round by round: how the model breaks."""
    cards = [
        _rejected_card(r.number, max(r.rejected, key=lambda row: (row.coefficient, row.perplexity or 0.0, row.key)))
        for r in rounds
        if r.rejected
    ]
    return render("folds.html", folds=[("The least coherent completion of each round", cards, True)] if cards else [])


def borderline(rounds: Sequence[Round]) -> Markup:
    """The completions that the filter kept or rejected by the smallest margins."""
    folds = []
    for r in rounds:
        cards = [
            TextCard("healed" if kept else "rejected", f"{'kept' if kept else 'rejected'} at coefficient {row.coefficient:g}", row.text, f"{why}. {figures_of(row)}")
            for row, kept, why in nearest_to_limits(r.kept, r.rejected, r.limits, PER_REASON)
        ]  # fmt: skip
        folds.append((f"Round {r.number}", cards, r is rounds[-1]))
    return render("folds.html", folds=folds)


def rejected(rounds: Sequence[Round]) -> Markup:
    """A few rejected completions per reason, spread over rounds and doses."""
    by_rule: dict[str, list[tuple[int, Completion]]] = {}
    for r in rounds:
        for row in sorted(r.rejected, key=lambda row: (row.coefficient, row.key)):
            for reason in row.reasons:
                by_rule.setdefault(reason.rule, []).append((r.number, row))
    folds = []
    for rule, rows in sorted(by_rule.items(), key=lambda item: -len(item[1])):
        count = min(PER_REASON, len(rows))
        chosen = [rows[round(place * (len(rows) - 1) / max(PER_REASON - 1, 1))] for place in range(count)]
        folds.append((f"{rule} ({len(rows)})", [_rejected_card(*sample) for sample in chosen], False))
    return render("folds.html", folds=folds)
