"""What `make gpu` measures speed with, on small shapes: sampling over the same engine unpatched, and healing with random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, command

from shared.shapes import SHAPES, of_shape
from shared.work import shape_of

SMALL = {**SHAPES["qwen3-4b"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 49152, "max_position_embeddings": 1024}  # fmt: skip


def test_a_shape_has_the_size_of_its_name() -> None:
    with of_shape(SHAPES["qwen3-4b"]) as model:
        shape = shape_of(model)
        assert 3.5e9 < shape.weights < 4.5e9 and shape.layers == 36
        folder = model.folder
        assert (folder / "tokenizer.json").is_file() and not list(folder.glob("*.safetensors"))
    assert not folder.exists()


@pytest.mark.long
def test_sampling_is_measured_at_every_size(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = command("gen.throughput", "--quick", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["ratios"]
    assert set(rows) == {"steered_over_stock_1_sequences", "steered_over_stock_8_sequences", "coefficients_64_over_1_at_8_sequences"}  # fmt: skip
    for name, row in rows.items():
        assert 0.3 < row["median"] < 3, name
    assert rows["steered_over_stock_8_sequences"]["tokens_per_second"] > rows["steered_over_stock_1_sequences"]["tokens_per_second"] > 1  # fmt: skip


def in_a_process(code: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.long
def test_sampling_needs_no_weights() -> None:
    found = in_a_process(f"""
import json
from gen.throughput import QUICK, measure_throughput
from shared.shapes import of_shape
with of_shape({SMALL!r}) as model:
    print(json.dumps(measure_throughput(model, "float32", QUICK, "small", compare=False, load_format="dummy")))
""")
    assert found["sampling_small_1_sequences"]["median"] > 1
    assert "sampling_small_coefficients_64_over_1_at_8_sequences" in found


@pytest.mark.long
def test_healing_is_measured_with_random_weights() -> None:
    found = in_a_process(f"""
import json
from train.speed import healing_speed
print(json.dumps(healing_speed({SMALL!r}, "small", "float32", 2)))
""")
    assert found["healing_small"]["median"] > 1 and found["healing_small"]["n"] == 2
