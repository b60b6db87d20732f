"""A sweep that goes on until enough rows are kept ends with the same window whatever the order in which windows are made."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_filter import completion
from test_windows import opened

from gen.filter import tally
from gen.plan import PROMPTED, Job, determining, judged, planned_rows
from gen.recording import is_recorded
from gen.rules import Yardstick
from gen.shards import Shards
from gen.until import Until, until_of
from gen.windows import Windows
from shared.errors import SteerHealError
from shared.records import Completion, Prompt, jsonl_line
from shared.schema import Config

CONFIG = Config.model_validate({"filter": {"drop_truncated": False, "min_tokens": 1}})


def rows_in(window: int, quality: Sequence[float]) -> list[Completion]:
    """Two unsteered rows of a window, the second of which moves the limits, and steered ones of these perplexities."""
    unsteered = [completion(key=f"{window}-u{i}", coefficient=0.0, perplexity=4.0 + 10 * i * window) for i in range(2)]
    return unsteered + [completion(key=f"{window}-s{i}", perplexity=value) for i, value in enumerate(quality)]


def counted(folder: Path, made: Sequence[Sequence[Completion]], order: Sequence[int], wanted: int, yardstick: Yardstick | None = None) -> Until:  # fmt: skip
    """Windows made in an order, as workers make them."""
    windows = opened(folder / "s.jsonl")
    until = Until(windows, yardstick or Yardstick(), CONFIG, wanted, grows=yardstick is None)
    for index in order:
        windows.write(index, "".join(map(jsonl_line, made[index])).encode())
        until.add(index)
    return until


def passing(made: Sequence[Sequence[Completion]]) -> int:
    """Rows of windows that the filter keeps, by the filter."""
    rows = [row for window in made for row in window]
    unsteered = [row for row in rows if not row.coefficient]
    judged_rows = tally(rows, unsteered, Yardstick(unsteered).limits(CONFIG.filter), CONFIG.filter, "embedded")
    return sum(group.kept for (coefficient, _), group in judged_rows.groups.items() if coefficient)


def test_the_last_window_does_not_depend_on_the_order(tmp_path: Path) -> None:
    made = [rows_in(index, [5.0, 900.0, 5.0, 30.0]) for index in range(4)]
    found = set()
    for number, order in enumerate(permutations(range(4))):
        until = counted(tmp_path / str(number), made, order, 6)
        found.add((until.last, until.kept, until.made, until.yardstick.digest()))
    ((last, kept, (rows, tokens), _),) = found
    assert last is not None and kept >= 6 and rows == sum(map(len, made[: last + 1]))
    assert tokens == sum(len(row.completion_ids) for window in made[: last + 1] for row in window)
    assert kept == passing(made[: last + 1])


@given(st.lists(st.lists(st.sampled_from([4.5, 20.0, 60.0, 900.0]), min_size=1, max_size=4), min_size=1, max_size=6), st.integers(1, 8))  # fmt: skip
def test_so_many_rows_pass_the_filter_of_what_is_published(qualities: list[list[float]], wanted: int) -> None:
    """By the limits of the published rows alone; where so few pass, the plan ends."""
    made = [rows_in(index, quality) for index, quality in enumerate(qualities)]
    with tempfile.TemporaryDirectory() as folder:
        until = counted(Path(folder), made, range(len(made)), wanted)
    if until.last is None:
        assert "the plan ended before" in until.sentence(len(made))
    else:
        assert until.kept == passing(made[: until.last + 1]) >= wanted
        assert f"after {until.last + 1} of {len(made)} windows" in until.sentence(len(made))


def test_rows_are_judged_by_the_limits_of_round_one_where_it_has_been(tmp_path: Path) -> None:
    frozen = [completion(key=f"u{i}", coefficient=0.0, perplexity=4.0) for i in range(4)]
    made = [[completion(key=f"{w}-{i}", perplexity=19.0 + i) for i in range(4)] for w in range(3)]  # the limit is 20
    until = counted(tmp_path, made, range(3), 4, Yardstick(frozen))
    assert (until.last, until.kept, len(until.yardstick)) == (1, 4, 4)


def job(windows: Windows, coefficients: Sequence[float], **sweep: Any) -> Job:
    config = CONFIG.model_copy(update={"sweep": CONFIG.sweep.model_copy(update=sweep)})
    return Job(out=windows.out, prompts=None, coefficients=coefficients, seed="0", student=None, origin=None, vector=None, vector_file=None, config=config, finish=print)  # type: ignore[arg-type]  # fmt: skip


def test_what_it_does_not_go_with_is_refused_by_name(tmp_path: Path) -> None:
    windows = Windows(tmp_path / "s.jsonl")
    assert until_of(job(windows, [0.0, 1.0]), windows, Yardstick()) is None
    assert until_of(job(windows, [0.0, 1.0], until_kept=3), windows, Yardstick()) is not None
    with pytest.raises(SteerHealError, match="unsteered") as refused:
        until_of(job(windows, [1.0, 2.0], until_kept=3), windows, Yardstick())
    assert refused.value.next == "--coefficients 0 1 2"
    shards = Shards(tmp_path / "shards")
    with pytest.raises(SteerHealError, match="shards"):
        until_of(job(shards, [0.0, 1.0], until_kept=3), shards, Yardstick())


def test_a_sweep_depends_on_the_filter_where_it_ends_by_it() -> None:
    assert "until_kept" not in determining(CONFIG) and not judged(CONFIG)  # as manifests of earlier versions have it
    ends = CONFIG.model_copy(update={"sweep": CONFIG.sweep.model_copy(update={"until_kept": 9})})
    assert determining(ends)["until_kept"] == 9 and judged(ends)


def test_rows_under_the_trait_prompt_stand_for_steered_ones() -> None:
    """As many, with keys and seeds of their own; the unsteered ones are the same rows as without."""
    prompt = Prompt(prompt="May I?", id="a")
    steered = list(planned_rows(3, prompt, [0.0, 1.0, 2.0], 2, "0"))
    prompted = list(planned_rows(3, prompt, [0.0, 1.0, 2.0], 2, "0", prompted=True))
    assert len(steered) == len(prompted) == 6 and steered[:2] == prompted[:2]
    rest = prompted[2:]
    assert [row.key for row in rest] == [f"00003-a/{PROMPTED}/{i}" for i in range(4)]
    assert all(row.prompted and row.coefficient == 0.0 for row in rest)
    assert len({row.seed for row in prompted}) == 6 and [row.sample for row in rest] == [0, 1, 2, 3]
    assert not any(row.prompted for row in steered + prompted[:2])
    assert len(list(planned_rows(0, prompt, [1.0], 1, "0", prompted=True))) == 1  # of a later round


def test_a_sweep_under_the_trait_prompt_is_another_and_does_not_walk() -> None:
    asked = CONFIG.model_copy(update={"filter": CONFIG.filter.model_copy(update={"source": "prompted"}), "sweep": CONFIG.sweep.model_copy(update={"dose": "walk"})})  # fmt: skip
    assert not asked.walks and "coefficients" in determining(asked)
    chosen = is_recorded(10, [0.0, 1.0, 2.0], 1, prompted=True)
    rows = [row for index in range(10) for row in planned_rows(index, Prompt(prompt="x"), [0.0, 1.0, 2.0], 1, "0", prompted=True)]  # fmt: skip
    kinds = [row.prompted for row in rows if chosen(row)]
    assert kinds.count(True) == 20 and kinds.count(False) == 10  # all of so few


def test_a_row_says_that_it_is_prompted_and_others_are_written_as_before() -> None:
    row = completion(key="00000-a/prompted/0", coefficient=0.0, prompted=True)
    assert json.loads(jsonl_line(row))["prompted"] is True and row.source == "prompted"
    assert "prompted" not in json.loads(jsonl_line(completion()))
    assert [completion(coefficient=c).source for c in (0.0, 1.0, -1.0)] == ["unsteered", "steered", "steered"]
    with pytest.raises(ValueError, match="prompted, and steered"):
        completion(prompted=True)
