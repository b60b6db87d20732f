"""The trainer's benchmark: its sides do the same work, and a peak is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from train.measures import ROWS, TOKENS, TrainingBench, loss  # isort: skip (Unsloth comes before transformers)

import torch
from torch.profiler import ProfilerActivity, profile

from train.naive import Naive
from train.unsloth_model import CURRENT


@pytest.mark.parametrize("prompt", [1, 9])
def test_both_losses_have_one_gradient(prompt: int) -> None:
    """At the completions' positions; the naive side gives the prompts' a gradient of 0."""
    ours, naive = (loss(side, 500, 16, prompt, 12)() for side in ("ours", "naive"))
    torch.testing.assert_close(ours, naive, atol=1e-7, rtol=1e-4)
    assert ours[:, prompt - 1 : -1].abs().sum() > 0 and not ours[:, : prompt - 1].any()


@pytest.mark.slow
def test_both_trainers_begin_with_one_loss(tmp_path: Path) -> None:
    """A fresh adapter adds nothing: cross-entropy of the same rows, no divergence."""
    bench = TrainingBench(tmp_path)
    theirs = Naive(bench.model.folder, bench.student.network.peft_config[CURRENT].target_modules, bench.config.train)
    assert sum(p.numel() for p in theirs.parameters) == sum(p.numel() for p in bench.student.current.values())
    bench.ours()
    (part,) = bench.trainer._parts
    assert part["tokens"] == ROWS * TOKENS
    assert theirs.step(bench.batch) == pytest.approx(part["ce"] / part["tokens"] + part["barrier"], rel=1e-4)


@pytest.mark.slow
def test_peak_is_what_was_held_at_once() -> None:
    """In a process of its own: one with free memory of its past would hand that out first."""
    code = "import torch; from train.measures import peak; print(peak(lambda: torch.ones(64, 2**20).sum()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(256, rel=0.1)


def held(call: Callable[[], object], trace: Path) -> float:
    """MiB of tensors alive at once during a call, every one that torch allocates: exact, where a process's peak is not."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    seen.export_chrome_trace(str(trace))
    changes = [event["args"] for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return (max(change["Total Allocated"] for change in changes) - before) / 2**20


def test_our_loss_needs_less_memory_and_no_more_for_longer_completions(tmp_path: Path) -> None:
    assert held(lambda: torch.ones(16, 2**20).sum(), tmp_path / "known.json") == pytest.approx(64, rel=0.01)
    ours, naive, longer = (
        held(loss(side, 30_000, 64, 20, completion), tmp_path / f"{side}{completion}.json")
        for side, completion in (("ours", 48), ("naive", 48), ("ours", 192))
    )
    assert ours < 0.2 * naive and longer < 1.1 * ours
