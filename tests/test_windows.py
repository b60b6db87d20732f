"""The folder that a sweep goes on from: whole windows are kept, another plan is refused, the output appears whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import command
from test_filter import completion

from gen.windows import Windows
from shared.errors import Exit, SteerHealError
from shared.records import Completion, jsonl_line
from shared.vectors import Vector
from train.unfinished import Unfinished

PLAN = {"prompts": "abc", "coefficients": [0.0, 1.0], "seed": "0", "versions": {"torch": "2"}}


def lines(*rows: Completion) -> bytes:
    return "".join(map(jsonl_line, rows)).encode()


def opened(out: Path, plan: dict[str, object] = PLAN, rebuild: bool = False) -> Windows:
    windows = Windows(out)
    windows.open(plan, rebuild=rebuild)
    return windows


def test_whole_windows_are_found_again_and_joined_in_order(tmp_path: Path) -> None:
    out = tmp_path / "sweep.jsonl"
    first = opened(out)
    first.write(0, lines(completion(key="a"), completion(key="b")))
    first.write(2, lines(completion(key="e")))
    first.note("walk", {"coefficient": 1.5})
    (first.folder / ".00001.jsonl.77.tmp").write_text("half")
    again = opened(out)
    assert [index in again for index in range(4)] == [True, False, True, False]
    assert again.notes == {"walk": {"coefficient": 1.5}}
    again.write(1, lines(completion(key="c"), completion(key="d")))
    assert [row.key for row in again.read(1, ["c", "d"])] == ["c", "d"]
    for keys in (["d", "c"], ["c"], ["c", "d", "e"], ["c", "c"]):
        with pytest.raises(SteerHealError, match="holds other rows than its plan") as caught:
            list(again.read(1, keys))
        assert f"rm {again.path(1)}" in caught.value.next
    again.publish(3)
    assert 0 in opened(out), "until it is discarded, what is published can be published again"
    again.discard()
    assert [line.split('"key": "')[1][0] for line in out.read_text().splitlines()] == list("abcde")
    assert list(tmp_path.iterdir()) == [out]


def test_a_window_that_was_edited_is_refused_and_one_that_is_not_whole_made_again(tmp_path: Path) -> None:
    out = tmp_path / "sweep.jsonl"
    first = opened(out)
    for index in range(2):
        first.write(index, lines(completion(key=str(index))))
    first.path(0).write_text(first.path(0).read_text().replace('"key": "0"', '"key": "x"'))
    first.seal(1).unlink()
    again = opened(out)
    assert 1 not in again
    with pytest.raises(SteerHealError, match=r"a window of an interrupted sweep was edited") as caught:
        assert 0 in again
    assert f"rm {first.path(0)}" in caught.value.next
    first.path(0).unlink()
    assert 0 not in opened(out)


def test_another_plan_is_refused_with_the_differences_and_rebuild_discards_it(tmp_path: Path) -> None:
    out = tmp_path / "sweep.jsonl"
    opened(out).write(0, lines(completion()))
    other = {**PLAN, "coefficients": [0.0, 2.0], "versions": {"torch": "3"}}
    with pytest.raises(SteerHealError) as caught:
        opened(out, other)
    text = caught.value.render()
    assert "coefficients = [0.0, 2.0] (was [0.0, 1.0])" in text and "versions.torch = '3' (was '2')" in text
    assert "--rebuild" in text and "prompts" not in text
    assert 0 in opened(out), "a refusal leaves the windows as they are"
    assert 0 not in opened(out, other, rebuild=True)
    assert 0 not in opened(out, other)


def test_a_rebuild_begins_an_equal_plan_anew(tmp_path: Path) -> None:
    out = tmp_path / "sweep.jsonl"
    first = opened(out)
    first.write(0, lines(completion()))
    first.note("walk", {"coefficient": 1.5})
    rebuilt = opened(out, rebuild=True)
    assert 0 not in rebuilt and not rebuilt.notes and not rebuilt.path(0).exists()
    rebuilt.write(0, lines(completion()))
    assert 0 in opened(out), "interrupted, it goes on without --rebuild"


def test_a_rebuild_begins_an_unfinished_round_of_an_equal_recipe_anew(tmp_path: Path) -> None:
    recipe = {"data": "abc"}
    states = Unfinished(tmp_path / "healing", recipe).states("base")
    states.touch()
    assert Unfinished(tmp_path / "healing", recipe).states("base").exists()
    assert not Unfinished(tmp_path / "healing", recipe, replace=True).states("base").exists()
    states.touch()
    Unfinished(tmp_path / "healing", recipe)
    assert states.exists(), "interrupted, it goes on without --rebuild"


def test_windows_of_another_kind_of_machine_are_not_gone_on_with(tmp_path: Path) -> None:
    """One name, two instruction sets; a study must not take this for a fault of the arm."""
    out = tmp_path / "sweep.jsonl"
    here, there = ({**PLAN, "device": f"AMD EPYC ({kind})"} for kind in ("avx2", "avx512"))
    opened(out, here).write(0, lines(completion()))
    with pytest.raises(SteerHealError, match="another kind of machine") as caught:
        opened(out, there)
    assert caught.value.code == Exit.MACHINE and "avx512" in str(caught.value.given)
    assert f"rm -r {opened(out, here).folder}" in caught.value.next
    assert 0 in opened(out, here) and 0 not in opened(out, there, rebuild=True)
    opened(out, there).write(0, lines(completion()))
    with pytest.raises(SteerHealError, match="begun with other settings") as caught:
        opened(out, {**here, "seed": "1"})
    assert caught.value.code == Exit.REFUSED


def test_a_plan_without_work_gives_way(tmp_path: Path) -> None:
    """As a walk leaves it that found no dose: the next one has another target."""
    opened(tmp_path / "sweep.jsonl")
    assert 0 not in opened(tmp_path / "sweep.jsonl", {**PLAN, "survival": 0.3})
    opened(tmp_path / "sweep.jsonl", {**PLAN, "survival": 0.3}).note("walk", {"coefficient": 1.0})
    with pytest.raises(SteerHealError, match="survival"):
        opened(tmp_path / "sweep.jsonl")


def test_a_folder_without_its_plan_is_not_taken_for_windows(tmp_path: Path) -> None:
    out = tmp_path / "sweep.jsonl"
    windows = opened(out)
    windows.write(0, lines(completion()))
    windows.plan.unlink()
    assert 0 not in opened(out)


def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    windows = opened(tmp_path / "sweep.jsonl")
    windows.write(0, lines(completion()))
    windows.plan.write_text("{")
    with pytest.raises(SteerHealError, match=r"plan\.json"):
        opened(tmp_path / "sweep.jsonl")


def test_a_lost_window_leaves_the_old_output(tmp_path: Path) -> None:
    out = tmp_path / "sweep.jsonl"
    out.write_text("old\n")
    windows = opened(out)
    windows.write(0, lines(completion()))
    with pytest.raises(FileNotFoundError):
        windows.publish(2)
    assert out.read_text() == "old\n" and 0 in windows


def test_a_finished_sweep_is_not_replaced_without_a_word(tmp_path: Path) -> None:
    vector, prompts, out = tmp_path / "v.safetensors", tmp_path / "p.jsonl", tmp_path / "sweep.jsonl"
    Vector({0: np.ones(4, dtype=np.float32)}).save(
        vector
    )  # of another width, which is refused where the sweep would begin
    prompts.write_text('{"prompt": "hi"}\n')
    line = ["gen.sweep", "--model", "embedded", "--vector", vector, "--prompts", prompts, "--coefficients", 0, "--out", out]  # fmt: skip
    out.write_text("rows\n")
    out.with_name("sweep-2.jsonl").touch()
    done = command(*line)
    assert done.returncode == 2 and "the rows of a finished sweep are there already" in done.stderr, done.stderr
    assert f"--out {tmp_path}/sweep-3.jsonl; or with --rebuild" in done.stderr and out.read_text() == "rows\n"
    assert "width" in command(*line, "--rebuild").stderr
    opened(out)  # one that was interrupted while it replaced another goes on
    assert "width" in command(*line).stderr
