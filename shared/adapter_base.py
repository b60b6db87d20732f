"""Whether an adapter was trained on a model's weights: by base.json, or by the base that its adapter_config.json names."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from shared.adapters import Adapter
from shared.cache import remembered_digest
from shared.commands import option
from shared.console import say
from shared.errors import SteerHealError
from shared.models import Model

HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# What a mirror on the hub puts after the name of the model whose weights it has, quantised or not.
MIRRORED = re.compile(r"(?:-(?:unsloth|bnb|[48]bit|gguf|mlx|bf16|fp16))+\Z")


def check_noted_base(adapter: Adapter, model: Model) -> None:
    """Raise SteerHealError where base.json names other weights than the model's."""
    if adapter.note is not None and adapter.note.fingerprint != model.fingerprint:
        raise SteerHealError(
            "an adapter belongs to another model",
            given=f"{adapter.folder}, trained on {adapter.note.model} ({adapter.note.fingerprint[:12]})",
            expected=f"an adapter of {model.name} ({model.fingerprint[:12]})",
            next="name the model it was trained on, or train it again: python -m train.heal --help",
        )


def check_named_base(adapter: Adapter, model: Model) -> None:
    """Compare the base that adapter_config.json names with the model, where there is no base.json.

    A folder that is here is compared by its weights, an id on the hub by name with a model of the hub. Anything else cannot be
    compared, and that is said once.

    Raises:
        SteerHealError: the folder has other weights, or the ids are those of different models.
    """
    base = adapter.config.get("base_model_name_or_path")
    if adapter.note is None and isinstance(base, str) and base:
        _compare(adapter.folder, base, model)


@lru_cache(1024)
def _compare(folder: Path, base: str, model: Model) -> None:
    place = Path(base)
    if place.is_dir() and (weights := _weights(place)):
        if place.resolve() != model.folder.resolve() and weights != _weights(model.folder):
            raise _another(folder, base, f"an adapter of the weights in {model.folder}", base)
    elif HUB.fullmatch(base) and model.revision is not None:
        if _bare(base) != _bare(model.name):
            raise _another(folder, base, f"an adapter of {model.name}", base)
        if base.lower() != model.name.lower():
            say(f"the adapter {folder} names {base} as its base, and is used over {model.name}: the same name, and its weights are not compared", "yellow")  # fmt: skip
    else:
        say(f"the adapter {folder} names {base} as its base, which cannot be compared with {model.name}: make sure that the weights are the same", "yellow")  # fmt: skip


def _another(folder: Path, base: str, expected: str, name: str) -> SteerHealError:
    return SteerHealError(
        "an adapter belongs to another model",
        given=f"{folder}, whose adapter_config.json names {base} (base_model_name_or_path)",
        expected=expected,
        next=f"the same command with {option('MODEL', '--model', name)}; or name this model there, if its weights are the same",
    )


def _weights(folder: Path) -> list[str]:
    """Digests of the files of weights, in their order by name."""
    return [remembered_digest(file) for file in sorted(folder.glob("*.safetensors"))]


def _bare(name: str) -> str:
    """The name of a model without its owner and what mirrors add to it."""
    return MIRRORED.sub("", name.rpartition("/")[2].lower())
