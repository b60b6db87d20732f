"""The user's cache, which is safe to remove, and the digests of large files that it remembers."""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from shared.publish import digest, write_text

SHA256 = re.compile(r"[0-9a-f]{64}")
SETTLED = 2 * 10**9  # ns since a change, after which the next one has other times: file systems' clocks are coarse


def cache_folder() -> Path:
    """The user's cache: STEER_HEAL_CACHE, or else steer-heal below XDG_CACHE_HOME. It may not exist yet."""
    return Path(
        os.environ.get("STEER_HEAL_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "steer-heal"
    )


def remembered_digest(file: Path) -> str:
    """sha256 of a large file, in the user's cache under its real path for as long as its size and times stay what they were.

    The change time is among them, which nobody sets by hand: weights that were exchanged under their old date are read again.
    """
    status = file.stat()
    state = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} "
    note = cache_folder() / "digests" / hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:32]
    with suppress(OSError, ValueError):
        noted = note.read_text(encoding="utf-8")
        if noted.startswith(state) and SHA256.fullmatch(value := noted.removeprefix(state)):
            return value
    value = digest(file)
    if time.time_ns() - status.st_ctime_ns > SETTLED:
        with suppress(OSError):  # without a cache it costs time and nothing else
            write_text(note, state + value)
    return value
