"""The dry run's table for GPUs against docs/gpu.md's arithmetic, and the shipped configurations of 4B models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from shared.cards import CARDS, rows_and_tokens, sampling_rate, show_cards, stage_cost
from shared.config import resolve_config
from shared.machine import GIB
from shared.models import Model
from shared.run import STAGES, Run
from shared.stages import Step
from shared.work import shape_of

GEMMA = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208}}  # fmt: skip
QWEN = {"model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}  # fmt: skip
SHAPES = {"gemma-3-4b": GEMMA, "qwen3-4b": QWEN}
# (least, most) seconds of round 1 of gemma-3-4b.toml, on 24 and 80 GB: docs/gpu.md, "Arithmetic"
RANGES = {
    "extract": ((35, 75), (30, 65)),
    "sweep": ((180, 400), (150, 300)),
    "heal": ((350, 900), (220, 600)),
    "score": ((90, 400), (80, 350)),
}


def run(name: str, folder: Path) -> Run:
    """A run of a shipped configuration over a model of its shape."""
    (folder / "config.json").write_text(json.dumps(SHAPES[name]))
    config = resolve_config(ROOT / "configs" / f"{name}.toml", f"model.name={folder}")[0]
    return Run(folder / "run", config)


@pytest.fixture(params=SHAPES)
def shipped(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    from shared import cards, work

    made = run(request.param, tmp_path)
    shape = shape_of(Model(str(tmp_path), tmp_path, None))  # there are no weights that `resolve_model` would look for
    monkeypatch.setattr(work, "shape_for", lambda *_: shape)
    monkeypatch.setattr(cards, "shape_for", lambda *_: shape)
    return made


def test_the_estimate_is_the_arithmetic_of_the_page(shipped: Run) -> None:
    """Of 500 rows that survive the filter."""
    kept = shipped.round(1) / "kept.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}\n" * 500)
    for stage, ranges in RANGES.items():
        for card, (least, most) in zip(CARDS, ranges, strict=True):
            found = stage_cost(shipped, 1, stage, card, first=stage == "sweep").seconds
            assert least <= found <= most, f"{stage} on {card.name}: {found:.0f} s"


def test_sampling_is_as_fast_as_the_memory_and_the_host_allow(tmp_path: Path) -> None:
    run("gemma-3-4b", tmp_path)
    shape = shape_of(Model(str(tmp_path), tmp_path, None))
    small, large = (sampling_rate(shape, 2, card, 0.9) for card in CARDS)
    assert 4_000 < small < 12_000 and 12_000 < large < 22_000, (small, large)


def test_a_round_of_a_4b_model_fits_24_gb_stage_by_stage(shipped: Run, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = CARDS
    for stage in STAGES:
        for card in CARDS:
            assert stage_cost(shipped, 2, stage, card, first=False).memory <= card.memory, stage
    assert 15 * GIB < stage_cost(shipped, 1, "extract", small, first=True).memory < 22 * GIB
    assert 9 * GIB < stage_cost(shipped, 1, "heal", large, first=True).memory < 18 * GIB
    show_cards([Step(shipped, number, stage) for number in (1, 2) for stage in STAGES])
    said = capsys.readouterr().out
    assert "24 GB" in said and "80 GB" in said and "not measured" in said and "does not fit" not in said
    rows, tokens = rows_and_tokens(shipped, 1, "sweep")
    assert rows == 80 * 5 * 4 and tokens == rows * 256


def test_a_model_that_does_not_fit_is_named(shipped: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    from dataclasses import replace

    from shared import cards, work

    large = replace(cards.shape_for("", None), blocks=12e9)
    for module in (cards, work):
        monkeypatch.setattr(module, "shape_for", lambda *_: large)
    show_cards([Step(shipped, 1, stage) for stage in STAGES])
    said = " ".join(capsys.readouterr().out.split())
    assert "extract does not fit a card of 24 GB" in said and "card of 80 GB" not in said


@pytest.mark.parametrize("name", SHAPES)
def test_a_shipped_filter_keeps_answers_that_did_not_end(name: str) -> None:
    """At 256 tokens models of this size seldom come to an end: to drop truncated answers would leave a handful."""
    config, sources = resolve_config(ROOT / "configs" / f"{name}.toml", "")
    assert config.sweep.max_tokens >= 512 or not config.filter.drop_truncated
    assert max(config.sweep.coefficients) < 1.0 and min(config.sweep.coefficients) >= 0.25, (
        "coherence falls off a cliff at 1"
    )
    assert set(config.eval.coefficients) <= {0.25, 0.5} and config.eval.gates
    assert config.sweep.max_tokens + 200 <= config.train.max_length <= config.model.max_model_len
    assert config.train.gradient_checkpointing and sources["filter.drop_truncated"]


def test_a_dry_run_of_a_4b_model_needs_no_weights(tmp_path: Path, model: Model) -> None:
    """From the hub's cache, which holds the configuration and the tokenizer alone."""
    cached = tmp_path / "hub" / "models--Qwen--Qwen3-4B"
    snapshot = cached / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    for file in model.folder.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, snapshot)
    (snapshot / "config.json").write_text(json.dumps({**QWEN, "max_position_embeddings": 40960}))
    config, run = ROOT / "configs" / "qwen3-4b.toml", tmp_path / "run"
    words = ["--run", run, "--config", config, "--set", "eval.vignettes=embedded"]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}

    def pipeline(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "shared.pipeline", *map(str, words), *more]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    done = pipeline("--dry-run")
    assert done.returncode == 0 or "too little memory" in done.stderr or "too little room" in done.stderr, done.stderr
    for word in ("24 GB", "80 GB", "1,600", "409,600", "not measured"):
        assert word in done.stdout, done.stdout
    refused = pipeline()
    assert refused.returncode == 2 and "safetensors" in refused.stderr and not run.exists(), refused.stderr
