"""Where a model keeps its decoder layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def decoder_layers(model: torch.nn.Module, depth: int) -> tuple[str, torch.nn.ModuleList]:
    """Name and module of the one stack of `depth` decoder layers; towers for other modalities are left out."""
    import torch

    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and name.rpartition(".")[2] == "layers"
        and len(module) == depth
        and not {"vision", "audio"} & set(name.replace("_", ".").split("."))
    ]
    if len(stacks) != 1:
        raise RuntimeError(f"expected one stack of {depth} decoder layers, found {[name for name, _ in stacks]}")
    return stacks[0]
