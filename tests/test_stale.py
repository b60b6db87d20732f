"""What REBUILD=1 makes again, known beforehand; and what it found intact counts as nothing that was made."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from synthetic_run import IDENTITY

from shared.estimate import Estimates
from shared.pipeline import Pipeline, pending, round_steps
from shared.records import data_file
from shared.run import Run, open_run
from shared.stage import Stage
from shared.stages import Step
from shared.stale import stale_steps

CONFIG = ROOT / "configs" / "smollm2.toml"
FILES = {"extract": "vector", "sweep": "sweep.jsonl", "filter": "kept.jsonl", "heal": "history", "score": "scores"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of one round, every stage with a file of its own."""
    (tmp_path / "trait.json").write_text(data_file("embedded", "trait.json").read_text())
    run = open_run(tmp_path / "run", CONFIG, f"vector.trait={tmp_path / 'trait.json'}")
    for stage, name in FILES.items():
        path = run.round(1) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stage)
        inputs = {"trait": tmp_path / "trait.json"} if stage != "heal" else {}
        Stage(run, 1, stage, settings={}, inputs=inputs, outputs=[path]).finish(IDENTITY)
    return run


def stale(run: Run) -> list[str]:
    return [step.stage for step in stale_steps(round_steps(run, [1], "round"))]


@pytest.mark.parametrize(
    ("setting", "made"),
    [
        ("train.report_to=[tensorboard] sweep.workers=2", []),
        ("eval.think=8", ["score"]),
        ("train.lam=0.9", ["heal", "score"]),
        (
            "filter.min_kept=3",
            ["sweep", "filter", "heal", "score"],
        ),  # a walk's sweep depends on it: rather one too many
        ("sweep.samples=7", ["sweep", "filter", "heal", "score"]),
        ("vector.n_contexts=9", ["extract", "sweep", "filter", "heal", "score"]),
    ],
)
def test_a_setting_makes_stale_what_depends_on_it(setting: str, made: list[str], run: Run) -> None:
    assert stale(run) == []
    assert stale(open_run(run.folder, None, setting, rebuild=True)) == made


def test_files_make_stale_what_read_or_made_them(run: Run, tmp_path: Path) -> None:
    (run.round(1) / "kept.jsonl").write_text("edited")
    assert stale(run) == ["filter", "heal", "score"]
    (run.round(1) / "kept.jsonl").unlink()
    assert stale(run) == ["filter", "heal", "score"]
    (run.round(1) / "kept.jsonl").write_text("filter")
    run.manifest(1, "score").unlink()
    assert stale(run) == ["score"]
    run.manifest(1, "heal").write_text("{")
    assert stale(run) == ["heal", "score"]
    (tmp_path / "trait.json").write_text("{}")
    assert stale(run) == ["extract", "sweep", "filter", "heal", "score"]


def test_the_estimate_is_of_what_is_made_alone(run: Run) -> None:
    todo = round_steps(run, [1, 2], "round")
    assert [step.key for step in pending(todo, rebuild=True)] == [step.key for step in todo[5:]]
    changed = open_run(run.folder, None, "train.lam=0.9", rebuild=True)
    left = pending(round_steps(changed, [1, 2], "round"), rebuild=True)
    assert [step.key for step in left] == [step.key for step in todo[3:]]


class Written(Step):
    """A step whose process writes its manifest anew, or leaves it."""

    rewrites = False

    def command(self, rebuild: bool = False) -> list[str]:
        path = str(self.run.manifest(self.number, self.stage))
        note = {**json.loads(Path(path).read_text()), "seconds": 5.0, "resumed": 0.0}
        code = f"open({path!r}, 'w').write({json.dumps(note)!r})" if self.rewrites else "print('done and intact')"
        return [sys.executable, "-c", code]


def test_what_was_found_intact_is_not_counted_and_teaches_nothing(
    run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest's seconds are those of another day."""
    step = Written(run, 1, "extract")
    pipeline, estimates = Pipeline(run, rebuild=True), Estimates({step.key: 10.0, (run.folder, 2, "extract"): 10.0})
    pipeline.perform(step, estimates)
    assert not pipeline.took and not estimates.ratios and estimates.left() == 10.0
    monkeypatch.setattr(Written, "rewrites", True)
    estimates.predicted[step.key] = 10.0
    pipeline.perform(step, estimates)
    assert [took.manifest.seconds for took in pipeline.took] == [5.0] and estimates.ratios == {"extract": 0.5}
    assert estimates.left() == 5.0
    pipeline.perform(step, estimates)  # looked done, and was made all the same
    assert [took.estimated for took in pipeline.took] == [10.0, None]
    pipeline.show()
    assert "–" in capfd.readouterr().out
