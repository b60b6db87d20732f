"""SIGKILL at random moments of every stage: what is published is whole, and the run that goes on is the one that was never killed.

Two runs of one configuration are compared byte for byte, so that this is the test of determinism as well.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_pipeline import TINY

from shared.models import cache_folder

pytestmark = pytest.mark.long

KILLS = {"extract": 3, "sweep": 20, "filter": 3, "heal": 20, "score": 3}
MODULES = {"extract": "gen.extract", "sweep": "gen.sweep", "filter": "gen.filter", "heal": "train.heal", "score": "evals.score"}  # fmt: skip
OF_A_STAGE = {
    "extract": ["vector.safetensors"],
    "sweep": ["sweep.jsonl"],
    "filter": ["kept.jsonl", "rejected.jsonl"],
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
    run, took = config.parent / "whole", {}
    assert command(run, "shared.begin", "--run", run, "--config", config).returncode == 0
    for stage in KILLS:
        begin = time.monotonic()
        done = command(run, *line(run, stage))
        took[stage] = time.monotonic() - begin
        assert done.returncode == 0, done.stderr
    return run, took


def test_killed_at_random_moments(config: Path, whole: tuple[Path, dict[str, float]]) -> None:
    reference, took = whole
    run = config.parent / "killed"
    assert command(run, "shared.begin", "--run", run, "--config", config).returncode == 0
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
                    (here / "manifests" / f"{stage}.json").unlink()
                    for name in OF_A_STAGE[stage]:
                        (shutil.rmtree if (here / name).is_dir() else os.unlink)(here / name)
        last = command(run, *line(run, stage))
        assert last.returncode == 0, last.stderr
        assert contents(here, OF_A_STAGE[stage]) == wanted, stage
    keys = [json.loads(row)["key"] for row in (here / "sweep.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 6 * 2 * 3 + 2 * 3  # no row twice, none missing
    assert listing(here) == listing(there), listing(here) ^ listing(there)  # and nothing is left lying about
