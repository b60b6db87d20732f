"""Measures of a token sequence: distinct n-grams and verbatim loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def distinct_n(tokens: Sequence[int], n: int = 3) -> float:
    """Share of n-grams that are different from each other, 0 to 1; 1 for sequences shorter than n."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def loop_share(tokens: Sequence[int]) -> float:
    """Largest share of tokens inside one verbatim loop of any period, 0 to 1.

    A loop of period p is a run of tokens equal to the token p before it; the run counts once it has gone on for a whole
    further period and at least three tokens, and the share includes the first pass. A share-of-repeats measure misses long periods.
    """
    array = np.asarray(tokens)
    longest = 0
    for period in range(1, len(array) // 2 + 1):
        same = array[period:] == array[:-period]
        if np.count_nonzero(same) < max(period, 3):  # no run is as long, as of most periods
            continue
        edges = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8)))
        runs = edges[1::2] - edges[::2]
        if runs.max() >= max(period, 3):
            longest = max(longest, int(runs.max()) + period)
    return longest / len(array) if len(array) else 0.0
