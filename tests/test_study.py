"""A study: its plan, what its cells share, arms at one shift, and its page in good cases and bad ones."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, command
from synthetic_run import CONTROL, IDENTITY, STUDY, arm, build_study, published
from test_statistics import texts

import shared.console
from evals.routes import Route, area_between, less_steering, path, shift_and_price
from evals.scored import scored_rounds
from evals.statistics import Estimate
from evals.study.__main__ import axis_of
from evals.study.collect import collect
from evals.study.common import CellStep, donor, take_stage, to_make
from evals.study.drive import _perform, cell_steps, drive
from evals.study.ends import _show, arm_differences, summary_table
from evals.study.figure import trajectories
from evals.study.matched import SHARES, matched
from evals.study.plan import SHARED, STEERING, depends, read_plan, runs_in
from evals.study.stopped import reason
from evals.study.tables import against_controls, by_round
from shared.errors import Exit, SteerHealError
from shared.estimate import Estimates, memory_and_disk
from shared.publish import write_json
from shared.records import DATA
from shared.run import STAGES, open_run
from shared.stage import Stage
from shared.vectors import load_vector


def written(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_cells_are_arms_by_seeds_with_their_own_settings(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path), tmp_path / "runs")
    assert [cell.name for cell in plan.cells] == ["nll-s0", "kl_rev-s0", "random-s0", "nll-s1", "kl_rev-s1"]
    assert [cell.rounds for cell in plan.cells] == [2, 2, 1, 2, 2]
    assert [cell.config.seed for cell in plan.cells] == [0, 0, 0, 1, 1]
    assert plan.cells[0].config.train.divergence == "nll" and plan.cells[2].config.vector.direction == "random"
    made = [(step.cell.name, step.number, step.stage) for step in cell_steps(plan)]
    assert made[:5] == [("nll-s0", 1, stage) for stage in ("extract", "sweep", "filter", "heal", "score")]
    assert made[10:16] == [
        ("random-s0", 1, stage) for stage in ("extract", "sweep", "filter", "heal", "score", "score-full")
    ]
    assert made[-1] == ("kl_rev-s1", 2, "score-full") and len(set(made)) == len(made) == 4 * 11 + 6


@pytest.mark.parametrize("name", ["study-smollm2", "findings-smollm2"])
def test_shipped_studies_can_be_planned(name: str, tmp_path: Path) -> None:
    plan = read_plan(ROOT / "configs" / f"{name}.toml", tmp_path)
    assert all(cell.config.eval.items == 21 and cell.config.model.name == "embedded" for cell in plan.cells)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((STUDY[: STUDY.index("[eval]")], ""), "no [study] table"),
        (('name = "kl_rev"', 'name = "nll"'), "two arms are named nll"),
        (("seeds = [0]", "seeds = [0, 0]"), "0 is there twice"),
        (("train.divergence=kl_rev", "train.divergence=nll"), "kl_rev and nll have the same settings"),
        (("train.divergence=kl_rev", "train.divergence=kl_rev seed=7"), "the set of kl_rev has a seed"),
        (("train.divergence=kl_rev", "train.divergence=l2"), "train.divergence"),
        (('name = "kl_rev"', 'name = "../kl_rev"'), "study.arm.1.name"),
        (("rounds = 2", "rounds = 0"), "study.rounds"),
        (("[eval]", "[evil]"), "evil"),
        (("[study]", "[study"), "study.toml"),
    ],
)
def test_a_file_that_is_no_study_is_refused(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(SteerHealError) as refused:
        read_plan(written(tmp_path, STUDY.replace(*change, 1)), tmp_path / "runs")
    assert said in refused.value.render()


def test_what_cells_share_is_made_once(tmp_path: Path) -> None:
    """The vector by all seeds, sweep and kept rows by the arms of a seed, and nothing with another direction."""
    plan = read_plan(written(tmp_path), tmp_path / "runs")
    first = plan.cells[0]
    run = open_run(first.folder, plan.file, first.overrides)
    here = run.round(1)
    for stage, names in (
        ("extract", ["vector.safetensors"]),
        ("sweep", ["sweep.jsonl"]),
        ("filter", ["kept.jsonl", "rejected.jsonl", "filter.json"]),
    ):
        here.mkdir(parents=True, exist_ok=True)
        for name in names:
            (here / name).write_text(stage)
        Stage(run, 1, stage, settings={}, inputs={}, outputs=[here / name for name in names]).finish(IDENTITY)
    have = runs_in(plan.folder)
    found = {}
    for cell in plan.cells:
        found[cell.name] = []
        for stage in ("extract", "sweep", "filter", "heal"):
            step = CellStep.of(plan, cell, 1, stage)
            if (known := donor(have, step)) is not None:
                open_run(cell.folder, plan.file, cell.overrides)
                take_stage(known, step)
                found[cell.name].append(stage)
    everything = ["extract", "sweep", "filter"]
    assert found == {
        "nll-s0": [],
        "kl_rev-s0": everything,
        "random-s0": [],
        "nll-s1": ["extract"],
        "kl_rev-s1": ["extract"],
    }
    step = CellStep.of(plan, plan.cells[1], 1, "filter")
    assert step.done and (step.cell.folder / "rounds/01/kept.jsonl").read_text() == "filter"
    assert json.loads(step.cell.run.manifest(1, "sweep").read_text())["taken_from"] == "nll-s0"
    (step.cell.folder / "rounds/01/vector.safetensors").write_text("another")
    assert donor(have, CellStep.of(plan, plan.cells[1], 1, "sweep")) is None
    assert donor(have, CellStep.of(plan, plan.cells[1], 2, "sweep")) is None


@pytest.mark.parametrize("edited", ["trait.json", "c.jsonl"])
def test_a_stage_that_read_other_files_is_not_taken(tmp_path: Path, edited: str) -> None:
    """By their contents: an arm that is begun after the trait was edited has a vector of its own."""
    for name, file in (("trait.json", "trait.json"), ("contexts.jsonl", "c.jsonl")):
        shutil.copyfile(DATA / name, tmp_path / file)
    text = STUDY.replace(
        "[train]", f'[vector]\ntrait = "{tmp_path}/trait.json"\ncontexts = "{tmp_path}/c.jsonl"\n[train]', 1
    )
    plan = read_plan(written(tmp_path, text), tmp_path / "runs")
    run = open_run(plan.cells[0].folder, plan.file, plan.cells[0].overrides)
    vector = run.round(1) / "vector.safetensors"
    vector.parent.mkdir(parents=True)
    vector.write_text("made")
    inputs = {"trait": tmp_path / "trait.json", "contexts": tmp_path / "c.jsonl"}
    Stage(run, 1, "extract", settings={}, inputs=inputs, outputs=[vector]).finish(IDENTITY)
    step, have = CellStep.of(plan, plan.cells[1], 1, "extract"), runs_in(plan.folder)
    assert donor(have, step) is not None
    with open(tmp_path / edited, "a") as file_:
        file_.write("\n")
    assert donor(have, step) is None


def test_one_prompt_moves_nothing(tmp_path: Path) -> None:
    """A shift and a price, and no resample that could say how far prompts lie apart."""
    points: Any = [((0, 1.0), None, texts(1)), ((1, 1.0), None, texts(1, llr=3.0))]
    shift, price = shift_and_price(points, "trait_llr", 200, 0, np.ones(1, dtype=bool))
    assert shift[1, 0] > 2 and np.isfinite(price[:, 0]).all() and np.isnan(shift[:, 1:]).all()
    assert not Route([point[0] for point in points], shift, price).moved
    assert _show(shift[1]) == f"{shift[1, 0]:.3f}"
    points = [((0, 1.0), None, texts(5)), ((1, 1.0), None, texts(5, llr=3.0))]
    shift, price = shift_and_price(points, "trait_llr", 200, 0, np.ones(5, dtype=bool))
    assert Route([point[0] for point in points], shift, price).moved


def test_a_stage_that_fails_is_the_arms_and_a_machine_that_fails_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what the stage's process ends with, never by its words. Meanwhile lines say that it is at work."""
    monkeypatch.setattr(shared.console, "EVERY", 0.1)
    plan = read_plan(written(tmp_path, f"{STUDY}[vector]\nn_contexts = 2\n"), tmp_path / "runs")
    first = plan.cells[0]
    open_run(first.folder, plan.file, first.overrides)
    error = _perform(CellStep.of(plan, first, 1, "heal"))
    assert error is not None and "lacks its input" in error.what and error.code == Exit.REFUSED
    assert re.search(r"nll-s0 round 1 · heal: \d+ s\n", capsys.readouterr().out)
    vector = first.run.round(1) / "vector.safetensors"
    vector.mkdir(parents=True)  # where the stage's file is to be
    (vector / "file").touch()
    with pytest.raises(SteerHealError, match="could not be written") as unwritten:
        _perform(CellStep.of(plan, first, 1, "extract"))
    assert unwritten.value.code == Exit.UNWRITTEN
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, first.folder], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(SteerHealError, match="another process") as busy:
            _perform(CellStep.of(plan, first, 1, "extract"))
        vector.joinpath("file").unlink()
        vector.rmdir()
        vector.write_text("made")
        run = open_run(tmp_path / "runs" / "donor", plan.file, plan.cells[0].overrides)
        run.round(1).mkdir(parents=True)
        made = run.round(1) / "vector.safetensors"
        made.write_text("made by another")
        Stage(run, 1, "extract", settings={}, inputs={}, outputs=[made]).finish(IDENTITY)
        with pytest.raises(SteerHealError, match="another process"):
            take_stage(run, CellStep.of(plan, first, 1, "extract"))
        assert vector.read_text() == "made"
        other.communicate(b"")
    assert busy.value.code == Exit.BUSY and str(other.pid) in str(busy.value.given)


def test_a_cell_that_went_on_since_is_not_one_that_stopped(tmp_path: Path) -> None:
    """As by `make round` in its folder: stopped.json stays there, and is no longer true."""
    plan = read_plan(written(tmp_path), tmp_path / "runs")
    cell = plan.cells[0]
    run = open_run(cell.folder, plan.file, cell.overrides)
    write_json(run.folder / "stopped.json", {"version": 1, "round": 1, "stage": "extract", "said": "error: starved"})
    assert [one.stopped is None for one in collect(plan)][:2] == [False, True]
    made = run.round(1) / "vector.safetensors"
    made.parent.mkdir(parents=True)
    made.write_text("made")
    Stage(run, 1, "extract", settings={}, inputs={}, outputs=[made]).finish(IDENTITY)
    assert all(one.stopped is None for one in collect(plan))


HOLD = "import sys; from pathlib import Path; from shared.locks import hold; f = Path(sys.argv[1]); hold(f, f / '.lock'); print('held', flush=True); input()"


def test_what_was_edited_is_not_taken(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path), tmp_path / "runs")
    first = plan.cells[0]
    run = open_run(first.folder, plan.file, first.overrides)
    vector = run.round(1) / "vector.safetensors"
    vector.parent.mkdir(parents=True)
    vector.write_text("made")
    Stage(run, 1, "extract", settings={}, inputs={}, outputs=[vector]).finish(IDENTITY)
    vector.write_text("edited")
    step = CellStep.of(plan, plan.cells[1], 1, "extract")
    open_run(step.cell.folder, plan.file, step.cell.overrides)
    with pytest.raises(SteerHealError, match=r"vector.safetensors was edited"):
        take_stage(run, step)
    with pytest.raises(SteerHealError, match=r"vector.safetensors was edited"):
        drive(plan)


def test_shared_stages_are_made_and_estimated_once(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path), tmp_path / "runs")
    making = to_make(list(cell_steps(plan)), [])
    count = {stage: sum(step.stage == stage for step in making) for stage in (*STAGES, "score-full")}
    # round 1's by what differs, then each cell's own
    assert count == {"extract": 2 + 4, "sweep": 3 + 4, "filter": 3 + 4, "heal": 9, "score": 9, "score-full": 5}
    estimates = Estimates({step.key: 1.0 for step in cell_steps(plan)})
    assert estimates.left(making) == len(making) == 43


def test_a_study_needs_the_files_of_all_cells_and_the_students_of_one_seed(tmp_path: Path) -> None:
    """Merged students of a seed go before the next seed begins."""
    plan = read_plan(written(tmp_path), tmp_path / "runs")
    making = to_make(list(cell_steps(plan)), [])
    groups = [[step for step in making if step.cell.seed == seed] for seed in (0, 1)]
    both, first = memory_and_disk(groups, adapters=False), memory_and_disk(groups[:1], adapters=False)
    second = memory_and_disk(groups[1:], adapters=False)
    served = [memory_and_disk(part, adapters=True).disk for part in (groups, groups[:1], groups[1:])]
    assert served[0] == pytest.approx(served[1] + served[2])
    students = [first.disk - served[1], second.disk - served[2]]
    assert both.disk - served[0] == pytest.approx(max(students)) and min(students) > 0
    assert set(both.memory) == {*STAGES, "score-full"}


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ("sweep.samples=10000000", "too little room on a disk"),
        ("train.batch_size=100000 train.max_length=2048", "too little memory for a stage"),
    ],
)
def test_a_study_says_what_it_lacks_before_a_cell_begins(settings: str, what: str, tmp_path: Path) -> None:
    """The last arm alone asks for too much; nothing of the first is made."""
    if "memory" in what and shutil.which("nvidia-smi"):
        pytest.skip("the memory that counts is a GPU's")
    file = written(tmp_path, STUDY.replace("vector.direction=random", f"vector.direction=random {settings}", 1))
    done = command("evals.study", "--config", file, "--run", tmp_path / "runs", "--out", tmp_path / "out")
    assert done.returncode == 71 and what in done.stderr and "GiB" in done.stderr, done.stdout + done.stderr
    assert "what it will take" in done.stdout and not (tmp_path / "runs" / "nll-s0").exists()
    if "memory" in what:  # what to lower, and a command that begins a study of its own with it
        assert f"set train.gradient_checkpointing=true train.batch_size=2 in {file}" in done.stderr
        assert f"make study RUN={tmp_path}/runs-2 CONFIG={file} OUT={tmp_path}/out" in done.stderr


def test_runs_begun_with_other_settings_are_refused(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path), tmp_path / "runs")
    open_run(plan.cells[0].folder, plan.file, plan.cells[0].overrides)
    assert read_plan(written(tmp_path), tmp_path / "runs").cells[0].folder == plan.cells[0].folder
    with pytest.raises(SteerHealError, match="begun with other settings"):
        read_plan(written(tmp_path, STUDY.replace("tau = 0.3", "tau = 0.4")), tmp_path / "runs")


def test_where_and_how_its_stages_run_may_change_in_a_study(tmp_path: Path) -> None:
    """As the advice for want of GPU memory has it: model.gpu_memory and train.report_to are no part of what a cell is."""
    plan = read_plan(written(tmp_path), tmp_path / "runs")
    open_run(plan.cells[0].folder, plan.file, plan.cells[0].overrides)
    place = STUDY.replace("[train]", '[model]\ngpu_memory = 0.5\n[train]\nreport_to = ["tensorboard"]', 1)
    assert place != STUDY
    again = read_plan(written(tmp_path, place), tmp_path / "runs")
    assert [cell.folder for cell in again.cells] == [cell.folder for cell in plan.cells]
    assert again.cells[0].config.model.gpu_memory == 0.5
    for old, new in zip(plan.cells, again.cells, strict=True):
        assert [depends(old.config, stage) for stage in SHARED] == [depends(new.config, stage) for stage in SHARED]
    one = STUDY.replace("train.divergence=kl_rev", "train.divergence=kl_rev model.gpu_memory=0.5", 1)
    assert len(read_plan(written(tmp_path, one), tmp_path / "runs").cells) == len(plan.cells), "measured alike"
    twin = STUDY.replace("train.divergence=kl_rev", "train.divergence=nll model.gpu_memory=0.5", 1)
    with pytest.raises(SteerHealError, match="the same settings"):
        read_plan(written(tmp_path, twin), tmp_path / "runs")


def test_a_run_of_another_study_with_the_same_settings_is_taken(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path), tmp_path / "runs")
    open_run(plan.cells[0].folder, plan.file, plan.cells[0].overrides)
    other = read_plan(written(tmp_path, STUDY.replace('name = "nll"', 'name = "no-barrier"')), tmp_path / "runs")
    assert other.cells[0].folder == plan.cells[0].folder and other.cells[0].arm.name == "no-barrier"


SHARE = 0.75


def walk(shift: list[float], price: list[float], noise: float = 0.0, gates: int = 1, ended: str = "") -> Route:
    """A path through these points after the base; gates: scored gates a round. Resamples are of a fixed draw."""
    draws = np.random.default_rng(0).normal(0, 1, 400)
    students = [(0, 1.0), *[(1 + index // gates, (1 + index % gates) / gates) for index in range(len(shift))]]

    def table(values: list[float], noise: float) -> np.ndarray:
        return np.array([np.zeros(401), *[value + noise * np.array([0.0, *draws]) for value in values]])

    return Route(students, table(shift, noise / 10), table(price, noise), ended)


def test_the_price_is_read_where_the_shift_first_arrives() -> None:
    straight = walk([1.0, 2.0], [0.2, 1.0])
    assert straight.at(0.5)[0] == pytest.approx(0.1) and straight.at(1.5)[0] == pytest.approx(0.6)
    back = walk([2.0, 0.5], [0.4, 9.0])
    assert back.at(1.0)[0] == pytest.approx(0.2) and np.isinf(back.at(2.5)[0])


@pytest.mark.parametrize("reach", [0.4, 0.7, 1.0])
def test_arms_on_one_curve_pay_the_same(reach: float) -> None:
    """Price shift squared, scored at gates 0.5 and 1: along chords the arm that moves most would pay half as much again."""
    found = walk([reach / 2, reach], [reach**2 / 4, reach**2], gates=2).at(0.3)[0]
    assert found == pytest.approx(0.09, rel=0.21)
    chord = np.interp(0.3, [0, reach / 2, reach], [0, reach**2 / 4, reach**2])
    assert abs(found - 0.09) < abs(chord - 0.09)


def test_an_arm_and_the_reference_are_compared_at_what_the_lesser_reached() -> None:
    found = matched(
        {"a": {0: walk([1.0], [0.4], 0.01), 1: walk([1.0], [0.6], 0.01)}, "b": {0: walk([2.0], [0.4], 0.01)}},
        "a",
        SHARE,
    )
    a, b = found.arms
    assert b.target == pytest.approx(SHARE) and b.set_by == ("a", 0) and a.against is None
    assert a.seeds == {0: pytest.approx(0.3), 1: pytest.approx(0.45)}
    assert a.price is not None and a.price.value == pytest.approx(0.375)
    assert b.price is not None and b.price.value == pytest.approx(0.4 * SHARE / 2)
    assert b.against is not None and b.against.value == pytest.approx(
        b.price.value - 0.3
    )  # over the seed that both have
    assert b.against.excludes_zero() and b.gaps == {0: pytest.approx(-0.15)}


@pytest.mark.parametrize(
    "dead", [walk([0.0], [0.9], 0.01), walk([-0.3, 0.1], [0.5, 0.9], 5.0), walk([], [], ended="round 1: broken")]
)
@pytest.mark.parametrize("first", [True, False])
def test_an_arm_that_does_not_move_spoils_no_other(dead: Route, first: bool) -> None:
    """Nor does one whose first student is broken; whichever stands first."""
    live = {"a": {0: walk([1.0], [0.4], 0.01)}, "b": {0: walk([2.0], [0.4], 0.01)}}
    found = matched({"dead": {0: dead}, **live} if first else {**live, "dead": {0: dead}}, "a", SHARE)
    by_name = {one.arm: one for one in found.arms}
    assert by_name["b"].target == pytest.approx(SHARE) and by_name["b"].set_by == ("a", 0)
    assert by_name["b"].seeds == {0: pytest.approx(0.15)} and by_name["b"].against is not None
    assert by_name["dead"].seeds == {0: None} and by_name["dead"].price is None
    said = "did not move" if len(dead.students) > 1 else "ends before round 1: broken"
    assert said in by_name["dead"].note and by_name["dead"].arrived == pytest.approx(0, abs=0.2)


def test_what_was_not_measured_is_not_said_to_have_stood_still() -> None:
    nothing = Route([], np.zeros((0, 401)), np.zeros((0, 401)), "the base is undefined")
    found = matched({"a": {0: nothing}, "b": {0: walk([1.0], [0.4], 0.01)}}, "a", SHARE)
    assert found.arms[0].note == "seed 0: the base is undefined" and found.arms[0].price is None
    assert found.arms[1].price is not None and found.arms[1].against is None


def test_a_path_says_where_it_crosses_a_shift() -> None:
    found = walk([0.5, 1.0, 1.2, 2.0], [0.1, 0.2, 0.3, 0.9], gates=2)
    assert found.where(1.0) == (1, pytest.approx(1.0)) and found.where(5.0) is None
    number, gate = found.where(1.6) or (0, 0.0)
    assert number == 2 and 0.5 < gate < 1.0


def test_a_resample_in_which_neither_arm_arrives_lies_beyond_both_ends() -> None:
    """A few leave an interval, which they widen; many leave none."""
    ends = {}
    for few in (0, 5, 40):
        one, two = walk([1.0], [0.4], 0.01), walk([1.0], [0.5], 0.02)
        one.shift[1, 1 : 1 + few] = two.shift[1, 1 : 1 + few] = 0.1
        found = matched({"a": {0: one}, "b": {0: two}}, "a", SHARE).arms[1].against
        assert found is not None
        ends[few] = found.interval
    assert ends[40] is None and ends[0] is not None and ends[5] is not None
    assert ends[5][0] <= ends[0][0] < ends[0][1] <= ends[5][1]


def test_seeds_arrive_together_or_not_at_all() -> None:
    """Each seed misses the target in other resamples; the mean over the seeds has a price in neither's."""
    one, two = walk([1.0], [0.4], 0.01), walk([1.0], [0.4], 0.01)
    one.shift[1, 1:11], two.shift[1, 11:21] = 0.1, 0.1
    found = matched({"a": {0: one, 1: two}, "b": {0: walk([2.0], [0.4]), 1: walk([2.0], [0.4])}}, "b", SHARE).arms[0]
    assert found.arrived == pytest.approx(0.95) and found.price is not None and found.price.interval is None


def test_nothing_is_compared_where_nothing_moved() -> None:
    found = matched({"a": {0: walk([0.0], [0.1], 0.1)}, "b": {0: walk([-1.0], [0.1], 0.1)}}, "a", SHARE)
    assert all(one.price is one.target is one.set_by is one.area is None for one in found.arms)


def test_resamples_that_never_arrive_are_not_left_out() -> None:
    """They are the expensive end: where they are many there is no interval, not a narrow one."""
    far, near = walk([2.0], [0.4], 0.01), walk([1.0], [0.4], 0.01)
    shift = near.shift.copy()
    shift[1, 1:41] = 0.5  # a tenth of the resamples
    found = matched({"far": {0: far}, "near": {0: Route(near.students, shift, near.price)}}, "far", SHARE)
    slow = found.arms[1]
    assert slow.price is not None and slow.price.interval is None and slow.arrived == pytest.approx(0.9)
    assert slow.against is not None and slow.against.interval is None
    shift[1, 1:41], shift[1, 1:6] = 1.0, 0.5  # one in eighty
    few = matched({"far": {0: far}, "near": {0: Route(near.students, shift, near.price)}}, "far", SHARE).arms[1]
    assert few.price is not None and few.price.interval is not None


def test_a_weak_arm_costs_only_itself() -> None:
    """Two arms of which one is cheaper by 40 %, and a third that reaches a fifth of their shift: their comparison is as without it."""
    arms = {"a": {0: walk([1.0], [0.5], 0.05)}, "b": {0: walk([1.0], [0.3], 0.05)}}
    alone = matched(arms, "a", SHARE).arms[1]
    beside = matched({**arms, "weak": {0: walk([0.2], [0.1], 0.05)}}, "a", SHARE)
    assert beside.arms[1] == alone and alone.against is not None and alone.against.value == pytest.approx(-0.15)
    assert beside.arms[2].target == pytest.approx(SHARE * 0.2) and beside.arms[2].set_by == ("weak", 0)


def test_the_area_between_two_curves_is_their_mean_difference_over_the_shifts_both_reach() -> None:
    cheap, dear = walk([1.0], [0.2], 0.01), walk([2.0], [1.0], 0.01)
    found = area_between(cheap, dear)
    assert found is not None and found[0] == pytest.approx((0.1 - 0.25) * 17 / 16)  # at 16 shifts up to 1
    arm = matched({"dear": {0: dear}, "cheap": {0: cheap}}, "dear", SHARE).arms[1]
    assert arm.area is not None and arm.area.value == pytest.approx(found[0]) and arm.area.excludes_zero()
    assert area_between(cheap, walk([0.0], [0.2], 0.01)) is None


def test_a_student_is_compared_with_plain_steering_at_its_own_shift() -> None:
    """Steering pays the square of its shift; a chord from the base to one dose would be too dear, and no dose reaches 1.2."""
    doses = walk([0.25, 0.5, 0.75, 1.0], [0.0625, 0.25, 0.5625, 1.0], 0.01)

    def less(shift: float, price: float, count: int = 4) -> Estimate | None:
        student = walk([shift], [price], 0.01)
        at = [*range(1 + count)]
        return less_steering(
            [0.25 * (1 + k) for k in range(count)],
            np.vstack([doses.shift[at], student.shift[1:]]),
            np.vstack([doses.price[at], student.price[1:]]),
        )

    found = less(0.6, 0.2)
    assert found is not None and found.value == pytest.approx(0.2 - 0.36, abs=0.02) and found.excludes_zero()
    dear = less(0.6, 0.36)
    assert dear is not None and dear.interval is not None and dear.interval[1] > 0
    assert less(1.2, 0.2) is None and less(-0.1, 0.2) is None and less(0.2, 0.2, 1) is None


def test_arms_that_are_measured_differently_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SteerHealError, match="measured alike") as refused:
        read_plan(
            written(tmp_path, STUDY.replace("train.divergence=kl_rev", "train.divergence=kl_rev eval.think=8")),
            tmp_path / "runs",
        )
    assert "eval.think = 8 against 4" in refused.value.render()


def test_a_crash_is_told_by_its_last_line() -> None:
    crash = "a warning\nTraceback (most recent call last):\n  File 'x'\ntorch.OutOfMemoryError: no memory"
    assert reason(crash) == "torch.OutOfMemoryError: no memory"
    assert reason("Warning: x\nerror: the filter starved\n  given:    3\n  next: y") == "the filter starved; given: 3"
    assert reason("") == ""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every cell scored but two: kl_rev-s1 starved in round 2, and the control was never begun."""
    folder = tmp_path_factory.mktemp("study")
    build_study(folder, starved={"kl_rev-s1": 1}, without={"random-s0"})
    return folder


@pytest.fixture(scope="module")
def report(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command wrote."""
    out = tmp_path_factory.mktemp("report") / "out"
    done = published(study, out)
    assert done.returncode == 0, done.stderr
    return out


def test_results_tables_and_figures(report: Path) -> None:
    out = report
    names = [
        "doses.pdf",
        "doses.png",
        "doses.svg",
        "index.html",
        "results.csv",
        "results.json",
        "results.md",
        "study.pdf",
        "study.png",
        "study.svg",
        "tables.tex",
        "training.pdf",
        "training.png",
        "training.svg",
    ]
    assert sorted(path.name for path in out.iterdir()) == names
    found = json.loads((out / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert {(row["arm"], row["seed"]) for row in found["rows"]} == {
        ("nll", 0),
        ("nll", 1),
        ("kl_rev", 0),
        ("kl_rev", 1),
    }
    assert {(row["arm"], row["seed"], row["round"]) for row in found["full"] if row["stage"] == "healed"} == {
        ("nll", 0, 2),
        ("nll", 1, 2),
        ("kl_rev", 0, 2),
    }
    assert [cell["scored"] for cell in found["cells"]] == [2, 2, 0, 2, 1]
    page = (out / "results.md").read_text()
    for part in (
        "## Arms at one shift",
        "## Round 1 against the controls",
        "No control was scored.",
        "## Every arm, round by round, seed 1",
        "## Cells that stopped",
        "kl_rev, 1 | 2 filter | the filter starved: &lt;b&gt;too few&lt;/b&gt;; given: 3 |",
        "| random | – | – | – | control | 0 of 1 |",
        "| arm | 2 of 2, 1 of 2 | 1 |",  # compared at the round that both seeds reached
        "## Provenance",
        "## Reading",
        "- 2 arms and 2 seeds; 3 of 5 cells reached their last round. Arms are compared along authority",
        "- kl_rev, round 1: verdict healed by the forced choice",
        "- kl_rev-s1 stopped in round 2, filter: the filter starved",
    ):
        assert part in page, part
    with open(out / "results.csv", newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert len(lines) == len(found["rows"]) + len(found["extra"]) and {line["arm"] for line in lines} == {
        "nll",
        "kl_rev",
    }
    html = (out / "index.html").read_text()
    assert html.count('class="answers"') == 2 and "seed 0: " in html and "seed 1: " in html
    heads = re.findall(r'<th scope="col"[^>]*><button[^>]*>(.*?)</button></th>', html)
    assert len(heads) > 40 and not [head for head in heads if "_" in head and "<abbr" not in head]
    assert "kl_rev, seed 0, round 2 healed" in html and "&lt;b&gt;too few&lt;/b&gt;" in html and "<b>" not in html
    tex = (out / "tables.tex").read_text()
    assert tex.count("\\toprule") == tex.count("\\bottomrule") == 10 and "kl\\_rev" in tex and "auth_nats" not in tex


@pytest.mark.long
def test_a_study_with_a_stopped_cell_publishes_and_ends_with_the_next_command(study: Path, tmp_path: Path) -> None:
    """kl_rev's seed 1 is to go on in round 2, for which its history is not there; all else is done."""
    runs, out = shutil.copytree(study / "runs", tmp_path / "the runs"), tmp_path / "out"
    arms = (study / "study.toml").read_text()
    file = written(
        tmp_path, arms.replace(arm("random", "vector.direction=random", CONTROL, "rounds = 1", "seeds = [0]"), "")
    )
    done = command("evals.study", "--config", file, "--run", runs, "--out", out)
    assert done.returncode == 2 and "the study is not complete: a cell stopped" in done.stderr, done.stderr
    assert "kl_rev-s1: an adapter could not be used" in done.stderr and "Traceback" not in done.stderr
    assert f"make study RUN='{runs}' CONFIG={file} OUT={out}" in done.stderr.splitlines()[-1]
    assert "kl_rev, 1 | 2 extract" in (out / "results.md").read_text()


def test_a_dead_student_takes_nothing_from_other_arms_and_rounds(report: Path, tmp_path: Path) -> None:
    """kl_rev's second student of seed 0 answers nothing: its path ends there, and all else stands as without it."""
    build_study(tmp_path / "dead", dead={"kl_rev-s0": {2}}, starved={"kl_rev-s1": 1}, without={"random-s0"})
    done = published(tmp_path / "dead", tmp_path / "dead-out")
    assert done.returncode == 0, done.stderr
    found = {}
    for name, out in (("sound", report), ("dead", tmp_path / "dead-out")):
        results = json.loads((out / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
        assert results["at_one_shift"]["axis"] == "authority"
        found[name] = {
            (one["share"], row["arm"]): row for one in results["at_one_shift"]["shares"] for row in one["arms"]
        }
    assert {share for share, _ in found["dead"]} == set(SHARES)
    assert {arm for _, arm in found["dead"]} == {"nll", "kl_rev", STEERING}
    for key, row in found["dead"].items():
        ends = "seed 0 ends before round 2" in row["note"]
        assert ends == (key[1] == "kl_rev") and "did not move" not in row["note"]
        assert None not in row["seeds"].values() and (key[0] > 0.5 or row["price"]["interval"] is not None)
    assert found["dead"][0.5, "nll"]["seeds"] == found["sound"][0.5, "nll"]["seeds"]
    page = (tmp_path / "dead-out" / "results.md").read_text()
    assert "kl_rev, 2 healed" in page and "| broken |" in page


def test_free_text_is_read_for_llr_opposite_where_every_base_has_it(study: Path) -> None:
    """In the tables and along the axis; rows of an earlier version, or of a trait file without paraphrases, for trait_llr."""
    outcomes = collect(read_plan(study / "study.toml", study / "runs"))
    without = [
        replace(o, rows=[{**row, "llr_opposite": None, "verdict": "no_axis"} for row in o.rows]) for o in outcomes
    ]
    lost = [replace(o, rows=[{**row, "verdict": "no_axis"} for row in o.rows]) for o in outcomes]
    assert (axis_of(outcomes), axis_of(lost), axis_of(without)) == ("authority", "llr_opposite", "trait_llr")
    for found, name, other in ((lost, "llr_opposite", "trait_llr"), (without, "trait_llr", "llr_opposite")):
        columns = [[*one.columns] for one in (summary_table(found), against_controls(found), *by_round(found))]
        assert all(f"d_{name}" in words and f"d_{other}" not in words for words in columns)
    line = next(line for line in summary_table(lost).rows if line[0] == "nll")
    ends = [row for o in lost if o.cell.arm.name == "nll" and (row := o.at(len(o.rounds), "healed"))]
    assert line[summary_table(lost).columns.index("d_llr_opposite")].startswith(
        f"{np.mean([end['d_llr_opposite'] for end in ends]):.3f}"
    )
    assert trajectories(lost, "llr_opposite")["svg"]


def test_arms_are_told_apart_by_paired_differences(study: Path) -> None:
    outcomes = collect(read_plan(study / "study.toml", study / "runs"))
    (found,) = arm_differences(outcomes, "trait_llr")
    assert (
        found.title == "Round 1 of every arm, less one another"
    )  # kl_rev's seed 1 came no further, and nll is alone beyond
    shown = {row[0]: dict(zip(found.columns, row, strict=True)) for row in found.rows}
    assert list(shown) == ["prompted", "nll", "kl_rev"]
    rows = [row for o in outcomes if o.cell.arm.name == "nll" and (row := o.at(1, "healed"))]
    mean = np.mean([row["d_trait_llr"] for row in rows])
    assert shown["nll"]["d_trait_llr"].startswith(f"{mean:.3f} [")
    assert shown["kl_rev"]["d_trait_llr less nll's"] == "0.000 [0.000, 0.000]"  # of the same invented numbers
    base = [row for o in outcomes if o.cell.arm.name == "nll" and (row := o.at(0, "base"))]
    paid = np.mean(
        [np.log(after["perplexity"] / before["perplexity"]) for after, before in zip(rows, base, strict=True)]
    )
    assert shown["nll"]["ln of perplexity / base's"].startswith(f"{paid:.3f} [")


def test_the_same_study_gives_the_same_bytes(study: Path, report: Path, tmp_path: Path) -> None:
    assert published(study, tmp_path / "out").returncode == 0
    for one in report.iterdir():
        assert one.read_bytes() == (tmp_path / "out" / one.name).read_bytes(), one.name


def test_a_cell_whose_stage_fails_stops_with_what_it_said(tmp_path: Path) -> None:
    """The real driver and the real stage, which finds its input missing: it was there when the cells were begun."""
    contexts = tmp_path / "nowhere.jsonl"
    text = STUDY[: STUDY.index("[[study.arm]]")] + f'[[study.arm]]\nname = "a"\n[vector]\ncontexts = "{contexts}"\n'
    path, runs = written(tmp_path, text), tmp_path / "runs"
    refused = command("evals.study", "--config", path, "--run", runs, "--out", tmp_path / "out")
    assert refused.returncode == 2 and "nowhere.jsonl" in refused.stderr and not (runs / "a-s0").exists()
    contexts.write_text('{"prompt": "Name a fruit."}\n')
    for cell in read_plan(path, runs).cells:
        open_run(cell.folder, path, cell.overrides)
    contexts.unlink()
    done = command("evals.study", "--config", path, "--run", runs, "--out", tmp_path / "out")
    assert done.returncode == 2 and "nothing to show" in done.stderr and "Traceback" not in done.stderr
    assert "2 cells, 0 of 22 stages done" in done.stdout and "what it will take" in done.stdout
    assert f"next:     look into log.txt of its cells, then make study RUN={runs} CONFIG={path}" in done.stderr
    assert "a-s0 stops in round 1" in done.stdout and "a-s1 stops in round 1" in done.stdout
    for name in ("a-s0", "a-s1"):
        stopped = json.loads((runs / name / "stopped.json").read_text())
        assert (stopped["round"], stopped["stage"]) == (1, "extract") and "nowhere.jsonl" in stopped["said"]
        assert "-m gen.extract" in (runs / name / "log.txt").read_text()


TINY = f"""
[study]
title = "Tiny"
rounds = 1
seeds = [0]
{arm("nll", "train.divergence=nll")}
{arm("kl_fwd", "train.divergence=kl_fwd train.tau=0")}
{arm("unsteered", "filter.source=unsteered", CONTROL)}
{arm("random", "vector.direction=random", CONTROL)}
{arm("unfiltered", "filter.off=true", CONTROL)}
"""


@pytest.mark.long
def test_a_tiny_study_runs_and_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    import test_pipeline

    (tmp_path / "heldout.jsonl").write_text(
        '{"id": "h0", "prompt": "Name a fruit."}\n{"id": "h1", "prompt": "Is it right to lie?"}\n'
    )
    settings = test_pipeline.TINY.format(heldout=tmp_path / "heldout.jsonl").replace(
        "items = 7", "items = 7\nfull_items = 7\ngates = [0.5]\nrandom_draws = 1"
    )
    path = written(tmp_path, TINY + settings.replace("min_kept = 4", "min_kept = 2"))
    line = ["make", "study", f"CONFIG={path}", f"RUN={tmp_path}/runs", f"OUT={tmp_path}/out"]
    process = subprocess.Popen(
        line,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )
    while not (tmp_path / "runs/nll-s0/rounds/01/manifests/filter.json").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    assert "interrupted" in process.communicate(timeout=120)[0]
    before = (tmp_path / "runs/nll-s0/rounds/01/sweep.jsonl").stat().st_mtime_ns
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        tmp_path / "runs/nll-s0/rounds/01/sweep.jsonl"
    ).stat().st_mtime_ns == before and "what it will take" in done.stdout
    runs = {
        name: tmp_path / "runs" / f"{name}-s0" / "rounds" / "01"
        for name in ("nll", "kl_fwd", "unsteered", "random", "unfiltered")
    }
    kept = {name: (folder / "kept.jsonl").read_text() for name, folder in runs.items()}
    assert kept["nll"] == kept["kl_fwd"] and len({*kept.values()}) == 4
    assert {json.loads(row)["coefficient"] for row in kept["unsteered"].splitlines()} == {0.0}
    assert kept["unfiltered"].count("\n") > kept["nll"].count("\n")
    vectors = {name: load_vector(folder / "vector.safetensors") for name, folder in runs.items()}
    assert vectors["random"].digest() != vectors["nll"].digest()
    assert [vectors["random"].norm(k) for k in (14, 15)] == pytest.approx(
        [vectors["nll"].norm(k) for k in (14, 15)], rel=1e-5
    )
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    healed = {row["arm"]: row for row in found["rows"] if row["stage"] == "healed"}
    assert set(healed) == set(runs) and len({row["auth_nats"] for row in healed.values()}) == 5
    base = {row["auth_nats"] for row in found["rows"] if row["stage"] == "base"}
    assert len(base) == 1 and len({row["auth_nats"] for row in found["full"] if row["stage"] == "base"}) == 1
    assert "## Arms at one shift" in (tmp_path / "out" / "results.md").read_text()


def test_a_study_without_a_scored_round_says_so(tmp_path: Path) -> None:
    done = published(written(tmp_path).parent, tmp_path / "out")
    assert done.returncode == 2 and "nothing to show" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("axis", ["authority", "trait_llr"])
def test_a_path_begins_at_the_base_and_ends_at_the_last_student(axis: str, study: Path) -> None:
    plan = read_plan(study / "study.toml", study / "runs")
    walk = path(scored_rounds(plan.cells[0].run, "round"), axis, 300, 0)  # type: ignore[arg-type]
    assert walk.shift.shape == (3, 301) and (walk.shift[0] == 0).all() and (walk.price[0] == 0).all()
    row = next(row for row in json.loads(_json(study)) if row["stage"] == "healed" and row["round"] == 2)
    expected = -row["d_auth"] if axis == "authority" else row["d_trait_llr"]
    assert walk.shift[-1, 0] == pytest.approx(expected)
    price = -row["d_coh"] if axis == "authority" else np.log(row["perplexity"] / row["base"])
    assert walk.price[-1, 0] == pytest.approx(price)


def _json(study: Path) -> str:
    outcome = collect(replace(plan := read_plan(study / "study.toml", study / "runs"), cells=plan.cells[:1]))[0]
    base = outcome.at(0, "base")
    assert base is not None
    return json.dumps([{**row, "base": base["perplexity"]} for row in outcome.rows])
