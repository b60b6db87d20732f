"""A stage as a process: its output on the terminal and in a log, its seconds and peak memory, and what its end means."""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.console import LOG, TERMINAL, say
from shared.errors import FILE, OF_THE_MACHINE, Exit, SteerHealError
from shared.faults import crashed_frames
from shared.locks import RUNNER
from shared.machine import GIB, device, hardware, memory_available, peak_memory
from shared.output import Log, Sink, copy_output

LOADING = "STEER_HEAL_LOADING"  # names the file in which a process notes the extension module that it is loading
POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 5.0  # seconds that an interrupted stage has to end by itself before it is asked to
TAIL = 1000  # last lines of stderr that are kept: faulthandler's report of many threads is long


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        command: its words.
        code: its exit code, or minus the signal that killed it.
        seconds: wall time.
        peak: largest resident size, bytes.
        error: the error of ours that it left; None where it left none.
        tail: the last lines of its stderr.
        loading: the extension module that it was loading.
        available: bytes of memory that were free when it began.
    """

    command: list[str]
    code: int
    seconds: float
    peak: int
    error: SteerHealError | None
    tail: list[str]
    loading: str | None
    available: int

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that killed it, also where a shell between has turned it into 128 + signal."""
        number = -self.code if self.code < 0 else self.code - 128 if self.code > 128 else 0
        return signal.Signals(number) if number in {s.value for s in signal.Signals} else None


def run_process(
    command: Sequence[str],
    log: Path | None = None,
    out: Sink | None = None,
    err: Sink | None = None,
    name: str = "the process",
) -> Ended:
    """Run a command to its end.

    It inherits the locks of this process, and is killed when this process dies. An interruption is passed on to it, and raised once it
    has ended.

    Args:
        command: its words.
        log: file to which its lines are appended, without control codes.
        out, err: called with the bytes of stdout and of stderr as they come.
        name: of the command, for the message while it ends after an interruption.

    Raises:
        KeyboardInterrupt: this process was interrupted.
        OSError: the command cannot be started, or the log cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="steer-heal-") as scratch, Log(log, command) as lines:
        error_file, loading_file = Path(scratch) / "error.json", Path(scratch) / "loading"
        terminal = out is not None and sys.stdout.isatty()
        variables = {
            RUNNER: str(os.getpid()),
            FILE: str(error_file),
            LOADING: str(loading_file),
            LOG: str(log.resolve()) if log else "",
            TERMINAL: "1" if terminal else "",
            **({"COLUMNS": str(shutil.get_terminal_size().columns)} if terminal else {}),
        }
        tail: deque[str] = deque(maxlen=TAIL)
        available, begin = memory_available(), time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", **os.environ, **variables},
            preexec_fn=die_with_parent(os.getpid()),
        )
        readers: list[threading.Thread] = []
        peak = _Peak(process.pid)
        try:
            for source, sink, last in ((process.stdout, out, None), (process.stderr, err, tail)):
                readers.append(threading.Thread(target=copy_output, args=(source, sink, lines, last), daemon=True))
                readers[-1].start()
            code = process.wait()
        except BaseException:
            _end(process, name)
            raise
        finally:
            seconds = time.monotonic() - begin
            peak.stop()
            for reader in readers:
                reader.join(timeout=GRACE_SECONDS)  # a grandchild may still hold the pipe
        loading = loading_file.read_text(encoding="utf-8", errors="replace") if loading_file.is_file() else ""
        error = SteerHealError.handed_over(error_file)
        return Ended(list(command), code, seconds, peak.bytes, error, list(tail), loading or None, available)


class _Peak:
    """The peak memory of a process as it was last seen, also of one that was killed."""

    def __init__(self, process: int):
        self.bytes, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(process,), daemon=True)
        self._thread.start()

    def _watch(self, process: int) -> None:
        while not self._ended.wait(0.1):
            self.bytes = peak_memory(process) or self.bytes

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def _end(process: subprocess.Popen[bytes], name: str) -> None:
    """Wait for a process that was interrupted with this one; ask it to end where it was not."""
    if process.returncode is not None:
        return
    with suppress(OSError):  # a terminal that has gone
        say(
            f"stopping: waiting for {name} to end, at most {11 * GRACE_SECONDS:.0f} s; what is finished is kept",
            "yellow",
        )
    for ask in (None, process.terminate, process.kill):
        if ask is not None:
            ask()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS if ask is None else 10 * GRACE_SECONDS)
            return


def die_with_parent(parent: int) -> Callable[[], None] | None:
    """What a child does before it becomes the command: the kernel is to kill it when its parent dies, so that none is left behind
    to write into a folder that nobody holds."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def child() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return child


def exit_error(ended: Ended, name: str, log: Path | None, lower: str = "") -> SteerHealError | None:
    """The error that the end of a stage's process stands for; None for a success.

    Args:
        ended: the process.
        name: of the stage, for the error.
        log: the file that has its output.
        lower: the command or setting with which it needs less memory.

    Raises:
        KeyboardInterrupt: it was interrupted from the keyboard.
    """
    if ended.code == Exit.DONE:
        return None
    if ended.code == Exit.INTERRUPTED or ended.signal in POLITE:
        interrupted = ended.error if ended.error and ended.error.code == Exit.INTERRUPTED else None
        by = str(interrupted.given if interrupted else ended.signal.name if ended.signal else "SIGINT")
        if by == "SIGINT":
            raise KeyboardInterrupt
        return SteerHealError(
            f"{name} was ended by {by}",
            given=f"{by} after {ended.seconds:.0f} s, sent to that process and not to the one that runs the stages",
            expected="its end by itself, or an interruption of all, as by Ctrl-C",
            next="the same command goes on from there",
            code=Exit.INTERRUPTED,
        )
    if ended.error is not None:
        return ended.error
    output = f"; its output is in {log}" if log else ""
    if ended.signal is None:
        words = " / ".join(line.strip() for line in ended.tail[-3:])
        return SteerHealError(
            f"{name} ended with an exit code of its own, not one of this program's",
            given=f"{ended.code}{f': {words}' if words else ''}{output}",
            expected="0, or an error of this program",
            next="make doctor, then the same command goes on",
            # a full disk may have kept the error from being handed over; its code still says whose fault it is
            code=Exit(ended.code) if ended.code in OF_THE_MACHINE else Exit.UNKNOWN,
        )
    killed = f"{ended.signal.name} after {ended.seconds:.0f} s"
    place = f"while it loaded {ended.loading}" if ended.loading else _place(ended.tail)
    if ended.signal is signal.SIGILL:
        what, given = "met an instruction that this CPU does not have", f"{killed} on {device()}, {place}"
        expected = "libraries built for this CPU"
        advice = (
            "make doctor, which loads each stage's libraries and names the one that dies; report it with that output"
        )
    elif ended.signal is signal.SIGKILL:
        what = "was killed, most often for want of memory"
        given = f"{killed}; it had taken up to {ended.peak / GIB:.1f} GiB, and {ended.available / GIB:.1f} GiB of {hardware()['memory_gib']} were available when it began"
        expected = "as much memory as it takes"
        advice = "end other work on this machine, and the same command goes on"
        advice += f"; or take less of it: {lower}" if lower else ""
    elif ended.signal is signal.SIGXCPU:
        what, given = "used up the CPU time that it is allowed", killed
        expected = "enough CPU time: `ulimit -t` says what is allowed, in seconds"
        advice = "ulimit -t unlimited, or ask whoever set the limit; then the same command goes on"
    else:
        what, given, expected = "crashed in a library", f"{killed}; {place}", "no crash"
        advice = (
            "the same command goes on; if it crashes again: make doctor, and report it with that output and the log"
        )
    return SteerHealError(f"{name} {what}", given=f"{given}{output}", expected=expected, next=advice, code=Exit.MACHINE)


def _place(tail: Sequence[str]) -> str:
    """Where it crashed, by faulthandler's report."""
    return next(iter(crashed_frames(tail)), "it left no trace")


def watch_extensions() -> None:
    """Record which extension module is being loaded, so that the process that started this one can name it after a crash.

    Does nothing in a process that the runner of stages did not start.
    """
    path = os.environ.pop(LOADING, None)
    if not path:
        return
    loader = importlib.machinery.ExtensionFileLoader
    create, run = loader.create_module, loader.exec_module
    loading: list[str] = []  # an extension may load another

    def note(text: str) -> None:
        with suppress(OSError):
            Path(path).write_text(text, encoding="utf-8", errors="replace")  # a path may be of other bytes

    def watched(method: Callable[..., Any], self: Any, *arguments: Any) -> Any:
        loading.append(str(self.path))
        note(loading[-1])
        try:
            return method(self, *arguments)
        finally:
            loading.pop()
            note(loading[-1] if loading else "")

    loader.create_module = lambda self, spec: watched(create, self, spec)  # type: ignore[method-assign]
    loader.exec_module = lambda self, module: watched(run, self, module)  # type: ignore[method-assign]
