"""A sweep by coefficient, as the filter sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.records import Completion
from shared.vectors import Vector


@dataclass
class Group:
    """Sums over the completions of one coefficient; full are those with tokens, nll is in nats."""

    n: int = 0
    kept: int = 0
    full: int = 0
    tokens: int = 0
    nll: float = 0.0
    distinct_3: float = 0.0
    trait_llr: float = 0.0


class Tally:
    """A sweep by coefficient: a few sums each, however many rows."""

    def __init__(self) -> None:
        self.groups: dict[float, Group] = {}

    def add(self, row: Completion, kept: bool) -> None:
        group = self.groups.setdefault(row.coefficient, Group())
        group.n += 1
        group.kept += kept
        if row.perplexity is not None and row.distinct_3 is not None and row.trait_llr is not None:
            group.full += 1
            group.tokens += len(row.completion_ids)
            group.nll += len(row.completion_ids) * math.log(row.perplexity)
            group.distinct_3 += row.distinct_3
            group.trait_llr += row.trait_llr

    def lines(self, vector: Vector | None = None) -> list[dict[str, Any]]:
        """By coefficient: n, kept, perplexity (exp of the token-weighted mean nll), mean distinct_3 and trait_llr, relative_dose."""
        lines = []
        for coefficient, group in sorted(self.groups.items()):
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
                }
            )
        return lines
