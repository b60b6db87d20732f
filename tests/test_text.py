"""distinct-n and loops against brute force."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.text import distinct_n, loop_share

tokens = st.lists(st.integers(0, 3), max_size=24)


@given(tokens, st.integers(1, 4))
def test_distinct_n_is_a_share(values: list[int], n: int) -> None:
    grams = {tuple(values[i : i + n]) for i in range(len(values) - n + 1)}
    assert distinct_n(values, n) == (len(grams) / (len(values) - n + 1) if len(values) >= n else 1.0)


def longest_loop(values: list[int]) -> int:
    best = 0
    for start in range(len(values)):
        for end in range(start + 1, len(values) + 1):
            for period in range(1, (end - start) // 2 + 1):
                if end - start - period >= max(period, 3) and all(
                    values[i] == values[i - period] for i in range(start + period, end)
                ):
                    best = max(best, end - start)
    return best


@given(tokens)
def test_loop_share_equals_brute_force(values: list[int]) -> None:
    assert loop_share(values) == (longest_loop(values) / len(values) if values else 0.0)


def test_long_periods_count() -> None:
    sentence = list(range(30))
    assert loop_share([*sentence, *sentence]) == 1.0
    assert loop_share([*range(100), *sentence]) == 0.0
