"""What a run will take: work grows with the plan, a stage that ended corrects the rest, and a lack of room is said beforehand."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, command
from hypothesis import given
from hypothesis import strategies as st

from gen.windows import Windows
from shared import estimate
from shared.config import resolve_config
from shared.estimate import SPEED, Estimates, calibration, made_all, predict, print_estimate, remaining_words
from shared.machine import _control_groups
from shared.models import Model
from shared.records import Manifest
from shared.run import STAGES, Run, open_run
from shared.stages import Step
from shared.work import Work, disk_of, memory_of, shape_of, sizes, work_of

SMOLLM2 = ROOT / "configs" / "smollm2.toml"
MACHINE: dict[str, float | str] = {"device": "cpu", "flops": 1e11, "engine_flops": 1e11, "bytes": 1e10}


def took(seconds: float, **more: object) -> Manifest:
    plain = {"version": 1, "settings": {}, "inputs": {}, "outputs": {}, "counts": {}, "commit": None, "versions": {}, "hardware": {}}  # fmt: skip
    return Manifest.model_validate({**plain, "seconds": seconds, **more})


def run(overrides: str = "", folder: Path = Path("nowhere")) -> Run:
    return Run(folder, resolve_config(SMOLLM2, overrides)[0])


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
        ("score", "eval.random_draws=18"),
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
    sizes = [disk_of(run("model.dtype=bfloat16"), both), disk_of(run(), both), disk_of(run(), [*both, (2, "score")])]
    assert sizes[0].total < sizes[1].total < sizes[2].total
    assert disk_of(run(), both, adapters=True).students == 0 < sizes[1].students


def test_each_student_is_on_the_disk_once() -> None:
    """The sweep of a round reads what the scoring before it merged, and EVAL=full what the scoring of the round did."""
    config = run("model.dtype=bfloat16")
    first = disk_of(config, [(1, "score")]).students
    gates = len({1.0, *config.config.eval.gates})
    assert first > 0 and disk_of(config, [(1, "sweep")]).students == 0
    assert disk_of(config, [(1, "score"), (2, "sweep"), (1, "score-full")]).students == first
    assert disk_of(config, [(2, "sweep")]).students == pytest.approx(first / gates)
    assert disk_of(config, [(1, "score"), (2, "sweep"), (2, "score")]).students == pytest.approx(2 * first)


@given(st.floats(1e9, 1e13), st.floats(1e9, 1e12), st.floats(0, 1e16), st.floats(0, 1e13))
def test_a_faster_machine_is_never_slower(flops: float, copied: float, work: float, size: float) -> None:
    slow = predict(Work(work, size), "sweep", {"device": "cpu", "engine_flops": flops, "bytes": copied})
    fast = predict(Work(work, size), "sweep", {"device": "cpu", "engine_flops": 2 * flops, "bytes": 2 * copied})
    assert SPEED["sweep"].start <= fast <= slow < math.inf


def test_a_stage_that_ended_corrects_those_to_come() -> None:
    run = Path("run")
    plan = {
        (run, 1, "extract"): 10.0, (run, 1, "sweep"): 100.0, (run, 1, "heal"): 50.0, (run, 2, "extract"): 10.0, (run, 2, "sweep"): 90.0, (run, 2, "heal"): 20.0, (run, 3, "sweep"): 90.0,
    }  # fmt: skip
    estimates = Estimates(dict(plan), {(run, 2, "heal")})
    assert estimates.left() == sum(plan.values())
    estimates.ended((run, 1, "extract"), took(20.0))
    assert estimates.left() == 2 * (sum(plan.values()) - 10)
    estimates.ended((run, 1, "sweep"), took(50.0, stage="sweep", resumed=0.0))
    assert estimates.seconds((run, 2, "sweep")) == 45.0, "a stage by its own"
    assert estimates.seconds((run, 2, "extract")) == 20.0 and estimates.seconds((run, 1, "heal")) == 50.0, (
        "another by the mean of all"
    )
    assert estimates.seconds((run, 1, "sweep")) is None
    assert (remaining_words(1.5), remaining_words(100)) == ("under a minute to go", "about 2 min to go")
    estimates.ended((run, 2, "sweep"), took(900.0, counts={"taken_from_cache": 3}))
    estimates.ended((run, 3, "sweep"), took(900.0, stage="sweep", resumed=0.25))
    estimates.ended((run, 2, "heal"), took(900.0, stage="heal", resumed=0.0))
    assert estimates.ratios == {"extract": 2.0, "sweep": 0.5}, "what was not made from its beginning says nothing"
    assert not made_all(took(1.0, stage="heal")), "a manifest from before it was recorded"


def test_a_stage_half_made_is_expected_to_take_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "calibration", lambda: MACHINE)
    begun = open_run(tmp_path / "run", SMOLLM2)
    steps = [Step(begun, 1, stage) for stage in STAGES]
    whole = print_estimate([steps], begun.folder, []).predicted
    windows = Windows(begun.round(1) / "sweep.jsonl")
    windows.open({}, rebuild=False, count=4)
    for index in range(3):
        windows.write(index, b"")
    checkpoint = begun.round(1) / "healing" / "checkpoint-20"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"max_steps": 40}')
    half = print_estimate([steps], begun.folder, [])
    for stage, share in (("sweep", 0.25), ("heal", 0.5)):
        key, start = (begun.folder, 1, stage), SPEED[stage].start
        assert half.predicted[key] - start == pytest.approx(share * (whole[key] - start)) and key in half.resumed
    assert len(half.resumed) == 2 and half.predicted[begun.folder, 1, "score"] == whole[begun.folder, 1, "score"]


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ("sweep.samples=10000000", "too little room on a disk"),
        ("train.batch_size=100000 train.max_length=2048", "too little memory for a stage"),
    ],
)
def test_a_lack_of_room_is_said_before_anything_is_begun(overrides: str, what: str, tmp_path: Path) -> None:
    line = ["--run", tmp_path / "run", "--config", SMOLLM2, "--set", overrides]
    if "memory" in what and shutil.which("nvidia-smi"):
        pytest.skip("the memory that counts is a GPU's")
    done = command("shared.pipeline", *line)
    assert done.returncode == 71 and what in done.stderr and "GiB" in done.stderr, done.stdout + done.stderr
    assert not (tmp_path / "run" / "rounds").exists()


@pytest.mark.parametrize(
    ("stage", "settings", "lower"),
    [
        ("extract", "vector.batch_size=16", "vector.batch_size=4"),
        ("extract", "vector.batch_size=3", "vector.batch_size=1"),
        ("extract", "vector.batch_size=1", None),
        ("heal", "train.batch_size=8", "train.gradient_checkpointing=true train.batch_size=2"),
        ("heal", "train.batch_size=2 train.gradient_checkpointing=true", "train.batch_size=1"),
        ("heal", "train.batch_size=1 train.gradient_checkpointing=true", None),
        ("score", "eval.contexts=64", "eval.contexts=0"),
        ("score", "eval.contexts=0", None),
        ("sweep", "sweep.workers=8", "sweep.workers=4"),
        ("sweep", "sweep.workers=3", "sweep.workers=1"),
        ("sweep", "sweep.workers=1", None),
    ],
)
def test_what_to_lower_is_lower_than_what_the_run_has(
    stage: str, settings: str, lower: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEER_HEAL_FORM", "make")
    expected = f"make round N=1 RUN=nowhere SET={shlex.quote(lower)} REBUILD=1" if lower else ""
    if stage == "sweep":  # which goes on with the windows that are whole: who makes the others does not change them
        expected = expected.removesuffix(" REBUILD=1")
    assert Step(run(settings), 1, stage).lower == expected
    if stage == "score" and lower:  # the scores of EVAL=full are made with EVAL=full alone
        assert " EVAL=full " in Step(run(settings), 1, "score-full").lower


def test_a_dry_run_says_what_it_will_take_and_leaves_nothing(tmp_path: Path) -> None:
    done = command("shared.pipeline", "--run", tmp_path / "run", "--config", SMOLLM2, "-N", 2, "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in (*STAGES, "in all", "GiB of disk"):
        assert word in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_what_the_command_would_refuse(tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        done = command("shared.pipeline", "--run", tmp_path / "run", *words)
        assert done.returncode == 2, done.stdout + done.stderr
        return done.stderr

    assert "there is no such run" in refused("--report", "--dry-run")
    assert "a run has no configuration" in refused("--dry-run")
    refused("--config", SMOLLM2, "--model", tmp_path / "nope", "--dry-run")
    assert not (tmp_path / "run").exists()
    command("shared.begin", "--run", tmp_path / "run", "--config", SMOLLM2)
    frozen = (tmp_path / "run" / "config.toml").read_bytes()
    assert "differs from the one frozen" in refused("--set", "train.lam=0.7", "--dry-run")
    assert (tmp_path / "run" / "config.toml").read_bytes() == frozen and not (tmp_path / "run" / ".lock").exists()


def test_a_prompt_set_is_sampled_and_a_bad_line_is_the_stages(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"id": "x", "prompt": "' + "a" * 46 + '"}\n' + "{\n" + 5000 * ('{"prompt": "' + "b" * 46 + '"}\n'))
    plan = sizes(run(f"sweep.dilemmas={path} sweep.n_dilemmas=4900 sweep.n_mundane=0").config, 1)
    assert plan.prompts == 4900 and plan.neutral == pytest.approx(13 + 10 + 28 / 4.6, abs=0.5)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a/b/memory.max": "max", "a/memory.max": "800", "a/memory.current": "700", "a/memory.stat": "inactive_file 300"}, [400]),
        ({"a/b/memory.max": "50", "a/b/memory.current": "60", "a/b/memory.stat": "inactive_file 0"}, [0]),
        ({}, []),
    ],
)  # fmt: skip
def test_a_control_groups_limit_counts_wherever_it_stands(
    files: dict[str, str], expected: list[int], tmp_path: Path
) -> None:
    """Slurm sets it above the process's own group; pages of files can be dropped."""
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    assert _control_groups(tmp_path / "fs", own) == expected


@pytest.mark.long
def test_estimates_are_within_a_factor_of_one_and_a_half(tmp_path: Path) -> None:
    """Alone on a machine; the whole round, and each of its stages that takes more than a few seconds."""
    machine = calibration()
    planned_run = run(folder=tmp_path / "run")
    stages = ("extract", "sweep", "heal", "score")
    predicted = {stage: predict(work_of(planned_run, 1, stage), stage, machine) for stage in stages}
    environment = {**os.environ, "STEER_HEAL_CACHE": str(tmp_path / "cache")}  # no rows of an earlier scoring
    line = [sys.executable, "-m", "shared.pipeline", "--run", tmp_path / "run", "--config", SMOLLM2]
    done = subprocess.run(list(map(str, line)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    took = {
        stage: json.loads((tmp_path / "run" / "rounds" / "01" / "manifests" / f"{stage}.json").read_text())["seconds"]
        for stage in stages
    }
    ratios = {stage: took[stage] / predicted[stage] for stage in stages}
    assert 1 / 1.5 < sum(took.values()) / sum(predicted.values()) < 1.5, (took, predicted)
    assert all(1 / 1.5 < ratio < 1.5 for ratio in ratios.values()), ratios
