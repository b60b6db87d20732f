"""`steer-heal COMMAND ...`: every command under one name, the same code as `python -m`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from shutil import which

from shared.commands import COMMANDS, FORM, PROGRAM, imported, nearest_command, program
from shared.errors import SteerHealError
from shared.subcommands import command_in, options_of


def main() -> None:
    """The console script."""
    os.environ[PROGRAM] = _typed(sys.argv[0])
    os.environ[FORM] = "steer-heal"  # and of the processes of `round` and `study`, whose hints are the user's too
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for words
        from shared.completion import complete

        complete()
    from shared.cli import entry

    entry(_run)


def _run() -> None:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(commands_overview())
        return
    if words[0] == "--version":
        print(f"steer-heal {metadata.version('steer-heal')}")
        return
    name = command_in(words)
    if name is None:
        raise _no_command(words)
    dispatch(name, words[len(name.split()) :])


def _typed(script: str) -> str:
    """The console script as the user types it: its name where the shell finds it, or else its path from here."""
    if Path(script).name != "steer-heal" or (
        (installed := which("steer-heal")) and os.path.samefile(installed, script)
    ):
        return "steer-heal"
    return os.path.relpath(script)


def dispatch(name: str, words: Sequence[str]) -> None:
    """Run a subcommand. Its options are read first, so that help and a typing error do not wait for its imports.

    Args:
        name: of the subcommand.
        words: after it on the command line.

    Raises:
        SteerHealError: options that it does not have, and all that the command raises.
    """
    sys.argv = [f"steer-heal {name}", *words]
    options_of(name).parse_args(words)
    imported(f"{COMMANDS[name].module}:main")()


def commands_overview() -> str:
    """The text of `steer-heal --help`: every subcommand in a line."""
    width = max(map(len, COMMANDS)) + 2
    return "\n".join(
        [
            "usage: steer-heal COMMAND [options]",
            "",
            "Steer a chat model, distil what it says into a LoRA, heal it, measure, loop.",
            "",
            *(f"  {name:<{width}}{command.says}" for name, command in COMMANDS.items()),
            "",
            "options:",
            "  -h, --help  this list; after a command, its options",
            "  --version   the version of steer-heal",
        ]
    )


def _no_command(words: Sequence[str]) -> SteerHealError:
    subcommands = [name for name in COMMANDS if name.split()[0] == words[0]]
    meant = nearest_command(" ".join(words[:2]) if subcommands else words[0], subcommands or COMMANDS)
    names = subcommands or list(COMMANDS)
    return SteerHealError(
        "no such command",
        given=" ".join(words[:2]) if subcommands else words[0],
        expected=f"did you mean {meant}?" if meant else f"one of {', '.join(names)}",
        next=f"{program()} {meant} --help" if meant else f"{program()} --help",
    )


if __name__ == "__main__":
    main()
