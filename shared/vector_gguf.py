"""Steering vectors as control vectors in GGUF, which llama.cpp's --control-vector and repeng read and write.

`direction.<l>` is `layer.<l>`, by the same number: the 0-based block to whose output it is added. In llama.cpp `tensors[il]` holds
`direction.<il>` and is added to `l_out-<il>`, the output of block il counted from 0 (src/llama-adapter.cpp: `init` has no tensor for 0,
and the il - 1 of `apply` and of `common_control_vector_load` in common/common.cpp, which drop that empty place, cancel). In repeng
direction l is read from `hidden_states[l + 1]` and added to the output of `layers[l]` (repeng/extract.py, repeng/control.py). Block 0 has
no direction in llama.cpp. Its own generator (tools/cvector-generator) numbers one higher: what it reads after block l it calls
`direction.<l + 1>`, which llama.cpp adds one block later; a file is taken here as llama.cpp applies it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from shared.errors import SteerHealError
from shared.gguf_header import is_gguf, read_header
from shared.publish import atomic_file

ARCHITECTURE, HINT, COUNT = "controlvector", "controlvector.model_hint", "controlvector.layer_count"
PROVENANCE = "steer_heal.provenance"  # the metadata of the safetensors file, as JSON: of files written here
DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,5})")


def holds_gguf(path: Path) -> bool:
    """Whether a vector file is in GGUF, by its suffix or its first bytes."""
    return path.suffix == ".gguf" or is_gguf(path)


def read_directions(path: Path) -> tuple[dict[int, np.ndarray], str, str | None]:
    """(layer -> fp32 [hidden], the architecture of its model, the provenance as JSON or None) of a control vector.

    A direction of zeros is a layer that is not steered, as in llama.cpp: it is left out.

    Raises:
        SteerHealError: a file of another architecture, or with tensors that are not fp32 directions of the blocks from 1 on.
    """
    header = read_header(path)
    if header.architecture != ARCHITECTURE:
        _refuse(path, f"architecture {header.architecture or 'none'}", ARCHITECTURE)
    layers: dict[int, np.ndarray] = {}
    for tensor in header.tensors:
        match = DIRECTION.fullmatch(tensor.name)
        if not match or tensor.kind != "F32" or len(tensor.shape) != 1:
            _refuse(path, f"{tensor.name}, {tensor.kind} {list(tensor.shape)}", "fp32 direction.<layer> [hidden]")
        if match[1] == "0":
            _refuse(path, "direction.0", "directions of blocks from 1 on: llama.cpp has none for block 0")
        values = np.fromfile(path, "<f4", tensor.values, offset=tensor.offset).astype(np.float32)
        if values.any():  # NaN counts as any
            layers[int(match[1])] = values
    if not layers:
        _refuse(path, f"{len(header.tensors)} directions, none other than 0", "a direction that steers")
    return layers, header.text(HINT) or "", header.text(PROVENANCE)


def _refuse(path: Path, given: str, expected: str) -> NoReturn:
    raise SteerHealError(
        "a control vector could not be used",
        given=f"{path}: {given}",
        expected=expected,
        next="export it again: repeng's ControlVector.export_gguf, or steer-heal vector convert --in V.safetensors --out V.gguf",
    )


def write_directions(path: Path, layers: dict[int, np.ndarray], hint: str, provenance: dict[str, Any]) -> None:
    """Write a control vector.

    Args:
        layers: layer -> fp32 [hidden].
        hint: the architecture of the model, such as `qwen2`; llama.cpp does not look at it, repeng wants one.
        provenance: what a safetensors file has as metadata.

    Raises:
        SteerHealError: block 0 is steered, which the format cannot say.
    """
    if 0 in layers:
        raise SteerHealError(
            "a control vector cannot steer block 0",
            given=f"layers {sorted(layers)}",
            expected="layers from 1 on: llama.cpp has no direction for block 0",
            next="extract it from other layers: python -m gen.extract --help (vector.layers)",
        )
    from gguf import GGUFWriter

    with atomic_file(path) as temporary:
        writer = GGUFWriter(temporary, ARCHITECTURE)
        writer.add_string(HINT, hint)
        writer.add_uint32(COUNT, len(layers))
        writer.add_string(PROVENANCE, json.dumps(provenance, sort_keys=True, allow_nan=False))
        for layer, values in sorted(layers.items()):
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(values, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
