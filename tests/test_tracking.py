"""Scores and verdicts reach trackers: TensorBoard's files are read back; a round is sent once, and again where it changed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import build

from evals import tracking
from evals.results import results_of
from evals.round import Round
from evals.scored import scored_rounds
from evals.tracking import TRACKERS, entries, track
from shared import preconditions
from shared.errors import SteerHealError
from shared.preconditions import TRACKER_PACKAGES
from shared.run import Run

PAGE = Path("report/index.html")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Round], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("tracked") / "run"
    run = build(folder, 2, overrides="eval.bootstrap=100 train.report_to=[tensorboard]")
    rounds = scored_rounds(run, "round")
    return run, rounds, results_of(run, rounds)["rows"]


def events(folder: Path) -> Any:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_gets_scores_verdicts_sweep_and_report(
    made: tuple[Run, list[Round], list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, rounds, rows = made
    track(run, rounds, rows, PAGE)
    assert "scores of 3 steps sent to tensorboard" in capsys.readouterr().out
    found = events(run.folder / "tensorboard")
    healed = {row["round"]: row for row in rows if row["stage"] == "healed"}
    for name in ("perplexity", "llr_opposite", "d_auth"):
        sent = [(event.step, event.value) for event in found.Scalars(f"healed/{name}")]
        assert sent == [(k, pytest.approx(row[name], rel=1e-5)) for k, row in healed.items()]
    assert [event.step for event in found.Scalars("base/perplexity")] == [0]
    line = next(line for line in rounds[1].scores.sweep if line.coefficient == 1.0)
    assert found.Scalars("sweep/1/kept")[1].value == pytest.approx(line.kept / line.n)
    texts = [event.tensor_proto.string_val[0].decode() for event in found.Tensors("answer/text_summary")]
    assert len(texts) == 2 and healed[2]["text_verdict_reason"] in texts[1]
    assert b"index.html" in found.Tensors("report/text_summary")[0].tensor_proto.string_val[0]

    track(run, rounds, rows, PAGE)
    assert capsys.readouterr().out == "", "what was sent is not sent again"
    changed = [{**row, "perplexity": 99.0} if row is healed[2] else row for row in rows]
    track(run, rounds, changed, PAGE)
    assert "scores of 1 steps" in capsys.readouterr().out


def test_a_tracker_that_fails_fails_no_report_and_is_tried_again(
    made: tuple[Run, list[Round], list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file where TensorBoard's folder would be."""
    run, rounds, rows = made
    elsewhere = Run(tmp_path, run.config)
    (tmp_path / "tensorboard").write_text("")
    track(elsewhere, rounds, rows, PAGE)
    said = capsys.readouterr().out
    assert "tensorboard took no scores" in said and not (tmp_path / tracking.NAME).exists()
    (tmp_path / "tensorboard").unlink()
    track(elsewhere, rounds, rows, PAGE)
    assert "scores of 3 steps sent to tensorboard" in capsys.readouterr().out


def test_numbers_are_sent_and_names_and_truths_are_not(made: tuple[Run, list[Round], list[dict[str, Any]]]) -> None:
    _, rounds, rows = made
    base, first, _ = entries(rounds, rows, PAGE)
    assert base.texts == {} and base.scalars.keys() >= {"base/perplexity", "prompted/llr_opposite"}
    assert not any(name.split("/")[1] in ("seed", "round", "verdict", "surgical") for name in first.scalars)
    assert all(type(value) is float for value in first.scalars.values())


def test_every_tracker_with_scores_is_one_that_gets_the_curve() -> None:
    assert set(TRACKERS) <= set(TRACKER_PACKAGES)


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_other_trackers_take_them(
    name: str,
    made: tuple[Run, list[Round], list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run where the package is installed: it is in no lock."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run, rounds, rows = made
    train = run.config.train.model_copy(update={"report_to": [name]})
    track(Run(tmp_path, run.config.model_copy(update={"train": train})), rounds, rows, PAGE)
    assert f"scores of 3 steps sent to {name}" in capsys.readouterr().out


def test_wandb_without_an_account_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions, "find_spec", lambda name: True)  # as if it were installed
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SteerHealError, match="no account") as refused:
        preconditions.tracker("wandb")
    assert "WANDB_MODE=offline" in refused.value.next
    monkeypatch.setenv("WANDB_MODE", "offline")
    preconditions.tracker("wandb")
