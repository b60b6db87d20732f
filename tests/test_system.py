"""Whatever the system says about a path is told in our words, with what to type next."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, command
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.commands import COMMANDS, imported
from shared.config import resolve_config
from shared.errors import Exit, SteerHealError
from shared.instrument import read_instrument
from shared.notebook import extract
from shared.outputs import guard
from shared.records import Prompt, read_jsonl, read_record
from shared.run import open_run
from shared.subcommands import options_of
from shared.system import refused_path
from shared.tables import read_parquet
from shared.traits import Trait, load_trait
from shared.vectors import load_vector
from shared.vignettes import load_vignettes

PATHS = sorted(errno.errorcode.values())  # a file system in user space may fail by any of them


@pytest.mark.parametrize("name", PATHS)
def test_every_error_number_of_a_path(name: str) -> None:
    code = getattr(errno, name)
    refused = refused_path(OSError(code, os.strerror(code), "/some/where else"))
    assert refused is not None and os.strerror(code) in str(refused.given) and "/some/where else" in str(refused.given)
    assert refused.expected and refused.next and refused.code is not Exit.UNKNOWN
    assert "/some/where else" not in refused.next or "'/some/where else'" in refused.next  # can be typed


def test_what_is_no_error_of_a_path() -> None:
    assert refused_path(KeyError("a")) is None and refused_path(ValueError("a")) is None
    assert refused_path(ConnectionRefusedError(errno.ECONNREFUSED, "refused")) is None
    assert refused_path(BrokenPipeError(errno.EPIPE, "broken")) is None
    assert refused_path(OSError(errno.EINVAL, "of a socket, which has no name")) is None
    full = refused_path(OSError(errno.ENOSPC, "No space left on device"))  # a write knows no name
    assert full is not None and full.code is Exit.UNWRITTEN


@given(st.text(st.characters(codec=None), max_size=400), st.sampled_from(PATHS))
@settings(max_examples=100)
def test_any_name_can_be_told(name: str, code: str) -> None:
    """Half characters, control characters, endless ones: the message is one that a terminal and a record can hold."""
    refused = refused_path(OSError(getattr(errno, code), "x", name))
    assert refused is not None
    refused.render().encode("utf-8")
    assert len(str(refused.given)) < 2000 and "\0" not in refused.render() and "\x1b" not in refused.render()


def test_names_that_python_itself_refuses(tmp_path: Path) -> None:
    for name in ("a\0b", "a\udcff", "\ud800"):
        try:
            (tmp_path / name).write_text("x")
            print((tmp_path / name), file=open(tmp_path / "out", "w", encoding="utf-8"))  # noqa: SIM115
        except (OSError, ValueError) as error:
            refused = refused_path(error)
            assert refused is not None and "another name" in refused.next
        else:
            raise AssertionError(name)


def bad(folder: Path) -> Iterator[tuple[str, Path]]:
    """Paths that the system refuses, by the name of its reason."""
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "file").touch()
    (folder / "folder.jsonl").mkdir()
    yield "too long a name", folder / ("n" * 300)
    yield "too long a path", Path(f"{folder}/{'d/' * 2500}x")
    yield "a loop of links", folder / "loop"
    yield "under a loop", folder / "loop" / "x"
    yield "under a file", folder / "file" / "x"
    yield "a folder", folder / "folder.jsonl"
    yield "no such file", folder / "nothing"
    yield "a NUL", Path(f"{folder}/a\0b")


READERS = {
    "jsonl": lambda path: read_jsonl(path, Prompt, made_by="make it"),
    "parquet": lambda path: read_parquet(path, Prompt, made_by="make it"),
    "record": lambda path: read_record(path, Trait, what="no", next="make it"),
    "trait": lambda path: load_trait(str(path)),
    "instrument": read_instrument,
    "vector": load_vector,
    "vignettes": lambda path: load_vignettes(str(path)),
    "configuration": lambda path: resolve_config(path),
    "run": lambda path: open_run(path, None, None),
    "output": lambda path: guard([path], [path.parent / "read"]),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_has_our_error_for_every_bad_path(reader: str, tmp_path: Path) -> None:
    for why, path in bad(tmp_path):
        if reader in ("run", "output") and why in ("a folder", "no such file"):
            continue  # which may be begun, or written
        try:
            READERS[reader](path)
        except SteerHealError as error:
            assert error.next and error.given is not None, why
        except (OSError, ValueError, RuntimeError) as error:  # as every command tells it
            assert refused_path(error) is not None, (why, error)
        else:
            raise AssertionError(f"{why} was taken")


def commands_that_read() -> Iterator[tuple[str, str]]:
    for name in COMMANDS:
        options = options_of(name)
        yield from (
            (name, dest)
            for dest in options.reads
            if not (dest == "run" and name not in ("card", "export", "report", "study"))
        )


BASE: dict[str, dict[str, str]] = {
    "extract": {"model": "embedded", "out": "v.safetensors"},
    "sweep": {"model": "embedded", "vector": "v", "prompts": "p", "coefficients": "0", "out": "s.jsonl"},
    "filter": {"in_": "s", "out": "kept"},
    "heal": {"model": "embedded", "data": "d", "out": "a"},
    "score": {"model": "embedded", "out": "s.jsonl"},
    "export": {"model": "embedded", "out": "e"},
    "compare": {"base": "b", "other": "o"},
    "study": {"config": "c", "run": "r", "out": "o"},
    "label": {"in_": "s.csv"},
    "card": {"run": "r", "round": "1", "out": "o"},
    "report": {"run": "r"},
    "verify": {"model": "embedded"},
    "serve": {"model": "embedded"},
    "config": {},
    "bench score": {"out": "b.json"},
}


@pytest.mark.parametrize(
    ("name", "dest"), [one for one in commands_that_read() if one[0] in BASE and not one[0].startswith("bench")]
)
def test_a_bad_path_of_a_command_is_our_error_before_an_engine_starts(
    name: str, dest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every option of every command that names something to read."""
    options = options_of(name)
    main = imported(f"{COMMANDS[name].module}:main")
    monkeypatch.chdir(tmp_path)
    for heavy in ("vllm", "unsloth"):
        monkeypatch.setitem(sys.modules, heavy, None)  # importing it is an error
    for why, path in bad(tmp_path):
        if why == "a NUL":
            continue  # which no command line can hold
        if why == "a folder" and dest in ("model", "adapter", "history", "run", "data", "prompts", "vignettes"):
            continue  # which may be one
        words = []
        for key, value in {**BASE[name], dest: str(path)}.items():
            action = next(action for action in options._actions if action.dest == key)
            value = f"x={path}" if action.metavar == "NAME=FILE" else value
            words += [*action.option_strings[:1], value]  # a positional word has no option
        monkeypatch.setattr(sys, "argv", [name, *words])
        try:
            main()
        except SteerHealError as error:
            assert error.next, why
        except (OSError, ValueError) as error:
            assert refused_path(error) is not None, (why, error)
        else:
            raise AssertionError(f"{why} was taken")


@pytest.mark.parametrize(
    ("code", "status"),
    [("ENAMETOOLONG", 2), ("ELOOP", 2), ("EROFS", 74), ("EACCES", 74), ("EDQUOT", 74), ("EMFILE", 71)],
)
def test_a_command_ends_with_our_error(code: str, status: int) -> None:
    raised = f"import errno\nfrom shared.cli import entry\ndef main():\n    raise OSError(errno.{code}, 'as the system says', '/a b')\nentry(main)"
    done = subprocess.run([sys.executable, "-c", raised], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status and done.stderr.startswith("error: ") and "next:" in done.stderr
    assert "Traceback" not in done.stderr and "/a b" in done.stderr


def test_a_name_that_is_no_text_is_refused_before_the_work(tmp_path: Path) -> None:
    done = command("evals.compare", "--base", "a", "--other", "b", "--out", os.fsdecode(b"\xff.json"))
    assert done.returncode == 2 and "not UTF-8" in done.stderr and "mv --" in done.stderr
    for name in ("a\0b", "a\udcff"):
        with pytest.raises(SteerHealError, match="could not be read"):
            extract("embedded", tmp_path / name)


def test_a_read_only_disk_is_said_before_the_work(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        for out in (place / "x.json", place / "deep" / "x.json"):
            done = command("evals.compare", "--base", "a", "--other", "b", "--out", out)
            assert done.returncode == 74 and "Read-only file system" in done.stderr and "findmnt -T" in done.stderr
    finally:
        subprocess.run(["umount", place], check=True)


def test_what_may_not_be_read_is_not_called_unwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("a")
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    assert refused_path(error).what == "a file could not be written"
    monkeypatch.setattr(os, "access", lambda place, mode: mode != os.R_OK)  # root may read all
    assert refused_path(error).what == "a file could not be read"
    gone = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "b"))
    assert refused_path(gone).what == "a file could not be written"
