"""Publication: a file or folder appears whole under its name, or not at all; digests and seals."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from shared.errors import SteerHealError
from shared.system import NO_ROOM

HOST = re.sub(r"\W", "-", platform.node())  # containers that share a cache have process numbers in common


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _settle(file: Path) -> None:
    """Synced, and as readable as the user's other files: safetensors' own writer gives 0600."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def make_parent(path: Path) -> None:
    """A parent that cannot be made is an unwritable place, whatever the system calls it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError) as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error
    if not os.access(path.parent, os.W_OK):
        code = errno.EROFS if os.statvfs(path.parent).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, os.strerror(code), str(path.parent))


def _temporary(path: Path) -> Path:
    """A name beside `path` for this process to make it under; what dead processes of this host left under theirs is removed."""
    make_parent(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{HOST}.*.tmp"):
        number = leftover.name.split(".")[-2]
        if number.isdigit() and int(number) != os.getpid() and not _alive(int(number)):
            (shutil.rmtree if leftover.is_dir() and not leftover.is_symlink() else os.unlink)(leftover)
    return path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over `path`."""
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    try:
        os.close(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        )  # not what a link leads to
        yield temporary
        _settle(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:  # a write knows no name
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def replaceable(path: Path, names: Collection[str]) -> None:
    """Raise SteerHealError when a folder holds anything but files of these names, so that nobody's other files are lost. Hidden files,
    which desktops and editors leave, do not count."""
    entries = path.iterdir() if path.exists() else ()
    if foreign := sorted(p.name for p in entries if not (p.is_file() and (p.name in names or p.name.startswith(".")))):
        raise SteerHealError(
            "a folder holds other files than the ones that would replace it",
            given=f"{path}: {', '.join(foreign[:3])}{' and more' if len(foreign) > 3 else ''}",
            expected=f"no such folder, an empty one{f', or one of {chr(44).join(names)}' if names else ''}",
            next="name another folder, or move these files away",
        )


@contextmanager
def atomic_folder(path: Path, names: Collection[str] | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success its files are synced and it takes the place of `path`.

    names: that it may hold, where a user chose the path: a folder with others is refused before the work and after it. An
    exchange that was cut short is taken back, at once or by the next call. Where `path` is a link, what it leads to is replaced.
    """
    path = Path(os.path.realpath(path))
    if names is not None:
        replaceable(path, names)
    temporary, replaced = _temporary(path), path.with_name(f".{path.name}.replaced")
    _take_back(replaced, path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _sync_folder(file) if file.is_dir() else _settle(file)
        _sync_folder(temporary)
        if names is not None:
            replaceable(path, names)
        try:
            if path.exists():
                os.replace(path, replaced)
            os.replace(temporary, path)
        finally:
            _take_back(replaced, path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_back(replaced: Path, path: Path) -> None:
    """End an exchange: the old one goes, or returns where no new one came."""
    if replaced.is_dir() and not path.exists():
        os.replace(replaced, path)
    shutil.rmtree(replaced, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Publish a UTF-8 text: the file appears whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Publish a value as JSON. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def digest(path: Path) -> str:
    """sha256 of a file, or of a folder's relative names and contents, of linked folders as well. Raises OSError for what cannot be read."""
    if path.is_file():
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in sorted(_files(path)):
        total.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return total.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, through links too; a folder that several names lead to is gone through once."""
    visited: set[str] = set()
    for place, inside, names in os.walk(folder, followlinks=True, onerror=_raise):
        if (real := os.path.realpath(place)) in visited:
            inside.clear()
            continue
        visited.add(real)
        inside.sort()
        yield from (file for name in names if (file := Path(place, name)).is_file())


def _raise(error: OSError) -> NoReturn:
    """os.walk passes over a folder that it may not read: its digest would be that of a folder without it."""
    raise error


def seal_of(path: Path) -> Path:
    """The path of the seal of a file or folder, beside it."""
    return path.with_name(f"{path.name}.sha256")


def seal(path: Path) -> None:
    """Write the sha256 of a file or folder beside it, to mark it as complete. The file itself must be synced already.

    Without this mark, its process died while it was writing.
    """
    write_text(seal_of(path), digest(path) + "\n")


def intact(path: Path) -> bool:
    """Whether a file or folder still has the sha256 that `seal` wrote. Raises OSError where it has no seal."""
    return seal_of(path).read_bytes().strip() == digest(path).encode()
