"""The run, file or folder that a misspelt path was meant to be."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from pathlib import Path

from shared.commands import nearest_command
from shared.errors import SteerHealError

ALIKE = (
    0.8  # share of the letters that two names of runs have in common from which one is taken for a typo of the other
)


def nearest_run(folder: Path) -> Path | None:
    """The run beside a folder whose name is a likely typo of its name; None where no run is similar.

    Names that differ in digits alone, such as seed-1 and seed-2, are different runs on purpose.
    """
    name = folder.name
    runs = [
        (SequenceMatcher(None, name.lower(), path.parent.name.lower()).ratio(), path.parent)
        for path in sorted(folder.parent.glob("*/config.toml"))
        if path.parent.name != name and _letters(path.parent.name) != _letters(name)
    ]
    ratio, run = max(runs, key=lambda item: item[0], default=(0.0, None))
    return run if ratio > ALIKE else None


def no_such_run(
    folder: Path, next: str, meant: Path | None = None, expected: str = "the folder of a run"
) -> SteerHealError:
    """The error about a run that is not there. meant: the one whose name it is a likely typo of, as `nearest_run` has it."""
    return SteerHealError(
        "there is no such run", given=folder, expected=f"did you mean {meant}?" if meant else expected, next=next
    )


def _letters(name: str) -> str:
    return re.sub(r"[\d\W_]", "", name)


def nearest_path(path: Path, pattern: str) -> Path | None:
    """The path beside a missing one that its name is nearest to.

    Args:
        path: what is not there.
        pattern: of the names that it may have been, such as `*.safetensors`.
    """
    meant = nearest_command(path.name, (other.name for other in sorted(path.parent.glob(pattern))))
    return path.with_name(meant) if meant else None
