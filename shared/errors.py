"""The one error type a user sees, and how it is rendered."""

from __future__ import annotations


def in_one_line(error: Exception) -> str:
    """What another library's exception says, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class SteerHealError(Exception):
    """Something the user can mend.

    what: one sentence, what went wrong. given / expected: the value met and the value that would do.
    next: the command or edit that mends it.
    """

    def __init__(self, what: str, *, given: object = None, expected: object = None, next: str):
        super().__init__(what)
        self.what, self.given, self.expected, self.next = what, given, expected, next

    def render(self) -> str:
        lines = [f"error: {self.what}"]
        if self.given is not None:
            lines.append(f"  given:    {self.given}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        lines.append(f"  next:     {self.next}")
        return "\n".join(lines)

    __str__ = render
