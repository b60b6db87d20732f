"""Adapters on disk: plain LoRA of one rank and scale, as PEFT writes them, with a note of the weights they belong to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.commands import command_of
from shared.errors import SteerHealError, in_one_line
from shared.models import Model
from shared.publish import write_json
from shared.strict import parse

if TYPE_CHECKING:
    import torch

VERSION = 1
PREFIX = "base_model.model."
BASE = "base.json"
FILES = ("adapter_config.json", "adapter_model.safetensors")
PLAIN = {"bias": "none", "use_dora": False, "use_rslora": False}


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter: per module name (as in the base model) A [rank, in] and B [out, rank], fp32; y += scale * B A x.

    base: fingerprint of the model it was trained on, None where nobody wrote it down.
    """

    folder: Path
    config: dict[str, Any]
    base: str | None
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def rank(self) -> int:
        return int(self.config["r"])

    @property
    def scale(self) -> float:
        return float(self.config["lora_alpha"]) / self.rank


def readable(folder: Path) -> None:
    """Raise SteerHealError where a folder has not the files of an adapter, without reading its tensors, for which torch is needed."""
    if lacking := [name for name in FILES if not (folder / name).is_file()]:
        raise SteerHealError(
            "an adapter could not be used",
            given=f"{folder}: no {lacking[0]}",
            expected="adapter_config.json and adapter_model.safetensors, as PEFT saves them",
            next=f"train it: {command_of('train.heal', '--help')}",
        )


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter folder. Raises SteerHealError when it is missing, malformed, or not a plain LoRA of one rank and scale.

    rsLoRA is refused because its scale is alpha / sqrt(rank): concatenated, a round's scale would change with the other rounds.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    def refuse(given: str, expected: str) -> SteerHealError:
        return SteerHealError(
            "an adapter could not be used",
            given=f"{folder}: {given}",
            expected=expected,
            next="train it again: python -m train.heal --help",
        )

    files = "adapter_config.json and adapter_model.safetensors, as PEFT saves them"
    try:
        config = parse((folder / "adapter_config.json").read_bytes())
        tensors = load_file(folder / "adapter_model.safetensors")
        for name, kinds in (("r", (int,)), ("lora_alpha", (int, float))):
            if type(config[name]) not in kinds:
                raise TypeError(f"{name} is {config[name]!r}")
        size = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, SafetensorError) as error:
        raise refuse(f"{error.strerror}, {error.filename}" if isinstance(error, OSError) else in_one_line(error), files) from None  # fmt: skip
    if size[0] < 1 or config["r"] != size[0] or not math.isfinite(size[1]):
        raise refuse(
            f"r {config['r']!r}, lora_alpha {config['lora_alpha']!r}", "a rank of 1 or more and a finite scale"
        )
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
        if a.ndim != 2
        or b.ndim != 2
        or a.shape[0] != size[0]
        or b.shape[1] != size[0]
        or not (a.isfinite().all() and b.isfinite().all())
    ]
    if bad or not modules or len(tensors) != 2 * len(modules):
        raise refuse(f"{bad[0] if bad else f'{len(tensors)} tensors'}", f"finite factors of rank {config['r']}")
    try:
        note = folder / BASE
        base = parse(note.read_bytes())["fingerprint"] if note.exists() else None
        if base is not None and not isinstance(base, str):
            raise TypeError(f"the fingerprint is {type(base).__name__}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refuse(f"{BASE}: {in_one_line(error)}", "the note that its training wrote, or none") from None
    return Adapter(folder, config, base, modules)


def note_base(folder: Path, name: str, fingerprint: str) -> None:
    """Write down which model an adapter belongs to."""
    write_json(folder / BASE, {"version": VERSION, "model": name, "fingerprint": fingerprint})


def belongs(adapter: Adapter, model: Model) -> None:
    """Raise SteerHealError when an adapter was trained on other weights."""
    if adapter.base is not None and adapter.base != model.fingerprint:
        raise SteerHealError(
            "an adapter belongs to another model",
            given=f"{adapter.folder}, trained on {adapter.config.get('base_model_name_or_path')} ({adapter.base[:12]})",
            expected=f"an adapter of {model.name} ({model.fingerprint[:12]})",
            next="name the model it was trained on, or train it again: python -m train.heal --help",
        )
