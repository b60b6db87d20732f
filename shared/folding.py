"""Finished rounds: folded into one adapter with a gate each, and merged into a plain checkpoint.

y = W x + sum_i g_i s_i B_i A_i x. The per-round adapters on disk are the truth; the folded one is rebuilt when a gate changes.
All gates at 0 is the original model. Merging is for serving; it is never a way back, since W + d - d is not W.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.console import console
from shared.errors import SteerHealError
from shared.models import Model
from shared.publish import atomic_folder, digest, write_json

if TYPE_CHECKING:
    import torch

VERSION = 1
PREFIX = "base_model.model."
PLAIN = {"bias": "none", "use_dora": False, "use_rslora": False}


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter: per module name (as in the base model) A [rank, in] and B [out, rank], fp32; y += scale * B A x."""

    folder: Path
    config: dict[str, Any]
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def rank(self) -> int:
        return int(self.config["r"])

    @property
    def scale(self) -> float:
        return float(self.config["lora_alpha"]) / self.rank


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter folder. Raises SteerHealError when it is missing, malformed, or not a plain LoRA of one rank and scale."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    def refuse(given: str, expected: str) -> SteerHealError:
        return SteerHealError(
            "an adapter could not be used",
            given=f"{folder}: {given}",
            expected=expected,
            next="train it again: python -m train.heal --help",
        )

    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise refuse(f"{error}", "adapter_config.json and adapter_model.safetensors, as PEFT saves them") from None
    strange = {key: config.get(key) for key, plain in PLAIN.items() if config.get(key, plain) != plain}
    strange.update(
        {key: config[key] for key in ("modules_to_save", "rank_pattern", "alpha_pattern") if config.get(key)}
    )
    if strange or config.get("peft_type") != "LORA":
        raise refuse(
            f"{config.get('peft_type')} with {strange}",
            "a plain LoRA: no rsLoRA, DoRA, bias, saved modules or rank patterns",
        )
    names = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors}
    try:
        modules = {
            name: (tensors[f"{PREFIX}{name}.lora_A.weight"].float(), tensors[f"{PREFIX}{name}.lora_B.weight"].float())
            for name in sorted(names)
        }
    except KeyError as error:
        raise refuse(f"no tensor {error}", "lora_A.weight and lora_B.weight of every module") from None
    bad = [
        name
        for name, (a, b) in modules.items()
        if a.shape[0] != config["r"] or b.shape[1] != config["r"] or not (a.isfinite().all() and b.isfinite().all())
    ]
    if bad or not modules or len(tensors) != 2 * len(modules):
        raise refuse(f"{bad[0] if bad else f'{len(tensors)} tensors'}", f"finite factors of rank {config['r']}")
    return Adapter(folder, config, modules)


def fold(adapters: Sequence[tuple[Path, float]], out: Path) -> None:
    """Concatenate rounds 1.. with their gates into one adapter folder of scale 1, with gates.json beside it.

    The scale and gate of a round go into its B, so that a module's rank is the sum over rounds; where a round has no such
    module its share is zero.
    """
    import torch
    from safetensors.torch import save_file

    loaded = [(load_adapter(folder), gate) for folder, gate in adapters]
    rank = sum(adapter.rank for adapter, _ in loaded)
    shapes = {name: (a.shape[1], b.shape[0]) for adapter, _ in loaded for name, (a, b) in adapter.modules.items()}
    tensors = {}
    for name, (width, height) in sorted(shapes.items()):
        pairs = [
            (adapter.modules[name][0], gate * adapter.scale * adapter.modules[name][1])
            if name in adapter.modules
            else (torch.zeros(adapter.rank, width), torch.zeros(height, adapter.rank))
            for adapter, gate in loaded
        ]
        if any(a.shape[1] != width or b.shape[0] != height for a, b in pairs):
            raise SteerHealError(
                "rounds do not fit each other",
                given=f"{name} has several shapes",
                expected="adapters of one model",
                next="use one model.name per run",
            )
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.cat([a for a, _ in pairs]).contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.cat([b for _, b in pairs], dim=1).contiguous()
    config = {
        **loaded[-1][0].config,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(shapes),
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    with atomic_folder(out) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "adapter_config.json", config)
        rows = [
            {
                "round": index,
                "gate": gate,
                "adapter": os.path.relpath(adapter.folder, out),
                "sha256": digest(adapter.folder),
                "rank": adapter.rank,
                "scale": adapter.scale,
            }
            for index, (adapter, gate) in enumerate(loaded, start=1)
        ]
        write_json(temporary / "gates.json", {"version": VERSION, "rounds": rows})


def rounds_of(history: Path) -> list[tuple[Path, float]]:
    """The adapters and gates of a folded history, oldest first; an adapter that has changed since is refused."""
    try:
        rows = json.loads((history / "gates.json").read_text(encoding="utf-8"))["rounds"]
        found = [((history / row["adapter"]).resolve(), float(row["gate"]), row["sha256"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SteerHealError(
            "a history could not be read",
            given=f"{history}/gates.json: {error!r}",
            expected="gates.json beside the folded adapter",
            next="make round",
        ) from None
    for folder, _, sha256 in found:
        if not folder.is_dir() or digest(folder) != sha256:
            raise SteerHealError(
                "a round's adapter is not the one that was folded",
                given=folder,
                expected=f"digest {sha256}",
                next="restore it, or make the rounds again with REBUILD=1",
            )
    return [(folder, gate) for folder, gate, _ in found]


def refold(history: Path, gates: Mapping[int, float], out: Path) -> None:
    """Fold the same rounds with other gates (round -> gate; the others keep theirs)."""
    rounds = rounds_of(history)
    if unknown := sorted(set(gates) - set(range(1, len(rounds) + 1))):
        raise SteerHealError(
            "a gate names no round", given=unknown[0], expected=f"1 to {len(rounds)}", next="mend the gates"
        )
    fold([(folder, gates.get(index, gate)) for index, (folder, gate) in enumerate(rounds, start=1)], out)


def merged(model: Model, adapter: Path | None, cache: Path, dtype: str) -> Model:
    """The student as a plain checkpoint in `dtype` under `cache`, merged in fp32; the model itself without an adapter.

    The weights lie on a half-precision grid already, so that a shift under half its step is lost whole: the share of the adapter
    that survives, the stored shift projected on the exact one, is measured. Below a half SteerHealError is raised.
    """
    if adapter is None:
        return model
    key = hashlib.sha256(f"{model.fingerprint} {digest(adapter)} {dtype}".encode()).hexdigest()[:16]
    folder = cache / key
    if not folder.is_dir():
        _merge(model, load_adapter(adapter), folder, dtype)
    return Model(str(adapter), folder, None)


def _merge(model: Model, adapter: Adapter, folder: Path, dtype: str) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    todo = dict(adapter.modules)
    kept = size = 0.0
    with atomic_folder(folder) as temporary:
        for shard in sorted(model.folder.glob("*.safetensors")):
            tensors = {}
            with safe_open(shard, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
                    value = handle.get_tensor(name)
                    found = next(
                        (module for module in _spellings(name.removesuffix(".weight")) if module in todo), None
                    )
                    if found is not None:
                        a, b = todo.pop(found)
                        shift = adapter.scale * (b @ a)
                        stored = (value.float() + shift).to(kind)
                        kept += float(((stored.float() - value.float()) * shift).sum())
                        size += float(shift.square().sum())
                        value = stored
                    tensors[name] = value.to(kind) if value.is_floating_point() else value
            save_file(tensors, temporary / shard.name, metadata={"format": "pt"})
        if todo:
            raise SteerHealError(
                "an adapter names modules that the model lacks",
                given=f"{next(iter(todo))} and {len(todo) - 1} more",
                expected=f"weights of {model.name}",
                next="use the adapter with the model it was trained on",
            )
        if kept < 0.5 * size:
            raise SteerHealError(
                "the served dtype swallows the adapter",
                given=f"{max(kept, 0.0) / size:.0%} of its shift survives in {dtype}",
                expected="at least half",
                next="serve in fp32: --dtype float32, or SET=model.dtype=float32 in a run",
            )
        if kept < 0.95 * size:
            console.print(
                f"[yellow]{kept / size:.0%} of the adapter's shift survives merging in {dtype}; float32 keeps all of it[/]"
            )
        for file in model.folder.iterdir():
            if file.suffix in {".json", ".jinja", ".model", ".txt"} and file.name != "config.json":
                shutil.copyfile(file, temporary / file.name)
        config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
        write_json(temporary / "config.json", {**config, "dtype": dtype})


def _spellings(name: str) -> Iterator[str]:
    """Module names a checkpoint name may stand for: multimodal checkpoints and models nest the language model differently."""
    yield name
    for old, new in (
        ("language_model.model.", "model.language_model."),
        ("model.language_model.", "language_model.model."),
        ("model.language_model.", "model."),
    ):
        if name.startswith(old):
            yield new + name.removeprefix(old)
