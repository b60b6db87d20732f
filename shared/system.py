"""What the system says about a path, in our words: the one place that knows its error numbers."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path

from shared.errors import Exit, SteerHealError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# error number: what would do, the next command with {path} and {parent}, and how the process ends
_ADVICE: dict[int, tuple[str, str, Exit]] = {
    errno.EACCES: ("a place that you may read and write", "ls -ld {parent} {path}, then chmod or chown", Exit.UNWRITTEN),
    errno.EPERM: ("a place that you may read and write", "ls -ld {parent} {path}, then chmod or chown", Exit.UNWRITTEN),
    errno.EROFS: ("a file system that can be written", "findmnt -T {parent}; name a place on another one", Exit.UNWRITTEN),
    errno.ENOSPC: ("room on the disk", "df -h {parent}; free some, then the same command goes on", Exit.UNWRITTEN),
    errno.EDQUOT: ("room in your quota", "df -h {parent}; free some, then the same command goes on", Exit.UNWRITTEN),
    errno.EFBIG: ("a file system that takes files of this size", "findmnt -T {parent}; name a place on another one", Exit.UNWRITTEN),
    errno.EISDIR: ("a file, not a folder", "ls -ld {path}; name a file in it", Exit.UNWRITTEN),
    errno.ENOTDIR: ("folders all the way to it", "ls -ld {parent}; one of its parts is a file", Exit.UNWRITTEN),
    errno.ENAMETOOLONG: ("names of at most 200 bytes, and 4000 of the whole path", "give it a shorter name", Exit.REFUSED),
    errno.ELOOP: ("links that end at a file or folder", "ls -l {path}; a link leads back to itself: rm it", Exit.REFUSED),
    errno.EINVAL: ("a name that the file system takes", "give it another name", Exit.REFUSED),
    errno.EILSEQ: ("a name that the file system takes", "give it another name, in UTF-8", Exit.REFUSED),
    errno.ENOENT: ("a file or folder that is there", "ls -ld {parent} {path}", Exit.REFUSED),
    errno.EEXIST: ("no such path yet", "ls -ld {path}; move it away or give another name", Exit.REFUSED),
    errno.ENOTEMPTY: ("an empty folder, or no such path", "ls -la {path}; move it away or give another name", Exit.REFUSED),
    errno.ENXIO: ("a plain file", "ls -l {path}; name a file", Exit.REFUSED),
    errno.ENODEV: ("a plain file", "ls -l {path}; name a file", Exit.REFUSED),
    errno.ESPIPE: ("a plain file, not a pipe", "cat {path} > FILE, then name FILE", Exit.REFUSED),
    errno.ETXTBSY: ("a file that no running program is", "fuser {path}", Exit.REFUSED),
    errno.EBUSY: ("a path that the system does not hold", "fuser -vm {path}; or name another place", Exit.REFUSED),
    errno.EXDEV: ("one file system", "findmnt -T {parent}; name a place on another one", Exit.REFUSED),
    errno.EMLINK: ("fewer links to a file", "name another place", Exit.REFUSED),
    errno.ENOTSUP: ("a file system that can do this", "findmnt -T {parent}; name a place on a local disk", Exit.UNWRITTEN),
    errno.ENOSYS: ("a file system that can do this", "findmnt -T {parent}; name a place on a local disk", Exit.UNWRITTEN),
    errno.EIO: ("a disk without faults", "dmesg | tail; name a place on another disk", Exit.UNWRITTEN),
    errno.ESTALE: ("a network file system that answers", "ls -ld {parent}, then the same command", Exit.UNWRITTEN),
    errno.ENOLCK: ("a file system that can lock files", "name a place on a local disk", Exit.UNWRITTEN),
    errno.ENOTCONN: ("a mount whose server runs", "findmnt -T {parent}; mount it again", Exit.UNWRITTEN),  # FUSE: sshfs, gcsfuse
    errno.ETIMEDOUT: ("a network file system that answers", "ls -ld {parent}, then the same command", Exit.UNWRITTEN),
    errno.EHOSTDOWN: ("a network file system that answers", "ls -ld {parent}, then the same command", Exit.UNWRITTEN),
    errno.EREMOTEIO: ("a network file system that answers", "ls -ld {parent}, then the same command", Exit.UNWRITTEN),
    errno.EUCLEAN: ("a file system without faults", "dmesg | tail; name a place on another disk", Exit.UNWRITTEN),
    errno.EBADMSG: ("a file system without faults", "dmesg | tail; name a place on another disk", Exit.UNWRITTEN),
    errno.ENOKEY: ("an encrypted folder that is unlocked", "ls -ld {parent}; unlock it", Exit.UNWRITTEN),
    errno.EMFILE: ("fewer open files", "ulimit -n 4096, then the same command", Exit.MACHINE),
    errno.ENFILE: ("fewer open files on this machine", "end other work, then the same command", Exit.MACHINE),
}  # fmt: skip
_OTHER = ("a path that the system takes", "ls -ld {parent} {path}; findmnt -T {parent}", Exit.UNWRITTEN)


def refused_path(error: BaseException) -> SteerHealError | None:
    """Our error for what the system says about a path; None for an error that is no such thing.

    A NUL in a name, which Python refuses itself, and a name that is no text are among them.
    """
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return SteerHealError(
            "the system refuses a path",
            given="a name with a NUL in it",
            expected="a name without one",
            next="give it another name",
        )
    if isinstance(error, UnicodeEncodeError) and "surrogates not allowed" in str(error):
        return SteerHealError(
            "the system refuses a path",
            given=f"{ascii(error.object)[:200]}: not UTF-8",
            expected="names in UTF-8, which messages and records can hold",
            next="give it another name: mv -- OLD NEW",
        )
    if isinstance(error, RuntimeError) and str(error).startswith(
        "Symlink loop from "
    ):  # pathlib's own, up to Python 3.12
        return refused_path(OSError(errno.ELOOP, "", str(error).removeprefix("Symlink loop from ").strip("'")))
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.filename is None and error.errno not in NO_ROOM and error.errno != errno.EROFS:
        return None  # a socket's or a pipe's
    expected, advice, code = _ADVICE.get(error.errno, _OTHER)
    name = "" if error.filename is None else os.fsdecode(error.filename) if not isinstance(error.filename, int) else ""
    path = Path(name[:1000] or ".")
    return SteerHealError(
        _what(error.errno, name, code),
        code=code,
        given=f"{_shown(name)}: {os.strerror(error.errno)}" if name else os.strerror(error.errno),
        expected=expected,
        next=advice.format(path=_quoted(path), parent=_quoted(path.parent)),
    )


def _what(number: int, name: str, code: Exit) -> str:
    """What went wrong. An existing file without permission was to be read: a file to write gets its name only when it is complete."""
    if number in (errno.EACCES, errno.EPERM) and os.path.exists(name) and not os.access(name, os.R_OK):
        return "a file could not be read"
    return "a file could not be written" if code is Exit.UNWRITTEN else "the system refuses a path"


def _shown(name: str) -> str:
    """A name as a message can hold it: of one that is too long, both ends."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"


def _quoted(path: Path) -> str:
    text = str(path)
    return shlex.quote(text if text.isprintable() else ascii(text))
