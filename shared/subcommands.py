"""The subcommand that a command line begins with, and its options; the command itself and completion in a shell read both."""

from __future__ import annotations

from collections.abc import Sequence

from shared.commands import COMMANDS, imported
from shared.options import Options


def command_in(words: Sequence[str]) -> str | None:
    """The subcommand that words begin with; some have two words."""
    return next((name for count in (2, 1) if (name := " ".join(words[:count])) in COMMANDS), None)


def options_of(name: str) -> Options:
    """The options of a subcommand."""
    options = imported(COMMANDS[name].options)()
    assert isinstance(options, Options)
    return options
