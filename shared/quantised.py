"""Models whose weights are quantised are refused: what is added to codes without their scales is no weight."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from shared.errors import SteerHealError
from shared.strict import parse_json

KEYS = ("quantization_config", "compression_config", "quantization")  # of config.json; the last is MLX's
FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")  # ModelOpt's, GPTQ's and AWQ's own
# a matrix of these holds codes; what is left out of that are the masks that old checkpoints keep
WHOLE = {"I8", "U8", "I16", "U16", "I32", "U32"}
MASKS = {"bias", "masked_bias", "mask"}
# last parts of tensor names: scales and codes of fp8, compressed-tensors, ModelOpt, AWQ, GPTQ, bitsandbytes and HQQ
PARTS = {
    "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_zero_point", "weight_packed", "weight_format", "qweight", "qzeros",
    "g_idx", "SCB", "absmax", "nested_absmax", "quant_map", "nested_quant_map", "W_q",
}  # fmt: skip


def refuse_quantised(folder: Path, name: str) -> None:
    """Raise SteerHealError for a model whose weights are quantised, by its configuration or by its tensors.

    Files that cannot be read are left to those who load them. folder: of the model; name: that the user knows it by.
    """
    if (scheme := _configured(folder) or next(_stored(folder), None)) is not None:
        raise SteerHealError(
            "a model's weights are quantised",
            given=f"{name}: {scheme}",
            expected="weights in float32, float16 or bfloat16",
            next="name the model that it was quantised from in model.name, often the same name without FP8, AWQ, GPTQ, bnb-4bit or MXFP4",
        )


def headers(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The header of every safetensors file of a folder, by name: tensor name -> {dtype, shape}. Files without one are left out."""
    for file in sorted(folder.glob("*.safetensors")):
        with suppress(OSError, ValueError), open(file, "rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            if size <= file.stat().st_size:
                header = json.loads(handle.read(size))
                if isinstance(header, dict):
                    header.pop("__metadata__", None)
                    yield file, header


def _configured(folder: Path) -> str | None:
    """The first setting of a model's files that says that it is quantised."""
    config: Any = None
    with suppress(OSError, ValueError):
        config = parse_json((folder / "config.json").read_bytes())
    levels = [config, *config.values()] if isinstance(config, dict) else []
    for level in levels:
        for key in KEYS if isinstance(level, dict) else ():
            if isinstance(value := level.get(key), dict) and value:
                method = (
                    value.get("quant_method") or value.get("quant_type") or value.get("quantization") or "no method"
                )
                return f"{key} in config.json ({method})"
    return next((f"{name} beside config.json" for name in FILES if (folder / name).is_file()), None)


def _stored(folder: Path) -> Iterator[str]:
    """The tensors that are quantised: their dtype, or a name that only a scale or a code has."""
    for file, header in headers(folder):
        for name, tensor in header.items():
            dtype = tensor.get("dtype") if isinstance(tensor, dict) else None
            if not isinstance(dtype, str):
                continue
            last, shape = name.rpartition(".")[2], tensor.get("shape")
            codes = dtype in WHOLE and last not in MASKS and isinstance(shape, list) and len(shape) > 1
            if dtype.startswith(("F8", "F6", "F4")) or codes or last in PARTS or ".quant_state." in name:
                yield f"{name} of {dtype} in {file.name}"
