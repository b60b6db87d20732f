"""Small chat models with random weights, written as GGUF files the way llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<think>"]
COMMON = {
    "vocab_size": 304, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.5, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0}},
    "qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 70_000.0}},
    "qwen3": {"head_dim": 128, "rope_parameters": {"rope_type": "default", "rope_theta": 70_000.0}},
    "qwen3moe": {
        "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 70_000.0},
    },
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "tie_word_embeddings": True},
    "gemma3": {
        "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "tie_word_embeddings": True, "num_hidden_layers": 7,
    },
    "phi3": {"sliding_window": 16},
}  # fmt: skip


def network(architecture: str, **config: Any) -> Any:
    """A random model of an architecture by its name in GGUF, fp32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from shared.families import GGUF
    from shared.models import cap_attention

    made = AutoConfig.for_model(GGUF[architecture].model_type, **{**COMMON, **OWN[architecture], **config})
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval()
    cap_attention(built)
    with torch.no_grad():
        for value in built.parameters():
            if value.ndim == 1:  # norms and biases are ones and zeros, with which a mistake would not show
                value += 0.1 * torch.randn_like(value)
    return built


def write(
    path: Path,
    architecture: str,
    model: Any,
    kind: str = "F32",
    *,
    weights: dict[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """A GGUF file of a model.

    Args:
        kind: of the matrices: F32, F16 or Q8_0.
        weights: tensors beside the model's or in their place; None leaves one out.
        fields: metadata that takes the place of what is written otherwise; None leaves a key out. `__` stands for a dot.
    """
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values: dict[str, Any] = {
        "general.name": "random", "general.type": "model",
        **{f"{architecture}.{key}": value for key, value in {
            "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": head, "attention.value_length": head, "rope.dimension_count": head,
            "rope.freq_base": float(rope["rope_theta"]), "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "attention.sliding_window": getattr(config, "sliding_window", None),
            "expert_count": getattr(config, "num_experts", None), "expert_used_count": getattr(config, "num_experts_per_tok", None),
            "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None),
        }.items()},
        **(_pieces if architecture in ("gemma2", "gemma3", "phi3") else _bytes)(config.vocab_size),
        "tokenizer.chat_template": CHATML,
    }  # fmt: skip
    values.update({key.replace("__", "."): value for key, value in fields.items()})
    for key, value in values.items():
        if value is not None:
            _put(writer, key, value)
    for name, array in {**tensors(architecture, model), **(weights or {})}.items():
        if array is None:
            continue
        if kind == "F32" or array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            quantised = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(array, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(architecture: str, model: Any) -> dict[str, np.ndarray]:
    """The weights under their names in GGUF, in llama.cpp's order of rows."""
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    found: dict[str, np.ndarray] = {}
    for name, value in model.state_dict().items():
        array = value.numpy()
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        layer = name.split(".")[2] if ".layers." in name else None
        if name.endswith("experts.gate_up_proj"):
            found[f"blk.{layer}.ffn_gate_exps.weight"], found[f"blk.{layer}.ffn_up_exps.weight"] = np.split(array, 2, 1)
            continue
        if name.endswith("experts.down_proj"):
            found[f"blk.{layer}.ffn_down_exps.weight"] = array
            continue
        if architecture == "llama" and (name.endswith("q_proj.weight") or name.endswith("k_proj.weight")):
            heads = model.config.num_attention_heads if "q_proj" in name else model.config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        short = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert short is not None, name
        found[short] = np.ascontiguousarray(array, np.float32)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


def _bytes(size: int) -> dict[str, Any]:
    """A byte-level vocabulary of a given size: every byte, a few merges, special tokens, and places that nothing uses."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["Ġ t", "h e", "Ġt he", "i n", "Ċ Ċ", "1 2"]
    tokens = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges), *CONTROL, *USER_DEFINED]
    kinds = [1] * (len(tokens) - 4) + [3, 3, 3, 4]
    unused = size - len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "default", "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{index}]" for index in range(unused))],
        "tokenizer.ggml.token_type": [*kinds, *[5] * unused],
        "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"), "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<|endoftext|>"), "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip


def _pieces(size: int) -> dict[str, Any]:
    """A vocabulary of pieces with scores, as SentencePiece has it."""
    tokens = ["<unk>", *CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehinrstuxm", "th", "▁th"]
    kinds = [2, 3, 3, 3, *[6] * 256, *[1] * (len(tokens) - 260)]
    tokens += [f"[PAD{index}]" for index in range(size - len(tokens))]
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*kinds, *[5] * (size - len(kinds))],
        "tokenizer.ggml.scores": [-float(index) for index in range(size)],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 3, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 1, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip


def _put(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
