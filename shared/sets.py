"""Data sets of the `datasets` library by one name: '<id>:<configuration>:<split>' or '<id>:<split>'."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shared.errors import SteerHealError, in_one_line
from shared.naming import means_path, no_tilde
from shared.records import data_file

COLON = re.compile(r":(?![^\[]*\])")  # not one inside a slice, as in 'id:train[:100]'


def names_set(name: str) -> bool:
    """Whether a name means a data set and not a path."""
    return len(COLON.split(name)) in (2, 3) and not os.path.exists(name)


def set_folder(name: str) -> Path | None:
    """The folder of a local data set; None for one of the hub."""
    folder = Path(name.partition(":")[0])
    return folder if os.path.isdir(folder) else None


def refuse_missing(name: str, *, what: str, next: str) -> None:
    """Raise SteerHealError, what and all, for a data set that means a folder where there is none."""
    repository = name.partition(":")[0]
    if means_path(repository) and set_folder(name) is None:
        raise SteerHealError(
            what,
            given=f"{name}: no folder {repository}{no_tilde(repository)}",
            expected="a folder or an id of a data set, named <id>:<configuration>:<split> or <id>:<split>",
            next=next,
        )


def input_of(label: str, value: str, suffix: str = ".jsonl", *, installed: Collection[str] = ()) -> dict[str, Path]:
    """The input of a stage that a configuration value names, by its label: a file, or the folder of a local data set.

    A data set of the hub is no file of this machine: revisions_of says which it is.

    Args:
        label: of the input; with the suffix the name of the embedded file.
        value: `embedded`, a path, `<id>:<configuration>:<split>` or `<id>:<split>`.
        suffix: of the embedded file.
        installed: values that mean something of an installed package.
    """
    if value in installed:
        return {}
    if not names_set(value):
        return {label: data_file(value, f"{label}{suffix}")}
    folder = set_folder(value)
    return {label: folder} if folder else {}


def revisions_of(**values: str) -> dict[str, str]:
    """The revision of every data set of the hub among configuration values, by their labels: an input of a stage that is no file.

    Raises SteerHealError for one that can neither be reached nor is cached.
    """
    return {
        label: f"{value.partition(':')[0]}@{_revision(value)}"
        for label, value in values.items()
        if names_set(value) and set_folder(value) is None
    }


def _revision(name: str) -> str:
    """The commit that `datasets` would load: the hub's newest, or that of the newest cached copy where the hub cannot be reached."""
    repository, *subset, _ = COLON.split(name)
    from datasets import load_dataset_builder

    try:
        return str(load_dataset_builder(repository, *subset).hash)
    except Exception as error:  # datasets raises whatever its transport raises
        raise SteerHealError(
            "the revision of a data set could not be read",
            given=f"{name}: {in_one_line(error)}",
            expected="a data set that can be reached or is cached, named <id>:<configuration>:<split> or <id>:<split>",
            next="see to the connection, or name a local copy: its folder in the place of <id>",
        ) from None


@contextmanager
def open_set(name: str, *, what: str, next: str) -> Iterator[Any]:
    """The rows of a data set, memory-mapped while the context lasts.

    what and next are those of the SteerHealError raised when it cannot be had.
    """
    repository, *subset, split = COLON.split(name)
    refuse_missing(name, what=what, next=next)
    from datasets import load_dataset

    # A prepared set is found again by its folder's name, whatever the folder holds by now: a local one is prepared anew.
    with TemporaryDirectory() as fresh:
        try:
            rows = load_dataset(repository, *subset, split=split, cache_dir=fresh if set_folder(name) else None)
        except Exception as error:  # datasets raises whatever its transport raises
            raise SteerHealError(
                what,
                given=f"{name}: {in_one_line(error)}",
                expected="a data set that can be reached or is cached, named <id>:<configuration>:<split> or <id>:<split>",
                next=next,
            ) from None
        yield rows
