"""Overrides of the configuration, as SET and --set have them: read, closed, and merged over other values."""

from __future__ import annotations

import re
from typing import Any

import tomlkit
from tomlkit.items import Item

from shared.bare import read_bare
from shared.commands import form, setting
from shared.errors import SteerHealError
from shared.schema import Config
from shared.strict import parse_toml


def refuse_repeated(text: str) -> None:
    """Raise SteerHealError for overrides that a user gives and that give a key twice: one of the two is a mistake."""
    parse_overrides(text, once=True)


def parse_overrides(text: str, *, once: bool = False) -> dict[str, Any]:
    """`a.b=1 c.d=kl_fwd` as a flat mapping; a value is TOML, or else a bare string or a list of them.

    Of a key that is there twice the last counts, as where a program adds its own to a user's; once: it is refused.
    """
    import shlex

    values: dict[str, Any] = {}
    try:
        items = shlex.split(text)
    except ValueError as error:  # a quote that is not closed
        raise SteerHealError(
            f"{_set()} could not be read",
            given=f"{text}: {error}",
            expected="section.key=value",
            next=setting(_with_its_quote(text)),
        ) from None
    for item in _closed(items, text):
        key, equals, raw = item.partition("=")
        if not equals:
            raise SteerHealError(
                f"{_set()} could not be read",
                given=item,
                expected="section.key=value",
                next=setting("train.lam=0.1"),
            )
        try:
            parsed = parse_toml(f"value = {raw}".encode())
            if parsed.keys() != {"value"}:
                raise ValueError("several lines")
            read = tomlkit.parse(f"value = {raw}").item("value") if "#" in raw else None
            if isinstance(read, Item) and read.trivia.comment:
                raise ValueError("a comment, which would be left out")
            value = parsed["value"]
        except (ValueError, RecursionError):  # the shell and shlex have eaten the quotes of strings
            value = read_bare(raw)
        for name, inner in flatten({key: value}).items():  # a table changes its keys alone
            if once and (twice := _twice(name, values.get(name), inner)) is not None:
                raise SteerHealError(
                    f"{_set()} gives a key twice",
                    given=f"{twice}, the second time by {item}",
                    expected="each key once",
                    next="leave one of the two out",
                )
            values[name] = merge_values(values.get(name), inner)
    return values


def _with_its_quote(text: str) -> str:
    """Overrides whose quote is not closed, with it closed, or escaped where it is an apostrophe."""
    escaped = re.sub(r"(?<=\w)'", r"\'", text)
    return next(other for other in (escaped, f"{text}'", f'{text}"', f"{text}\\") if _splits(other))


def _splits(text: str) -> bool:
    """Whether a shell's rules split a text into words."""
    import shlex

    try:
        return bool(shlex.split(text))
    except ValueError:
        return False


def _closed(items: list[str], text: str) -> list[str]:
    """The items of overrides, those of a list or table with spaces joined again. Raises SteerHealError for one that is not closed.

    text: all of them as they were typed.
    """
    closed: list[str] = []
    opened = False
    for item in items:
        closed = [*closed[:-1], f"{closed[-1]} {item}"] if opened else [*closed, item]
        raw = closed[-1].partition("=")[2]
        opened = raw.startswith(("[", "{")) and sum(map(raw.count, "[{")) > sum(map(raw.count, "]}"))
    if opened:
        raise SteerHealError(
            f"{_set()} could not be read",
            given=closed[-1],
            expected="a list or a table with its closing bracket",
            next=setting(text.rstrip() + _closers(closed[-1])),
        )
    return closed


def _closers(text: str) -> str:
    """The brackets that close those that a text leaves open, innermost first."""
    opened: list[str] = []
    for letter in text:
        if letter in "[{":
            opened.append("]" if letter == "[" else "}")
        elif opened and letter == opened[-1]:
            opened.pop()
    return "".join(reversed(opened))


def _twice(name: str, old: Any, new: Any) -> str | None:
    """The key that two overrides both give; None where they are tables of other keys, or there is no old one."""
    if old is None:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        names = (_twice(f"{name}.{key}", old.get(key), value) for key, value in new.items())
        return next((repeated_name for repeated_name in names if repeated_name is not None), None)
    return name


def merge_values(old: Any, new: Any) -> Any:
    """A value over another: of two tables, the keys of both."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merge_values(old.get(key), value) for key, value in new.items()}}
    return new


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys of sections with their values; a key that goes deeper, as a.b.c, is a table under a.b."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key in Config.model_fields and key != "seed":
            flat.update({f"{key}.{name}": inner for name, inner in value.items()})
        elif key.count(".") > 1:
            section, name, *deeper = key.split(".")
            for part in reversed(deeper):
                value = {part: value}
            flat[f"{section}.{name}"] = value
        else:
            flat[key] = value
    return flat


def _set() -> str:
    """What the user calls the overrides."""
    return "SET" if form() == "make" else "--set"
