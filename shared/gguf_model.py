"""A model in a GGUF file, by its header alone: what it is, whether it can be dequantised here, and the size that its folder will have.

Nothing here reads weights or imports Transformers: what cannot be used is refused at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from shared.errors import SteerHealError
from shared.families import GGUF
from shared.gguf_header import Header, read_header

ROPE = ("none", "linear", "yarn")  # how positions are scaled beyond the trained context, by `rope.scaling.type`
ROPE_READ = {
    "dimension_count", "freq_base", "scale_linear", "scaling.type", "scaling.factor", "scaling.original_context_length", "scaling.finetuned",
    "scaling.yarn_beta_fast", "scaling.yarn_beta_slow",
}  # fmt: skip
NEUTRAL = {"scaling.attn_factor": 1.0, "scaling.yarn_attn_factor": 1.0, "scaling.yarn_ext_factor": 1.0, "scaling.yarn_log_multiplier": 0.0}  # fmt: skip
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3's scaling, as one factor a frequency
LOSSLESS = ("F32", "F16")  # kept exactly, in float32; everything else is rounded to bfloat16
SIZES = {"float32": 4, "bfloat16": 2}
REST = 64 << 20  # bytes of tokenizer and configuration


def read_model(path: Path) -> Header:
    """The header of a GGUF file that holds a chat model.

    Raises:
        SteerHealError: it is no such file, is damaged, or holds what is not dequantised here.
    """
    header = read_header(path)
    architecture = header.architecture
    if architecture == "controlvector":
        _refuse(header, "it is a steering vector", "a model", f"--vector {path}, with the model that it belongs to")
    kind = header.text("general.type") or "model"
    if kind != "model":
        _refuse(header, f"it is a {kind}, not a model", "a model", "name the file of the model itself")
    if (parts := header.whole("split.count") or 1) > 1:
        _refuse(header, f"it is one of {parts} parts", "one file", f"llama-gguf-split --merge {path} whole.gguf")
    if architecture not in GGUF:  # Transformers dequantises more of them; a test here compares these with the original
        _refuse(header, f"architecture {architecture or 'none'}", f"one of {', '.join(GGUF)}")
    _known_positions(header)
    if "tokenizer.ggml.tokens" not in header.fields:
        _refuse(header, "no tokenizer.ggml.tokens", "a model with its tokenizer")
    for key in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count"):
        if (header.whole(f"{architecture}.{key}") or 0) < 1:
            _refuse(header, f"{architecture}.{key} is {header.fields.get(f'{architecture}.{key}')!r}", "a whole number")
    turned, width = header.whole(f"{architecture}.rope.dimension_count"), text_config(header).get("head_dim")
    if width is None:  # a head of hidden // heads = 0 dimensions
        heads, hidden = (header.whole(f"{architecture}.{key}") for key in ("attention.head_count", "embedding_length"))
        _refuse(header, f"{heads} heads share {hidden} dimensions", "a head of at least one")
    if turned not in (None, width):
        _refuse(header, f"{turned} of {width} dimensions of a head turn with the position", "all of them")
    return header


def position_scaling(header: Header) -> tuple[str, float]:
    """How positions are scaled, one of ROPE, and by what factor. As llama.cpp reads it: a factor without a type is linear."""
    key = f"{header.architecture}.rope"
    scaling = header.text(f"{key}.scaling.type") or "linear"
    factor = float(header.fields.get(f"{key}.scaling.factor") or header.fields.get(f"{key}.scale_linear") or 1.0)
    return ("none", 1.0) if scaling == "none" or factor in (0.0, 1.0) else (scaling, factor)


def _known_positions(header: Header) -> None:
    """Raise SteerHealError for metadata on positions that is not read here, unless it says what holds without it."""
    begin = f"{header.architecture}.rope."
    if (scaling := header.text(f"{begin}scaling.type") or "none") not in ROPE:
        _refuse(header, f"positions scaled by {scaling}", f"one of {', '.join(ROPE)}")
    same = {
        **NEUTRAL,
        "dimension_count_swa": header.fields.get(f"{begin}dimension_count"),
        "freq_base_swa": header.fields.get(f"{begin}freq_base"),
    }
    for key, value in header.fields.items():
        name = key.removeprefix(begin)
        local = name == "freq_base_swa" and GGUF[header.architecture].local_rope
        if name == key or name in ROPE_READ or local or (name in same and value == same[name]):
            continue
        _refuse(header, f"{key} is {value!r}", "keys of positions that are known here")


def _refuse(header: Header, given: str, expected: str, next: str | None = None) -> NoReturn:
    raise SteerHealError(
        "a GGUF file is not a model that can be dequantised here",
        given=f"{header.path}: {given}",
        expected=expected,
        next=next or "name the original model: a Hugging Face id, or a folder with config.json and *.safetensors",
    )


def refuse_weights(header: Header, problem: str) -> NoReturn:
    """Raise SteerHealError for weights that do not make the model that the header describes."""
    _refuse(header, problem, f"the tensors of a {header.architecture}, all of them and no others")


def text_config(header: Header) -> dict[str, Any]:
    """What config.json will say of the sizes, before the weights are dequantised."""
    architecture = header.architecture

    def size(*keys: str) -> int | None:
        return next((number for key in keys if (number := header.whole(f"{architecture}.{key}"))), None)

    heads, hidden = size("attention.head_count"), size("embedding_length")
    fields = {
        "num_hidden_layers": size("block_count"),
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv") or heads,
        "head_dim": size("attention.key_length") or (hidden // heads if hidden and heads else None),
        "vocab_size": size("vocab_size") or len(header.fields["tokenizer.ggml.tokens"]),
        "max_position_embeddings": size("context_length"),
    }  # fmt: skip
    return {"model_type": GGUF[architecture].model_type, **{key: value for key, value in fields.items() if value}}


def dtype_of(header: Header) -> str:
    """The dtype of the dequantised weights: float32 where most of them are stored as floats of 16 or 32 bits, so that nothing is lost,
    and bfloat16 for every other, whose quantisation has cost more than that rounding."""
    return "float32" if next(iter(header.kinds), "") in LOSSLESS else "bfloat16"


def bytes_of(header: Header) -> int:
    """Bytes of the dequantised folder, rounded up."""
    return sum(tensor.values for tensor in header.tensors) * SIZES[dtype_of(header)] + REST


def described_file(header: Header) -> str:
    """The architecture and the types of the weights, the most frequent first, such as `qwen2, Q5_0 Q8_0 F32`."""
    return f"{header.architecture}, {' '.join(header.kinds)}"


def ends_named(header: Header) -> Sequence[int]:
    """The tokens that the metadata names as ends: of the text, of a turn, of a message."""
    keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eot", "eos", "eom"))
    return [token for key in keys if (token := header.whole(key)) is not None]
