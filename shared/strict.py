"""Text, JSON and TOML as they are read here: UTF-8, no key twice, no number that is not finite, one kind of error."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from shared.errors import SteerHealError

DEEP = 100  # levels: nothing of ours has ten, and what is walked through by recursion must end
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:inf|nan|infinity)", re.ASCII | re.IGNORECASE)
LARGEST = 2**53  # whole numbers up to it are exact as float, in JSON of other programs and in every index here
WIDEST = 1e100  # finite is not enough: what is computed of a number must stay finite as well
BOM = b"\xef\xbb\xbf"
INVISIBLE = (
    BOM,
    b"\x1e",
    b"\xc2\xa0",
    b"\xe2\x80\x8b",
    b"\xe2\x81\xa0",
)  # mark, record separator, spaces without a break or a width
KINDS = (  # how a file begins that is no text in UTF-8, what it is then, and the command that makes one of it
    (b"\xff\xfe\0\0", "UTF-32", "iconv -f UTF-32 -t UTF-8 FILE > NEW"),
    (b"\0\0\xfe\xff", "UTF-32", "iconv -f UTF-32 -t UTF-8 FILE > NEW"),
    (b"\xff\xfe", "UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    (b"\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    (b"\x1f\x8b", "gzip", "gunzip -c FILE > NEW"),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "zstd -dc FILE > NEW"),
    (b"BZh", "bzip2", "bunzip2 -c FILE > NEW"),
    (b"\xfd7zXZ", "xz", "xz -dc FILE > NEW"),
    (b"PK\x03\x04", "a zip archive", "unzip -p FILE > NEW"),
    (b"PAR1", "Parquet", """python -c "import sys; from datasets import Dataset; Dataset.from_parquet(sys.argv[1]).to_json(sys.argv[2])" FILE NEW"""),
)  # fmt: skip


class Convertible(ValueError):
    """What is not read as it stands, and the command that converts it, in which FILE and NEW stand for paths."""

    def __init__(self, problem: str, command: str):
        super().__init__(problem)
        self.problem, self._command = problem, command

    def command(self, path: Path) -> str:
        """The command for a file."""
        new = path.with_name(f"{path.stem or path.name}-converted{path.suffix}")
        quoted = {"FILE": shlex.quote(str(path)), "NEW": shlex.quote(str(new))}
        return re.sub("FILE|NEW", lambda match: quoted[match[0]], self._command)


def decode(content: bytes) -> str:
    """Text of UTF-8, without the byte-order mark that some editors put before it. Raises ValueError that says what it is instead."""
    refuse_other_kinds(content)
    try:
        return content.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(error) from None


def refuse_other_kinds(content: bytes) -> None:
    """Raise ValueError for what begins as something else than text in UTF-8 does, or holds what no such text has."""
    for begin, name, convert in KINDS:
        if content.startswith(begin):
            raise Convertible(f"{name}, not text in UTF-8", convert)
    if b"\0" in content:
        order = "BE" if content.startswith(b"\0") else "LE"
        kind = f"UTF-{32 if _four_bytes(content[:4096], order) else 16}"
        raise Convertible(
            f"NUL bytes: {kind} or binary, not text in UTF-8", f"iconv -f {kind}{order} -t UTF-8 FILE > NEW"
        )


def _four_bytes(content: bytes, order: str) -> bool:
    """Whether bytes are letters of four bytes each: the first is 0 and the second at most 0x10, from the most significant on."""
    first, second = (0, 1) if order == "BE" else (3, 2)
    return len(content) >= 4 and not any(content[first::4]) and max(content[second::4]) <= 0x10


def not_utf8(error: UnicodeDecodeError) -> Convertible:
    """The error of text that is not UTF-8, with the likely conversion."""
    return Convertible(f"not UTF-8 at byte {error.start}; Latin-1?", "iconv -f ISO-8859-1 -t UTF-8 FILE > NEW")


def parse_number(text: str) -> float:
    """A finite number as programs write it; -0 is 0. Raises ValueError for anything else."""
    if not NUMBER.fullmatch(text) or not abs(value := float(text)) <= WIDEST:
        raise ValueError(f"a finite number such as 0.5, -.5 or -5e-1, not {text!r}")
    return value + 0.0


def check_values(value: Any) -> Any:
    """The value. Raises ValueError where it holds a number that nothing here can mean, half a character, or a NUL, which no path and no
    prompt has."""
    if isinstance(value, str):
        if "\0" in value or SURROGATE.search(value):
            raise ValueError("text may not have a NUL or half a character in it")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError("a whole number may not be beyond 2**53")
    elif isinstance(value, float) and not abs(value) <= WIDEST:
        raise ValueError("a number must be finite, at most 1e100")
    elif isinstance(value, list | tuple):
        for inner in value:
            check_values(inner)
    elif isinstance(value, dict):
        for name, inner in value.items():
            check_values(name)
            check_values(inner)
    return value


def parse_toml(content: bytes) -> dict[str, Any]:
    """The tables of a TOML text. Raises ValueError for a text that is not TOML."""
    import tomllib  # from Python 3.11 on: `make doctor` imports this file with any

    try:
        return tomllib.loads(decode(content))
    except RecursionError:
        raise ValueError("nested too deep") from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, read strictly.

    Raises ValueError for text that is not JSON, a repeated key, NaN or infinity, endless nesting, and half of a surrogate pair, which
    could not be written again.
    """
    text = decode(text) if isinstance(text, bytes) else text
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deep") from None
    if text.count("[") + text.count("{") > DEEP and _levels(value) > DEEP:
        raise ValueError("nested too deep")
    return value


def read_object(path: Path, *, what: str, expected: str, next: str) -> dict[str, Any]:
    """The object that a file holds. Raises SteerHealError, what and all, when it cannot be read or is something else.

    Args:
        path: of the JSON file.
        what, expected, next: of the error.
    """
    try:
        value = parse_json(path.read_bytes())
        problem = f"{type(value).__name__}, not an object"
    except (OSError, ValueError) as error:
        value, problem = None, str(error)
    if not isinstance(value, dict):
        raise SteerHealError(what, given=f"{path}: {problem}", expected=expected, next=next)
    return value


def explained(error: ValueError, line: bytes) -> ValueError:
    """The error of a line that is no row of JSON Lines, or a better one where the mistake is of a known kind."""
    begin = line.removeprefix(BOM).strip()
    if isinstance(error, Convertible):
        return error
    if begin.startswith((b"#", b"//", b"/*")):
        return Convertible("a comment, which JSON Lines has not", "grep -vE '^[[:space:]]*(#|//|/\\*)' FILE > NEW")
    if begin.startswith(b"[") and not begin.startswith(b"[["):
        return Convertible("an array, where JSON Lines has one object a line", "jq -c '.[]' FILE > NEW")
    if begin in (b"{", b"}", b"]", b"},"):
        return Convertible("an object over several lines, where JSON Lines has one a line", "jq -c . FILE > NEW")
    if b"\r" in begin and "Extra data" in str(error):
        return Convertible("lines that end with a carriage return alone", "tr '\\r' '\\n' < FILE > NEW")
    if begin.startswith(b"version https://git-lfs"):
        return Convertible("a Git LFS pointer in place of the file", "git lfs pull")
    if begin.startswith(b"<"):
        return ValueError("HTML or XML, such as a page that says why a download failed")
    if begin.startswith((b"{'", b"{u'")):
        return Convertible("a dictionary of Python's, where JSON has double quotes", """python -c "import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) for line in sys.stdin if line.strip()]" < FILE > NEW""")  # fmt: skip
    if begin.startswith(b"{") and begin.endswith(b"},"):
        return Convertible("a comma after the object", "sed 's/},[[:space:]]*$/}/' FILE > NEW")
    if re.match(rb"\{.*\}\s*\{.*\}$", begin) and "Extra data" in str(error):
        return Convertible("several objects, where JSON Lines has one a line", "jq -c . FILE > NEW")
    if begin.startswith(INVISIBLE):
        return Convertible("a character before the object that cannot be seen", "sed 's/^[^{]*{/{/' FILE > NEW")
    if begin and not begin.startswith((b"{", b'"')) and b"," in begin and b":" not in begin:
        return ValueError("no JSON; a CSV?")
    return error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {repeated(names)[0]!r} twice")
    return value


def repeated(names: Iterable[str]) -> list[str]:
    """The names that are there more than once, in the order in which they first come."""
    return [name for name, count in Counter(names).items() if count > 1]


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _levels(value: Any) -> int:
    """How deep it is nested, counted no further than matters."""
    level, count = [value], 0
    while level and count <= DEEP:
        inner = [part for parent in level for part in (parent.values() if isinstance(parent, dict) else parent)]
        level, count = [part for part in inner if isinstance(part, dict | list)], count + 1
    return count


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")
