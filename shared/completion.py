"""Words that a shell completes: subcommands here, options and choices by argcomplete from a command's own options."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import argcomplete
from argcomplete.lexers import split_line

from shared.commandline import SHELLS, completion_options
from shared.commands import COMMANDS
from shared.subcommands import command_in, options_of


def script(shell: str) -> str:
    """The code of a shell's completion, which asks `steer-heal` for the possible words."""
    assert shell in SHELLS
    code: str = argcomplete.shellcode(["steer-heal"], True, shell)
    return code


def complete() -> NoReturn:
    """Answer a shell that asks for words, in argcomplete's protocol, and end the process."""
    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    _, _, _, words, _ = split_line(line, point)  # those before the cursor's
    name = command_in(words[1:])
    skipped = name.split() if name else words[1:]
    os.environ["_ARGCOMPLETE"] = str(1 + len(skipped))  # how many words are the program
    options = options_of(name) if name else subcommands(skipped)
    argcomplete.autocomplete(options, always_complete_options="long" if name else False)
    sys.exit(0)


def subcommands(words: Sequence[str]) -> argparse.ArgumentParser:
    """A parser whose choices are the words that may follow these."""
    options = argparse.ArgumentParser(add_help=not words)
    if not words:
        options.add_argument("--version", action="store_true")
    choices = options.add_subparsers()
    for name, command in COMMANDS.items():
        parts = name.split()
        if parts[: len(words)] == list(words) and len(parts) > len(words) and parts[len(words)] not in choices.choices:
            choices.add_parser(parts[len(words)], help=command.says)
    return options


def main() -> None:
    print(script(completion_options().parse_args().shell))


if __name__ == "__main__":
    from shared.cli import entry

    entry(main)
