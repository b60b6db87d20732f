"""The output of a process: its bytes on the terminal as they come, its lines in a log without what was drawn over."""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

CONTROL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-_])")

Sink = Callable[[bytes], object]


def copy_output(source: IO[bytes], sink: Sink | None, log: Log, tail: deque[str] | None) -> None:
    """Copy a process's output until it ends.

    Args:
        source: its pipe, which is closed in the end.
        sink: what bytes are passed to as they come; None for nothing.
        log: which gets whole lines.
        tail: the last lines, if they are to be kept.
    """
    line = b""
    with source:
        while block := source.read1(1 << 16):  # type: ignore[attr-defined]
            if sink is not None:
                try:
                    sink(block)
                except (OSError, ValueError):  # whoever read it has gone; the stage goes on
                    sink = None
            *whole, line = (line + block).split(b"\n")
            if len(line) > 1 << 16:  # a bar draws over its line again and again
                line = line[-(1 << 12) :]
            for text in whole:
                _note(text, log, tail)
    if line:
        _note(line, log, tail)


def _note(raw: bytes, log: Log, tail: deque[str] | None) -> None:
    text = plain_line(raw.decode(errors="replace"))
    if text is None:
        return
    log.write(text)
    if tail is not None:
        tail.append(text)


def plain_line(raw: str) -> str | None:
    """A line of a terminal as it stands in the end: without colours, and without what was drawn before its last erasure.

    None for a line that only moved the cursor or drew what is gone.
    """
    last = raw.rstrip("\r").rpartition("\r")[2].rpartition("\x1b[2K")[2]
    text = CONTROL.sub("", last).rstrip()
    return text if text or raw == "" else None


class Log:
    """A log that two threads append whole lines to; of no effect without a path."""

    def __init__(self, path: Path | None, command: Sequence[str]):
        self._lock, self._file = threading.Lock(), None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
            self.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} $ {shlex.join(command[1:])}")

    def write(self, line: str) -> None:
        """Append a line to the log. A log that cannot be written is passed over: it must not end the stage."""
        with self._lock:
            if self._file is not None and not self._file.closed:
                with suppress(OSError):  # a full disk ends the stage by what it writes itself, not by its log
                    self._file.write(line + "\n")
                    self._file.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()
