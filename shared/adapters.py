"""Adapters on disk: LoRA as PEFT writes it, with a note of the weights that they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import lora
from shared.commands import command_of
from shared.errors import SteerHealError, in_one_line
from shared.models import Model
from shared.publish import write_json
from shared.records import Record, read_record
from shared.strict import parse_json

if TYPE_CHECKING:
    import torch

VERSION = 1
PREFIX = "base_model.model."
BASE = "base.json"
FILES = ("adapter_config.json", "adapter_model.safetensors")
FLOATS = ("float64", "float32", "float16", "bfloat16")
EXPECTED = "plain LoRA: every other field of adapter_config.json as PEFT has it by default"

AGAIN = "train it again: python -m train.heal --help"
ELSEWHERE = "merge it with PEFT, merge_and_unload() and save_pretrained(FOLDER), and name that folder in model.name"


class Base(Record):
    """base.json: the weights that an adapter was trained on.

    fingerprint: of the original model, with its revision on the hub; dtype: that it was trained in; round: K, which trained over
    the rounds before it. None where an adapter of an earlier version does not say.
    """

    model: str
    fingerprint: str
    revision: str | None = None
    dtype: str | None = None
    round: int | None = None


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: per module name (as in the base model) A [rank, in] and B [out, rank], fp32; y += scale * B A x.

    Where PEFT has ranks or alphas by module, the smaller factors are padded with zeros and B carries the scale. note: the base it
    was trained on, None where nobody wrote it down.
    """

    folder: Path
    config: dict[str, Any]
    note: Base | None
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    rank: int
    scale: float

    @property
    def base(self) -> str | None:
        """Fingerprint of the model that it was trained on."""
        return self.note.fingerprint if self.note else None


def check_readable(folder: Path) -> None:
    """Raise SteerHealError where a folder has not the files of an adapter, without reading its tensors, for which torch is needed."""
    if lacking := [name for name in FILES if not (folder / name).is_file()]:
        raise SteerHealError(
            "an adapter could not be used",
            given=f"{folder}: no {lacking[0]}",
            expected="adapter_config.json and adapter_model.safetensors, as PEFT saves them",
            next=f"train it: {command_of('train.heal', '--help')}",
        )


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter folder.

    Raises SteerHealError when it is missing or malformed, when it is another kind than plain LoRA, and when its tensors are not
    what its configuration says: a module that PEFT would leave out, or of another rank.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    def refuse(given: str, expected: str, next: str = AGAIN) -> SteerHealError:
        return SteerHealError(
            "an adapter could not be used",
            given=f"{folder}: {given}",
            expected=expected,
            next=next,
        )

    files = "adapter_config.json and adapter_model.safetensors, as PEFT saves them"
    try:
        config = parse_json((folder / "adapter_config.json").read_bytes())
        tensors = load_file(folder / "adapter_model.safetensors")
        if field := lora.not_plain(config):
            raise refuse(field, EXPECTED, ELSEWHERE)
        scaling, covers = lora.scaling(config), lora.covers(config)
        names = sorted({key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors})
        sizes = {name: scaling(name) for name in names}
        left_out = next((name for name in names if not covers(name)), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, re.error, SafetensorError) as error:  # fmt: skip
        raise refuse(f"{error.strerror}, {error.filename}" if isinstance(error, OSError) else in_one_line(error), files) from None  # fmt: skip
    expected_names = {f"{PREFIX}{name}.lora_{kind}.weight" for name in names for kind in "AB"}
    if strange := sorted(tensors.keys() - expected_names) or sorted(expected_names - tensors.keys()):
        unexpected = strange[0] in tensors
        raise refuse(
            f"{'' if unexpected else 'no '}tensor {strange[0]}",
            "lora_A.weight and lora_B.weight of every module, nothing else",
        )
    if left_out is not None:
        raise refuse(
            f"{left_out} has tensors, and adapter_config.json leaves it out",
            "modules that target_modules, exclude_modules and layers_to_transform name",
        )
    pairs = {
        name: (tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"]) for name in names
    }
    for name, (a, b) in pairs.items():
        rank, scale = sizes[name]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise refuse(f"{name}: A {list(a.shape)}, B {list(b.shape)}", f"factors of rank {rank}")
        if any(str(x.dtype) not in {f"torch.{kind}" for kind in FLOATS} for x in (a, b)):
            raise refuse(f"{name}: {a.dtype}, {b.dtype}", f"factors in {', '.join(FLOATS)}")
        if not (a.isfinite().all() and b.isfinite().all() and math.isfinite(scale)):
            raise refuse(name, f"finite factors of rank {rank}")
    if not pairs:
        raise refuse("0 tensors", "lora_A.weight and lora_B.weight of every module")
    return Adapter(folder, config, note_of(folder), *_uniform(pairs, sizes))


def note_of(folder: Path) -> Base | None:
    """Which weights an adapter was trained on; None where nobody wrote it down. Raises SteerHealError for a note that cannot be read."""
    if not (folder / BASE).exists():
        return None
    return read_record(
        folder / BASE,
        Base,
        what="an adapter could not be used",
        next=f"remove {folder / BASE}, or train it again: python -m train.heal --help",
    )


def _uniform(
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], sizes: Mapping[str, tuple[int, float]]
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], int, float]:
    """The factors in fp32 at one rank and scale; as they are, where they have one."""
    from torch.nn.functional import pad

    if len(set(sizes.values())) == 1:
        ((rank, scale),) = set(sizes.values())
        return {name: (a.float(), b.float()) for name, (a, b) in pairs.items()}, rank, scale
    rank = max(r for r, _ in sizes.values())
    values = {}
    for name, (a, b) in pairs.items():
        missing = rank - a.shape[0]
        values[name] = pad(a.float(), (0, 0, 0, missing)), pad(sizes[name][1] * b.float(), (0, missing))
    return values, rank, 1.0


def loads_from(model: Model) -> str:
    """The name that Transformers and PEFT load a model by: its id on the hub, or the absolute path of its folder."""
    return model.name if model.revision is not None else str(model.folder.resolve())


def note_base(folder: Path, base: Base) -> None:
    """Write down which weights an adapter was trained on."""
    write_json(folder / BASE, {"version": VERSION, **base.model_dump(exclude={"version"})})
