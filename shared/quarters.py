"""The first and the last quarter of a series, as every table, diagnosis and measure takes them."""

from __future__ import annotations


def first_quarter(count: int) -> slice:
    """The first ceil(count / 4) of count values: at least one where there is any."""
    return slice(0, -(-count // 4))


def last_quarter(count: int) -> slice:
    """The slice of the last ceil(count / 4) of count values; at least one unless count is 0."""
    return slice(3 * count // 4, count)
