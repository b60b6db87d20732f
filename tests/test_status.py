"""What `status` says of runs that are begun, half-made, running, stopped and done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from conftest import ROOT, command
from synthetic_run import IDENTITY

from gen.windows import Windows
from shared.locks import lock_holder
from shared.progress import note_to_go, time_left
from shared.publish import write_json
from shared.run import STAGES, Run, open_run
from shared.stage import Stage
from shared.status import runs_below, status_of

CONFIG = ROOT / "configs" / "smollm2.toml"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(tmp_path / "runs" / "mine", CONFIG, "")


def make(run: Run, number: int, stage: str) -> None:
    out = run.round(number) / f"{stage}.txt"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("x")
    Stage(run, number, stage, settings={}, inputs={}, outputs=[out]).finish(IDENTITY)


def test_a_run_that_has_just_begun(run: Run) -> None:
    found = status_of(run.folder)
    assert (found.model, found.rounds, found.done, found.half, found.running) == ("embedded", 0, [], None, None)
    assert found.next == f"make round N=1 RUN={run.folder}"


def test_rounds_and_stages_are_counted_and_the_next_command_goes_on(run: Run) -> None:
    for stage in STAGES:
        make(run, 1, stage)
    assert status_of(run.folder).rounds == 1 and status_of(run.folder).next == f"make report RUN={run.folder}"
    (run.folder / "report").mkdir()
    assert status_of(run.folder).next == f"make round N=2 RUN={run.folder}"
    make(run, 2, "extract")
    found = status_of(run.folder)
    assert found.rounds == 1 and [(one.round, one.stage) for one in found.done] == [
        *((1, stage) for stage in STAGES),
        (2, "extract"),
    ]
    assert found.next == f"make round N=2 RUN={run.folder}"


def test_a_sweep_half_made_is_told_in_windows(run: Run) -> None:
    make(run, 1, "extract")
    windows = Windows(run.round(1) / "sweep.jsonl")
    windows.open({"a": 1}, rebuild=False, count=5)
    half = status_of(run.folder).half
    assert half is not None and half.progress == "window 0 of 5"
    windows.write(0, b"")
    windows.path(1).write_text("being written")
    half = status_of(run.folder).half
    assert half is not None and (half.round, half.stage, half.progress) == (1, "sweep", "window 1 of 5")


def test_a_training_half_made_is_told_by_its_checkpoint(run: Run) -> None:
    for stage in STAGES[:3]:
        make(run, 1, stage)
    for step in (20, 100):
        (run.round(1) / "healing" / f"checkpoint-{step}").mkdir(parents=True)
    half = status_of(run.folder).half
    assert half is not None and (half.stage, half.progress) == ("heal", "checkpoint at step 100")


def test_who_is_at_work_is_told_while_he_lives(run: Run) -> None:
    hold = "import sys; from pathlib import Path; from shared.run import open_run; open_run(Path(sys.argv[4])).hold(); print('held', flush=True); input()"
    line = [sys.executable, "-c", hold, "-m", "gen.sweep", "--run", str(run.folder), "--round", "1"]
    first = subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    found = status_of(run.folder)
    assert found.running == first.pid and found.working_on == "round 1 sweep"
    said = command("shared.status", "--run", run.folder).stdout
    assert f"running: round 1 sweep, process {first.pid}" in said and "next:" not in said
    first.kill()
    first.wait()
    assert (run.folder / ".lock").exists() and status_of(run.folder).running is None


def test_a_running_one_says_how_much_longer(run: Run) -> None:
    """By its own log: the estimate of all its stages, and the last line of the one at work."""
    log, now = run.folder / "log.txt", datetime(2026, 1, 2, 0, 1, 0)
    assert time_left(log, now) == (None, None)
    log.write_text(
        "23:50:00 the run has about 9000 s to go\n2026-01-01 23:51:00 $ -m gen.extract\n23:52:00 extracting 1 of 2, about 2 min left\n"
        "23:56:00 the run has about 1500 s to go\n2026-01-01 23:56:00 $ -m gen.sweep --run x\n"
    )
    assert time_left(log, now) == (1200.0, None)
    with log.open("a") as file:
        file.write("23:59:00 sampling 30 of 100, 2.0 a second, about 12 min left, kept 9\n00:00:30 loading: 3 s\n")
    assert time_left(log, now) == (1200.0, "sampling 30 of 100, 2.0 a second, about 10 min left")
    note_to_go(log, 600.0)
    run.hold()
    try:
        found = status_of(run.folder)
        said = " ".join(command("shared.status", "--run", run.folder).stdout.split())
    finally:
        run.release()
    assert found.left is not None and 590 < found.left <= 600 and "about 10 min left in all" in said
    assert status_of(run.folder).left is None


def test_a_fresh_clone_has_no_runs_and_says_what_to_type(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STEER_HEAL_FORM": "make"}

    def status(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "shared.status", *words]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = status()
    assert (
        done.returncode == 0
        and "there are no runs in runs/ yet" in done.stdout
        and "next: make round N=1" in done.stdout
    )
    assert json.loads(status("--json").stdout) == {"version": 1, "runs": []}
    assert status("--run", "nope").returncode == 2
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    assert status().returncode == 0
    (tmp_path / "runs" / "tiny" / "config.toml").touch()
    refused = status("--run", "runs/tinny")
    assert refused.returncode == 2 and "did you mean runs/tiny?" in refused.stderr and "RUN=runs/tiny" in refused.stderr


def test_a_lock_is_looked_at_and_not_taken(run: Run) -> None:
    run.hold()
    try:
        assert lock_holder(run.folder / ".lock") == os.getpid()
        done = command("shared.status", "--run", run.folder)
        assert str(os.getpid()) in done.stdout and lock_holder(run.folder / ".lock") == os.getpid()
    finally:
        run.release()
    assert lock_holder(run.folder / ".lock") is None


def test_the_holder_is_that_of_this_very_file(tmp_path: Path) -> None:
    """Not of another file that has the same inode number elsewhere, nor of a link to the file of another run."""
    other = Path("/dev/shm") if Path("/dev/shm").is_dir() and os.access("/dev/shm", os.W_OK) else tmp_path
    mine, code = (
        tmp_path / "mine",
        "import sys; from pathlib import Path; from shared.locks import hold; hold(Path(sys.argv[1]), Path(sys.argv[1])); print('held', flush=True); input()",
    )
    theirs = other / f"steer-heal-test-{os.getpid()}.lock"
    mine.touch()
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(theirs)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        assert lock_holder(theirs) == first.pid and lock_holder(mine) is None
        mine.unlink()
        mine.symlink_to(theirs)
        assert lock_holder(mine) is None and lock_holder(tmp_path / "none") is None
    finally:
        first.communicate("\n")
        theirs.unlink(missing_ok=True)


def test_a_folder_of_runs_and_of_studies_is_listed_with_what_is_broken(run: Run, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    cell = open_run(runs / "study" / "nll-s0", CONFIG, "train.divergence=nll")
    write_json(
        cell.folder / "stopped.json",
        {"version": 1, "round": 2, "stage": "filter", "said": "error: starved\n  given: 3"},
    )
    (runs / "broken").mkdir()
    (runs / "broken" / "config.toml").write_text("[train]\nlamda = 1\n")
    assert runs_below(runs) == [runs / "broken", run.folder, cell.folder]
    done = command("shared.status", "--run", runs)
    assert done.returncode == 0 and "stopped in round 2 filter: starved" in done.stdout
    assert "no configuration key train.lamda" in done.stdout and f"{run.folder}: next: make round" in done.stdout
    rows = json.loads(command("shared.status", "--run", runs, "--json").stdout)["runs"]
    assert [row["run"] for row in rows] == [str(path) for path in runs_below(runs)]
    assert [row["problem"] is None for row in rows] == [False, True, True]
    make(cell, 2, "filter")  # since, by `make round`
    assert status_of(cell.folder).stopped is None


def test_seconds_are_shown_by_stage(run: Run) -> None:
    make(run, 1, "extract")
    said = command("shared.status", "--run", run.folder).stdout
    assert "round 1" in said and "extract" in said and "0 rounds done" in said and "next: make round N=1" in said


def test_where_there_is_none(tmp_path: Path) -> None:
    done = command("shared.status", "--run", tmp_path)
    assert done.returncode == 0 and "there are no runs in" in done.stdout and "make round N=1" in done.stdout
    assert json.loads(command("shared.status", "--run", tmp_path, "--json").stdout) == {"version": 1, "runs": []}
