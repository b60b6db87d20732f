"""Random-weight models of each family, a few hundred thousand parameters, as save_pretrained writes them.

The sizes are those that vLLM's attention on the CPU has kernels for: head_dim 32, four heads over two key and value heads. Every
weight is drawn, the norms' and biases' too, so that a norm or a bias left out changes what a model says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

LAYERS, HIDDEN, INNER, HEADS, KEYS, HEAD = 4, 128, 192, 4, 2, 32
CONTEXT = 2048

# What every decoder configuration takes.
SIZES: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "max_position_embeddings": CONTEXT,
}


def _llama3(**sizes: Any) -> Any:
    from transformers import LlamaConfig

    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    return LlamaConfig(**sizes, head_dim=HEAD, rope_parameters=scaling, tie_word_embeddings=False)


def _qwen2(**sizes: Any) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**sizes, tie_word_embeddings=True)


def _qwen3(**sizes: Any) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**sizes, head_dim=HEAD, tie_word_embeddings=True)


def _qwen3_moe(**sizes: Any) -> Any:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        **sizes,
        head_dim=HEAD,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    )


def _gemma2(**sizes: Any) -> Any:
    from transformers import Gemma2Config

    return Gemma2Config(
        **sizes,
        head_dim=HEAD,
        query_pre_attn_scalar=HEAD,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
    )


def _gemma3_text(**sizes: Any) -> Any:
    from transformers import Gemma3TextConfig

    # every other layer attends to 16 tokens only, so that the prompts of the checks are longer than a window
    return Gemma3TextConfig(
        **sizes,
        head_dim=HEAD,
        query_pre_attn_scalar=HEAD,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
    )


def _gemma3(**sizes: Any) -> Any:
    from transformers import Gemma3Config

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}  # fmt: skip
    text = {name: value for name, value in _gemma3_text(**sizes).to_dict().items() if name != "architectures"}
    return Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4,
        bos_token_id=sizes["bos_token_id"], eos_token_id=sizes["eos_token_id"], pad_token_id=sizes["pad_token_id"],
    )  # fmt: skip


def _mistral(**sizes: Any) -> Any:
    from transformers import MistralConfig

    return MistralConfig(**sizes, head_dim=HEAD, sliding_window=None, tie_word_embeddings=False)


def _phi3(**sizes: Any) -> Any:
    from transformers import Phi3Config

    return Phi3Config(**sizes, sliding_window=16, tie_word_embeddings=False)


def _phi4(**sizes: Any) -> Any:
    """As Phi-4-mini: three quarters of a head are rotated, and the head is the embedding."""
    from transformers import Phi3Config

    return Phi3Config(**sizes, partial_rotary_factor=0.75, tie_word_embeddings=True)


def _olmo2(**sizes: Any) -> Any:
    from transformers import Olmo2Config

    return Olmo2Config(**sizes, tie_word_embeddings=False)


@dataclass(frozen=True)
class Architecture:
    """A network of a family: its configuration by sizes, whose tokenizer and template it takes, the seed of its weights, and whether
    its checks import a stand-in for torchvision. `shared.families` has its title."""

    config: Callable[..., Any]
    chat: str
    seed: int
    stand_in: bool = False


ARCHITECTURES = {
    "llama3": Architecture(_llama3, "llama3", 3),
    "qwen2": Architecture(_qwen2, "qwen2", 8),
    "qwen3": Architecture(_qwen3, "qwen3", 9),
    "qwen3_moe": Architecture(_qwen3_moe, "qwen3", 10),
    "gemma2": Architecture(_gemma2, "gemma2", 11),
    "gemma3_text": Architecture(_gemma3_text, "gemma3", 1),
    "gemma3": Architecture(_gemma3, "gemma3", 0),
    "gemma3_vision": Architecture(_gemma3, "gemma3", 2, True),
    "mistral": Architecture(_mistral, "mistral", 4),
    "phi3": Architecture(_phi3, "phi3", 6),
    "phi4": Architecture(_phi4, "phi4", 7),
    "olmo2": Architecture(_olmo2, "olmo2", 5),
}
IMAGE = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")  # of the multimodal wrapper, which vLLM looks up


# As much of torchvision as Transformers and vLLM import for the wrapper. The CPU lock leaves it out, and no image is looked at.
TORCHVISION = {
    "__init__.py": '__version__ = "0.28.0"\n',
    "io.py": "ImageReadMode = decode_image = None\n",
    "transforms/__init__.py": "import enum\n\nNAMES = 'NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS'\n"
    "InterpolationMode = enum.Enum('InterpolationMode', NAMES)\n",
    "transforms/functional.py": "pil_to_tensor = None\n",
    "transforms/v2/__init__.py": "",
    "transforms/v2/functional.py": "",
}


def stand_in(folder: Path) -> Path:
    """A folder for PYTHONPATH that holds the stand-in for torchvision."""
    for name, text in TORCHVISION.items():
        file = folder / "torchvision" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def network_of(name: str, tokenizer: Any) -> Any:
    """The random network of a family, fp32. Its embedding has a row for every token of a tokenizer, and rows beyond them."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = ARCHITECTURES[name].config(**SIZES, vocab_size=(len(tokenizer) // 64 + 1) * 64, **ids)
    if ARCHITECTURES[name].config is _gemma3:
        config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE[2])
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    _draw(network, ARCHITECTURES[name].seed)
    return network


def _draw(network: Any, seed: int) -> None:
    """Weights of unit gain, norms of around 1 and small biases, by a seed."""
    import torch

    draws = torch.Generator().manual_seed(seed)
    around_zero = "gemma" in network.config.model_type  # its norms multiply by 1 + weight
    with torch.no_grad():
        for name, value in sorted(network.named_parameters()):
            noise = torch.randn(value.shape, generator=draws)
            if "norm" in name and name.endswith("weight"):
                value.copy_(0.2 * noise + (0.0 if around_zero and "vision" not in name else 1.0))
            elif value.ndim == 1:
                value.copy_(0.1 * noise)
            else:
                value.copy_(noise * value.shape[-1] ** -0.5)


def write(name: str, folder: Path) -> Path:
    """Save the network, the tokenizer and the generation configuration of a family into a folder."""
    from families import FAMILIES, tokenizer_of, write_tokenizer

    family = FAMILIES[ARCHITECTURES[name].chat]
    if ARCHITECTURES[name].config is _gemma3:
        family = replace(family, special=(*family.special, *IMAGE))
    network_of(name, tokenizer_of(family)).save_pretrained(folder)
    write_tokenizer(family, folder)
    if ARCHITECTURES[name].config is _gemma3:
        _write_processor(folder)
    return folder


def _write_processor(folder: Path) -> None:
    """What an image would be made tokens by, without which vLLM does not start such a model; no image is ever given to it."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = dict(zip(("boi_token", "eoi_token", "image_token"), IMAGE, strict=True))
    size = {"height": 56, "width": 56}
    images = {"image_processor_type": "Gemma3ImageProcessor", "processor_class": "Gemma3Processor", "size": size, "image_seq_length": 4}  # fmt: skip
    for file, content in {
        "tokenizer_config.json": config,
        "preprocessor_config.json": images,
        "processor_config.json": {"image_seq_length": 4, "processor_class": "Gemma3Processor"},
    }.items():
        (folder / file).write_text(json.dumps(content))
