"""Which modules of a loaded model get room for adapters: those of the blocks that the adapters change, by their full names.

vLLM's lora_target_modules are last parts of names, so that it wraps the modules of every block: with a band of 0.2 to 0.8 of the
depth two fifths of the LoRA kernels add zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.layers import decoder_layers


def narrow(runner: Any, layers: Sequence[int], depth: int) -> None:
    """Have a model runner wrap only the modules of these blocks for adapters, once it has loaded its model.

    Does nothing in an engine without adapters.

    Args:
        runner: vLLM's model runner, of either generation, before it loads its model.
        layers: blocks, counted from 0.
        depth: number of blocks of the model.
    """
    stock = runner.load_lora_model

    def load_lora_model(model: Any, vllm_config: Any, device: Any) -> Any:
        config = vllm_config.lora_config
        if config.target_modules is not None:
            config.target_modules = full_names(model, config.target_modules, layers, depth)
        return stock(model, vllm_config, device)

    runner.load_lora_model = load_lora_model


def full_names(model: Any, targets: Sequence[str], layers: Sequence[int], depth: int) -> list[str]:
    """The modules in these blocks that vLLM wraps for the given targets, by full name and in order.

    vLLM packs some modules: the target q_proj matches qkv_proj.

    Args:
        model: as vLLM has loaded it.
        targets: last parts of module names.
        layers: blocks, counted from 0.
        depth: number of blocks of the model.
    """
    from vllm.lora.utils import is_in_target_modules, process_packed_modules_mapping

    stack, _ = decoder_layers(model, depth)
    packed = process_packed_modules_mapping(model)
    inside = tuple(f"{stack}.{layer}." for layer in layers)
    return [
        name
        for name, _ in model.named_modules()
        if name.startswith(inside) and is_in_target_modules(name, list(targets), packed)
    ]
