"""Locks: one process at a time makes a path, and a stage takes part in the lock of the process that runs it."""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.commands import removal
from shared.errors import Exit, SteerHealError
from shared.publish import HOST, make_parent

RUNNER = "STEER_HEAL_RUNNER"  # the process whose locks hold for the stages that it starts
FLOCK = "hhqqi4x"  # struct flock on 64-bit Linux: type, whence, start, length, process


@dataclass
class _Lock:
    """A lock that this process has. within: `held` contexts that are open; kept: a `hold` that no `release` has ended.

    process: who took it. A child that is forked inherits this object and not the lock.
    """

    handle: int
    process: int
    within: int = 0
    kept: bool = False


_locks: dict[Path, _Lock] = {}  # of this process, by the real paths of their files


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Be the one process that makes `path` in the meantime, after whoever is at it now. May stand within `hold` or itself."""
    file = _lock_of(path)  # once: what is made here may change where the path leads
    lock = _take(path, file, wait=True)
    if lock is None:  # the runner's, which keeps it
        yield
        return
    lock.within += 1
    try:
        yield
    finally:
        lock.within -= 1
        _let_go(file)


def hold(path: Path, file: Path | None = None) -> None:
    """Keep other processes from making `path` until this one releases it or ends, however it ends. Holding again is holding once.

    The lock is the system's, on a file (beside the path if none is given): a dead process holds none. A lock of the runner that
    started this process as a stage is this process's too. Raises SteerHealError with the process that has it.

    Why not the library filelock: its lock is flock's, which a forked child of a dead holder keeps and which does not say whose it is,
    so that a stage could not take part in its runner's. Over NFS both work from version 4 on, where the server keeps them.
    """
    if lock := _take(path, file or _lock_of(path), wait=False):
        lock.kept = True


def release(file: Path) -> None:
    """Let other processes have what `hold` keeps under this lock file; within `held`, once that ends."""
    if lock := _locks.get(_real(file)):
        lock.kept = False
        _let_go(file)


def _let_go(file: Path) -> None:
    """Unlock where nothing in this process needs the lock any more."""
    lock = _locks.get(file := _real(file))
    if lock is None or lock.within or lock.kept or lock.process != os.getpid():
        return
    del _locks[file]
    file.unlink(missing_ok=True)  # first, so that who opens it from now on finds it gone and makes another
    os.close(lock.handle)


def _real(file: Path) -> Path:
    """One path for a lock file, whatever leads to its folder: closing a second handle on it would drop the lock of the first."""
    return Path(os.path.realpath(file.parent), file.name)


def _take(path: Path, file: Path, *, wait: bool) -> _Lock | None:
    """The lock of a file, this process's already or from now on; None where it is the runner's. Raises as `hold` does, unless it waits."""
    file = _real(file)
    if (lock := _locks.get(file)) and lock.process == os.getpid():
        return lock
    make_parent(file)
    while True:
        handle = _opened(file)
        try:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # POSIX allows either where it is taken
                if _runner_holds(handle):
                    os.close(handle)
                    return None
                if not wait:
                    raise
                fcntl.lockf(handle, fcntl.LOCK_EX)
        except (BlockingIOError, PermissionError):
            holder = os.read(handle, 1000).decode(errors="replace").strip()
            os.close(handle)
            raise SteerHealError(
                "another process is at work here",
                code=Exit.BUSY,
                given=f"{path}: {holder or 'it has just begun'}",
                expected="one process at a time",
                next="wait for it or stop it, then run the same command; or take another RUN or --out",
            ) from None
        except OSError as error:
            os.close(handle)
            raise SteerHealError(
                "a file system cannot lock files",
                given=f"{file}: {error.strerror}",
                expected="a file system whose locks other processes see",
                next="take a RUN or --out on a local disk",
            ) from None
        except BaseException:  # an interruption while it waits
            os.close(handle)
            raise
        if _is(handle, file):
            break
        os.close(handle)  # its last holder removed the file after it was opened here
    try:
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} of {HOST}, {Path(sys.argv[0]).stem}\n"[:1000].encode())
    except OSError as error:
        error.filename = str(file)
        file.unlink(missing_ok=True)
        os.close(handle)
        raise
    lock = _locks[file] = _Lock(handle, os.getpid())
    atexit.register(release, file)
    return lock


def _is(handle: int, file: Path) -> bool:
    """Whether an open file is the one that a name leads to now."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(file))
    except FileNotFoundError:
        return False


def _runner_holds(handle: int) -> bool:
    """Whether a lock is held by the process that started this one, to run it as a stage of what the lock protects."""
    return os.environ.get(RUNNER) == str(os.getppid()) and _other_holder(handle) == os.getppid()


def _other_holder(handle: int) -> int | None:
    """The other process that holds the lock of an open file, by the kernel's answer; None where no process holds it.

    0 or less for one that has no number here: of another container, or of another machine that shares the file system.
    """
    query = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, process = struct.unpack(FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, query))
    return None if kind == fcntl.F_UNLCK else int(process)


def lock_holder(file: Path) -> int | None:
    """The process that holds a lock file; None where nobody does. Takes no lock itself.

    Where the process has no number here, 0. The kernel is asked about this very file: /proc/locks names files by device and inode,
    and the device is another one on overlay and btrfs.
    """
    if (lock := _locks.get(_real(file))) and lock.process == os.getpid():
        return lock.process  # to open and close it would give the lock away
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        holder = _other_holder(handle)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(handle)
    return None if holder is None else max(holder, 0)


def _lock_of(path: Path) -> Path:
    """The lock file of what is made: one, whatever links lead to its folder, or to itself where it is one."""
    real = Path(os.path.realpath(path if path.is_dir() else path.parent))
    return real.with_name(f".{real.name}.lock") if path.is_dir() else real / f".{path.name}.lock"


def _opened(file: Path) -> int:
    """A lock file, opened, or created where it does not exist. A link is refused: its target would be emptied."""
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        kind = "a link"
    else:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
        kind = "no plain file"
    raise SteerHealError(
        "a lock is not ours: it is no plain file", given=f"{file}, {kind}", expected="a plain file, or none", next=f"look at it, then {removal(file)}"
    )  # fmt: skip
