"""Which run is the one before: by when they were begun, whatever was done to them since."""

from __future__ import annotations

import os
from pathlib import Path

from conftest import ROOT

from evals.report.lineage import difference, run_before
from shared.run import open_run

CONFIG = ROOT / "configs" / "smollm2.toml"


def test_a_run_gone_on_with_under_another_place_keeps_its_predecessor(tmp_path: Path) -> None:
    first = open_run(tmp_path / "first", CONFIG, "")
    second = open_run(tmp_path / "second", CONFIG, "train.lam=0.2")
    first = open_run(first.folder, None, "model.gpu_memory=0.5")  # rewrites its file after the second's
    assert (
        first.folder.joinpath("config.toml").stat().st_mtime_ns
        > second.folder.joinpath("config.toml").stat().st_mtime_ns
    )
    assert run_before(first) is None
    found = run_before(second)
    assert found is not None and found.folder.name == "first"
    assert ["train.lam", "0.2", "0.3"] in difference(second).rows


def test_runs_of_the_version_before_are_ordered_by_their_files(tmp_path: Path) -> None:
    runs = [open_run(tmp_path / name, CONFIG, "") for name in ("late", "early")]
    for run, when in zip(runs, (1_700_000_100, 1_700_000_000), strict=True):
        file = run.folder / "config.toml"
        file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("begun")))
        os.utime(file, (when, when))
    found = run_before(runs[0])
    assert found is not None and found.folder.name == "early" and run_before(runs[1]) is None
    new = open_run(tmp_path / "new", CONFIG, "")
    found = run_before(new)
    assert found is not None and found.folder.name == "late"
