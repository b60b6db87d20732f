"""Publication: a file or folder appears whole under its name, or not at all, and one process at a time makes it."""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import SteerHealError

_held: dict[Path, int] = {}  # lock files and their descriptors


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


def named(path: Path, *suffixes: str) -> None:
    """Raise SteerHealError for a file to write whose name does not say what it will be: it may be somebody's."""
    if path.suffix not in suffixes:
        raise SteerHealError(
            "a file to write has another ending than its kind",
            given=path,
            expected=" or ".join(suffixes),
            next=f"--out {path.with_suffix(suffixes[0])}",
        )


def make_parent(path: Path) -> None:
    """A parent that cannot be made is an unwritable place, whatever the system calls it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError) as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over `path`."""
    make_parent(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _settle(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replaceable(path: Path, of: Collection[str]) -> None:
    """Raise SteerHealError when a folder holds anything but files of these names: it is somebody's, and would be lost."""
    if path.exists() and (foreign := sorted(p.name for p in path.iterdir() if p.name not in of or not p.is_file())):
        raise SteerHealError(
            "a folder holds other files than the ones that would replace it",
            given=f"{path}: {', '.join(foreign[:3])}{' and more' if len(foreign) > 3 else ''}",
            expected=f"no such folder, an empty one{f', or one of {chr(44).join(of)}' if of else ''}",
            next="name another folder, or move these files away",
        )


@contextmanager
def atomic_folder(path: Path, of: Collection[str] | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success its files are synced and it takes the place of `path`.

    of: the names that it may hold, where a user chose the path: a folder with others is refused before the work and after it.
    """
    if of is not None:
        replaceable(path, of)
    make_parent(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _settle(file)
        if of is not None:
            replaceable(path, of)
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hold(path: Path, file: Path | None = None) -> None:
    """Keep other processes from making `path` until this one releases it or ends, however it ends.

    The lock is the system's, on a file (beside the path if none is given): a dead process holds none. Raises SteerHealError with the
    process that has it.
    """
    file = file or path.with_name(f".{path.name}.lock")
    if file in _held:
        return
    make_parent(file)
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 1000).decode(errors="replace").strip()
            os.close(handle)
            raise SteerHealError(
                "another process is at work here",
                given=f"{path}: {holder or 'it has just begun'}",
                expected="one process at a time",
                next="wait for it or stop it, then run the same command; or take another RUN or --out",
            ) from None
        if file.exists() and os.path.samestat(os.fstat(handle), os.stat(file)):
            break
        os.close(handle)  # its last holder removed the file after it was opened here
    os.truncate(handle, 0)
    os.write(handle, f"process {os.getpid()}, {' '.join([Path(sys.argv[0]).stem, *sys.argv[1:]])}\n"[:1000].encode())
    _held[file] = handle
    atexit.register(_release, file)


def release(path: Path, file: Path | None = None) -> None:
    """Let other processes have what was held."""
    _release(file or path.with_name(f".{path.name}.lock"))


def _release(file: Path) -> None:
    if (handle := _held.pop(file, None)) is not None:
        file.unlink(missing_ok=True)  # first, so that who opens it from now on finds it gone and makes another
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def digest(path: Path) -> str:
    """sha256 of a file, or of a folder's relative names and contents."""
    if path.is_file():
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return total.hexdigest()
