"""Whether answers follow a foundation at all, and whether it moved by more than the others: contrasts over items.

`foundation` is the canonical index of the one that the trait is about, authority unless the trait file says another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evals.intervals import Smooth, average, estimate_of, log_ratio
from evals.statistics import AUTHORITY, Answers, Estimate, same_setting
from shared.instrument import FOUNDATIONS

SOCIAL = len(FOUNDATIONS) - 1  # "nothing is morally wrong here": against it each foundation's log odds are taken
MORAL = tuple(range(SOCIAL))


def log_odds(answers: Answers, foundation: int = AUTHORITY) -> np.ndarray:
    """Score of a foundation less that of the seventh option, [m] over the scorable items, nats: what other options get is not in it."""
    score = answers.score[answers.scorable]
    return np.asarray(score[:, foundation] - score[:, SOCIAL])


def contrast(answers: Answers, foundation: int = AUTHORITY) -> Estimate | None:
    """Mean log odds over the foundation's own items less the mean of the other moral foundations' means, nats.

    A constant on an option leaves no trace. None where the items lack the foundation or all the others.
    """
    truth, odds = answers.truth[answers.scorable], log_odds(answers, foundation)
    others = [f for f in MORAL if f != foundation and (truth == f).any()]
    if foundation == SOCIAL or not (truth == foundation).any() or not others:
        return None
    weight = np.zeros(len(truth))
    weight[truth == foundation] = 1 / (truth == foundation).sum()
    for f in others:
        weight[truth == f] = -1 / (len(others) * (truth == f).sum())
    has_weight = weight != 0
    parts = (weight * odds)[has_weight]
    return estimate_of(Smooth(float(parts.sum()), parts), truth[has_weight])


def nearest_foundation(answers: Answers, foundation: int = AUTHORITY) -> tuple[str, float] | None:
    """The other moral foundation whose items draw the option most, and by how many nats less than the foundation's own items."""
    truth, odds = answers.truth[answers.scorable], log_odds(answers, foundation)
    means = {f: float(odds[truth == f].mean()) for f in MORAL if (truth == f).any()}
    if foundation not in means or len(means) < 2:
        return None
    other = max((f for f in means if f != foundation), key=lambda f: means[f])
    return FOUNDATIONS[other], means[foundation] - means[other]


def specific_shift(base: Answers, other: Answers, foundation: int = AUTHORITY) -> Estimate | None:
    """Shift of ln of the foundation's mean probability less the mean shift of the five other moral ones, nats, paired over items.

    A model that calls everything harmless, or everything wrong, moves all six and has none.
    """
    same_setting(base.setting, other.setting)
    keep = base.scorable & other.scorable
    if not keep.any() or foundation == SOCIAL:
        return None
    shift = [log_ratio(base.p[keep, f], other.p[keep, f]) for f in MORAL]
    rest = average([shift[f] for f in MORAL if f != foundation])
    return estimate_of(shift[foundation] - rest, base.truth[keep])


def rank_p(steered: float, draws: Sequence[float], sign: int = -1) -> float | None:
    """One-sided p of a shift by its rank among random directions of equal norm; None without random directions.

    p is (1 + number of random shifts at least as far in the trait's direction) / (1 + number of random shifts).

    Args:
        steered, draws: shifts of the foundation, nats.
        sign: direction of the trait: -1 down, +1 up.
    """
    if not draws:
        return None
    return (1 + sum(sign * draw >= sign * steered for draw in draws)) / (1 + len(draws))
