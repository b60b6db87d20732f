"""The one error type a user sees, and how it is rendered."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any

BEGIN = "error: "
FILE = "STEER_HEAL_ERROR"  # names the file in which a process leaves its error for the one that started it


class Exit(IntEnum):
    """Exit codes of every command; those from 71 on are sysexits.h's, and say nothing of the work itself."""

    DONE = 0
    UNKNOWN = 1  # an error that this program does not know
    REFUSED = 2  # something the user can mend
    MACHINE = 71  # this machine: too little memory, or work that another kind of machine or other code has begun
    UNWRITTEN = 74  # a full or read-only disk
    BUSY = 75  # another process is at work here
    INTERRUPTED = 130  # Ctrl-C or a polite kill


_asked_for: str | None = None  # the file that this process's parent asks for


def take_error_file() -> None:
    """Take the path that this process writes its error to, out of the environment, so that its children do not write there."""
    global _asked_for
    _asked_for = os.environ.pop(FILE, None) or _asked_for


OF_THE_MACHINE = {Exit.MACHINE, Exit.UNWRITTEN, Exit.BUSY}


def in_one_line(error: Exception) -> str:
    """The message of another library's exception, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class SteerHealError(Exception):
    """Something the user can mend.

    what: one sentence, what went wrong. given / expected: the value met and the value that would do.
    next: the command or edit that mends it. code: how the process ends with it.
    """

    def __init__(
        self, what: str, *, given: object = None, expected: object = None, next: str, code: Exit = Exit.REFUSED
    ):
        super().__init__(what)
        self.what, self.given, self.expected, self.next, self.code = what, given, expected, next, code

    def hand_over(self) -> None:
        """Leave this error in the file that the process's parent asks for, if it does."""
        if path := _asked_for:
            with suppress(OSError):  # the exit code still says what kind of error it is
                Path(path).write_text(json.dumps(self.as_dict()), encoding="utf-8")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, as a pool of processes does."""
        return type(self).from_dict, (self.as_dict(),)

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON can hold it, for another process."""
        parts = {"what": self.what, "given": self.given, "expected": self.expected, "next": self.next}
        text = {name: None if value is None else str(value) for name, value in parts.items()}
        return {**text, "code": int(self.code)}

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> SteerHealError:
        """The inverse of `as_dict`. Raises ValueError, KeyError or TypeError for anything else."""
        rest = dict(parts)
        return cls(rest.pop("what"), code=Exit(rest.pop("code")), **rest)

    @classmethod
    def handed_over(cls, path: Path) -> SteerHealError | None:
        """The error that a child process wrote to a file; None where the file does not exist or holds none."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):  # a child that was killed leaves none, or half of one
            return None

    def render(self) -> str:
        """The error as text for a terminal: a line each for what, given, expected and next."""
        lines = [f"{BEGIN}{self.what}"]
        if self.given is not None:
            lines.append(f"  given:    {self.given}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        lines.append(f"  next:     {self.next}")
        return "\n".join(lines)

    __str__ = render
