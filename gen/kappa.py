"""How far the filter agrees with a person: precision, recall and Cohen's kappa from a stratified sample of kept and rejected rows.

N_k kept and N_r rejected rows were sampled from, so that a kept row has the weight w = N_k / (N_k + N_r). With p the share of the kept
that the person would keep, and q that of the rejected,

    precision = p,   recall = w p / (w p + (1 - w) q),   kappa = (a - e) / (1 - e)

with agreement a = w p + (1 - w) (1 - q), b = w p + (1 - w) q and agreement by chance e = w b + (1 - w) (1 - b).
Intervals are the central 95 % of these under Jeffreys' posterior of p and q, Beta(y + 1/2, n - y + 1/2): shares of 0 and 1, which
25 rows easily give, have intervals too. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWS = 20_000
LEVEL = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True)
class Sampled:
    """One side of the filter: rows there are, labelled ones among them, and those of the labelled that the person would keep."""

    size: int
    labelled: int
    positive: int

    @property
    def share(self) -> float:
        """Share of the labelled rows that the person would keep. Raises ZeroDivisionError without labelled rows."""
        return self.positive / self.labelled

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Shares [DRAWS] from Jeffreys' posterior."""
        return generator.beta(self.positive + 0.5, self.labelled - self.positive + 0.5, DRAWS)


@dataclass(frozen=True)
class PersonAgreement:
    """Three figures with their intervals; recall is None where the person would keep nothing, kappa where chance alone agrees."""

    precision: float
    precision_ci: Interval
    recall: float | None
    recall_ci: Interval
    kappa: float | None
    kappa_ci: Interval


def filter_agreement(kept: Sampled, rejected: Sampled, seed: int = 0) -> PersonAgreement:
    """The filter against a person. Raises ValueError for a side with no labelled row.

    Args:
        kept, rejected: the labelled rows of either side, with how many the person would keep.
        seed: of the resamples.
    """
    if not (kept.labelled and rejected.labelled):
        raise ValueError("a side of the filter has no labelled row")
    weight = kept.size / (kept.size + rejected.size)
    generator = np.random.default_rng(seed)
    drawn = _figures(kept.draw(generator), rejected.draw(generator), weight)
    point = _figures(np.array([kept.share]), np.array([rejected.share]), weight)
    values = [float(figure[0]) if np.isfinite(figure[0]) else None for figure in point]
    precision, recall, kappa = (_central(figure) for figure in drawn)
    return PersonAgreement(kept.share, precision, values[1], recall, values[2], kappa)


def _figures(p: np.ndarray, q: np.ndarray, weight: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and kappa [n] of shares p and q [n]; NaN where one is not defined."""
    person = weight * p + (1 - weight) * q
    agree = weight * p + (1 - weight) * (1 - q)
    chance = weight * person + (1 - weight) * (1 - person)
    with np.errstate(invalid="ignore", divide="ignore"):
        return p, weight * p / person, (agree - chance) / (1 - chance)


def _central(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
