"""A student as a plain checkpoint: an adapter added to its weights, for serving.

Merging is never a way back: W + d - d is not W. The way back is the factored history with its gates off.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from shared.adapters import Adapter, load_adapter
from shared.cached_weights import cached_folder, cached_weights
from shared.commands import setting
from shared.console import console
from shared.errors import SteerHealError
from shared.fitting import fit
from shared.models import Model
from shared.publish import digest, write_json


def merged(model: Model, adapter: Path | None, cache: Path, dtype: str) -> Model:
    """The student as a plain checkpoint in `dtype` under `cache`, merged in fp32; the model itself without an adapter.

    The weights lie on a half-precision grid already, so that a shift under half its step is lost whole: the share of the adapter
    that survives, the stored shift projected on the exact one, is measured. Below a half SteerHealError is raised.
    """
    if adapter is None:
        return model
    determinants = _determining(model, adapter, dtype)
    return cached_weights(
        str(adapter), determinants, cache, lambda folder, _: write_merged(model, load_adapter(adapter), folder, dtype)
    )


def merged_folder(model: Model, adapter: Path, cache: Path, dtype: str) -> Path:
    """The folder of `merged` for a student, which may not exist yet.

    Args:
        model: the original.
        adapter: folder of the adapter that is merged.
        cache: folder of merged models.
        dtype: of the merged weights.
    """
    return cached_folder(_determining(model, adapter, dtype), cache)


def _determining(model: Model, adapter: Path, dtype: str) -> list[str]:
    return ["merged", model.fingerprint, digest(adapter), dtype]


def write_merged(model: Model, adapter: Adapter, folder: Path, dtype: str) -> float:
    """Write the merged checkpoint into an existing folder; returns the share of the adapter's shift that survives in `dtype`.

    Raises SteerHealError when that is under a half, or the adapter does not fit the model.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    modules = {place: module for module, place in fit(adapter, model).items()}
    kept = size = 0.0
    for shard in sorted(model.folder.glob("*.safetensors")):
        tensors = {}
        with safe_open(shard, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
                value = handle.get_tensor(name)
                if name in modules:
                    a, b = adapter.modules[modules[name]]
                    shift = adapter.scale * (b @ a)
                    stored = (value.float() + shift).to(kind)
                    kept += float(((stored.float() - value.float()) * shift).sum())
                    size += float(shift.square().sum())
                    value = stored
                tensors[name] = value.to(kind) if value.is_floating_point() else value
        save_file(tensors, folder / shard.name, metadata={"format": "pt"})
    if kept < 0.5 * size:
        raise SteerHealError(
            "the dtype is too coarse for the adapter: its change of the weights is rounded away",
            given=f"{max(kept, 0.0) / size:.0%} of its shift survives in {dtype}",
            expected="at least half",
            next=f"serve in fp32: --dtype float32, or {setting('model.dtype=float32')} in a run",
        )
    if kept < 0.95 * size:
        console.print(
            f"[yellow]{kept / size:.0%} of the adapter's shift survives merging in {dtype}; float32 keeps all of it[/]"
        )
    for file in model.folder.iterdir():
        if file.suffix in {".json", ".jinja", ".model", ".txt"} and file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, "dtype": dtype})
    return kept / size if size else 1.0
