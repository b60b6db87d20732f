"""Folders of weights that are derived from others, in a cache: made once, and never replaced while they are complete."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from shared.code import code_digest
from shared.locks import held
from shared.models import Model, cache_folder
from shared.publish import atomic_folder, digest, write_text


class _Same(Exception):
    """What lies there already is what was made."""


def cached_weights(name: str, determinants: Sequence[str], cache: Path, make: Callable[[Path, Path], object]) -> Model:
    """The folder under `cache` that `make` fills, which is made where it is not there as this user made it.

    Another process may read it: one that is whole is left as it is, whoever made it. Its name is a digest of all that determines it,
    the code of `shared` with it.

    Args:
        name: that the model goes by.
        determinants: what it is derived from and how, as text.
        cache: folder of derived ones, safe to remove; it may be in a run that came from elsewhere.
        make: fills a folder, given that and the path that it will have.
    """
    folder = cached_folder(determinants, cache)
    note = cache_folder() / "derived" / folder.name

    def known() -> bool:
        return folder.is_dir() and note.is_file() and note.read_text() == Model(name, folder, None).fingerprint

    if not known():
        with held(folder):
            if not known():  # nor has another process made it while this one waited
                with suppress(_Same), atomic_folder(folder) as temporary:
                    make(temporary, folder)
                    if folder.is_dir() and digest(temporary) == digest(folder):
                        raise _Same
                write_text(note, Model(name, folder, None).fingerprint)
    return Model(name, folder, None)


def cached_folder(determinants: Sequence[str], cache: Path) -> Path:
    """The folder of `cached_weights` for these determinants, which may not exist yet."""
    return cache / hashlib.sha256("\0".join([*determinants, code_digest("shared")]).encode()).hexdigest()[:16]
