"""What a run will take: work grows with the plan, a stage that ended corrects the rest, and a lack of room is said beforehand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from conftest import ROOT, command
from hypothesis import given
from hypothesis import strategies as st

from shared.calibrate import rate
from shared.config import resolve
from shared.estimate import SPEED, Estimates, predict
from shared.models import Model
from shared.run import STAGES, Run
from shared.work import Work, disk_of, memory_of, shape_of, work_of

SMOLLM2 = ROOT / "configs" / "smollm2.toml"
MACHINE: dict[str, float | str] = {"device": "cpu", "flops": 1e11, "bytes": 1e10}


def run(overrides: str = "", folder: Path = Path("nowhere")) -> Run:
    return Run(folder, resolve(SMOLLM2, overrides)[0])


def test_the_shape_of_a_model_counts_its_weights(model: Model) -> None:
    from safetensors import safe_open

    with safe_open(model.folder / "model.safetensors", framework="np") as file:
        slices = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    stored = sum(math.prod(shape) for shape in slices.values())
    assert shape_of(model).weights == pytest.approx(stored, rel=0.01)


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("extract", "vector.n_contexts=512"),
        ("sweep", "sweep.samples=2"),
        ("sweep", "sweep.max_tokens=96"),
        ("sweep", "sweep.coefficients=[0.5,0.75,1.0,1.5,2.0]"),
        ("sweep", "sweep.dose=walk sweep.dose_prompts=40"),
        ("heal", "train.epochs=6"),
        ("heal", "train.gradient_checkpointing=true"),
        ("score", "eval.items=56"),
        ("score", "eval.debias=cyclic"),
        ("score", "eval.think=48"),
        ("score", "eval.random_draws=9"),
        ("score", "eval.generation_tokens=128"),
        ("score-full", "eval.think=48"),
    ],
)
def test_more_to_do_is_more_work(stage: str, more: str) -> None:
    base = "" if "walk" not in more else "sweep.dose=walk sweep.dose_prompts=4"
    less = work_of(run(base), 1, stage)
    assert work_of(run(more), 1, stage).flops > 1.05 * less.flops > 0


def test_every_stage_has_a_speed_and_a_need() -> None:
    for stage in (*STAGES, "score-full"):
        assert stage.partition("-")[0] in SPEED and memory_of(run(), stage) > 0
    assert memory_of(run("train.batch_size=64"), "heal") > 2 * memory_of(run(), "heal")
    both = [(1, stage) for stage in STAGES]
    assert disk_of(run("model.dtype=bfloat16"), both) < disk_of(run(), both) < disk_of(run(), [*both, (2, "score")])


@given(st.floats(1e9, 1e13), st.floats(1e9, 1e12), st.floats(0, 1e16), st.floats(0, 1e13))
def test_a_faster_machine_is_never_slower(flops: float, copied: float, work: float, size: float) -> None:
    slow = predict(Work(work, size, 10), "sweep", {"device": "cpu", "flops": flops, "bytes": copied})
    fast = predict(Work(work, size, 10), "sweep", {"device": "cpu", "flops": 2 * flops, "bytes": 2 * copied})
    assert SPEED["sweep"].start < fast <= slow < math.inf


def test_a_stage_that_ended_corrects_those_to_come() -> None:
    plan = {(1, "extract"): 10.0, (1, "sweep"): 100.0, (1, "heal"): 50.0, (2, "extract"): 10.0, (2, "sweep"): 90.0}
    estimates = Estimates(dict(plan))
    assert estimates.left() == sum(plan.values())
    estimates.ended(1, "extract", 20.0)
    assert estimates.left() == 2 * (sum(plan.values()) - 10)
    estimates.ended(1, "sweep", 50.0)
    assert estimates.seconds(2, "sweep") == 45.0, "a stage by its own"
    assert estimates.seconds(2, "extract") == 20.0 and estimates.seconds(1, "heal") == 50.0, (
        "another by the mean of all"
    )
    assert estimates.seconds(1, "sweep") is None


def test_the_rate_is_of_the_work_and_not_of_the_warming_up() -> None:
    import time

    calls: list[int] = []
    found = rate(lambda: (calls.append(1), time.sleep(0.05 if len(calls) > 1 else 0.3)), 1.0)
    assert found == pytest.approx(20, rel=0.2)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ("sweep.samples=10000000", "too little room on a disk"),
        ("train.batch_size=100000 train.max_length=2048", "too little memory for a stage"),
    ],
)
def test_a_lack_of_room_is_said_before_anything_is_begun(overrides: str, what: str, tmp_path: Path) -> None:
    line = ["--run", tmp_path / "run", "--config", SMOLLM2, "--set", overrides]
    done = command("shared.pipeline", *line)
    assert done.returncode == 71 and what in done.stderr and "GiB" in done.stderr, done.stdout + done.stderr
    assert not (tmp_path / "run" / "rounds").exists()


def test_a_dry_run_says_what_it_will_take_and_leaves_nothing(tmp_path: Path) -> None:
    done = command("shared.pipeline", "--run", tmp_path / "run", "--config", SMOLLM2, "-N", 2, "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in (*STAGES, "in all", "GiB of disk"):
        assert word in done.stdout
    assert not (tmp_path / "run").exists()
