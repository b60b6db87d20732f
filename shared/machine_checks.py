"""`make doctor` on the machine: system, C library, Python, compiler, processor, memory, disk and GPU."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from shared import machine
from shared.checks import KERNELS, ROOT, Row, in_environment, lock
from shared.errors import SteerHealError
from shared.gpu import CPU_LOCK, no_header, python_header, visible_gpus
from shared.machine import GIB

PYTHONS = ((3, 11), (3, 13))  # oldest and newest that the locks are resolved for
GLIBC = {"cpu": (2, 31), "gpu": (2, 34)}  # what the newest builds of the lock ask for: llguidance, CUDA 13
MEMORY = 5 * GIB  # what a round of the embedded model takes at its peak


def the_system() -> Iterator[Row]:
    """Rows of the doctor on the operating system, the compiler and Python's headers."""
    system, architecture = platform.system(), platform.machine()
    yield Row(
        "system",
        f"{system} on {architecture}",
        None
        if system == "Linux" and architecture in ("x86_64", "aarch64")
        else SteerHealError(
            "steer-heal runs on Linux alone, on x86_64 or aarch64: vLLM has no build for other systems",
            given=f"{system} on {architecture}",
            expected="Linux; a run's report/index.html opens in any browser",
            next="take a Linux machine or container; on Windows, WSL 2",
        ),
    )
    floor = GLIBC[lock().stem]
    libc, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    yield Row(
        "C library",
        f"{libc} {version}".strip() or "unknown",
        None
        if libc == "glibc" and numbers >= floor
        else SteerHealError(
            "the packages' builds do not load with this C library",
            given=f"{libc or 'another, such as musl'} {version}".strip(),
            expected=f"glibc {floor[0]}.{floor[1]} or newer",
            next="take a newer distribution (Ubuntu 22.04, Debian 12, Fedora, RHEL 9 or later), or a container of one",
        ),
    )
    yield Row(
        "Python",
        f"{platform.python_version()}, {sys.executable}",
        None
        if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
        else SteerHealError(
            "this Python does not fit",
            given=platform.python_version(),
            expected="CPython 3.11, 3.12 or 3.13",
            next="install one, then make clean setup PYTHON=/path/to/python3.12",
        ),
    )
    header = python_header()
    has_header = header.is_file()
    yield Row("Python.h", header if has_header else "missing", None if has_header else no_header())
    compiler = os.environ.get("CXX") or "g++"
    yield Row(
        "C++ compiler",
        shutil.which(compiler) or "missing",
        None
        if shutil.which(compiler)
        else SteerHealError(
            "there is no C++ compiler: torch compiles kernels of the engine with it",
            given=f"no {compiler}",
            expected="g++, or the one that CXX names",
            next="apt install g++ (Fedora: dnf install gcc-c++)",
        ),
    )


def the_hardware(run: Path) -> Iterator[Row]:
    """Rows of the doctor on processor, cores, instruction set and memory. run: whose model must fit into the memory."""
    hardware = machine.hardware()
    yield Row("processor", hardware["processor"])
    yield Row("cores", hardware["cores"])
    instruction_set = hardware["instruction_set"]
    yield Row(
        "instruction set",
        f"{instruction_set}; vLLM's kernels on the CPU: {KERNELS[instruction_set]}"
        if instruction_set in KERNELS
        else instruction_set,
        None
        if instruction_set in KERNELS
        else SteerHealError(
            "no build of vLLM's kernels runs on this CPU",
            given=f"{hardware['processor']}: {instruction_set} without AVX2",
            expected=f"one of {', '.join(KERNELS)}",
            next="take another machine; in a virtual one, pass the CPU through (qemu: -cpu host)",
        ),
    )
    available = machine.memory_available()
    yield Row(
        "memory",
        f"{hardware['memory_gib']} GiB, {available / GIB:.1f} available",
        warning=SteerHealError(
            "there is little memory: a stage may be killed",
            given=f"{available / GIB:.1f} GiB available",
            expected=f"{MEMORY / GIB:.0f} GiB, which a round of the embedded model takes; larger models take more",
            next='end other work on this machine, or take less: make round SET="eval.contexts=0 train.batch_size=2"',
        )
        if available < MEMORY
        else None,
    )
    yield from the_disk(run)
    yield from the_gpu()


def the_disk(run: Path) -> Iterator[Row]:
    """Room where files are written. What the embedded model's round, cache and environment took, rounded up."""
    cache = Path(
        os.environ.get("STEER_HEAL_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "steer-heal"
    )
    for name, folder, needed in (
        ("checkout", ROOT, 1 if in_environment() else 7),
        ("runs", run, 2),
        ("model cache", cache, 1),
    ):
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        room = shutil.disk_usage(existing).free / GIB
        problem = None
        if room < needed:
            problem = f"{room:.1f} GiB free", f"{needed} GiB or more", f"free space there, or move {name} elsewhere"
        elif not os.access(existing, os.W_OK):
            problem = (
                "not writable by this user",
                "a writable folder",
                f"mend its permissions, or move {name} elsewhere",
            )
        yield Row(
            f"disk, {name}",
            f"{room:.0f} GiB free at {folder}",
            SteerHealError(
                f"{folder} has no room for the {name}" if room < needed else f"{folder} cannot be written to",
                given=problem[0],
                expected=problem[1],
                next=problem[2],
            )
            if problem
            else None,
        )


def the_gpu() -> Iterator[Row]:
    """Rows of the doctor on the GPU, by the driver, with or without a torch that sees it."""
    gpus, message = visible_gpus()
    locked_to_gpu = lock().stem == "gpu"
    if not gpus and not message:
        yield Row("GPU", "no NVIDIA driver: CPU builds")
        return
    if not gpus:
        yield Row(
            "GPU",
            "none that the driver sees",
            SteerHealError(
                "there is nvidia-smi and no GPU",
                given=message,
                expected="the name of a GPU",
                next=f"mend the driver (in a container, pass the GPU through), {CPU_LOCK}",
            )
            if locked_to_gpu
            else None,
        )
        return
    for card in gpus:
        yield Row(
            "GPU",
            f"{card.name}, {card.memory}, driver {card.driver}, compute capability {card.capability}",
            card.problem if locked_to_gpu else None,
        )
