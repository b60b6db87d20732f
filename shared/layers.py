"""Where a model keeps its decoder layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import SteerHealError
from shared.families import TOWERS

if TYPE_CHECKING:
    import torch


def decoder_layers(model: torch.nn.Module, depth: int) -> tuple[str, torch.nn.ModuleList]:
    """The name and the module of the list of `depth` decoder layers. Layers of vision or audio towers are left out.

    Raises SteerHealError where there is no such list, or more than one.
    """
    import torch

    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and name.rpartition(".")[2] == "layers"
        and len(module) == depth
        and not TOWERS & set(name.replace("_", ".").split("."))
    ]
    if len(stacks) != 1:
        raise SteerHealError(
            "a model's decoder layers could not be found",
            given=f"{type(model).__name__} with {', '.join(name for name, _ in stacks) or 'no such stack'}",
            expected=f"one list of {depth} layers by the name of `layers`",
            next="choose a model of another architecture",
        )
    return stacks[0]
