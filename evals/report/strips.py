"""The tokens of completions that were trained on, each with the divergence that the barrier acts on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from evals.report.figures.training import reference_words
from evals.report.html import render
from evals.round import Round
from evals.rows import TokenRow
from shared.divergences import DIVERGENCES, has_barrier
from shared.records import Training

DEEPEST = 0.7  # opacity at which text on the colour still has a contrast of 4.5


def strips(rounds: Sequence[Round]) -> Markup:
    """Completions of every round as text, each token the deeper in colour the more nats of KL it has."""
    completions = [
        {
            "number": r.number,
            "symbol": DIVERGENCES[r.training.divergence].symbol,
            "reference": reference_words(r.training),
            "rows": [{"key": row.key, "tokens": _tokens(row, r.training)} for row in r.tokens],
        }
        for r in rounds
    ]
    return render("strips.html", rounds=completions)


def _tokens(row: TokenRow, training: Training) -> list[dict[str, Any]]:
    tokens = []
    symbol, barred = DIVERGENCES[training.divergence].symbol, has_barrier(training.divergence)
    for token, ce, base, previous in zip(row.tokens, row.ce, row.kl_base, row.kl_previous, strict=True):
        kl = max(base if training.reference == "base" else previous, 0.0)
        title = f"{symbol} to the original {base:.3f}, to the previous student {previous:.3f}, cross-entropy {ce:.3f}"
        depth = min(kl / (kl + 1), DEEPEST)
        tokens.append(
            {"lines": token.split("\n"), "title": title, "depth": depth, "over": barred and kl > training.tau}
        )
    return tokens
