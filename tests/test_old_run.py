"""A run folder of an earlier version, whose files lack what later versions write: it opens, or is refused by the name of what lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from conftest import command
from synthetic_run import build

from evals.results import results_of
from evals.scored import scored_rounds
from shared.pipeline import pending, round_steps
from shared.publish import digest
from shared.run import Run, open_run

KEYS = ("model.gpu_memory", "model.tensor_parallel", "model.student", "model.date", "sweep.workers", "train.rows", "train.early_stop", "eval.measures", "eval.stop", "cluster")  # fmt: skip
NOTED = ("model", "stage", "round", "config", "resumed", "peak_memory_gib")  # of a manifest
FIELDS = ("logprobs", "gate", "agreement")


def aged(run: Run, folder: Path) -> Run:
    """A copy of a run as an early version left it: without later keys, fields and files, its digests in order."""
    shutil.copytree(run.folder, folder)
    _age_config(folder / "config.toml")
    manifests = {path: json.loads(path.read_text()) for path in folder.glob("rounds/*/manifests/*.json")}
    before = {name: value for note in manifests.values() for name, value in note["outputs"].items()}
    for path in folder.glob("rounds/*/filter.json"):
        path.unlink()
    for path in folder.glob("rounds/**/*.json*"):
        if path not in manifests:
            _age_rows(path)
    new = {name: digest(folder / name) for name in before if (folder / name).exists()}
    changed = {before[name]: value for name, value in new.items()}
    for path, note in manifests.items():
        note["outputs"] = {name: new[name] for name in note["outputs"] if name in new}
        note["inputs"] = {
            label: changed.get(value, value) for label, value in note["inputs"].items() if label != "filter"
        }
        path.write_text(json.dumps({key: value for key, value in note.items() if key not in NOTED}))
    return Run(folder, open_run(folder).config)


def _age_config(path: Path) -> None:
    document: Any = tomlkit.parse(path.read_text())  # whose tables have the type of any item
    document.remove("begun")
    for key in KEYS:
        section, _, name = key.partition(".")
        if not name:
            document.remove(section)
        elif name in document[section]:
            document[section].remove(name)
    path.write_text(tomlkit.dumps(document))


def _age_rows(path: Path) -> None:
    text = path.read_text()
    lines = [text] if path.suffix == ".json" else text.splitlines()
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError:  # a file that only stands for one, as the sweep's
        return
    path.write_text("".join(json.dumps(_aged(row)) + "\n" for row in rows))


def _aged(value: Any) -> Any:
    if isinstance(value, list):
        return [_aged(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {key: _aged(one) for key, one in value.items() if key not in FIELDS}
    if "reasons" in found:  # sentences
        found["reasons"] = [f"{one['rule']}: {one.get('value')} > {one.get('limit')}" if isinstance(one, dict) else one for one in value["reasons"]]  # fmt: skip
    if "answers" in found or "lp" in found:  # a row of the forced choice, which was known by its file
        found.pop("name", None)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build(tmp_path_factory.mktemp("new") / "run", overrides="model.dtype=float32")


@pytest.fixture(scope="module")
def old(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return aged(run, tmp_path_factory.mktemp("old") / "run")


def test_its_configuration_is_what_it_was(run: Run, old: Run) -> None:
    """A key that is not there has the value that nothing else was possible with."""
    assert old.config == run.config and old.config.model.dtype == "float32"
    assert old.begun.timestamp() == pytest.approx((old.folder / "config.toml").stat().st_mtime)
    assert open_run(old.folder, None, "model.dtype=float32").config == run.config


def test_its_figures_are_what_they_were(run: Run, old: Run) -> None:
    rows = [results_of(one, scored_rounds(one, "round"))["rows"] for one in (run, old)]
    assert rows[0] == rows[1] and rows[0]


def test_its_report_and_status_are_made(old: Run) -> None:
    done = command("evals.report", "--run", old.folder)
    assert done.returncode == 0, done.stderr
    assert (old.folder / "report" / "index.html").stat().st_size > 10_000
    done = command("shared.status", "--run", old.folder)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "score" in done.stdout and str(old.folder) in done.stdout.replace("\n", "")


def test_it_goes_on_where_it_stopped(old: Run) -> None:
    todo = round_steps(old, [1, 2, 3], "round")
    assert [step.number for step in pending(todo, rebuild=False)] == [3] * 5
    assert pending(todo, rebuild=True) == todo, "no manifest says of which configuration it is, so that all count"


def test_what_needs_a_file_that_it_has_not_is_refused_by_name(old: Run, tmp_path: Path) -> None:
    done = command("gen.card", "--run", old.folder, "--round", "2", "--out", tmp_path / "data")
    assert done.returncode == 2 and f"{old.round(2)}/filter.json" in done.stderr, done.stderr
    assert "earlier versions did not" in done.stderr and "REBUILD=1" in done.stderr
