"""Where a command may write: --out must not be an input, hold one or lie in one.

An option says what its value names: something to read, or something to write (`Group.add_argument(reads=..., writes=...)`). One guard looks
at all of them before a command does anything, and again where a configuration names further inputs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import SteerHealError
from shared.system import refused_path

if TYPE_CHECKING:
    from shared.schema import Config

LONGEST = 200  # bytes of a name: a temporary file beside it has a longer one
Paths = Callable[[str], Sequence[Path]]


def require_suffix(path: Path, *suffixes: str) -> None:
    """Raise SteerHealError for a file to write without its kind's suffix, so that a mistyped --out cannot overwrite an unrelated file."""
    if path.suffix not in suffixes:
        name = path.name if path.name.strip(".") else "out"
        raise SteerHealError(
            "an output file has the wrong suffix",
            given=path,
            expected=" or ".join(suffixes),
            next=f"--out {path.parent / Path(name).with_suffix(suffixes[0])}",
        )


def output_file(*suffixes: str, inside: str | None = None) -> Paths:
    """The paths written by an option whose value is a file of one of these suffixes, or with `inside` a folder to put a file of that name into."""

    def written(value: str) -> list[Path]:
        path = Path(value)
        if inside and os.path.isdir(path):
            path = path / inside
        require_suffix(path, *suffixes)
        if os.path.isdir(path):
            raise SteerHealError(
                "a file to write is a folder", given=path, expected="a file, or no such path", next=f"--out {path}/{path.stem}{suffixes[0]}"
            )  # fmt: skip
        return [path]

    return written


def output_folder(*beside: str) -> Paths:
    """The paths written by an option whose value is a folder that is replaced whole; beside: names of folders next to it, {} being its own."""

    def written(value: str) -> list[Path]:
        path = Path(value)
        if os.path.lexists(path) and not os.path.isdir(path):
            raise SteerHealError(
                "a folder to write is a file", given=path, expected="a folder, or no such path", next=f"--out {path}-folder"
            )  # fmt: skip
        name = os.path.basename(os.path.abspath(path))
        return [path, *(path.parent / other.format(name) for other in (".{}.replaced", *beside))]

    return written


def parse_path(value: str) -> list[Path]:
    """Paths that an option names whose value is a path."""
    return [Path(value)]


def parse_path_or_set(value: str) -> list[Path]:
    """The paths read by an option whose value is a path, a data set (the folder of a local one) or something elsewhere."""
    return [Path(value), *([Path(value.partition(":")[0])] if ":" in value else [])]


def parse_score_file(value: str) -> list[Path]:
    """The path read by an option whose value is FILE or FILE:NAME."""
    return [Path(value), *([Path(value.rpartition(":")[0])] if ":" in value else [])]


def parse_assigned_path(value: str) -> list[Path]:
    """The path read by an option whose value is NAME=FILE."""
    return [Path(value.partition("=")[2] or value)]


def list_run_inputs(value: str) -> list[Path]:
    """The paths read by an option whose value is a run's folder: its configuration and its rounds, beside which there is room for outputs."""
    return [Path(value) / "config.toml", Path(value) / "rounds"]


def list_study_inputs(value: str) -> list[Path]:
    """The paths read by an option whose value is the folder of a study's runs."""
    return [inner for config in Path(value).glob("*/config.toml") for inner in list_run_inputs(str(config.parent))]


def input_paths(config: Config) -> list[Path]:
    """The paths that a configuration names as inputs."""
    values = (
        config.model.name, config.vector.trait, config.vector.contexts, config.sweep.dilemmas, config.sweep.mundane,
        config.eval.vignettes, config.eval.instrument, config.eval.heldout, config.scored_trait,
        *(source for entry in config.eval.measures if (source := entry.partition("=")[2])),
    )  # fmt: skip
    return [path for value in values for path in parse_path_or_set(value)]


def guard(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise SteerHealError where a command would write over, replace, or put something into what it reads, or over its other outputs.

    Names are followed through links and hard links; an output that is a folder is replaced with all that is in it.

    Args:
        outputs: files and folders to write.
        inputs: files and folders that are read; what does not exist is no input.
    """
    writes, inputs = list(outputs), list(inputs)
    for index, out in enumerate(writes):
        _writable(out)
        for other in writes[:index]:
            if _is_same_place(out, other) or _contains(out, other):
                raise _refusal(out, other, "which is or holds another output of the same command")
        for read in inputs:
            if os.path.lexists(read) and (how := _describe_overlap(out, read)):
                raise _refusal(out, read, how)


def _writable(out: Path) -> None:
    """Raise SteerHealError for a place that cannot be written, before the work and not after it. Nothing is made."""
    try:
        if len(os.fsencode(out.name)) > LONGEST:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(out))
        _exists(out)
        whole = Path(os.path.abspath(out))  # `.` and a bare name have no parents of their own
        above = next((place for place in whole.parents if _exists(place)), whole)
        if not os.path.isdir(above):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        if not os.access(above, os.W_OK | os.X_OK):
            code = errno.EROFS if os.statvfs(above).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code), str(above))
    except (OSError, ValueError) as error:
        raise refused_path(error) or error from None


def _exists(place: Path) -> bool:
    """Whether something is there, be it a link that leads nowhere. Raises OSError for what can never be."""
    try:
        os.stat(place)
    except FileNotFoundError:
        return os.path.islink(place)
    return True


def _refusal(out: Path, other: Path, how: str) -> SteerHealError:
    return SteerHealError(
        "a file would be written over another of the same command",
        given=f"--out {out}" if str(out) == str(other) else f"--out {out}, {how}: {other}",
        expected="an --out outside of the files that the command reads",
        next=f"name another --out, such as --out {_elsewhere(out)}",
    )


def _elsewhere(out: Path) -> Path:
    return Path(f"{out.stem or 'out'}-new{out.suffix}")


def _describe_overlap(out: Path, read: Path) -> str | None:
    """How an output overlaps an input; None where it does not."""
    if _is_same_place(out, read):
        return "the same as what is read"
    if _contains(out, read):
        return "a folder that holds what is read"
    if os.path.isdir(read):
        if any(_is_same_place(read, above) for place in _places(out) for above in place.parents):
            return "in a folder that is read"
        if os.path.isfile(out) and any(
            _is_same_file(out, Path(root, name)) for root, _, names in os.walk(read) for name in names
        ):
            return "a file of a folder that is read"
    return None


def _contains(out: Path, other: Path) -> bool:
    """Whether something lies in an output, which may be a folder that is replaced whole."""
    return any(_is_same_place(out, above) for place in _places(other) for above in place.parents)


def _is_same_place(a: Path, b: Path) -> bool:
    return _is_same_file(a, b) or bool(_places(a) & _places(b))


def _is_same_file(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


def _places(path: Path) -> set[Path]:
    """Where a path leads, and where it lies itself, which differ for a link."""
    return {Path(os.path.realpath(path)), Path(os.path.realpath(path.parent)) / path.name}
