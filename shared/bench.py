"""Set-up against plain pip: the time from nothing to an environment in which the stages run, as a ratio for docs/bench.json.

Both sides begin without environment and caches, install the same lock, and end with this project itself. Whether torch is
downloaded depends on pip's settings, for both alike. pip compiles bytecode and uv leaves it to the first import, so a second
ratio has the first import of the stages in its times.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shared.commandline import bench_options
from shared.console import say
from shared.errors import SteerHealError
from shared.ratios import closing, file, ratio_of_pairs, refuse_foreign
from shared.stage_checks import STAGES

ROOT = Path(__file__).parent.parent
COPIED = ("requirements", "gen", "train", "evals", "shared", "pyproject.toml", "README.md", "LICENSE")
# What a reader of the lock types who has pip alone.
PIP = """
set -e
"$PYTHON" -m venv .venv
grep -v '^uv==' requirements/cpu.txt > lock.txt
.venv/bin/pip install --no-deps "$(grep '^torch==' lock.txt)"
.venv/bin/pip install --no-deps -r lock.txt
.venv/bin/pip install --no-deps --no-build-isolation -e .
"""
IMPORTS = [code for name, code in STAGES.items() if name in ("sweep", "heal", "report")]


def copy(folder: Path) -> None:
    """The files that set-up reads: a checkout that nothing was installed in."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def timed(script: str) -> tuple[float, float]:
    """Seconds of a set-up in a fresh checkout with empty caches, and of the first imports after it."""
    with tempfile.TemporaryDirectory(prefix="setup-") as name:
        folder = Path(name)
        copy(folder)
        environment = {
            **os.environ,
            "PYTHON": getattr(sys, "_base_executable", sys.executable),
            "UV_CACHE_DIR": f"{folder}/uv",
            "PIP_CACHE_DIR": f"{folder}/pip",
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # with it set-up compiles all, and no first import is timed
        seconds = []
        for commands in ([["sh", "-c", script]], [[".venv/bin/python", "-c", code] for code in IMPORTS]):
            begin = time.perf_counter()
            for command in commands:
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise SteerHealError(
                        "a set-up failed while it was timed",
                        given="\n".join((done.stdout + done.stderr).strip().splitlines()[-5:]),
                        expected="exit status 0",
                        next="make setup in a fresh clone, and see .venv/setup.log",
                    )
            seconds.append(time.perf_counter() - begin)
        return seconds[0], seconds[1]


def ours() -> tuple[float, float]:
    """Seconds of this package's set-up, and of the first imports after it."""
    return timed("requirements/install.sh cpu")


def theirs() -> tuple[float, float]:
    """Seconds of plain pip's set-up of the same lock, and of the first imports after it."""
    return timed(PIP)


def main() -> None:
    arguments = bench_options().parse_args()
    refuse_foreign(arguments.out)
    begin = time.monotonic()
    pairs = []
    for turn in range(1 if arguments.quick else arguments.pairs):
        sides = (ours, theirs) if turn % 2 == 0 else (theirs, ours)
        seconds = {side: side() for side in sides}
        pairs.append((seconds[ours], seconds[theirs]))
        say(
            "pair {}: set-up {:.0f} s and first imports {:.0f} s; pip {:.0f} and {:.0f} s".format(
                turn + 1, *sum(pairs[-1], ())
            )
        )
    alone = [(own[0], other[0]) for own, other in pairs]
    whole = [(sum(own), sum(other)) for own, other in pairs]
    end = "the first import of sweep, heal and report"
    ratios = {
        "setup_over_pip": bounded_ratio(alone, "time of make setup over pip's for the same lock, empty caches", 0.5),
        "setup_and_import_over_pip": bounded_ratio(
            whole, f"the same to the end of {end}, for which pip has compiled bytecode"
        ),
    }
    file(arguments.out, ratios)
    closing(arguments.out, begin)


def bounded_ratio(pairs: list[tuple[float, float]], what: str, bound: float | None = None) -> dict[str, Any]:
    """A record of shared.ratios over pairs of seconds (ours, the reference's), with the median seconds of each side.

    Args:
        pairs: seconds of ours and of the reference, measured in turn.
        what: the ratio in words, for the record.
        bound: the largest median that is good enough; None for none.
    """
    sides = zip(("ours", "reference"), zip(*pairs, strict=True), strict=True)
    return {
        **ratio_of_pairs(pairs, what, bound=bound),
        "seconds": {name: statistics.median(side) for name, side in sides},
    }


if __name__ == "__main__":
    from shared.cli import entry

    entry(main)
