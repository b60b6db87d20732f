"""Refuse what `make` was given and does not know. Run by the Makefile as a file, by any Python, before there is a .venv."""

from __future__ import annotations

import difflib
import shlex
import sys

MEANT = {"ROUND": "N", "ROUNDS": "N", "SETTINGS": "SET", "OVERRIDES": "SET"}  # words for what a variable holds


def nearest_word(word: str, known: list[str]) -> str | None:
    """The known word that a misspelt one was meant to be; None where none is near."""
    same = [name for name in known if name.lower() == word.lower() or name == MEANT.get(word)]
    like = [name for name in known if abs(len(name) - len(word)) <= 2]  # RUN stands in DRYRUN and in ROUNDS
    matches = same or difflib.get_close_matches(word, like, 1, 0.6)
    return matches[0] if matches else None


def variable_refusal(kind: str, name: str, value: str, known: list[str], rest: list[str]) -> str:
    """The message on a mistake in make's command line.

    Args:
        kind: `variable` that make does not have, `target` that it does not have, or variable that is `unused` by the targets.
        name: of the variable or target.
        value: of the variable.
        known: the variables or targets that there are; of `unused`, the variables that the targets use.
        rest: the goals and the other variables.
    """
    goals = " ".join(["make", *(word for word in rest if "=" not in word)])
    if kind == "unused":
        what, given = f"{goals} does not use {name}", f"{name}={value}"
        expected = f"its variables: {', '.join(known)}" if known else "no variables"
        line: list[str] | None = ["make", *rest]
        if goals == "make study":
            expected += "; rounds, models and settings are those of its [study] table and its arms"
    elif kind == "target":
        what, given, meant = f"make has no target {name}", name, nearest_word(name, known)
        expected = f"did you mean {meant}?" if meant else f"one of {', '.join(known)}"
        line = ["make", *(meant if word == name else word for word in rest)] if meant else None
    else:
        what, given, meant = f"make has no variable {name}", f"{name}={value}", nearest_word(name.upper(), known)
        expected = f"did you mean {meant}?" if meant else f"one of {', '.join(known)}"
        line = ["make", *rest, f"{meant}={value}"] if meant else None
    return "\n".join(
        [
            f"error: {what}",
            f"  given:    {given}",
            f"  expected: {expected}",
            f"  next:     {' '.join(map(shlex.quote, line)) if line else 'make help'}",
        ]
    )


if __name__ == "__main__":
    kind, name, value, known, *rest = sys.argv[1:]
    print(variable_refusal(kind, name, value, known.split(), rest), file=sys.stderr)
