"""The code that makes the rows, as one digest: with their inputs it is the key of caches, sweep windows and unfinished rounds.

The digest is taken when this module is imported, at the start of every command: later a file may hold other code than the process runs.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from shared.errors import Exit, SteerHealError

# packages that each package is made of and imports, as tests/test_imports.py has it
IMPORTS = {
    "shared": ("shared",),
    "gen": ("gen", "shared"),
    "train": ("shared", "train"),
    "evals": ("evals", "gen", "shared"),
}

UNRELATED = (".", "__pycache__", "test_", "tests", "conftest")  # how names begin of what is no part of a package's code


def code_digest(package: str) -> str:
    """sha256 of the Python sources of a package and of all packages that it imports, as they were when this process started.

    Line ends do not count, nor does anything that is no source of the package: bytecode, data, tests, hidden files and folders. The
    data that rows depend on are separate inputs.

    Args:
        package: one of IMPORTS; rows of a sweep are made by `gen`, an adapter by `train`, scores and judged generations by `evals`.

    Raises SteerHealError for a package without sources, and where a source was edited since the process started: modules are imported
    one after another, so that the process may run some of the old code and some of the new.
    """
    for name in IMPORTS[package]:
        if _folder_digest(folder := _folder(name)) != _AT_START[name]:
            raise SteerHealError(
                "the code was edited while this process ran",
                given=folder,
                expected="the sources that the process started with",
                next="the same command again",
                code=Exit.MACHINE,
            )
    return _joined({name: str(_AT_START[name]) for name in IMPORTS[package]})


def code_of(module: str) -> str:
    """sha256 of the sources that a module's results depend on: its own, those of its package that it imports and that these import,
    with the `__init__` of every package on the way, and all of the other packages that its package imports.

    An import counts wherever it stands, so that none can be forgotten: rows of a measure are made again when the code that made them
    has changed, and not when a figure of the report has.

    Args:
        module: such as `evals.measures.probe`.

    Raises SteerHealError as code_digest does.
    """
    package = module.partition(".")[0]
    code_digest(package)  # refuses sources that were edited since the process started
    root = _folder(package).parent
    digests: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in digests or (path := _source(root, name)) is None:
            continue
        text = path.read_bytes().replace(b"\r\n", b"\n")
        digests[name] = hashlib.sha256(text).hexdigest()
        waiting += [other for other in _imported(text) if other.partition(".")[0] == package]
    others = {name: str(_AT_START[name]) for name in IMPORTS[package] if name != package}
    return _joined({**digests, **others})


def _source(root: Path, module: str) -> Path | None:
    """The file of a module or package; None for a name that is neither, such as a function of a module."""
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imported(text: bytes) -> Iterator[str]:
    """The names that a source imports, with the packages that they are in."""
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def digest_of_sources(folders: Sequence[Path]) -> str:
    """sha256 over the names and contents of the `.py` files below folders, each under its folder's name.

    Raises SteerHealError for a folder without any, as in an archive or an installation of bytecode alone: every version would have the
    digest of nothing.
    """
    return _joined({folder.name: _folder_digest(folder) for folder in folders})


def _joined(digests: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def _folder_digest(folder: Path) -> str:
    total, sources = hashlib.sha256(), 0
    for place, inside, files in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith(UNRELATED))
        for name in sorted(name for name in files if name.endswith(".py") and not name.startswith(UNRELATED)):
            file = Path(place, name)
            content = file.read_bytes().replace(b"\r\n", b"\n")
            total.update(f"{file.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
            sources += 1
    if not sources:
        raise SteerHealError(
            "the installed code has no .py files, so its version cannot be told",
            given=folder,
            expected="a folder of .py files",
            next="install the package from its sources or as a wheel, unpacked",
        )
    return total.hexdigest()


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None  # all four are installed together
    return Path(next(iter(spec.submodule_search_locations)))


def _at_start(package: str) -> str | None:
    """None for a package without sources, which most commands do not need: code_digest refuses it."""
    try:
        return _folder_digest(_folder(package))
    except SteerHealError:
        return None


_AT_START = {package: _at_start(package) for package in IMPORTS}
