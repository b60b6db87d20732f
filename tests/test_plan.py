"""The lazy plan of a sweep: keys, seeds, windows, and that nothing of the size of the plan is held."""

from __future__ import annotations

import inspect
import re
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen import sweep
from gen.plan import plan, spread_prompts, windows
from shared.errors import SteerHealError
from shared.records import Prompt

IDS = st.lists(st.sampled_from(["a", "b", None, "a/1/0"]), min_size=1, max_size=5)
COEFFICIENTS = st.lists(st.floats(-3, 3).map(lambda c: float(f"{c:g}") + 0.0), min_size=1, max_size=4, unique=True)


def prompts(ids: list[str | None]) -> list[Prompt]:
    return [Prompt(id=i, prompt=f"x{index}") for index, i in enumerate(ids)]


@given(IDS, COEFFICIENTS, st.integers(1, 3))
def test_keys_are_unique_and_seeds_depend_on_the_key_alone(
    ids: list[str | None], coefficients: list[float], samples: int
) -> None:
    rows = list(plan(prompts(ids), coefficients, samples, "0/1"))
    assert len({row.key for row in rows}) == len(rows) == len(ids) * len(coefficients) * samples
    assert {row.key: row.seed for row in rows} == {
        row.key: row.seed for row in plan(prompts(ids), coefficients[::-1], samples, "0/1")
    }
    assert all(0 <= row.seed < 2**31 for row in rows)
    assert all(
        row.seed != other.seed
        for row, other in zip(rows, plan(prompts(ids), coefficients, samples, "1/1"), strict=True)
    )


@given(IDS, COEFFICIENTS, st.integers(1, 3), st.integers(1, 70))
def test_windows_partition_the_plan(ids: list[str | None], coefficients: list[float], samples: int, size: int) -> None:
    eager = [
        (f"{index:05d}-{i or 'prompt'}/{c:g}/{sample}", f"x{index}", index, c, sample)
        for index, i in enumerate(ids)
        for c in coefficients
        for sample in range(samples)
    ]
    cut = list(windows(plan(iter(prompts(ids)), coefficients, samples, "0"), size))
    assert [
        (row.key, row.prompt.prompt, row.index, row.coefficient, row.sample) for window in cut for row in window
    ] == eager
    assert all(len(window) == size for window in cut[:-1]) and 0 < len(cut[-1]) <= size


def test_a_large_plan_is_never_held() -> None:
    def many() -> Iterator[Prompt]:
        for index in range(20_000):
            yield Prompt(id=f"p{index}", prompt=f"What about {index}? " * 10)

    tracemalloc.start()
    try:
        rows = sum(len(window) for window in windows(plan(many(), [0.0, 1.0, 2.0, 3.0, 4.0], 1, "0"), 1024))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 100_000 and peak < 3 * 2**20, f"{peak / 2**20:.1f} MiB"


def test_coefficients_that_share_a_key_are_refused() -> None:
    with pytest.raises(SteerHealError, match="1 twice"):
        plan(prompts(["a"]), [1.0, 1.00000001], 1, "0")


@given(st.integers(1, 60), st.integers(1, 60))
def test_prompts_of_a_probe_are_spread(total: int, count: int) -> None:
    chosen = [index for index, _ in spread_prompts(prompts([None] * total), total, count)]
    assert len(chosen) == len(set(chosen)) == min(total, count) and chosen[0] == 0
    gaps = [b - a for a, b in zip(chosen, [*chosen[1:], total], strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_the_steps_of_a_sweep_are_those_of_its_docstring() -> None:
    steps = re.findall(r"^(\d)\. (\w+)", sweep.__doc__ or "", re.MULTILINE)
    sections = re.findall(r"^ +# (\d)\. (\w+)$", inspect.getsource(sweep.sweep), re.MULTILINE)
    assert len(steps) > 5 and steps == [(number, name.lower()) for number, name in sections]
