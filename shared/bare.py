"""Values of overrides as a shell leaves them: TOML whose strings have lost their quotes, and numbers such as -.5 and 1."""

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


def _value(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at an index, and the index after it. Raises ValueError where no value begins there."""
    start = _blank(text, start)
    opening = text[start : start + 1]
    if opening == "[":
        return _list(text, start + 1)
    if opening == "{":
        return _table(text, start + 1)
    if string := STRING.match(text, start):
        return parse_toml(f"value = {string[0]}".encode())["value"], string.end()
    return _word(text, start)


def _list(text: str, start: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while text[(start := _blank(text, start)) : start + 1] != "]":
        value, start = _value(text, start)
        items.append(value)
        start = _next(text, start, "]")
    return items, start + 1


def _table(text: str, start: int) -> tuple[dict[str, Any], int]:
    table: dict[str, Any] = {}
    while text[(start := _blank(text, start)) : start + 1] != "}":
        if not (key := KEY.match(text, start)):
            raise ValueError("no key")
        value, start = _value(text, key.end())
        *above, name = key[1].split(".")
        inner = table
        for part in above:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError("a key below a value")
        if name in inner:
            raise ValueError("a key twice")
        inner[name] = value
        start = _next(text, start, "}")
    return table, start + 1


def _word(text: str, start: int) -> tuple[Any, int]:
    """A word up to a comma or the bracket that closes what it stands in; its own brackets, as of train[:100], are a part of it."""
    opened, end = 0, start
    while end < len(text) and (opened or text[end] not in ",]}"):
        opened += (text[end] in PAIRS) - (text[end] in PAIRS.values())
        end += 1
    if not (word := text[start:end].strip()):
        raise ValueError("no value")
    return _scalar(word), end


def _next(text: str, start: int, closing: str) -> int:
    """The index after a comma, or of the closing bracket."""
    start = _blank(text, start)
    if text[start : start + 1] == ",":
        return start + 1
    if text[start : start + 1] == closing:
        return start
    raise ValueError("neither a comma nor the closing bracket")


def _blank(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start
