"""Values of overrides as a shell leaves them: TOML whose strings have lost their quotes, and numbers such as -.5 and 1. besides."""

from __future__ import annotations

import re
from typing import Any

from shared.strict import NUMBER, parse_toml

KEY = re.compile(r"\s*([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\s*=")
STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'")
PAIRS = {"[": "]", "{": "}"}


def read_bare(raw: str) -> Any:
    """A word, a number, or a list or an inline table of them at any depth: each is read alike alone and inside.

    A text that is no such list or table is a word.
    """
    if raw.startswith(("[", "{")):
        try:
            value, end = _value(raw, 0)
            if not raw[end:].strip():
                return value
        except (ValueError, RecursionError):
            pass
    return _scalar(raw)


def _scalar(word: str) -> Any:
    """A word as TOML reads it, or else a number that TOML has not, or else text."""
    try:
        if len(table := parse_toml(f"value = {word}".encode())) == 1 and "#" not in word:
            return table["value"]
    except (ValueError, RecursionError):
        pass
    return float(word) if "." in word and NUMBER.fullmatch(word) else word


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at an index, and the index behind it. Raises ValueError where there is none."""
    at = _blank(text, at)
    opening = text[at : at + 1]
    if opening == "[":
        return _list(text, at + 1)
    if opening == "{":
        return _table(text, at + 1)
    if string := STRING.match(text, at):
        return parse_toml(f"value = {string[0]}".encode())["value"], string.end()
    return _word(text, at)


def _list(text: str, at: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while text[(at := _blank(text, at)) : at + 1] != "]":
        value, at = _value(text, at)
        items.append(value)
        at = _next(text, at, "]")
    return items, at + 1


def _table(text: str, at: int) -> tuple[dict[str, Any], int]:
    table: dict[str, Any] = {}
    while text[(at := _blank(text, at)) : at + 1] != "}":
        if not (key := KEY.match(text, at)):
            raise ValueError("no key")
        value, at = _value(text, key.end())
        *above, name = key[1].split(".")
        inner = table
        for part in above:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError("a key below a value")
        if name in inner:
            raise ValueError("a key twice")
        inner[name] = value
        at = _next(text, at, "}")
    return table, at + 1


def _word(text: str, at: int) -> tuple[Any, int]:
    """A word up to a comma or the bracket that closes what it stands in; its own brackets, as of train[:100], are a part of it."""
    opened, end = 0, at
    while end < len(text) and (opened or text[end] not in ",]}"):
        opened += (text[end] in PAIRS) - (text[end] in PAIRS.values())
        end += 1
    if not (word := text[at:end].strip()):
        raise ValueError("no value")
    return _scalar(word), end


def _next(text: str, at: int, closing: str) -> int:
    """The index behind a comma, or of the closing bracket."""
    at = _blank(text, at)
    if text[at : at + 1] == ",":
        return at + 1
    if text[at : at + 1] == closing:
        return at
    raise ValueError("neither a comma nor the closing bracket")


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
