"""Score rows read back as arrays, with the setting they were scored in: from a file of `evals.score` or a condition of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.measures.forced_choice.instrument import ORDERS, rotations
from evals.measures.forced_choice.levels import condition_levels
from evals.measures.forced_choice.rows import ScoreRow
from evals.statistics import Answers, Setting
from shared.errors import SteerHealError
from shared.instrument import FOUNDATIONS, foundation_of

SIZE = len(FOUNDATIONS)
UNKNOWN = [float("nan")] * SIZE


def answers(rows: Sequence[ScoreRow], source: Path, again: str) -> Answers:
    """The answers of one condition as arrays.

    Args:
        rows: of the condition, one per item.
        source: the file they come from, for the error.
        again: the command that makes this file, for the error.

    Raises:
        SteerHealError: rows of mixed settings, or lp that is not seven numbers in every order.
    """
    lp = [row.lp for row in rows]
    try:
        values = np.array(lp, dtype=float)
    except ValueError:  # ragged
        values = np.empty(0)
    if len({row.free_valid is None for row in rows}) > 1:
        raise refuse_answers(source, "free_valid of some rows alone", "free_valid of every row, or of none", again)
    settings = {
        (
            row.debias,
            row.think_tokens,
            row.stop,
            row.temperature,
            row.instrument,
            row.top_k,
            row.model,
            row.dtype,
            row.template,
        )
        for row in rows
    }
    if len(settings) != 1:
        raise refuse_answers(source, f"rows scored in {len(settings)} ways", "one setting", again)
    unrated = [row.id for row in rows if row.label is None]
    if unrated and len(unrated) < len(rows):
        mixture = f"{len(rows) - len(unrated)} vignettes that people have rated and {len(unrated)} that nobody has, as {unrated[0]}"
        raise refuse_answers(source, mixture, "vignettes that are all rated, or none of them", again)
    if len({row.rotation is None for row in rows}) > 1:
        raise refuse_answers(source, "rotation of some rows alone", "rotation of every row, or of none", again)
    debias, think, stop, temperature, instrument, top_k, model, dtype, template = settings.pop()
    listings = ORDERS[debias]
    if values.ndim != 4 or values.shape[:2] != (len(rows), listings) or values.shape[3] != SIZE or not values.shape[2]:
        raise refuse_answers(
            source, f"lp of shape {values.shape}", f"[items, {listings} orders, samples, {SIZE}]", again
        )
    truth = [_foundation(row.foundation, source, again) for row in rows]
    setting = Setting(
        tuple(row.id for row in rows),
        tuple(row.text for row in rows),
        debias,
        listings,
        think,
        stop,
        values.shape[2],
        temperature,
        instrument,
        top_k,
        model,
        dtype,
        tuple(row.foundation for row in rows),
        tuple(None if row.label is None else tuple(row.label) for row in rows),
        template,
        tuple(row.rotation for row in rows) if rows[0].rotation is not None else tuple(rotations(debias, truth)),
    )
    return Answers(
        setting,
        np.array(truth),
        np.array([row.p or UNKNOWN for row in rows]),
        np.array([row.score or UNKNOWN for row in rows]),
        _column([row.pmass_allowed for row in rows]),
        values,
        np.array([row.label or UNKNOWN for row in rows]),
        _column([row.nll_prefill for row in rows]),
        _column([row.free_valid for row in rows]),
    )


def point_estimates(rows: Sequence[dict[str, Any]], source: Path) -> dict[str, float]:
    """auth_nats, care_nats, answer_mass and informedness of rows as evals.measures.forced_choice.ask gives them, without intervals, NaN where
    undefined; and how many are unscorable."""
    of_rows = answers([ScoreRow.model_validate(row) for row in rows], source, "python -m evals.score --help")
    level = condition_levels(of_rows, 1, 0)
    names = {
        "auth_nats": "auth_nats",
        "care_nats": "care_nats",
        "p_ans_any": "answer_mass",
        "informedness": "informedness",
    }
    values = {name: float("nan") if (value := level[key]) is None else value.value for key, name in names.items()}
    return {**values, "unscorable": float((~of_rows.scorable).sum())}


def _column(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _foundation(label: str, source: Path, again: str) -> int:
    if (index := foundation_of(label)) is None:
        raise refuse_answers(source, f"foundation {label!r}", f"one of {', '.join(FOUNDATIONS)}", again)
    return index


def refuse_answers(path: Path, given: str, expected: str, again: str) -> SteerHealError:
    """The error of a file of scores. again: the command that makes a good one."""
    return SteerHealError("a file of scores could not be used", given=f"{path}: {given}", expected=expected, next=again)
