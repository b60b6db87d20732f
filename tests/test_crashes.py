"""Every stage killed and interrupted at random moments, and on a disk that is full or read-only: what is published is whole, and the run
that goes on is the one that was left alone.

Two runs of one configuration are compared byte for byte, so that this is the test of determinism as well.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from test_pipeline import TINY

from shared.models import cache_folder

pytestmark = pytest.mark.long

INTERRUPTIONS = 2  # of every stage, by each signal
PROMPTLY = 20.0  # seconds within which a stage that was interrupted ends
# Bytes left on the disk: nothing, and what suffices for a part of the stage's work.
ROOM = {"extract": [0, 8 << 10], "sweep": [0, 24 << 10], "filter": [0, 16 << 10], "heal": [0, 6 << 20], "score": [0, 64 << 20]}  # fmt: skip
DISK = 4 << 30  # bytes, with merged students on it
SWALLOWED = re.compile(r"^Exception ignored .*\nTraceback(?:\n.*)*?\nKeyboardInterrupt:? *$", re.M)  # in a destructor
KILLS = {"extract": 3, "sweep": 20, "filter": 3, "heal": 20, "score": 3}
MODULES = {"extract": "gen.extract", "sweep": "gen.sweep", "filter": "gen.filter", "heal": "train.heal", "score": "evals.score"}  # fmt: skip
OF_A_STAGE = {
    "extract": ["vector.safetensors"],
    "sweep": ["sweep.jsonl"],
    "filter": ["kept.jsonl", "rejected.jsonl", "filter.json"],
    "heal": ["adapter", "history", "train.jsonl", "training.json", "kl_tokens.jsonl"],
    "score": ["scores"],
}


def line(run: Path, stage: str) -> list[object]:
    return [MODULES[stage], "--run", run, "--round", 1, *(["--cache"] if stage == "score" else [])]


def own_cache(run: Path) -> dict[str, str]:
    """An environment in which nothing is taken from what another run has scored or merged."""
    folder = run.with_name(f"{run.name}-cache")
    folder.mkdir(exist_ok=True)
    for path in cache_folder().glob("smollm2-*"):
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return {**os.environ, "STEER_HEAL_CACHE": str(folder)}


def command(run: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=own_cache(run))


def contents(folder: Path, names: list[str]) -> dict[str, bytes]:
    """Bytes of every file under these names, by relative path."""
    files = [path for name in names for path in [folder / name, *(folder / name).rglob("*")] if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def begun(run: Path, config: Path) -> Path:
    done = command(run, "shared.begin", "--run", run, "--config", config)
    assert done.returncode == 0, done.stderr
    return run


def unmake(folder: Path, stage: str) -> None:
    """Remove a stage's manifest and its outputs."""
    (folder / "manifests" / f"{stage}.json").unlink()
    for name in OF_A_STAGE[stage]:
        (shutil.rmtree if (folder / name).is_dir() else os.unlink)(folder / name)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crashes")
    heldout = [
        {"id": "h0", "prompt": "My boss wants a lie. What should I do?"},
        {"id": "h1", "prompt": "Name a fruit."},
    ]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heldout))
    text = TINY.format(heldout=folder / "heldout.jsonl").replace("window = 20", "window = 6")
    (folder / "tiny.toml").write_text(text.replace("epochs = 1", "epochs = 3\nbatch_size = 2\nsave_steps = 2"))
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def whole(config: Path) -> tuple[Path, dict[str, float]]:
    """An uninterrupted round, and how long each stage's process took, seconds."""
    run, took = begun(config.parent / "whole", config), {}
    for stage in KILLS:
        begin = time.monotonic()
        done = command(run, *line(run, stage))
        took[stage] = time.monotonic() - begin
        assert done.returncode == 0, done.stderr
    return run, took


def test_killed_at_random_moments(config: Path, whole: tuple[Path, dict[str, float]]) -> None:
    reference, took = whole
    run = begun(config.parent / "killed", config)
    draws = random.Random(0)
    there, here = reference / "rounds" / "01", run / "rounds" / "01"
    for stage, kills in KILLS.items():
        wanted = contents(there, OF_A_STAGE[stage])
        done = 0
        while done < kills:
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, line(run, stage))],
                cwd=ROOT,
                env=own_cache(run),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                assert process.wait(draws.uniform(0.1, took[stage])) == 0, f"{stage} fails after {done} kills"
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
            found = contents(here, OF_A_STAGE[stage])
            broken = [name for name, content in found.items() if content != wanted.get(name)]
            assert not broken, f"{stage} published {broken} after {done} kills"
            if (
                here / "manifests" / f"{stage}.json"
            ).exists():  # it was faster: the rest of the kills fall into another go
                assert found.keys() == wanted.keys()
                if done < kills:
                    unmake(here, stage)
        last = command(run, *line(run, stage))
        assert last.returncode == 0, last.stderr
        assert contents(here, OF_A_STAGE[stage]) == wanted, stage
    keys = [json.loads(row)["key"] for row in (here / "sweep.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 6 * 2 * 3 + 2 * 3  # no row twice, none missing
    assert listing(here) == listing(there), listing(here) ^ listing(there)  # and nothing is left lying about


def test_interrupted_at_random_moments(config: Path, whole: tuple[Path, dict[str, float]]) -> None:
    """Ctrl-C and SIGTERM: a sentence, exit code 130, and a state to go on from."""
    reference, took = whole
    run = begun(config.parent / "interrupted", config)
    draws = random.Random(1)
    there, here, said = reference / "rounds" / "01", run / "rounds" / "01", config.parent / "said"
    for stage in KILLS:
        wanted = contents(there, OF_A_STAGE[stage])
        for how in [signal.SIGINT, signal.SIGTERM] * INTERRUPTIONS:
            status = None
            while status != 130:
                if (here / "manifests" / f"{stage}.json").exists():
                    unmake(here, stage)
                (run / ".lock").unlink(missing_ok=True)
                with open(said, "w") as output:
                    process = subprocess.Popen(
                        [sys.executable, "-m", *map(str, line(run, stage))],
                        cwd=ROOT,
                        env=own_cache(run),
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which background jobs ignore
                    )
                while process.poll() is None and not (run / ".lock").exists():  # before it no handler may stand
                    time.sleep(0.01)
                time.sleep(draws.uniform(0, took[stage]))
                begin, late = time.monotonic(), process.poll() is not None
                process.send_signal(how)
                status = process.wait()
                finished = (
                    here / "manifests" / f"{stage}.json"
                ).exists()  # then the interpreter takes its handlers back
                assert status == 130 or (finished and (late or time.monotonic() - begin < 2)), (stage, how, status, said.read_text())  # fmt: skip
            assert time.monotonic() - begin < PROMPTLY, f"{stage} took {time.monotonic() - begin:.0f} s to end"
            text = SWALLOWED.sub("", said.read_text())
            assert "the same command goes on" in text and "Traceback" not in text, text
            found = contents(here, OF_A_STAGE[stage])
            assert not [name for name, content in found.items() if content != wanted.get(name)], stage
        last = command(run, *line(run, stage))
        assert last.returncode == 0, last.stderr
        assert contents(here, OF_A_STAGE[stage]) == wanted, stage
    assert listing(here) == listing(there), listing(here) ^ listing(there)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", disk], check=True)


def used(disk: Path) -> int:
    """Bytes of a file system."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_disk_that_is_read_only_or_full(config: Path, whole: tuple[Path, dict[str, float]], disk: Path) -> None:
    there, run = whole[0] / "rounds" / "01", begun(disk / "run", config)
    here = run / "rounds" / "01"
    for stage in KILLS:
        wanted = contents(there, OF_A_STAGE[stage])
        remount(disk, "ro")
        refused = command(run, *line(run, stage))
        remount(disk, "rw")
        assert refused.returncode == 74 and "Read-only file system" in refused.stderr, refused.stderr
        assert "the same command goes on" in refused.stderr and "Traceback" not in refused.stderr, refused.stderr
        for room in ROOM[stage]:
            remount(disk, f"size={used(disk) + room}")
            stopped = command(run, *line(run, stage))
            remount(disk, f"size={DISK}")
            assert stopped.returncode == 74 and "could not be written" in stopped.stderr, (stage, room, stopped.stderr)
            assert "the same command goes on" in stopped.stderr and "Traceback" not in stopped.stderr, stopped.stderr
            assert not (here / "manifests" / f"{stage}.json").exists()
            found = contents(here, OF_A_STAGE[stage])
            assert not [name for name, content in found.items() if content != wanted.get(name)], (stage, room)
        if stage == "sweep":
            assert list((here / ".sweep.jsonl.windows").glob("[0-9]*.jsonl")), (
                "windows for which there was room are kept"
            )
        done = command(run, *line(run, stage))
        assert done.returncode == 0, done.stderr
        assert contents(here, OF_A_STAGE[stage]) == wanted, stage
    assert listing(here) == listing(there), listing(here) ^ listing(there)
    unmake(here, "score")  # the cache has all of it now
    again = command(run, *line(run, "score"))
    assert again.returncode == 0, again.stderr
    assert contents(here, OF_A_STAGE["score"]) == contents(there, OF_A_STAGE["score"])
    manifest = json.loads((here / "manifests" / "score.json").read_text())
    assert manifest["counts"]["taken_from_cache"] > 0 and manifest["deterministic"] is False
