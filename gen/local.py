"""Workers of a sweep as processes of this machine."""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gen.plan import Planned
from gen.pool import Lost, Made, Message, Ready, RefusedWindow
from gen.recipe import Recipe, as_plain
from gen.worker import receive, send
from shared.errors import SteerHealError
from shared.machine import cores
from shared.process import die_with_parent

TAIL = 3  # lines of a dead worker's output that its reason repeats


def threads_of(workers: int) -> int:
    """CPU threads for each worker: the value of OMP_NUM_THREADS, else the cores divided by the number of workers."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, cores() // workers))


class Local:
    """An executor: a worker is a child process, which gets one GPU, or model.tensor_parallel, where there are any."""

    name = "this machine"

    def __init__(self, recipe: Recipe, devices: Sequence[str] = ()):
        """devices: what CUDA_VISIBLE_DEVICES is for each worker; none on a CPU."""
        self._recipe, self._devices = recipe, devices
        self._numbers = itertools.count(1)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._of_device: dict[int, str] = {}
        self._news: queue.SimpleQueue[tuple[int, Message]] = queue.SimpleQueue()
        self._logs = tempfile.TemporaryDirectory(prefix="steer-heal-workers-")

    def start(self) -> int:
        number = next(self._numbers)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._recipe.threads), "PYTHONFAULTHANDLER": "1"}
        if self._devices:
            devices = {self._of_device[worker] for worker in self._processes}
            self._of_device[number] = next(device for device in self._devices if device not in devices)
            environment["CUDA_VISIBLE_DEVICES"] = self._of_device[number]
        with open(self._log(number), "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "gen.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                preexec_fn=die_with_parent(os.getpid()),
            )
        self._processes[number] = process
        threading.Thread(target=self._listen, args=(number, process), daemon=True).start()
        self._tell(process, self._recipe.model_dump(mode="json"))
        return number

    def give(self, worker: int, rows: Sequence[Planned]) -> None:
        self._tell(self._processes[worker], {"rows": as_plain(rows)})

    def wait(self, seconds: float) -> list[tuple[int, Message]]:
        news: list[tuple[int, Message]] = []
        with suppress(queue.Empty):
            news.append(self._news.get(timeout=seconds))
            while True:
                news.append(self._news.get_nowait())
        for worker, message in news:
            if isinstance(message, Lost):
                self._forget(worker)
        return news

    def stop(self, worker: int) -> None:
        process = self._processes.get(worker)
        if process is not None:
            process.kill()
            self._forget(worker)

    def _forget(self, worker: int) -> None:
        process = self._processes.pop(worker, None)
        if process is not None:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):
                    pipe.close()

    def _tell(self, process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, which its listener says
            send(process.stdin, message)  # type: ignore[arg-type]

    def _listen(self, number: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with suppress(ValueError, OSError):  # closed, since the worker was stopped
            while (message := receive(process.stdout)) is not None:  # type: ignore[arg-type]
                self._news.put((number, read_message(message)))
        code = process.wait()
        self._news.put((number, Lost(self._reason(number, code))))

    def _reason(self, number: int, code: int) -> str:
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        lines = (
            self._log(number).read_text(encoding="utf-8", errors="replace").split("\n")
            if self._log(number).is_file()
            else []
        )
        last = [line.strip() for line in lines if line.strip()][-TAIL:]
        return f"{how}{': ' if last else ''}{' / '.join(last)}"

    def _log(self, number: int) -> Path:
        return Path(self._logs.name) / f"{number}.log"


def read_message(message: dict[str, Any]) -> Message:
    """The message in a worker's frame."""
    if "about" in message:
        return Ready(message["about"])
    if "error" in message:
        return RefusedWindow(SteerHealError.from_dict(message["error"]))
    return Made(message["rows"].encode())


def devices_here(each: int = 1) -> list[str]:
    """CUDA_VISIBLE_DEVICES for each worker of this machine, `each` GPUs for a worker; empty on a CPU.

    GPUs that are left over get no worker.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    return gpu_groups(names, each)


def gpu_groups(names: Sequence[str], each: int) -> list[str]:
    """GPUs by name in groups of equal size, as CUDA_VISIBLE_DEVICES takes them; an incomplete last group is left out."""
    return [",".join(names[begin : begin + each]) for begin in range(0, len(names) - each + 1, each)]
