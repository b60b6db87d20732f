"""Refuse what `make` was given and does not know. Run by the Makefile as a file, by any Python, before there is a .venv."""

from __future__ import annotations

import difflib
import shlex
import sys


def refusal(name: str, value: str, known: list[str], rest: list[str]) -> str:
    """What to print about an unknown variable of make's command line; rest: its goals and its other variables."""
    same = [one for one in known if one.lower() == name.lower()]
    near = same or difflib.get_close_matches(name.upper(), known, 1, 0.6)
    meant = near[0] if near else None
    expected = f"did you mean {meant}?" if meant else f"one of {', '.join(known)}"
    line = ["make", *rest, *([f"{meant}={value}"] if meant else [])]
    return "\n".join(
        [
            f"error: make has no variable {name}",
            f"  given:    {name}={value}",
            f"  expected: {expected}",
            f"  next:     {' '.join(map(shlex.quote, line)) if meant else 'make help'}",
        ]
    )


if __name__ == "__main__":
    name, value, known, *rest = sys.argv[1:]
    print(refusal(name, value, known.split(), rest), file=sys.stderr)
