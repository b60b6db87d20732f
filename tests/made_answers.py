"""Made-up score rows of the forced choice with a known truth: an axis or none, a shift of authority, a position effect, an answer mass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax
from synthetic_run import vignettes

from evals.measures.forced_choice.answers import answers
from evals.measures.forced_choice.ask import Read, row
from evals.measures.forced_choice.instrument import orders, rotations_of
from evals.measures.forced_choice.rows import ScoreRow
from evals.statistics import AUTHORITY, Answers

SOCIAL = 6


def human(per: int = 4, seed: int = 0, signal: float = 2.5) -> np.ndarray:
    """Logits [7 * per, 7] of a model that can do the task: drawn to the item's own foundation, and a little to "not wrong"."""
    draws = np.random.default_rng(seed)
    found = draws.normal(0, 0.6, (7 * per, 7))
    found[np.arange(7 * per), np.repeat(np.arange(7), per)] += signal
    return found


def shifted(logits: np.ndarray, delta: float, noise: float = 0.3, seed: int = 1, option: int = AUTHORITY) -> np.ndarray:
    """Logits with one option moved by delta, and noise of its own on every item's seven."""
    found = logits + np.random.default_rng(seed).normal(0, noise, logits.shape) if noise else logits.copy()
    found[:, option] += delta
    return found


def made(
    logits: np.ndarray,
    debias: str = "rotating",
    mass: float | np.ndarray = 0.8,
    slots: np.ndarray | None = None,
    **also: Any,
) -> list[dict[str, Any]]:
    """Score rows through the scorer's own row function.

    Args:
        logits: [7 * per, 7], nats, the items in the order of the foundations.
        mass: answer mass, one or one an item.
        slots: [7], nats that stand at each listed position on top.
        also: further fields of every row, as name or coefficient.
    """
    items = vignettes(len(logits) // 7)
    masses = np.broadcast_to(mass, len(logits))
    rows = []
    for vignette, rotation, score, share in zip(items, rotations_of(debias, items), logits, masses, strict=True):
        listings = orders(debias, rotation)
        lp = np.empty((len(listings), 1, 7))
        for order, listing in enumerate(listings):
            placed = score.copy()
            if slots is not None:
                placed[listing] += slots
            lp[order, 0] = log_softmax(placed) + np.log(share)
        texts = [""] * len(listings)
        rows.append({**row(vignette, lp, Read(debias, 4), None, texts, None, rotation), "instrument": "made@0", **also})
    return rows


def read(rows: list[dict[str, Any]]) -> Answers:
    """The rows as arrays."""
    return answers([ScoreRow.model_validate(one) for one in rows], Path("made"), "")
