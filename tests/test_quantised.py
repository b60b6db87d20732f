"""Models whose weights are quantised are refused, by their configuration or by their tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from shared.errors import SteerHealError
from shared.fitting import admitted
from shared.models import Model, resolve_model

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(LlamaConfig(**SIZE)).save_pretrained(folder)
    return resolve_model(str(folder))


def adapter(folder: Path) -> Path:
    """A LoRA over one projection."""
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(32, 2)}
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


CONFIGURED = {
    "fp8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "awq": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "mxfp4": {"quantization_config": {"quant_method": "mxfp4"}},
    "compressed-tensors": {"compression_config": {"quant_method": "compressed-tensors"}},
    "no method": {"quantization": {"group_size": 64, "bits": 4}},
    "nested fp8": {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
}
STORED = {
    "fp8": ("q_proj.weight", torch.ones(4, 4).to(torch.float8_e4m3fn)),
    "fp8's scale": ("q_proj.weight_scale_inv", torch.ones(1, 1)),
    "int8": ("q_proj.weight", torch.ones(4, 4, dtype=torch.int8)),
    "bitsandbytes 4 bit": ("q_proj.weight", torch.ones(16, 1, dtype=torch.uint8)),
    "bitsandbytes 8 bit": ("q_proj.SCB", torch.ones(4)),
    "gptq, awq": ("q_proj.qweight", torch.ones(4, 4, dtype=torch.int32)),
    "compressed-tensors": ("q_proj.weight_packed", torch.ones(4, 4, dtype=torch.int32)),
    "mxfp4": ("experts.gate_up_proj_blocks", torch.ones(2, 4, 4, dtype=torch.uint8)),
}


@pytest.mark.parametrize("kind", CONFIGURED)
def test_a_model_configured_as_quantised_is_refused(base: Model, tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.safetensors").symlink_to(base.folder / "model.safetensors")
    config = json.loads((base.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **CONFIGURED[kind]}))
    with pytest.raises(SteerHealError, match="quantised", check=lambda e: kind.split()[-1] in e.given):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("kind", STORED)
def test_weights_stored_as_codes_are_refused_without_a_word_of_it_in_the_configuration(
    base: Model, tmp_path: Path, kind: str
) -> None:
    name, value = STORED[kind]
    tensors = {**load_file(base.folder / "model.safetensors"), f"model.layers.0.self_attn.{name}": value}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((base.folder / "config.json").read_text())
    with pytest.raises(SteerHealError, match="quantised", check=lambda e: name in e.given):
        resolve_model(str(tmp_path))
    if name == "q_proj.weight":  # nor is anything added to them by whoever does not ask `resolve_model`
        folder = adapter(tmp_path / "a")
        tensors[f"model.layers.0.self_attn.{name}"] = torch.ones(32, 32).to(value.dtype)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(SteerHealError, check=lambda e: "model.layers.0.self_attn.q_proj" in e.given):
            admitted(folder, Model("raw", tmp_path, None))


def test_masks_and_positions_are_no_codes(base: Model, tmp_path: Path) -> None:
    tensors = {
        **load_file(base.folder / "model.safetensors"),
        "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "embeddings.position_ids": torch.arange(4)[None],
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((base.folder / "config.json").read_text())
    assert resolve_model(str(tmp_path)).depth == 3
