"""The code that makes the rows, as one digest: what caches, sweep windows and unfinished rounds are keyed by besides their inputs."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from shared.errors import SteerHealError

# packages that each package is made of and imports, as tests/test_imports.py has it
IMPORTS = {
    "shared": ("shared",),
    "gen": ("gen", "shared"),
    "train": ("shared", "train"),
    "evals": ("evals", "gen", "shared"),
}

UNRELATED = (".", "__pycache__", "test_", "tests", "conftest")  # how names begin of what is no part of a package's code


@functools.cache
def code_digest(package: str) -> str:
    """sha256 of the Python sources of a package and of all packages that it imports.

    Line ends do not count, nor does anything that is no source of the package: bytecode, data, tests, hidden files and folders. The
    data that rows depend on are inputs of their own.

    Args:
        package: one of IMPORTS; rows of a sweep are made by `gen`, an adapter by `train`, scores and judged generations by `evals`.
    """
    return digest_of_sources([_folder(name) for name in IMPORTS[package]])


def digest_of_sources(folders: Sequence[Path]) -> str:
    """sha256 over the names and contents of the `.py` files below folders, each under its folder's name.

    Raises SteerHealError for a folder without any, as in an archive or an installation of bytecode alone: every version would have the
    digest of nothing.
    """
    total = hashlib.sha256()
    for folder in sorted(folders, key=lambda path: path.name):
        found = 0
        for place, inside, files in os.walk(folder):
            inside[:] = sorted(name for name in inside if not name.startswith(UNRELATED))
            for name in sorted(name for name in files if name.endswith(".py") and not name.startswith(UNRELATED)):
                file = Path(place, name)
                content = file.read_bytes().replace(b"\r\n", b"\n")
                relative = Path(folder.name, file.relative_to(folder)).as_posix()
                total.update(f"{relative}\0{len(content)}\0".encode() + content)
                found += 1
        if not found:
            raise SteerHealError(
                "the code has no sources to tell its versions apart by",
                given=folder,
                expected="a folder of .py files",
                next="install the package from its sources or as a wheel, unpacked",
            )
    return total.hexdigest()


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None  # all four are installed together
    return Path(next(iter(spec.submodule_search_locations)))
