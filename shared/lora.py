"""Which adapter_config.json is plain LoRA: its fields at PEFT's defaults, and rank and scale of each module."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

# What may take any value: names, versions and what only training reads.
FREE = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "task_type",
}  # fmt: skip
# What `scaling` and `covers` read. fan_in_fan_out is about Conv1D, which `shared.fitting` refuses; PEFT ignores it for others.
READ = {
    "alpha_pattern", "exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "lora_alpha", "r",
    "rank_pattern", "target_modules", "use_rslora",
}  # fmt: skip
# Initialisations that draw the factors and leave the base weights alone. PiSSA, OLoRA, CorDA and LoftQ change the base.
DRAWN: tuple[object, ...] = (True, False, None, "gaussian", "orthogonal")
# Fields whose empty list or dictionary means that they are off. An empty kasa_config is on.
EMPTY = {"loftq_config", "modules_to_save", "target_parameters", "trainable_token_indices", "layer_replication"}
LAYER = r".*?\.[^.]*\.(\d+)\."  # the first number in a module's name, as PEFT finds its layer


def not_plain(config: Mapping[str, Any]) -> str | None:
    """The first field that makes an adapter another kind than plain LoRA, with its value; None for plain LoRA.

    Every field that is neither known to be harmless nor off is such a field, those of later versions of PEFT among them.
    """
    if config.get("peft_type") != "LORA":
        return f"peft_type {config.get('peft_type')!r}"
    for name, value in sorted(config.items()):
        if name in FREE | READ | {"peft_type"}:
            continue
        allowed = DRAWN if name == "init_lora_weights" else ("none", None) if name == "bias" else (None, False)
        plain = any(type(value) is type(default) and value == default for default in allowed)
        if not plain and not (name in EMPTY and value in ([], {})):
            return f"{name} {value!r}"
    return None


def scaling(config: Mapping[str, Any]) -> Callable[[str], tuple[int, float]]:
    """Rank and scale by module name: alpha / r, with rsLoRA alpha / sqrt(r), each by its pattern where one matches.

    Raises TypeError, ValueError or re.error for values that PEFT would not take.
    """
    ranks, alphas = (_patterns(config, name) for name in ("rank_pattern", "alpha_pattern"))
    root = config.get("use_rslora") or False
    if not isinstance(root, bool):
        raise TypeError(f"use_rslora is {root!r}")
    rank, alpha = _rank("r", config["r"]), _alpha("lora_alpha", config["lora_alpha"])

    def of(module: str) -> tuple[int, float]:
        r = next((_rank("rank_pattern", value) for key, value in ranks if key.match(module)), rank)
        a = next((_alpha("alpha_pattern", value) for key, value in alphas if key.match(module)), alpha)
        return r, a / (math.sqrt(r) if root else r)

    return of


def widest(config: Mapping[str, Any]) -> int:
    """The largest rank that a configuration names, whether a module has it or not: what vLLM must make room for."""
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])


def covers(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether PEFT gives a module of this name a LoRA: by target_modules, exclude_modules and the layers.

    Raises TypeError or re.error for values that PEFT would not take.
    """
    targets, excluded = (_names(config, name) for name in ("target_modules", "exclude_modules"))
    layers = config.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers or None
    stacks = config.get("layers_pattern") or []
    stacks = [stacks] if isinstance(stacks, str) else stacks
    if layers is not None and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
        raise TypeError(f"layers_to_transform is {layers!r}")
    if not isinstance(stacks, list) or not all(isinstance(stack, str) for stack in stacks):
        raise TypeError(f"layers_pattern is {stacks!r}")
    places = [re.compile(rf"(?:^|.*?\.){stack}\.(\d+)\.") for stack in stacks] or [re.compile(LAYER)]
    listed = not isinstance(config.get("target_modules"), str)  # PEFT looks at the layers beside a list of names alone

    def of(module: str) -> bool:
        if excluded is not None and excluded(module):
            return False
        if targets is not None and not targets(module):
            return False
        if layers is None or not listed or module in (config.get("target_modules") or ()):
            return True
        first = next((match for place in places if (match := place.match(module))), None)
        return first is not None and int(first[1]) in layers

    return of


def layers_of(config: Mapping[str, Any]) -> list[int]:
    """The layers that a configuration names; empty where it names none."""
    layers = config.get("layers_to_transform")
    return [layers] if type(layers) is int else [layer for layer in layers or [] if type(layer) is int]


def _patterns(config: Mapping[str, Any], name: str) -> list[tuple[re.Pattern[str], Any]]:
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict):
        raise TypeError(f"{name} is {patterns!r}")
    return [(re.compile(rf"(?:.*\.)?(?:{key})$"), value) for key, value in patterns.items()]


def _rank(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}: rank {value!r}")
    return value


def _alpha(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name}: alpha {value!r}")
    return float(value)


def _names(config: Mapping[str, Any], name: str) -> Callable[[str], bool] | None:
    """A test of module names; None where the field is not set."""
    names = config.get(name)
    if names is None or (name == "exclude_modules" and not names) or names == "all-linear":
        return None
    if isinstance(names, str):
        pattern = re.compile(names)
        return lambda module: pattern.fullmatch(module) is not None
    if not isinstance(names, list) or not all(isinstance(pattern_, str) for pattern_ in names):
        raise TypeError(f"{name} is {names!r}")
    exact, ends = set(names), tuple(f".{pattern_}" for pattern_ in names)
    return lambda module: module in exact or module.endswith(ends)
