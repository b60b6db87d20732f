"""`make doctor` on the machine: system, C library, Python, compiler, processor, memory, disk and GPU."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from shared import machine
from shared.checks import KERNELS, ROOT, Row, in_environment, lock
from shared.errors import SteerHealError
from shared.machine import GIB

PYTHONS = ((3, 11), (3, 13))  # oldest and newest that the locks are resolved for
GLIBC = {"cpu": (2, 31), "gpu": (2, 34)}  # what the newest builds of the lock ask for: llguidance, CUDA 13
DRIVER = 580  # the oldest of NVIDIA's drivers that runs CUDA 13
CAPABILITY = 7.5  # CUDA 13 builds have no code for older GPUs
MEMORY = 5 * GIB  # what a round of the embedded model takes at its peak


def the_system() -> Iterator[Row]:
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
    short = f"{sys.version_info[0]}.{sys.version_info[1]}"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    yield Row(
        "Python.h",
        header if header.is_file() else "missing",
        None
        if header.is_file()
        else SteerHealError(
            "Python's header is missing: torch compiles kernels of the engine against it",
            given=header,
            expected="the header of the Python that .venv is built with",
            next=f"apt install python{short}-dev (Fedora: dnf install python{short}-devel)",
        ),
    )
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
    here = machine.hardware()
    yield Row("processor", here["processor"])
    yield Row("cores", here["cores"])
    instruction_set = here["instruction_set"]
    yield Row(
        "instruction set",
        f"{instruction_set}; vLLM's kernels on the CPU: {KERNELS[instruction_set]}"
        if instruction_set in KERNELS
        else instruction_set,
        None
        if instruction_set in KERNELS
        else SteerHealError(
            "no build of vLLM's kernels runs on this CPU",
            given=f"{here['processor']}: {instruction_set} without AVX2",
            expected=f"one of {', '.join(KERNELS)}",
            next="take another machine; in a virtual one, pass the CPU through (qemu: -cpu host)",
        ),
    )
    available = machine.memory_available()
    yield Row(
        "memory",
        f"{here['memory_gib']} GiB, {available / GIB:.1f} available",
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
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        room = shutil.disk_usage(there).free / GIB
        problem = None
        if room < needed:
            problem = f"{room:.1f} GiB free", f"{needed} GiB or more", f"free space there, or move {name} elsewhere"
        elif not os.access(there, os.W_OK):
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
    """What the driver says, with or without a torch that sees the GPU."""
    if not shutil.which("nvidia-smi"):
        yield Row("GPU", "no NVIDIA driver: CPU builds")
        return
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 3]
    go_on = "or go without a GPU: make clean setup LOCK=cpu"
    if done.returncode or not rows:
        last = (done.stdout + done.stderr).strip().splitlines()
        yield Row(
            "GPU",
            "none that the driver sees",
            SteerHealError(
                "there is nvidia-smi and no GPU",
                given=last[-1] if last else f"exit status {done.returncode}",
                expected="the name of a GPU",
                next=f"mend the driver (in a container, pass the GPU through), {go_on}",
            )
            if lock().stem == "gpu"
            else None,
        )
        return
    for name, driver, capability, memory in rows:
        wrong = None
        if lock().stem == "gpu" and _number(driver.split(".")[0]) < DRIVER:
            wrong = SteerHealError(
                "the driver is too old for the lock's CUDA 13 builds",
                given=f"driver {driver}",
                expected=f"{DRIVER} or newer",
                next=f"update the driver, {go_on}",
            )
        elif lock().stem == "gpu" and _number(capability) < CAPABILITY:
            wrong = SteerHealError(
                "the lock's CUDA 13 builds have no code for this GPU",
                given=f"{name}, compute capability {capability}",
                expected=f"{CAPABILITY} or newer",
                next=f"take another GPU, {go_on}",
            )
        yield Row("GPU", f"{name}, {memory}, driver {driver}, compute capability {capability}", wrong)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
