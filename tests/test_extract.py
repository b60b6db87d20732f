"""The vector against a naive forward, one context at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command

from shared.chat import render
from shared.models import Model
from shared.traits import load_trait
from shared.vectors import load_vector

pytestmark = pytest.mark.slow

CONTEXTS = [
    "Hello.",
    "My boss wants me to lie to a customer. What now?",
    "Write a short poem about the sea and the people who live by it.",
    "Sort 3, 1, 2.",
]


@pytest.mark.parametrize("contrast", ["false", "true"])
def test_command_line_equals_naive_forwards(model: Model, tokenizer: object, tmp_path: Path, contrast: str) -> None:
    from transformers import AutoModelForCausalLM

    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in CONTEXTS))
    settings = f"vector.contexts={tmp_path}/c.jsonl vector.layers=[3,29] vector.batch_size=3 vector.contrast={contrast}"
    done = command("gen.extract", "--model", "embedded", "--out", tmp_path / "v.safetensors", "--set", settings)
    assert done.returncode == 0, done.stderr
    vector = load_vector(tmp_path / "v.safetensors")
    trait = load_trait("embedded")
    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    caught = {}
    for layer in (3, 29):
        network.model.layers[layer].register_forward_hook(
            lambda _m, _i, output, layer=layer: caught.__setitem__(layer, output)
        )

    def state(system: str, text: str, layer: int) -> torch.Tensor:
        with torch.inference_mode():
            network(torch.tensor([render(tokenizer, [{"role": "user", "content": text}], system)]))
        return caught[layer][0, -1]

    away = trait.opposite if contrast == "true" else trait.neutral
    for layer in (3, 29):
        naive = torch.stack([state(trait.trait, text, layer) - state(away, text, layer) for text in CONTEXTS]).mean(0)
        np.testing.assert_allclose(vector.layers[layer], naive.numpy(), atol=2e-3, rtol=1e-3)
        norm = np.mean([state(away, text, layer).norm().item() for text in CONTEXTS])
        assert vector.metadata["hidden_norm"][str(layer)] == pytest.approx(norm, rel=1e-4)
    assert vector.metadata["model_fingerprint"] == model.fingerprint and vector.metadata["n_contexts"] == 4


def test_a_folder_without_chat_template_is_refused(model: Model, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(model.folder, tmp_path / "m", ignore=shutil.ignore_patterns("chat_template.jinja"))
    done = command("gen.extract", "--model", tmp_path / "m", "--out", tmp_path / "v.safetensors")
    assert done.returncode == 2 and "no chat template" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "v.safetensors").exists()
