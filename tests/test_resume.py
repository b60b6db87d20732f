"""A round that was killed and goes on is the round that was not."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, heal

from train.unsloth_model import CURRENT, load_student  # isort: skip (Unsloth comes before transformers)

import torch
from transformers import Trainer

from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.folding import fold
from shared.models import Model, resolve_model
from shared.publish import digest
from train.distil import distil
from train.trainer import HealTrainer
from train.unfinished import LOGS

pytestmark = pytest.mark.slow

SMALL = (
    "model.dtype=float32 train.rank=4 train.alpha=8 train.layers=0.4-0.5 train.epochs=4 train.batch_size=2 train.gradient_accumulation=2 "
    "train.learning_rate=2e-3 train.tau=0.01 train.lam=1.0 train.heldout=0.2 train.save_steps=2 train.logging_steps=3"
)


@pytest.fixture(scope="module")
def model(small_model: Model) -> Model:
    return small_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen prompts, eleven to train on: three optimiser steps an epoch, the last of a short batch."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"Count to {n}.", "completion": " ".join(map(str, range(1, n + 1)))} for n in range(2, 16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def history(model: Model, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    distil(model, data, None, folder / "adapter", resolve_config(None, f"{SMALL} train.epochs=1")[0], 1)
    fold([(folder / "adapter", 1.0)], folder / "history")
    return folder / "history"


@pytest.fixture(scope="module")
def whole(model: Model, data: Path, history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Round 2, uninterrupted."""
    out = tmp_path_factory.mktemp("whole") / "adapter"
    healed = distil(model, data, history, out, resolve_config(None, SMALL)[0], 2)
    assert healed.examples == 11 and healed.heldout == 3 and healed.steps[-1]["step"] == 12
    assert [row["step"] for row in healed.rows if "heldout_ce" in row] == [0, 3, 6, 9, 12]
    return out


def same(a: Path, b: Path) -> None:
    for name in ("adapter_model.safetensors", *LOGS):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def stopping_after(steps: int) -> Callable[..., torch.Tensor]:
    """A training step that stands in for Trainer's own and is interrupted once so many steps are done."""
    step = HealTrainer.training_step

    def stop(self: HealTrainer, *args: object, **options: object) -> torch.Tensor:
        if self.state.global_step == steps:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    return stop


def test_killed_and_resumed_is_uninterrupted(
    model: Model, data: Path, history: Path, whole: Path, tmp_path: Path
) -> None:
    """SIGKILL as soon as a checkpoint is whole, twice: both in the middle of an epoch and of a row of the log."""
    out, kills = tmp_path / "adapter", 0
    line = [
        sys.executable,
        "-m",
        "train.heal",
        "--model",
        model.folder,
        "--data",
        data,
        "--history",
        history,
        "--out",
        out,
        "--set",
        SMALL,
    ]
    seals = tmp_path / "adapter.healing"
    for wanted in ("checkpoint-2.sha256", "checkpoint-8.sha256"):
        process = subprocess.Popen([*map(str, line)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (seals / wanted).is_file():
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        assert not out.exists() and json.loads((seals / Path(wanted).stem / "parts.json").read_text())
    done = subprocess.run([*map(str, line)], cwd=ROOT, capture_output=True, text=True)
    assert kills == 2 and done.returncode == 0 and "going on from checkpoint-8" in done.stdout, done.stderr
    same(out, whole)
    assert not seals.exists()


def test_steps_within_an_epoch_are_exact_where_a_round_is_interrupted(
    model: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps of three an epoch, stopped after the third, and after the last one's checkpoint."""
    config = resolve_config(None, f"{SMALL} train.steps=5 train.epochs=1 train.save_steps=1")[0]
    healed = distil(model, data, None, tmp_path / "whole", config, 1)
    assert healed.steps[-1]["step"] == 5 and [row["step"] for row in healed.rows if "heldout_ce" in row] == [0, 3, 5]
    evaluate = HealTrainer.evaluate

    def die(self: HealTrainer, *rest: object, **options: object) -> dict[str, float]:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return evaluate(self, *rest, **options)

    for out, name, stop in (("a", "training_step", stopping_after(3)), ("b", "evaluate", die)):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(HealTrainer, name, stop)
            distil(model, data, None, tmp_path / out, config, 1)
        again = distil(model, data, None, tmp_path / out, config, 1)
        assert again.resumed == (0.6 if out == "a" else 1.0)
        same(tmp_path / out, tmp_path / "whole")


def test_a_checkpoint_without_its_seal_is_not_used(
    model: Model, data: Path, history: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the checkpoint of step 6 was being written, after its weights and before its optimiser."""
    saved = HealTrainer._save_optimizer_and_scheduler

    def die(self: HealTrainer, folder: str) -> None:
        if folder.endswith("checkpoint-6"):
            raise KeyboardInterrupt
        saved(self, folder)

    monkeypatch.setattr(HealTrainer, "_save_optimizer_and_scheduler", die)
    with pytest.raises(KeyboardInterrupt):
        distil(model, data, history, tmp_path / "adapter", resolve_config(None, SMALL)[0], 2)
    monkeypatch.undo()
    assert (tmp_path / "adapter.healing" / "checkpoint-6").is_dir()
    distil(model, data, history, tmp_path / "adapter", resolve_config(None, SMALL)[0], 2)
    same(tmp_path / "adapter", whole)


def test_a_checkpoint_from_a_stranger_runs_nothing(
    model: Model, data: Path, history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle that would write a file in place of the optimiser or the random state, and nonsense in place of the rest, sealed as
    anybody can."""
    config = resolve_config(None, SMALL)[0]
    monkeypatch.setattr(HealTrainer, "training_step", stopping_after(4))
    with pytest.raises(KeyboardInterrupt):
        distil(model, data, history, tmp_path / "adapter", config, 2)
    monkeypatch.undo()
    checkpoint = tmp_path / "adapter.healing" / "checkpoint-4"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (Path.write_text, (tmp_path / "owned", "x"))  # type: ignore[return-value]

    code = pickle.dumps(Payload())
    for name, content in {
        "optimizer.pt": code,
        "rng_state.pth": code,
        "trainer_state.json": b"{",
        "parts.json": b"[1]",
    }.items():
        own = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content)
        checkpoint.with_name("checkpoint-4.sha256").write_text(digest(checkpoint) + "\n")
        with pytest.raises(SteerHealError, match="a checkpoint could not be used"):
            distil(model, data, history, tmp_path / "adapter", config, 2)
        assert not (tmp_path / "owned").exists()
        (checkpoint / name).write_bytes(own)


def test_the_trap_of_a_resume_that_forgets_the_adapter(
    model: Model, data: Path, history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 3 made again: Trainer's own saving and loading, which knows one adapter."""
    config = resolve_config(None, SMALL)[0]
    monkeypatch.setattr(HealTrainer, "training_step", stopping_after(4))
    monkeypatch.setattr(HealTrainer, "_save", Trainer._save)
    with pytest.raises(KeyboardInterrupt):
        distil(model, data, history, tmp_path / "adapter", config, 2)
    monkeypatch.setattr(HealTrainer, "_load_from_checkpoint", Trainer._load_from_checkpoint)
    with pytest.raises(SteerHealError, match="did not restore this round's adapter"):
        distil(model, data, history, tmp_path / "adapter", config, 2)


def test_an_unfinished_round_of_something_else_is_refused(
    model: Model, data: Path, history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve_config(None, f"{SMALL} train.epochs=1")[0]
    distil(model, data, history, tmp_path / "adapter", config, 2)
    states = tmp_path / "adapter.healing" / "base.safetensors"
    before = digest(states)
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text().replace("Count", "Please count"))
    with pytest.raises(SteerHealError, match=r"data = .*held out = ") as refused:
        distil(model, other, history, tmp_path / "adapter", config, 2)
    assert "rm -r" in refused.value.next and digest(states) == before
    with pytest.raises(SteerHealError, match="history = None"):
        distil(model, data, None, tmp_path / "adapter", config, 2)
    with monkeypatch.context() as later, pytest.raises(SteerHealError, match="begun by other code"):
        later.setattr("train.distil.code_digest", lambda package: f"{package} after a pull")
        distil(model, data, history, tmp_path / "adapter", config, 2)
    distil(model, other, history, tmp_path / "adapter", config, 2, replace=True)
    assert digest(states) != before


def test_a_stale_reference_is_refused(model: Model, data: Path, history: Path, tmp_path: Path) -> None:
    """States of another history, put where this round's are expected."""
    config = resolve_config(None, f"{SMALL} train.epochs=1")[0]
    distil(model, data, None, tmp_path / "first", config, 2)
    distil(model, data, history, tmp_path / "second", config, 2)
    stolen = (tmp_path / "first.healing" / "base.safetensors").read_bytes()
    (tmp_path / "second.healing" / "base.safetensors").write_bytes(stolen)
    with pytest.raises(SteerHealError, match="stale") as refused:
        distil(model, data, history, tmp_path / "second", config, 2)
    assert "history changed" in str(refused.value.given)
    (tmp_path / "second.healing" / "base.safetensors").write_bytes(stolen[: len(stolen) // 2])
    with pytest.raises(SteerHealError, match="stale"):
        distil(model, data, history, tmp_path / "second", config, 2)


def test_early_stop_keeps_the_best_epoch(data: Path, tmp_path: Path) -> None:
    """Held-out cross-entropies that fall and then rise, at a rate at which every epoch moves the adapter."""
    config = resolve_config(
        None,
        f"{SMALL} train.early_stop=1 train.epochs=6 train.divergence=nll train.learning_rate=1.5e-2 train.logging_steps=1",
    )[0]
    model = resolve_model("embedded")  # one that has something to forget
    healed = distil(model, data, None, tmp_path / "adapter", config, 1)
    values = [row["heldout_ce"] for row in healed.rows if "heldout_ce" in row]
    best = values.index(min(values))
    assert best == len(values) - 2 and len(values) < 7, values
    assert any(finding.name == "overfit" for finding in healed.findings)
    student = load_student(model, config, None)
    student.load(tmp_path / "adapter")
    assert student.holds(healed.work.best([row["step"] for row in healed.rows if "heldout_ce" in row][best])) and all(
        name.count(CURRENT) == 1 for name in student.current
    )
    again = distil(model, data, None, tmp_path / "adapter", config, 1)  # killed after the stop, before publication
    assert again.rows == healed.rows and again.resumed == 1.0


def test_a_loss_that_is_not_finite_names_the_rows_and_keeps_the_checkpoint(
    model: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve_config(None, SMALL)[0]
    loss = HealTrainer.compute_loss

    def poisoned(
        self: HealTrainer, model: object, inputs: dict[str, torch.Tensor], *rest: object, **options: object
    ) -> object:
        if self.state.global_step == 4:
            with torch.no_grad():
                self.student.current[next(iter(self.student.current))].fill_(float("nan"))
        return loss(self, model, inputs, *rest, **options)

    monkeypatch.setattr(HealTrainer, "compute_loss", poisoned)
    with pytest.raises(SteerHealError, match="not finite") as stopped:
        distil(model, data, None, tmp_path / "adapter", config, 1)
    assert "step 5, rows line " in str(stopped.value.given) and "checkpoint-4 is the last good" in str(
        stopped.value.given
    )
    assert not (tmp_path / "adapter").exists()
    assert (tmp_path / "adapter.healing" / "checkpoint-4.sha256").is_file()


def test_a_gradient_that_is_not_finite_names_all_rows_of_its_step_and_changes_nothing(
    model: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite gradient in the first of two micro-batches; the loss itself is finite."""
    config = resolve_config(None, SMALL)[0]
    step, caught = HealTrainer.training_step, {}

    def poisoned(
        self: HealTrainer, model: object, inputs: dict[str, torch.Tensor], *rest: object, **options: object
    ) -> object:
        found = step(self, model, inputs, *rest, **options)
        if self.state.global_step == 2 and len(self._seen) == 2:
            caught["trainer"], value = self, next(iter(self.student.current.values()))
            value.grad.fill_(float("inf"))
            caught["before"] = value.detach().clone()
        return found

    monkeypatch.setattr(HealTrainer, "training_step", poisoned)
    with pytest.raises(SteerHealError, match="the gradient is not finite") as stopped:
        distil(model, data, None, tmp_path / "adapter", config, 1)
    assert "step 3" in str(stopped.value.given) and str(stopped.value.given).count("line ") == 3, stopped.value.given
    assert torch.equal(next(iter(caught["trainer"].student.current.values())), caught["before"])


def test_early_stop_without_held_out_rows_is_refused(model: Model, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SteerHealError, match="nothing to stop early by"):
        distil(
            model,
            data,
            None,
            tmp_path / "adapter",
            resolve_config(None, f"{SMALL} train.heldout=0 train.early_stop=1")[0],
            1,
        )


@pytest.mark.long
def test_the_log_goes_to_tensorboard_and_an_unknown_place_is_refused(model: Model, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fast = f'{SMALL.replace("epochs=4", "epochs=1")} train.report_to=["tensorboard"]'
    done = heal(data, tmp_path / "adapter", fast, model.folder)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "adapter" / "train.jsonl").read_text().splitlines()]
    assert [e.value for e in events.Scalars("train/ce")] == pytest.approx([row["ce"] for row in rows if "ce" in row])
    bad = heal(data, tmp_path / "b", fast.replace("tensorboard", "nowhere"), model.folder)
    assert bad.returncode == 2 and "nowhere" in bad.stderr and "Traceback" not in bad.stderr, bad.stderr
    assert os.listdir(tmp_path).count("b") == 0
