"""Data sets of the `datasets` library by one name: '<id>:<configuration>:<split>' or '<id>:<split>'.

The id is a folder, or one of the hub, where '<id>@<revision>' is a commit, a branch or a tag of it. The split may be a slice, as in
'train[:100]', or a sum of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from shared.errors import SteerHealError, in_one_line
from shared.naming import means_path, no_tilde
from shared.records import data_file
from shared.tables import DIVIDERS, TABLES, count_rows, first_fields

COMMIT = re.compile(r"[0-9a-f]{40}")
COLON = re.compile(r":(?![^\[]*\])")  # not one inside a slice, as in 'id:train[:100]'


def names_set(name: str) -> bool:
    """Whether a name means a data set and not a path."""
    return len(COLON.split(name)) in (2, 3) and not os.path.exists(name)


def set_folder(name: str) -> Path | None:
    """The folder of a local data set; None for one of the hub."""
    folder = Path(name.partition(":")[0])
    return folder if os.path.isdir(folder) else None


def refuse_missing(name: str, *, what: str, next: str) -> None:
    """Raise SteerHealError for a data set whose name means a folder that does not exist."""
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
        label: f"{_split_name(value).repository}@{revision_of(value)}"
        for label, value in values.items()
        if names_set(value) and set_folder(value) is None
    }


def revision_of(name: str) -> str:
    """The commit of a data set of the hub, or where the hub cannot be reached the one that is cached. Raises SteerHealError for neither."""
    with _builder(
        name, what="a data set could not be found", next="name one that can be reached, or a file"
    ) as builder:
        return str(builder.hash)


@dataclass(frozen=True)
class FilePart:
    """Rows begin to end of a file, counted from 0; end None is its own."""

    path: Path
    begin: int = 0
    end: int | None = None


def local_parts(name: str, *, what: str, next: str) -> list[FilePart] | None:
    """The files of a split of a local data set, and the rows that a slice takes of each.

    None for a set of the hub, and for one whose files or reader's options are of other kinds than `shared.tables` reads. Raises
    SteerHealError, what and all, for a data set that cannot be had.
    """
    if set_folder(name) is None:
        return None
    split = COLON.split(name)[-1]
    with _builder(name, what=what, next=next) as builder:
        files = {str(key): [Path(path) for path in paths] for key, paths in (builder.config.data_files or {}).items()}
        endings = {path.suffix.lower() for paths in files.values() for path in paths}
        ours = files and all(_is_ours(path) for paths in files.values() for path in paths)
        if not ours or _has_options(builder.config, endings):
            return None
        if split in files:
            return [FilePart(path) for path in files[split]]
        from datasets import ReadInstruction

        lengths = _Lengths(files)
        try:
            slices = ReadInstruction.from_spec(split).to_absolute(lengths)
            return [
                FilePart(path, max(0, one.from_ - before), min(length, one.to - before))
                for one in slices
                for path, before, length in lengths.placed(one.splitname)
                if one.from_ < before + length and before < one.to
            ]
        except (OSError, ValueError, AssertionError) as error:
            raise _unreachable(name, error, what, next) from None


class _Lengths(Mapping[str, int]):
    """Rows of every split, counted when they are asked for."""

    def __init__(self, files: Mapping[str, list[Path]]):
        self.files, self.rows = files, cache(count_rows)

    def __getitem__(self, split: str) -> int:
        return sum(map(self.rows, self.files[split]))

    def placed(self, split: str) -> Iterator[tuple[Path, int, int]]:
        """Every file of a split with the number of rows before it and of its own."""
        before = 0
        for path in self.files[split]:
            yield path, before, (length := self.rows(path))
            before += length

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _is_ours(path: Path) -> bool:
    """Whether a file is of a kind that `shared.tables` reads; .json is where its lines are objects."""
    ending = path.suffix.lower()
    return ending in (".jsonl", *TABLES) or (ending == ".json" and bool(first_fields(path)))


def _has_options(config: Any, endings: set[str]) -> bool:
    """Whether a data set's card says how its files are read, as with a divider that is not that of their ending."""
    plain = type(config)(**({"sep": DIVIDERS[".tsv"]} if endings == {".tsv"} else {}))
    options = {field.name for field in fields(config)} - {
        "name",
        "version",
        "data_dir",
        "data_files",
        "description",
        "features",
    }
    return any(getattr(config, name) != getattr(plain, name) for name in options)


class _Name(NamedTuple):
    """The parts of a data set's name. configuration: empty, or one name."""

    repository: str
    revision: str | None
    configuration: list[str]
    split: str


def _split_name(name: str) -> _Name:
    repository, *configuration, split = COLON.split(name)
    if set_folder(name) is None and "@" in repository:
        repository, _, revision = repository.partition("@")
        return _Name(repository, revision, configuration, split)
    return _Name(repository, None, configuration, split)


@contextmanager
def _fresh(name: str) -> Iterator[str | None]:
    """A cache for a local data set: a prepared one is found again by its folder's name, whatever the folder holds by now."""
    with TemporaryDirectory() as folder:
        yield folder if set_folder(name) else None


def _unreachable(name: str, error: Exception, what: str, next: str) -> SteerHealError:
    return SteerHealError(
        what,
        given=f"{name}: {in_one_line(error)}",
        expected="a data set that can be reached or is cached, named <id>:<configuration>:<split> or <id>:<split>",
        next=next,
    )


@contextmanager
def _builder(name: str, *, what: str, next: str) -> Iterator[Any]:
    parts = _split_name(name)
    refuse_missing(name, what=what, next=next)
    from datasets import load_dataset_builder

    with _fresh(name) as cache:
        try:
            builder = load_dataset_builder(
                parts.repository, *parts.configuration, revision=parts.revision, cache_dir=cache
            )
            if parts.revision and COMMIT.fullmatch(parts.revision) and builder.hash != parts.revision:
                # offline, it takes what is cached
                raise FileNotFoundError(f"commit {builder.hash} is cached, and not {parts.revision}")
        except Exception as error:  # datasets raises whatever its transport raises
            raise _unreachable(name, error, what, next) from None
        yield builder


@contextmanager
def open_set(name: str, *, what: str, next: str) -> Iterator[Any]:
    """The rows of a data set, memory-mapped while the context lasts.

    what and next are those of the SteerHealError raised when it cannot be had.
    """
    parts = _split_name(name)
    if parts.revision is None:
        refuse_missing(name, what=what, next=next)
    else:
        with _builder(name, what=what, next=next):
            pass
    from datasets import load_dataset

    with _fresh(name) as cache:
        try:
            rows = load_dataset(
                parts.repository, *parts.configuration, split=parts.split, revision=parts.revision, cache_dir=cache
            )
        except Exception as error:  # datasets raises whatever its transport raises
            raise _unreachable(name, error, what, next) from None
        yield rows
