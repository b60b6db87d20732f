"""Seven labels' log-probabilities, by order and sample, made into one answer: score, p and answer mass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Answer(NamedTuple):
    """score [7] is the mean over orders of the log-probabilities, nats; p [7] its softmax; mass what the seven labels have together, mean
    over orders. Canonical order of the foundations."""

    score: np.ndarray
    p: np.ndarray
    mass: float


def answer_of(lp: np.ndarray) -> Answer:
    """The answer of lp [orders, samples, 7], canonical order, nats; all NaN where one of them is not finite.

    N samples of an order are logsumexp over samples minus ln N.
    """
    from scipy.special import logsumexp, softmax  # scipy takes a second to import, which a refusal does not wait for

    if not np.isfinite(lp).all():
        nothing = np.full(lp.shape[2], np.nan)
        return Answer(nothing, nothing, float("nan"))
    by_order = logsumexp(lp, axis=1) - np.log(lp.shape[1])
    score = by_order.mean(axis=0)
    return Answer(score, softmax(score), float(np.exp(by_order).sum(axis=1).mean()))
