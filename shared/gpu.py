"""NVIDIA GPUs by the driver, and whether the installed torch computes on one.

Standard library alone, since `make doctor` runs with any Python; torch is imported where it is asked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from shared.errors import Exit, SteerHealError

DRIVER = 580  # the oldest of NVIDIA's drivers that runs CUDA 13
CAPABILITY = 7.5  # CUDA 13 builds have no code for older GPUs
CPU_LOCK = "or go without a GPU: make clean setup LOCK=cpu"
QUERY = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader"]


@dataclass(frozen=True)
class Card:
    """A GPU as nvidia-smi writes it, such as NVIDIA H100, 580.65.06, 9.0, 81559 MiB."""

    name: str
    driver: str
    capability: str
    memory: str

    @property
    def problem(self) -> SteerHealError | None:
        """Why the lock's CUDA 13 builds do not run on it; None where they do."""
        if _number(self.driver.split(".")[0]) < DRIVER:
            return SteerHealError(
                "the driver is too old for the lock's CUDA 13 builds",
                given=f"driver {self.driver}",
                expected=f"{DRIVER} or newer",
                next=f"update the driver, {CPU_LOCK}",
                code=Exit.MACHINE,
            )
        if _number(self.capability) < CAPABILITY:
            return SteerHealError(
                "the lock's CUDA 13 builds have no code for this GPU",
                given=f"{self.name}, compute capability {self.capability}",
                expected=f"{CAPABILITY} or newer",
                next=f"take another GPU, {CPU_LOCK}",
                code=Exit.MACHINE,
            )
        return None


def visible_gpus() -> tuple[list[Card], str]:
    """The GPUs that the driver sees, and, where there is none, what nvidia-smi message last (empty: there is no nvidia-smi)."""
    if not shutil.which("nvidia-smi"):
        return [], ""
    done = subprocess.run(QUERY, capture_output=True, text=True, timeout=60)
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 3]
    last = (done.stdout + done.stderr).strip().splitlines()
    message = last[-1] if last else f"exit status {done.returncode}"
    return ([], message) if done.returncode else ([Card(*row) for row in rows], "" if rows else message)


def on_gpu() -> bool:
    """Whether torch computes on a GPU here.

    Raises SteerHealError where the installed torch is a CUDA build that sees no GPU, and where Python's header is missing on a machine
    with one: a round would otherwise take hours on the CPU, or end when the first kernel is compiled.
    """
    import torch

    if torch.cuda.is_available():
        if not python_header().is_file():
            raise no_header()
        return True
    if torch.version.cuda is not None:
        raise unseen(torch.__version__)
    return False


def unseen(version: str) -> SteerHealError:
    """The error of a CUDA build of torch that sees no GPU, with the cause where it is known."""
    gpus, message = visible_gpus()
    problem = next((card.problem for card in gpus if card.problem), None)
    if problem is not None:
        return problem
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and hidden is not None:
        fact, next_ = f"CUDA_VISIBLE_DEVICES={hidden!r}", "unset CUDA_VISIBLE_DEVICES"
    elif gpus:
        fact, next_ = f"{gpus[0].name}, driver {gpus[0].driver}, which nvidia-smi sees", "restart the machine or the container: the driver's kernel module and its libraries may be of two versions"  # fmt: skip
    else:
        fact, next_ = message or "no nvidia-smi", "mend the driver (in a container, pass the GPU through: --gpus all)"
    return SteerHealError(
        "torch is a CUDA build and sees no GPU",
        given=f"torch {version}; {fact}",
        expected="a GPU: nothing is computed on the CPU by these packages",
        next=f"{next_}, {CPU_LOCK}",
        code=Exit.MACHINE,
    )


def python_header() -> Path:
    """Python.h, which Triton compiles its launchers against."""
    return Path(sysconfig.get_path("include")) / "Python.h"


def no_header() -> SteerHealError:
    """The error of a machine without Python.h."""
    short = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return SteerHealError(
        "Python's header is missing: torch compiles kernels of the engine against it",
        given=python_header(),
        expected="the header of the Python that .venv is built with",
        next=f"apt install python{short}-dev (Fedora: dnf install python{short}-devel)",
        code=Exit.MACHINE,
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def main() -> None:
    """One JSON object: whether torch computes on a GPU and its version, or the error that says why it does not."""
    try:
        answer: dict[str, object] = {"gpu": on_gpu()}
    except SteerHealError as error:
        answer = {"error": error.as_dict()}
    torch = sys.modules.get("torch")
    print(json.dumps({**answer, "torch": torch.__version__ if torch is not None else None}))


if __name__ == "__main__":
    main()
