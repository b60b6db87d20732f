"""What is said of a GPU that torch does not see, by whom, and that nothing is computed on the CPU by packages for a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, command
from test_setup import commands

from shared import calibrate, estimate, gpu, stage_checks
from shared.checks import lock
from shared.errors import SteerHealError

FINE = "echo NVIDIA H100, 580.65.06, 9.0, 81559 MiB"


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA build of torch on a machine where it sees no GPU."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("answer", "visible", "said", "next_"),
    [
        ("echo NVIDIA H100, 570.86.10, 9.0, 81559 MiB", None, "the driver is too old", "update the driver"),
        ("echo Tesla V100, 580.65.06, 7.0, 16384 MiB", None, "no code for this GPU", "take another GPU"),
        ("echo No devices were found; exit 6", None, "No devices were found", "--gpus all"),
        (FINE, "", "CUDA_VISIBLE_DEVICES=''", "unset CUDA_VISIBLE_DEVICES"),
        (FINE, None, "H100, driver 580.65.06, which nvidia-smi sees", "restart the machine"),
        (None, None, "no nvidia-smi", "mend the driver"),
    ],
    ids=["driver", "capability", "none", "hidden", "unseen", "no-driver"],
)
def test_a_cuda_build_without_a_gpu_is_refused_with_the_cause(
    cuda_build: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answer: str | None,
    visible: str | None,
    said: str,
    next_: str,
) -> None:
    from gen.engine.options import memory_options, platform_options

    monkeypatch.setenv("PATH", commands(tmp_path / "bin", **({"nvidia-smi": answer} if answer else {})))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for stage in (gpu.on_gpu, platform_options, lambda: memory_options(0.9), calibrate.measure_machine):
        with pytest.raises(SteerHealError) as refused:
            stage()
        text = refused.value.render()
        assert said in text and next_ in text and "LOCK=cpu" in text, text


def test_a_gpu_without_a_header_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.on_gpu()
    monkeypatch.setattr(gpu, "python_header", lambda: tmp_path / "Python.h")
    with pytest.raises(SteerHealError, match="Python's header is missing"):
        gpu.on_gpu()


def test_the_estimate_hands_the_error_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing that `make round` does: it asks a process of its own."""
    error = SteerHealError("torch is a CUDA build and sees no GPU", next="make doctor")
    done = subprocess.CompletedProcess([], 0, json.dumps({"error": error.as_dict()}), "")
    monkeypatch.setattr(estimate.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SteerHealError, match="sees no GPU"):
        estimate.calibration()


def test_doctor_asks_torch_where_the_lock_is_for_gpus() -> None:
    import torch

    if lock().stem == "gpu" or torch.version.cuda is not None:
        pytest.skip("of an environment for CPUs")
    done = command("shared.gpu")
    assert json.loads(done.stdout) == {"gpu": False, "torch": torch.__version__}, done.stderr
    error = stage_checks.torch_and_gpu().error
    assert error is not None and "a CPU build under the lock for GPUs" in error.render()


def test_it_runs_without_torch() -> None:
    code = "import sys, shared.gpu; print(shared.gpu.visible_gpus()[0], sorted(n for n in sys.modules if n == 'torch'))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, env={**os.environ, "PATH": ""}, capture_output=True, text=True)  # fmt: skip
    assert done.stdout.strip() == "[] []", done.stderr
