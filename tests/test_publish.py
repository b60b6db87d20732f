"""Whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import SteerHealError
from shared.locks import held, hold, release
from shared.publish import HOST, atomic_file, atomic_folder, digest, replaceable, write_json
from shared.status import lock_holder


def test_a_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for content in ("one", "two"):
        with atomic_folder(path) as temporary:
            (temporary / content).write_text(content)
    assert [file.name for file in path.iterdir()] == ["two"] and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RuntimeError), atomic_folder(path) as temporary:
        (temporary / "three").write_text("half")
        raise RuntimeError
    assert [file.name for file in path.iterdir()] == ["two"] and list(tmp_path.iterdir()) == [path]


def test_digest_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = digest(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert digest(tmp_path / "a") != first
    (tmp_path / "a" / "y").rename(tmp_path / "a" / "x")
    assert digest(tmp_path / "a") == first
    (tmp_path / "a" / "x").write_text("2")
    assert digest(tmp_path / "a") != first


def test_digest_sees_linked_folders(tmp_path: Path) -> None:
    """As a local data set may have them; a link that leads back ends."""
    (real := tmp_path / "real").mkdir()
    (folder := tmp_path / "set").mkdir()
    (real / "rows.jsonl").write_text("a")
    (folder / "data").symlink_to(real)
    (folder / "back").symlink_to(folder)
    (real / "round").symlink_to(real)
    first = digest(folder)
    (real / "rows.jsonl").write_text("b")
    assert digest(folder) != first
    (real / "rows.jsonl").write_text("a")
    assert digest(folder) == first
    (folder / "data").unlink()
    (folder / "data").mkdir()
    (folder / "data" / "rows.jsonl").write_text("a")
    assert digest(folder) == first, "what is read is the same"


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def holder(path: Path, then: str = "input()") -> subprocess.Popen[str]:
    """A process that holds the path and then does something, by default waits for a line."""
    code = f"from pathlib import Path; import os; from shared.locks import hold; hold(Path({str(path)!r})); print('held', flush=True); {then}"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def free(path: Path) -> bool:
    """Whether a process that comes now gets the path."""
    code = f"from pathlib import Path; from shared.locks import hold; hold(Path({str(path)!r}))"
    return not subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first = holder(tmp_path / "out")
    with pytest.raises(SteerHealError, match="another process is at work") as refused:
        hold(tmp_path / "out")
    assert f"process {first.pid}" in str(refused.value.given) and str(tmp_path / "out") in str(refused.value.given)
    first.communicate("\n")
    assert list(tmp_path.iterdir()) == []  # a process that ends takes its lock file with it
    assert free(tmp_path / "out")


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    """Killed, so that its lock file stays, while a child that it forked lives on."""
    first = holder(tmp_path / "out", "print(os.fork() or input(), flush=True); input()")
    assert first.stdout is not None
    child = int(first.stdout.readline())
    assert not free(tmp_path / "out")
    first.send_signal(signal.SIGKILL)
    first.wait()
    os.kill(child, 0)
    assert (tmp_path / ".out.lock").is_file() and free(tmp_path / "out")
    os.kill(child, signal.SIGKILL)


def test_holding_again_is_holding_once(tmp_path: Path) -> None:
    again = holder(tmp_path / "out", f"hold(Path({str(tmp_path / 'out')!r})); input()")
    assert not free(tmp_path / "out")
    again.communicate("\n")
    assert free(tmp_path / "out")


WORDS = st.lists(st.sampled_from(["hold", "release", "held(", ")"]), max_size=12)


@given(WORDS)
@settings(max_examples=60)
def test_a_lock_is_held_for_as_long_as_something_needs_it(words: list[str]) -> None:
    """Any nesting of `hold`, `release` and `held`, against a count of who needs the lock."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        path, file = Path(folder, "out"), Path(folder, ".out.lock")
        stack.callback(release, file)
        open_, kept = list[AbstractContextManager[None]](), False
        for word in words:
            if word == "hold":
                hold(path)
                kept = True
            elif word == "release":
                release(file)
                kept = False
            elif word == "held(":
                open_.append(held(path))
                open_[-1].__enter__()
            elif open_:
                open_.pop().__exit__(None, None, None)
            holder = lock_holder(file)
            assert holder == (os.getpid() if kept or open_ else None) and file.exists() == bool(kept or open_)
        for context in reversed(open_):
            context.__exit__(None, None, None)


def test_held_within_hold_keeps_the_outer_lock_from_other_processes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    then = (
        "from shared.locks import held\nwith held(Path(os.environ['OUT'])): pass\nprint('inner', flush=True); input()"
    )
    code = f"from pathlib import Path; import os; from shared.locks import hold; hold(Path(os.environ['OUT']))\n{then}"
    line = [sys.executable, "-c", code]
    environment = {**os.environ, "OUT": str(out)}
    outer = subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert outer.stdout is not None and outer.stdout.readline() == "inner\n"
    assert not free(out)
    outer.communicate("\n")
    assert free(out)


def test_one_lock_by_two_names_of_its_folder_is_one(tmp_path: Path) -> None:
    """Closing a second handle on a file drops all of a process's locks on it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    hold(tmp_path / "real", tmp_path / "real" / ".lock")
    try:
        hold(tmp_path / "link", tmp_path / "link" / ".lock")
        with held(tmp_path / "link" / "out"), held(tmp_path / "real" / "out"):
            assert not free(tmp_path / "real" / "out")
        assert lock_holder(tmp_path / "real" / ".lock") == os.getpid()
    finally:
        release(tmp_path / "link" / ".lock")
    assert list((tmp_path / "real").iterdir()) == []


def test_a_forked_child_neither_has_nor_ends_its_parents_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from shared.locks import hold, release, held\n"
        "from shared.errors import SteerHealError\n"
        "path = Path(sys.argv[1]); hold(path)\n"
        "if not os.fork():\n"
        "    try: hold(path)\n"
        "    except SteerHealError: print('refused', flush=True)\n"
        "    release(path.with_name('.out.lock')); sys.exit()\n"  # which also runs what is to be done at exit
        "os.wait(); print('ended', flush=True); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(2)] == ["refused\n", "ended\n"]
    assert not free(tmp_path / "out")
    parent.communicate("\n")
    assert free(tmp_path / "out")


def test_a_lock_file_that_goes_while_it_is_looked_at_is_made_again(tmp_path: Path) -> None:
    """Its holder ends at any moment: many processes that want one thing all get it, one after another."""
    code = "import sys; from pathlib import Path; from shared.locks import held\nfor _ in range(200):\n    with held(Path(sys.argv[1])): pass"
    many = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in many] == [0, 0, 0] and list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "docs"
    replaceable(path, ("a", "b"))
    with atomic_folder(path, names=("a", "b")) as temporary:
        (temporary / "a").write_text("ours")
    with atomic_folder(path, names=("a", "b")) as temporary:
        (temporary / "b").write_text("ours again")
    (path / "thesis.md").write_text("theirs")
    with pytest.raises(SteerHealError, match=r"other files") as refused, atomic_folder(path, names=("a", "b")):
        raise AssertionError("the work begins")
    assert "thesis.md" in str(refused.value.given) and sorted(p.name for p in path.iterdir()) == ["b", "thesis.md"]
    (path / "thesis.md").unlink()
    with pytest.raises(SteerHealError), atomic_folder(path, names=("a", "b")):
        (path / "late.md").write_text("theirs, written meanwhile")
    assert sorted(p.name for p in path.iterdir()) == ["b", "late.md"] and list(tmp_path.iterdir()) == [path]


def test_a_lock_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    """A run folder from somebody else, whose .lock leads to a file of this user's."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".out.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(SteerHealError, match="a lock is not ours"):
        hold(tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "mine" and (tmp_path / ".out.lock").is_symlink()
    os.unlink(tmp_path / ".out.lock")
    os.mkfifo(tmp_path / ".out.lock")
    with pytest.raises(SteerHealError, match="no plain file"):
        hold(tmp_path / "out")


def test_a_folder_behind_a_link_is_replaced_there(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "out") as new:
            (new / "a").write_text(content)
        assert (tmp_path / "disk" / "a").read_text() == content and (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]
    first = holder(tmp_path / "out")
    with pytest.raises(SteerHealError, match="another process"):
        hold(tmp_path / "disk")  # one lock, by either name
    first.kill()
    first.wait()


def test_a_lock_is_released_where_a_link_leads_to_its_place(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with held(tmp_path / "link" / "out"), atomic_folder(tmp_path / "link" / "out") as new:
        (new / "a").touch()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["out"] and free(tmp_path / "real" / "out")


def test_only_a_want_of_room_is_told_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^the hub says 429$"), atomic_file(tmp_path / "out"):
        raise OSError("the hub says 429")
    with pytest.raises(OSError, match="out") as full, atomic_file(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert full.value.filename == str(tmp_path / "out")


def test_a_temporary_name_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    """Planted by somebody who can write into the same folder, and guess a process number."""
    (tmp_path / "precious").write_text("mine")
    path = tmp_path / "out.txt"
    path.with_name(f".out.txt.{HOST}.{os.getpid()}.tmp").symlink_to(tmp_path / "precious")
    write_json(path, {})
    assert (tmp_path / "precious").read_text() == "mine" and path.is_file() and not path.is_symlink()


@pytest.mark.parametrize("cut", ["interrupt", "kill"])
def test_an_exchange_cut_short_loses_nothing(tmp_path: Path, cut: str) -> None:
    """Between the two renames, where the old folder is away and the new one not yet there."""
    path, code = tmp_path / "out", (
        "import os, sys; from pathlib import Path; import shared.publish as p\n"
        "path, real, calls = Path(sys.argv[1]), os.replace, []\n"
        "def replace(a, b):\n"
        "    calls.append(a)\n"
        "    if len(calls) == 2: "
        + ("raise KeyboardInterrupt" if cut == "interrupt" else "os.kill(os.getpid(), 9)")
        + "\n    real(a, b)\n"
        "os.replace = replace\n"
        "with p.atomic_folder(path) as new: (new / 'new').touch()\n"
    )  # fmt: skip
    path.mkdir()
    (path / "old").touch()
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True).returncode
    if cut == "interrupt":
        assert [file.name for file in path.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RuntimeError), atomic_folder(path):
        assert [file.name for file in path.iterdir()] == ["old"]
        raise RuntimeError
    with atomic_folder(path) as new:
        (new / "new").touch()
    assert [file.name for file in path.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [path]


def test_what_the_dead_left_half_made_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    dead, alive = (path.with_name(f".out.txt.{HOST}.{number}.tmp") for number in (2**22 + 1, os.getppid()))
    elsewhere = path.with_name(f".out.txt.{HOST}-2.7.tmp")
    for left in (dead, alive, elsewhere):
        left.touch()
    write_json(path, {})
    assert not dead.exists() and alive.exists() and elsewhere.exists()


def test_who_waits_comes_after(tmp_path: Path) -> None:
    first = holder(tmp_path / "out", "import time; time.sleep(1); print('done', flush=True)")
    with held(tmp_path / "out"):
        assert first.stdout is not None and first.stdout.readline() == "done\n"
    assert first.wait() == 0 and free(tmp_path / "out")


def test_a_folder_that_may_not_be_read_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the rest would be the digest of another folder."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a").write_text("a")
    walked = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("inside"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return walked(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="inside"):
        digest(tmp_path)
