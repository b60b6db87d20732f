"""The machine: processor, instruction set, cores, memory and GPU, as manifests and fingerprints record them."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

GIB = 2**30
# /proc/cpuinfo's flags for what torch asks the processor (`torch.cpu._is_avx512_supported`), widest first.
X86 = (
    ("avx512_bf16", {"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512_bf16"}),
    ("avx512", {"avx512f", "avx512vl", "avx512bw", "avx512dq"}),
    ("avx2", {"avx2", "fma"}),
)
ARM = (("sve", {"sve"}), ("neon", {"asimd"}))


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _values(cpuinfo: str, key: str) -> list[str]:
    """The different values of a key of /proc/cpuinfo, in the order of the processors."""
    pairs = [line.partition(":") for line in cpuinfo.splitlines()]
    return list(dict.fromkeys(value.strip() for name, _, value in pairs if name.strip() == key))


def processor_name(cpuinfo: str, architecture: str) -> str:
    """The model name; on Arm, which has none, the architecture with the implementer's and parts' numbers, as lscpu reads them.

    Args:
        cpuinfo: text of /proc/cpuinfo. Cores of several kinds have several parts.
        architecture: as platform.machine() has it.
    """
    if names := _values(cpuinfo, "model name"):
        return names[0]
    numbers = [
        f"{label} {', '.join(values)}"
        for label, key in (("implementer", "CPU implementer"), ("part", "CPU part"))
        if (values := _values(cpuinfo, key))
    ]
    return ", ".join([architecture, *numbers])


@functools.cache
def instruction_set() -> str:
    """The widest vector instructions of this CPU that its libraries differ by: avx512_bf16, avx512, avx2, sve, neon.

    The architecture's own name where none of them is there. Two CPUs of one name may differ in it, and then round differently.
    """
    text = _cpuinfo()
    flags = set(" ".join([*_values(text, "flags")[:1], *_values(text, "Features")[:1]]).split())
    return next((name for name, needed in (*X86, *ARM) if needed <= flags), platform.machine())


def hardware() -> dict[str, Any]:
    """Processor, instruction set, cores, memory in GiB, and the GPU if torch is loaded and sees one."""
    torch = sys.modules.get("torch")
    return {
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "processor": processor_name(_cpuinfo(), platform.machine()),
        "instruction_set": instruction_set(),
        "gpu": torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None,
    }


def device() -> str:
    """The device whose kernels decide the last digits of a stage: the GPU's name, or the processor's with its instruction set."""
    machine = hardware()
    return str(machine["gpu"] or f"{machine['processor']} ({machine['instruction_set']})")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory(process: int | str = "self") -> int:
    """Largest resident size of a process since it became what it runs, bytes; 0 for one that has ended.

    Not getrusage's ru_maxrss, which a child process inherits from whoever started it.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def process_began() -> float:
    """When this process began, as `time.time` counts, to a hundredth of a second."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        after_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - after_boot)
    except (OSError, AttributeError):  # not Linux
        return time.time()


def memory_available() -> int:
    """Bytes that can be taken without swapping, within the limit of the control group if there is one."""
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([free, *_control_groups()])


def _control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes left in this process's control group and in each of those above it that limits memory.

    Pages of files that nothing uses at the moment count as free: the kernel drops them first.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    free = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":  # version 2
            top, limit, used, idle = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):  # version 1
            top, limit, used, idle = (
                root / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            try:
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used_bytes = int((folder / used).read_text()) - int(statistics.get(idle, 0))
                free.append(max(0, int((folder / limit).read_text()) - used_bytes))
            except (OSError, ValueError):  # no limit: there is no such file, or it says max
                continue
    return free


def free_disk(path: Path) -> tuple[int, Path]:
    """The space for a file or folder that may not exist yet.

    Returns:
        Free bytes of the file system, and the nearest parent folder that exists (the path itself if it exists).
    """
    place = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(place).free, place
