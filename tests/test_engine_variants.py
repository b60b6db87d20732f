"""Engines of other shapes than the shared one, each in its own process: see engine_variants.py."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, random_model

from shared.models import Model

pytestmark = pytest.mark.slow


def variant(name: str, folder: Path, model: Model | None = None) -> dict[str, Any]:
    """What the engine of this name says of a model, by default the embedded one."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "engine_variants.py", name, folder, *([model.folder] if model else [])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_the_second_model_runner_is_steered_alike(tmp_path: Path) -> None:
    """vLLM's default on a GPU: chunked prefill, positions, greedy tokens, prompt log-probabilities, answers after thoughts, salted cache.

    On a small model of few words, because numpy interprets every kernel, the sampler's over the whole vocabulary."""
    found = variant("v2", tmp_path, random_model(tmp_path / "model", vocab_size=1024))
    assert found["runner"] == "vllm.v1.worker.gpu.model_runner"
    assert found["gap"] < 1e-4 and found["score_gap"] < 1e-4 and found["salt_gap"] < 1e-4
    assert found["tail_gap"] < 1e-4
    assert found["agree"] == found["tokens"] and found["zero_is_stock"]
    assert found["dirty_gap"] == 0 and found["ends"] == ["length", "error"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is x86-64's")
def test_an_engine_without_avx512_is_exact_and_loads_no_library_for_it(tmp_path: Path) -> None:
    """On every x86-64 CPU: the wheel holds a library for each instruction set, and the others' end a process with SIGILL."""
    found = variant("avx2", tmp_path)
    assert found["gap"] < 1e-4 and found["agree"] == found["tokens"]
    assert found["lp_gap"] < 1e-3 and found["p_gap"] < 1e-4 and found["same_thoughts"]
    kernels = [name for name in found["mapped"] if name.startswith("_C")]
    assert kernels == ["_C_AVX2.abi3.so"] and found["mapped_after_the_trainer"] == found["mapped"]
    assert found["still_there"]


def test_preempted_requests_are_steered_again(small_model: Model, tmp_path: Path) -> None:
    found = variant("preempted", tmp_path, small_model)
    assert found["preemptions"] >= 2, "blocks must run out, or this test proves nothing"
    assert found["agree"] == found["tokens"]


@pytest.mark.long
def test_a_hostile_client_does_not_reach_an_honest_one(small_model: Model, tmp_path: Path) -> None:
    """The largest coefficients of both signs, all position modes, preemption, aborts and overflows: answers stay bit-equal."""
    for dtype, found in variant("hostile", tmp_path, small_model).items():
        assert found["preemptions"] >= 2, "blocks must run out, or this test proves nothing"
        assert found["beside"] and found["after aborts"] and found["after overflows"], (dtype, found)
        assert found["ends"] == ["length"], "at the largest coefficient accepted nothing overflows"
        assert found["ends of overflows"] == ["error"] and found["honest ends"] == ["length"]


@pytest.mark.long
def test_a_compiled_engine_is_steered_and_so_is_one_from_its_cache(tmp_path: Path) -> None:
    """The second engine loads what the first one compiled."""
    for _ in range(2):
        found = variant("compiled", tmp_path)
        assert found["gap"] < 1e-4 and found["agree"] == found["tokens"]


def test_adapter_and_merged_weights_agree_under_steering(small_model: Model, tmp_path: Path) -> None:
    """With ranks and alphas by module and rsLoRA, which vLLM, PEFT and merging each read for themselves."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from shared.merging import merged

    torch.manual_seed(0)
    network = get_peft_model(
        AutoModelForCausalLM.from_pretrained(small_model.folder, dtype=torch.float32),
        LoraConfig(
            r=8,
            lora_alpha=6,
            use_rslora=True,
            rank_pattern={"q_proj": 4, "v_proj": 32},
            alpha_pattern={"down_proj": 3},
            target_modules=["q_proj", "o_proj", "down_proj"],
            init_lora_weights=False,
        ),
    )
    network.save_pretrained(tmp_path / "adapter")
    merged(small_model, tmp_path / "adapter", tmp_path / "cache", "float32").folder.rename(tmp_path / "merged")
    found = variant("adapter", tmp_path, small_model)
    assert max(found["base"], found["base_again"], found["adapter"], found["merged"]) < 1e-4
    assert found["effect"] > 0.1, "the adapter must matter, or this test proves nothing"


@pytest.mark.long
def test_score_rows_in_half_precision_are_not_rounded_at_the_head(tmp_path: Path) -> None:
    """Nearer to float32 with the logits kept; what rounding them adds is of the size of what bfloat16 weights do."""
    found = variant("halves", tmp_path)
    assert found["dtypes"] == ["torch.float32"]
    assert found["kept"][0] < found["rounded"][0] and found["rounding"][0] > 0.01, found
