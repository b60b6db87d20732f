"""`make doctor`: what this machine has, what is missing, and what to type."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from shared.cli import entry
from shared.console import console, table
from shared.errors import SteerHealError
from shared.machine import hardware
from shared.models import cache_folder
from shared.run import versions

ROOT = Path.cwd()  # run by make, with -P: packages must come from the installation, not from the working directory


def misplaced() -> list[str]:
    """Packages of ours that do not come from this checkout."""
    found = []
    for name in ("gen", "train", "evals", "shared"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).parent if spec and spec.origin else None
        if origin != ROOT / name:
            found.append(f"{name} from {origin}")
    return found


def lock() -> Path:
    """The lock that `make setup` chose here."""
    return ROOT / "requirements" / ("gpu.txt" if (ROOT / ".venv" / ".ready-gpu").exists() else "cpu.txt")


def missing(path: Path) -> list[str]:
    """Lines of a lock that are not installed in that version."""
    wanted = [
        Requirement(line)
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    found = []
    for requirement in wanted:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement} is absent")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement}, here {version}")
    return found


def main() -> None:
    import torch

    machine = hardware()
    table(
        "machine",
        ["what", "value"],
        [
            ["python", sys.version.split()[0]],
            ["processor", machine["processor"]],
            ["cores", machine["cores"]],
            ["memory", f"{machine['memory_gib']} GiB"],
            ["free disk", f"{shutil.disk_usage(ROOT).free / 2**30:.0f} GiB"],
            ["gpu", machine["gpu"] or "none: CPU builds and the embedded model"],
            [
                "gpu memory",
                f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB" if machine["gpu"] else None,
            ],
            ["model cache", str(cache_folder())],
            ["lock", lock().relative_to(ROOT).as_posix()],
            ["gcc", shutil.which("gcc") or shutil.which("cc")],
        ],
    )
    table("versions", ["package", "version"], versions().items())
    if wrong := misplaced():
        raise SteerHealError(
            "packages do not resolve to this checkout",
            given="; ".join(wrong),
            expected=f"all below {ROOT}",
            next="make clean setup",
        )
    if absent := missing(lock()):
        raise SteerHealError(
            "the environment differs from its lock",
            given="; ".join(absent[:8]),
            expected=lock().name,
            next="make clean setup",
        )
    if not (shutil.which("gcc") or shutil.which("cc")):
        raise SteerHealError(
            "there is no C compiler",
            given="neither gcc nor cc",
            expected="a C compiler, for compiled kernels",
            next="install gcc",
        )
    console.print("[green]nothing is missing[/]  next: make round N=1")


if __name__ == "__main__":
    entry(main)
