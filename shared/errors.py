"""The one error type a user sees, and how it is rendered."""

from __future__ import annotations

from collections.abc import Sequence

BEGIN = "error: "


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

    @classmethod
    def rendered(cls, lines: Sequence[str]) -> SteerHealError | None:
        """The last error that `render` wrote among lines of output; None where there is none."""
        starts = [index for index, line in enumerate(lines) if line.startswith(BEGIN)]
        if not starts:
            return None
        labels = (("given", "  given:    "), ("expected", "  expected: "), ("next", "  next:     "))
        parts: dict[str, list[str]] = {"what": [lines[starts[-1]].removeprefix(BEGIN)]}
        for line in lines[starts[-1] + 1 :]:
            name = next((name for name, label in labels if line.startswith(label)), None)
            if name:
                parts[name] = [line.removeprefix(dict(labels)[name])]
            elif "next" not in parts:  # a value of several lines; behind `next` others may speak
                parts[list(parts)[-1]].append(line)
        said = {name: "\n".join(text) for name, text in parts.items()}
        return cls(said.pop("what"), **said) if "next" in said else None

    def render(self) -> str:
        lines = [f"{BEGIN}{self.what}"]
        if self.given is not None:
            lines.append(f"  given:    {self.given}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        lines.append(f"  next:     {self.next}")
        return "\n".join(lines)

    __str__ = render
