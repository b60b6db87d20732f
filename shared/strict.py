"""JSON as it is read here: no key twice, no number that is not finite, one kind of error whatever is wrong."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from shared.errors import SteerHealError

DEEP = 100  # levels: nothing of ours has ten, and what is walked through by recursion must end
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def parse(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for what is not JSON, a repeated key, NaN, infinity, endless nesting and half a
    character, which could not be written again."""
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite)
        if SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deep") from None
    if text.count("[") + text.count("{") > DEEP and _levels(found) > DEEP:
        raise ValueError("nested too deep")
    return found


def read_object(path: Path, *, what: str, expected: str, next: str) -> dict[str, Any]:
    """The object that a file holds. Raises SteerHealError, what and all, when it cannot be read or is something else."""
    try:
        found = parse(path.read_bytes())
        problem = f"{type(found).__name__}, not an object"
    except (OSError, ValueError) as error:
        found, problem = None, str(error)
    if not isinstance(found, dict):
        raise SteerHealError(what, given=f"{path}: {problem}", expected=expected, next=next)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _levels(found: Any) -> int:
    """How deep it is nested, counted no further than matters."""
    level, count = [found], 0
    while level and count <= DEEP:
        inner = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
        level, count = [part for part in inner if isinstance(part, dict | list)], count + 1
    return count


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")
