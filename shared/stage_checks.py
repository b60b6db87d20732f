"""`make doctor` on the stages: each is imported by a separate process, whose death is reported with its cause."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from shared import machine
from shared.checks import KERNELS, ROOT, Row, lock
from shared.errors import SteerHealError
from shared.faults import crashed_frames
from shared.machine import GIB

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
    "report": "import evals.report.__main__, matplotlib.figure",
}
TIMEOUT = 300  # seconds for one child; a disk that has not read torch yet takes a minute


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
    frames = crashed_frames(stderr.splitlines())
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


def torch_and_gpu() -> Row:
    """Whether torch sees the GPU that the lock is for, asked by a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", "shared.gpu"], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return Row("torch on the GPU", "does not import", _broken("torch", (done.stderr.strip().splitlines() or ["no answer"])[-1]))  # fmt: skip
    answer = json.loads(lines[-1])
    if "error" in answer:
        return Row("torch on the GPU", "no", SteerHealError.from_dict(answer["error"]))
    if not answer["gpu"]:
        return Row(
            "torch on the GPU",
            "no, it is a CPU build",
            SteerHealError(
                "torch is a CPU build under the lock for GPUs",
                given=f"torch {answer['torch']}",
                expected="the CUDA build that requirements/gpu.txt names",
                next="make clean setup LOCK=gpu",
            ),
        )
    return Row("torch on the GPU", f"yes, torch {answer['torch']}")


def the_stages(begun: Callable[[str], object] = lambda name: None) -> Iterator[Row]:
    """A row of the answer for every stage, as soon as its import has ended. Two are imported at a time: they mostly wait for the disk.

    Args:
        begun: called with the name of each stage whose import begins.
    """

    def look(name: str) -> Row:
        begun(name)
        return stage(name, STAGES[name])

    with ThreadPoolExecutor(min(2, machine.cores())) as pool:
        for ended in as_completed([pool.submit(look, name) for name in STAGES]):
            yield ended.result()
    if lock().stem == "gpu":
        yield torch_and_gpu()
