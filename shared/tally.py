"""Sums over the completions of a sweep by coefficient, as filter.json has them: the filter makes them, and a report checks them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.records import Completion
from shared.vectors import Vector


@dataclass
class CoefficientSums:
    """Sums over the completions of one coefficient; full are those with tokens, nll is in nats."""

    n: int = 0
    kept: int = 0
    full: int = 0
    tokens: int = 0
    nll: float = 0.0
    distinct_3: float = 0.0
    trait_llr: float = 0.0


class Tally:
    """A judged sweep by coefficient: a few sums each, however many rows."""

    def __init__(self) -> None:
        self.groups: dict[
            tuple[float, bool], CoefficientSums
        ] = {}  # by coefficient, and whether under the trait prompt

    def add(self, row: Completion, kept: bool) -> None:
        """Count a row; only a row with every measure counts in the means."""
        group = self.groups.setdefault((row.coefficient, row.prompted), CoefficientSums())
        group.n += 1
        group.kept += kept
        if row.perplexity is not None and row.distinct_3 is not None and row.trait_llr is not None:
            group.full += 1
            group.tokens += len(row.completion_ids)
            group.nll += len(row.completion_ids) * math.log(row.perplexity)
            group.distinct_3 += row.distinct_3
            group.trait_llr += row.trait_llr

    def merge(self, other: Tally) -> None:
        """Add the sums over other rows."""
        for condition, sums in other.groups.items():
            group = self.groups.setdefault(condition, CoefficientSums())
            for name, value in vars(sums).items():
                setattr(group, name, getattr(group, name) + value)

    def lines(self, vector: Vector | None = None) -> list[dict[str, Any]]:
        """By coefficient, ascending, the fields of shared.filter_record.SweepLine."""
        lines = []
        for (coefficient, prompted), group in sorted(self.groups.items()):
            dose = list(vector.relative_dose(coefficient).values()) if vector else []
            lines.append(
                {
                    "coefficient": coefficient,
                    "n": group.n,
                    "kept": group.kept,
                    "perplexity": math.exp(group.nll / group.tokens) if group.full else None,
                    "distinct_3": group.distinct_3 / group.full if group.full else None,
                    "trait_llr": group.trait_llr / group.full if group.full else None,
                    "relative_dose": float(np.mean(dose)) if dose else None,
                    **({"prompted": True} if prompted else {}),
                }
            )
        return lines
