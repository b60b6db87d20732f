"""What a scan over layers comes to: a row a place, the table, and the layer that is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gen.scoring import Score
from shared.commands import setting
from shared.console import format_number, print_table
from shared.vectors import Vector

DEAREST = 2.0  # times the unsteered perplexity: where the verdict on coherence begins to say degraded


@dataclass(frozen=True)
class Place:
    """Where a scan steers. relative_dose: mean over the layers of |c| * ||v|| / mean ||h||."""

    name: str
    vector: Vector | None
    coefficient: float = 0.0
    relative_dose: float = 0.0

    @property
    def layers(self) -> list[int]:
        """The steered layers, ascending; empty for the unsteered place."""
        return sorted(self.vector.layers) if self.vector else []


@dataclass(frozen=True)
class ScanRow:
    """What a place came to. Nats per token; d_: less the unsteered, error: standard error over the prompts. None where not finite."""

    name: str
    layers: list[int]
    coefficient: float
    relative_dose: float
    split_half_cosine: float | None
    trait_llr: float | None
    d_trait_llr: float | None
    d_trait_llr_error: float | None
    ln_perplexity: float | None
    d_ln_perplexity: float | None
    distinct_3: float | None
    empty: int


def row_of(place: Place, scores: Sequence[Score], unsteered: Sequence[Score], samples: int) -> ScanRow:
    """The figures of one scanned place: means over its completions, and the change against the unsteered ones."""
    llr, unsteered_llr = _by_prompt(scores, samples), _by_prompt(unsteered, samples)
    both = np.isfinite(llr) & np.isfinite(unsteered_llr)
    gap = (llr - unsteered_llr)[both]
    level, price, before = _mean(scores), _ln_perplexity(scores), _ln_perplexity(unsteered)
    steered = place.vector is not None and level is not None
    cosines = place.vector.metadata.get("split_half_cosine", {}) if place.vector else {}
    known = [cosine for layer in place.layers if (cosine := cosines.get(str(layer))) is not None]
    distinct = [one.distinct_3 for one in scores if one.distinct_3 is not None]
    return ScanRow(
        place.name,
        place.layers,
        place.coefficient,
        place.relative_dose,
        float(np.mean(known)) if known else None,
        level,
        float(gap.mean()) if steered and len(gap) else None,
        float(gap.std(ddof=1) / len(gap) ** 0.5) if steered and len(gap) > 1 else None,
        price,
        price - before if steered and price is not None and before is not None else None,
        float(np.mean(distinct)) if distinct else None,
        sum(one.tokens == 0 for one in scores),
    )


def _by_prompt(scores: Sequence[Score], samples: int) -> np.ndarray:
    """Mean trait_llr of each prompt's completions that have one; NaN where none has."""
    values = np.array([np.nan if one.trait_llr is None else one.trait_llr for one in scores]).reshape(-1, samples)
    count = np.isfinite(values).sum(1)
    return np.where(count > 0, np.nansum(values, 1) / np.maximum(count, 1), np.nan)


def _mean(scores: Sequence[Score]) -> float | None:
    non_empty = [one for one in scores if one.tokens]
    if not non_empty or any(one.trait_llr is None for one in non_empty):
        return None
    return float(np.mean([one.trait_llr for one in non_empty]))


def _ln_perplexity(scores: Sequence[Score]) -> float | None:
    non_empty = [one for one in scores if one.tokens]
    if not non_empty or any(one.nll is None for one in non_empty):
        return None
    return sum(one.nll or 0.0 for one in non_empty) / sum(one.tokens for one in non_empty)


def best(rows: Sequence[ScanRow]) -> ScanRow | None:
    """The row with the largest gain of trait_llr over the unsteered row.

    A row counts if its perplexity is at most twice the unsteered one, and its gain is above two standard errors. None where none counts.
    """
    known = [
        (row.d_trait_llr, row)
        for row in rows
        if row.d_trait_llr is not None
        and row.d_ln_perplexity is not None
        and row.d_ln_perplexity <= np.log(DEAREST)
        and row.d_trait_llr > 2 * (row.d_trait_llr_error or 0.0)
    ]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def sentence(rows: Sequence[ScanRow]) -> str:
    """The layer with the largest gain in trait_llr at a bearable perplexity, in a sentence."""
    best_row = best(rows)
    if best_row is None:
        return f"no layer gains trait_llr by two standard errors at a perplexity within {DEAREST:g} times the unsteered: try another --relative-dose, or more --prompts"
    layers = ",".join(map(str, best_row.layers))
    return f"most trait_llr at a perplexity within {DEAREST:g} times the unsteered: {best_row.name}, {best_row.d_trait_llr:+.3f} nats per token (s.e. {format_number(best_row.d_trait_llr_error, 3)}); a run with it: {setting(f'vector.layers=[{layers}]')}"


def show(rows: Sequence[ScanRow], dose: float, prompts: int) -> None:
    """Print the table of layers, each at the same relative dose, and the answer."""
    print_table(
        f"every layer at a relative dose of {dose:g}, {prompts} prompts",
        ["layers", "coefficient", "relative dose", "split-half cosine", "trait_llr", "over unsteered", "s.e.", "ln perplexity", "over unsteered", "distinct-3"],
        [
            [
                row.name,
                row.coefficient,
                row.relative_dose,
                row.split_half_cosine,
                format_number(row.trait_llr, 3, True),
                format_number(row.d_trait_llr, 3, True),
                format_number(row.d_trait_llr_error, 3),
                row.ln_perplexity,
                format_number(row.d_ln_perplexity, 3, True),
                row.distinct_3,
            ]
            for row in rows
        ],
    )  # fmt: skip
