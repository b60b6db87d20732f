"""docs/cli.md and docs/settings.md, written from the commands' options and the configuration's schema: `make docs`."""

from __future__ import annotations

import argparse
import os
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from shared import outputs
from shared.cli import entry
from shared.commands import COMMANDS, FORM, PROGRAM
from shared.console import say
from shared.options import Options
from shared.publish import write_text
from shared.schema import Config, Section
from shared.subcommands import options_of

NOTE = "Written by `make docs`, which a test compares with the code: edit the code, not this page."
BOUNDS: dict[type, tuple[str, str]] = {
    Ge: ("ge", "at least {}"),
    Gt: ("gt", "above {}"),
    Le: ("le", "at most {}"),
    Lt: ("lt", "below {}"),
    MinLen: ("min_length", "{} or more"),
}
SECTIONS = {
    "model": "Which model, and how it is loaded and asked.",
    "vector": "The trait, and how its steering vector is made.",
    "sweep": "What is sampled with the vector, and how much of it.",
    "filter": "Which completions are kept.",
    "train": "The LoRA, the barrier and the optimiser.",
    "eval": "What is scored after each round.",
    "cluster": "Where a sweep's workers run.",
}
TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "unset"}


def reference_options() -> Options:
    options = Options("shared.reference", "Write the pages of the command line and of the settings from the code.")
    options.add_argument("--out", type=Path, writes=outputs.parse_path, default=Path("docs"), metavar="DIR", help="folder to write cli.md and settings.md into")  # fmt: skip
    return options


def pages() -> dict[str, str]:
    """The text of each page by its file name; the same however and wherever it is called."""
    before = {name: os.environ.pop(name, None) for name in (FORM, PROGRAM)}
    os.environ[FORM] = "steer-heal"
    try:
        return {"cli.md": command_page(), "settings.md": settings_page()}
    finally:
        os.environ.pop(FORM)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def command_page() -> str:
    """Every subcommand of `steer-heal` with its options."""
    lines = [
        "# Command line",
        "",
        NOTE,
        "",
        "`steer-heal COMMAND` and `python -m MODULE` are the same code. Numbers of several values stand with blanks between them. Exit status: "
        "0 done, 2 refused with a next step, 71 this machine lacks something, 74 a file could not be written, 75 another process is at work "
        "there, 130 interrupted, 1 an error that the program does not know.",
        "",
        *_table(
            ["command", "does", "module"],
            [
                [f"[`{name}`](#steer-heal-{name.replace(' ', '-')})", command.says, f"`{command.module}`"]
                for name, command in COMMANDS.items()
            ],
        ),
    ]
    for name in COMMANDS:
        lines += ["", f"## steer-heal {name}", "", *_options(options_of(name))]
    return "\n".join(lines) + "\n"


def _options(options: Options) -> Iterator[str]:
    yield _plain(options.description or "")
    groups = [group for group in options._action_groups if any(_shown(action) for action in group._group_actions)]
    for group in groups:
        title = group.title or ""
        if len(groups) > 1 and title not in ("options", "positional arguments"):
            yield from ("", f"{title[0].upper()}{title[1:]}:")
        rows = [[_name(action), _default(action), _help(action)] for action in group._group_actions if _shown(action)]
        yield ""
        yield from _table(["option", "default", "meaning"], rows)
    if options.epilog:
        yield from ("", _plain(options.epilog))


def _shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = ""
    if action.nargs != 0:
        word = action.metavar if isinstance(action.metavar, str) else action.dest.strip("_").upper()
        value = f" {word}" + (" ..." if action.nargs in ("+", "*") else "")
    return f"`{', '.join(action.option_strings)}{value}`"


def _default(action: argparse.Action) -> str:
    if action.required and action.option_strings:
        return "required"
    value = action.default
    if value is None or value is False or value == [] or value == argparse.SUPPRESS:
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}`"


def _help(action: argparse.Action) -> str:
    choices = "" if action.choices is None else f"; one of {', '.join(f'`{choice}`' for choice in action.choices)}"
    repeated = "; repeatable" if isinstance(action, argparse._AppendAction) and "repeatable" not in str(action.help) else ""  # fmt: skip
    return f"{action.help or ''}{choices}{repeated}"


def settings_page() -> str:
    """docs/settings.md: every configuration key with its type, default and meaning."""
    lines = [
        "# Settings",
        "",
        NOTE,
        "",
        "A configuration is a TOML file with a table a section ([configs/smollm2.toml](../configs/smollm2.toml)); what it does not say has the default. "
        '`SET="train.lam=0.1 sweep.coefficients=[0.5,1]"` under make, and `--set` elsewhere, go before the file. Unknown keys are refused, '
        "and a run keeps the whole configuration, with the source of every value, in its `config.toml`. `steer-heal config` prints this page.",
    ]
    alone = [(key, field) for key, field in Config.model_fields.items() if not _is_section(field)]
    lines += ["", *_settings(alone)]
    for section, field in Config.model_fields.items():
        if _is_section(field):
            fields = type(field.default).model_fields
            lines += ["", f"## {section}", "", SECTIONS.get(section, f"Keys of [{section}]."), ""]
            lines += _settings([(f"{section}.{name}", inner) for name, inner in fields.items()])
    return "\n".join(lines) + "\n"


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.default, Section)


def _settings(fields: Sequence[tuple[str, FieldInfo]]) -> list[str]:
    rows = [[f"`{key}`", _type(field), _value(field.default), field.description or ""] for key, field in fields]
    return _table(["key", "value", "default", "meaning"], rows)


def _value(value: Any) -> str:
    """A default as TOML writes it."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value!r}`".replace("'", '"') if isinstance(value, (str, list, dict)) else f"`{value}`"


def _type(field: FieldInfo) -> str:
    text = _kind(field.annotation)
    bounds = [
        words.format(getattr(bound, name)) for bound in field.metadata for kind, (name, words) in BOUNDS.items() if type(bound) is kind
    ]  # fmt: skip
    return f"{text}, {', '.join(bounds)}" if bounds else text


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{member}`" for member in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(member) for member in inner)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return "table"
    return TYPES.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows),
    ]


def _plain(text: str) -> str:
    """Text of a Markdown table: one line, and no markup but code."""
    line = " ".join(text.split()).replace("|", "\\|")
    parts = line.split("`")  # in code a < is a <
    return "`".join(
        part.replace("<", "&lt;").replace("*", "\\*") if index % 2 == 0 else part for index, part in enumerate(parts)
    )


def main() -> None:
    arguments = reference_options().parse_args()
    for name, text in pages().items():
        write_text(arguments.out / name, text)
        say(f"wrote {arguments.out / name}")


if __name__ == "__main__":
    entry(main)
