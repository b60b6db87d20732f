"""The command line: what is refused before anything heavy loads, always with exit code 2 and the next command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import ROOT, command

from shared.run import open_run

STAGES = ["gen.extract", "gen.sweep", "gen.filter", "train.heal", "evals.score", "evals.report"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return open_run(tmp_path / "run", ROOT / "configs" / "smollm2.toml", "").folder


@pytest.mark.parametrize("stage", STAGES)
def test_help_and_a_bare_call(stage: str) -> None:
    assert "--run" in command(stage, "--help").stdout
    bare = command(stage)
    assert (
        bare.returncode == 2 and "error:" in bare.stderr and "next:" in bare.stderr and "Traceback" not in bare.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["gen.sweep", "--round", "1", "--coefficients", "1", "2"], "--coefficients"),
        (["gen.extract", "--round", "1", "--out", "v.safetensors"], "--out"),
        (["gen.extract", "--round", "0"], "1 or more"),
        (["gen.extract"], "--round"),
        (["gen.filter", "--round", "1"], "sweep.jsonl"),
        (["train.heal", "--round", "2"], "kept.jsonl"),
        (["evals.score", "--round", "1"], "vector.safetensors"),
        (["evals.report"], "has no scores"),
        (["gen.extract", "--round", "1", "--set", "train.lam=9"], "REBUILD=1"),
    ],
)
def test_a_run_refuses_what_it_cannot_do(run: Path, arguments: list[str], part: str) -> None:
    before = sorted(path.name for path in run.rglob("*"))
    done = command(arguments[0], "--run", run, *arguments[1:])
    assert done.returncode == 2 and part in done.stderr and "next:" in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in run.rglob("*")) == before


def test_a_vector_with_nan_in_a_run_is_refused(run: Path) -> None:
    import numpy as np

    from shared.vectors import Vector

    (run / "rounds" / "01").mkdir(parents=True)
    Vector({14: np.full(576, np.nan, dtype=np.float32)}).save(run / "rounds" / "01" / "vector.safetensors")
    done = command("gen.sweep", "--run", run, "--round", "1")
    assert (
        done.returncode == 2
        and "576 values that are NaN" in done.stderr
        and not (run / "rounds" / "01" / "sweep.jsonl").exists()
    )


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    rows = tmp_path / "file"
    rows.write_text("")
    done = command("shared.begin", "--run", rows / "run", "--config", ROOT / "configs" / "smollm2.toml")
    assert done.returncode == 2 and "could not be written" in done.stderr and "Traceback" not in done.stderr


def test_every_key_is_listed() -> None:
    listed = command("shared.config").stdout
    assert "train.divergence" in listed and "KL(theta||ref)" in listed


def test_shipped_data_carries_a_version() -> None:
    for path in (ROOT / "shared" / "data").glob("*.jsonl"):
        assert all(json.loads(line)["version"] == 1 for line in path.read_text().splitlines()), path.name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
