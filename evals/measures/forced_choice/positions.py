"""What the listing of the options does to the answers: order effect, the bias that orders remove, split-half reliability.

All from lp [n, orders, samples, 7] of one condition. clr is a row's scores minus their mean over the seven, nats.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np

from evals.intervals import estimate_of, mean_of
from evals.measures.forced_choice.instrument import orders
from evals.statistics import AUTHORITY, ROUNDING, Answers, Estimate, clr, estimate, mean, resample


def single_orders(answers: Answers) -> np.ndarray:
    """clr of each order alone, over the scorable items: [m, orders, 7], canonical order of the foundations, nats."""
    from scipy.special import logsumexp  # scipy takes a second to import, which a refusal does not wait for

    return clr(logsumexp(answers.lp[answers.scorable], axis=2) - np.log(answers.lp.shape[2]))


def clr_by_position(answers: Answers) -> np.ndarray:
    """The same by where an option was listed: [m, orders, 7 positions], nats."""
    listings = np.array(_listings(answers))[answers.scorable]
    return np.asarray(np.take_along_axis(single_orders(answers), listings, axis=2))


def _listings(answers: Answers) -> list[list[list[int]]]:
    """The orders of every item, [n, orders, 7]."""
    turned = answers.setting.rotations or (None,) * len(answers.truth)
    return [orders(answers.setting.debias, rotation) for rotation in turned]


def order_effect(answers: Answers) -> float | None:
    """Largest difference of mean clr between two listed positions that held the same foundations, nats, in single orders.

    These are any two positions under cyclic orders, and mirrored ones under reversal and rotating: within an item the foundations
    cancel and position is left.
    """
    if not answers.scorable.any():
        return None
    means = clr_by_position(answers).mean(axis=(0, 1))
    sorted_shares = np.sort(
        np.array(_listings(answers)[0]), axis=0
    ).T  # by position; the pairs that are alike are the same in every item
    return max(
        abs(float(means[j] - means[k]))
        for j in range(len(sorted_shares))
        for k in range(j)
        if (sorted_shares[j] == sorted_shares[k]).all()
    )


def position_effect(answers: Answers) -> list[float] | None:
    """Mean clr at each of the seven places of the list, in nats, under cyclic orders.

    Every place held every foundation once, so that the foundations cancel out. None with fewer than two orders per item: place and
    foundation cannot be separated then.
    """
    if answers.setting.debias != "cyclic" or not answers.scorable.any():
        return None
    return [float(value) for value in clr_by_position(answers).mean(axis=(0, 1))]


def left_by_reversal(answers: Answers) -> Estimate | None:
    """The position effect that reversal would have left in authority's clr, nats; cyclic orders remove it.

    Reversal puts foundation f at positions f and 6 - f, so half the sum of their effects stays: for authority, option 3 in
    both orders, all of it.
    """
    if answers.setting.debias != "cyclic" or not answers.scorable.any():
        return None
    places = clr_by_position(answers).mean(axis=1)
    pairs = (places[:, AUTHORITY] + places[:, places.shape[1] - 1 - AUTHORITY]) / 2
    return estimate_of(mean_of(pairs), answers.truth[answers.scorable])


def reliability(answers: Answers, count: int, seed: int) -> Estimate | None:
    """Split-half reliability of the items' clr on authority: the correlation over items between the means of two halves of the
    orders, averaged over all splits and stepped up to full length (Spearman 1910; Brown 1910). 1 is an item measured without noise;
    near 0 the differences between items are noise, whatever the width of a mean's interval. A negative correlation is left as it is:
    stepped up it would have no lower bound. None where an item never differs."""
    keep = answers.scorable
    if keep.sum() < 3:
        return None
    values = single_orders(answers)[:, :, AUTHORITY]
    halves = [
        (values[:, list(half)].mean(1), values[:, list(other)].mean(1)) for half, other in _splits(values.shape[1])
    ]

    def statistic(weights: np.ndarray) -> np.ndarray:
        r = np.mean([_correlation(weights, x, y) for x, y in halves], axis=0)
        return np.where(r > 0, 2 * r / (1 + r), r)

    return estimate(statistic, resample(answers.truth[keep], count, seed))


@cache
def _splits(size: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every division of the orders into two halves, once; of an odd number one half is the longer."""
    splits = []
    for half in combinations(range(size), size // 2):
        other = tuple(k for k in range(size) if k not in half)
        if size % 2 or half < other:
            splits.append((half, other))
    return splits


def _correlation(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r under each row of weights [r, n]; NaN where x or y never differs, beyond rounding."""
    mean_x, mean_y = mean(weights, x), mean(weights, y)
    covariance = mean(weights, x * y) - mean_x * mean_y
    square_x, square_y = mean(weights, x**2), mean(weights, y**2)
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    differ = (variance_x > ROUNDING * square_x) & (variance_y > ROUNDING * square_y)
    return np.where(differ, covariance / np.sqrt(np.where(differ, variance_x * variance_y, 1)), np.nan)
