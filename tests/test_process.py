"""A stage's process: what its end means, its locks, its log, and that it never outlives the one that started it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shared.process
from shared.errors import Exit, SteerHealError
from shared.faults import crashed_frames
from shared.machine import peak_memory
from shared.output import plain_line
from shared.process import Ended, exit_error, run_process

# A command of ours: its errors and interruptions are handled by the one entry.
OURS = (
    "from shared.cli import entry; from shared.errors import *; import os, sys, time\ndef main():\n    {}\nentry(main)"
)


def ends(body: str, log: Path | None = None) -> Ended:
    return run_process([sys.executable, "-c", OURS.format(body)], log)


def meaning(body: str, lower: str = "") -> SteerHealError:
    error = exit_error(ends(body), "round 1 heal", None, lower)
    assert error is not None
    return error


def test_a_process_that_ends_well_has_no_problem_and_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends once its memory has been seen."""
    seen = tmp_path / "seen"

    def looking(process: int) -> int:
        if (size := peak_memory(process)) > 200 << 20:
            seen.touch()
        return size

    monkeypatch.setattr(shared.process, "peak_memory", looking)
    body = f"x = b'x' * (200 << 20)\n    while not os.path.exists({str(seen)!r}): time.sleep(0.01)\n    print(len(x))"
    ended = ends(body, tmp_path / "log.txt")
    assert exit_error(ended, "x", None) is None and ended.code == 0
    assert 200 << 20 < ended.peak < 600 << 20 and ended.seconds > 0
    assert (tmp_path / "log.txt").read_text().splitlines()[-1] == str(200 << 20)


@pytest.mark.parametrize("code", [Exit.REFUSED, Exit.MACHINE, Exit.UNWRITTEN, Exit.BUSY])
def test_an_error_arrives_whole_with_its_code(code: Exit) -> None:
    """Whatever the words: a value of several lines, one that looks like an error."""
    sent = SteerHealError("what\nerror: no", given="a\n  next:     b", expected=None, next="c", code=code)
    found = meaning(
        f"raise SteerHealError({sent.what!r}, given={sent.given!r}, expected=None, next='c', code=Exit({int(code)}))"
    )
    assert (found.render(), found.code) == (sent.render(), code)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, ("want of memory", "available when it began", "SET='train.batch_size=2'")),
        (signal.SIGSEGV, ("crashed in a library", "make doctor")),
        (signal.SIGBUS, ("crashed in a library", "SIGBUS")),
        (signal.SIGXCPU, ("CPU time", "ulimit -t")),
        (signal.SIGILL, ("an instruction that this CPU does not have", "make doctor")),
    ],
)
def test_a_signal_is_translated(number: signal.Signals, words: tuple[str, ...]) -> None:
    body = f"os.kill(os.getpid(), {int(number)}); time.sleep(9)"
    error = meaning(body, "make round SET='train.batch_size=2'")
    assert error.code == Exit.MACHINE and all(word in error.render() for word in words), error.render()


def test_the_exit_code_of_a_shell_between_is_the_signals() -> None:
    ended = run_process(["sh", "-c", f"{sys.executable} -c 'import os; os.kill(os.getpid(), 9)'; exit $?"])
    error = exit_error(ended, "round 1 sweep", None)
    assert ended.code == 137 and error is not None and "want of memory" in error.what


@pytest.mark.parametrize("body", ["raise KeyboardInterrupt", "os.kill(os.getpid(), 2); time.sleep(9)", "sys.exit(130)"])
def test_an_interruption_is_one_here_as_well(body: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        exit_error(ends(body), "x", None)


@pytest.mark.parametrize(
    ("body", "by"),
    [
        ("os.kill(os.getpid(), 15); time.sleep(9)", "SIGTERM"),
        ("import signal; signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15); time.sleep(9)", "SIGTERM"),
        ("os.kill(os.getpid(), 1); time.sleep(9)", "SIGHUP"),
    ],
)
def test_a_signal_to_the_stage_alone_is_no_interruption_by_the_user(body: str, by: str) -> None:
    ended = ends(body)
    error = exit_error(ended, "round 1 heal", None)
    assert error is not None and error is not ended.error and error.code == Exit.INTERRUPTED
    assert error.what == f"round 1 heal was ended by {by}" and "the same command goes on" in error.next


def test_it_says_at_once_that_it_stops_and_what_it_waits_for() -> None:
    """A polite kill of the runner alone, whose stage takes a while to end."""
    stage = OURS.format("print('at work', flush=True); time.sleep(600)")
    code = (
        f"import os, sys; from shared.cli import entry; from shared.process import run_process\ndef main():\n    "
        f"run_process([sys.executable, '-c', {stage!r}], out=lambda block: os.write(1, block), name='round 1 heal')\nentry(main)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None and runner.stdout.readline() == "at work\n"
        begun = time.monotonic()
        runner.terminate()
        assert "stopping: waiting for round 1 heal to end, at most 55 s" in runner.stdout.readline()
        assert time.monotonic() - begun < 3
        assert "interrupted; what is finished is kept" in runner.stdout.read()
    assert runner.returncode == Exit.INTERRUPTED


def test_what_no_error_of_ours_explains_is_said(tmp_path: Path) -> None:
    error = exit_error(
        ends("print('half a word', file=sys.stderr); os._exit(7)", tmp_path / "log.txt"), "x", tmp_path / "log.txt"
    )
    assert error is not None and error.code == Exit.UNKNOWN
    assert "7: half a word" in error.render() and "log.txt" in error.render()


@pytest.mark.parametrize("code", [Exit.MACHINE, Exit.UNWRITTEN, Exit.BUSY])
def test_a_code_says_whose_fault_it_is_where_no_error_was_left(code: Exit) -> None:
    """As on a disk so full that not even the error could be written."""
    error = meaning(f"os._exit({int(code)})")
    assert error.code == code and "exit code of its own" in error.what


def test_an_error_of_a_stages_own_child_is_not_the_stages() -> None:
    inner = OURS.format("raise SteerHealError('of a child', next='x')")
    body = f"import subprocess; subprocess.run([sys.executable, '-c', {inner!r}]); os.kill(os.getpid(), 9)"
    error = meaning(body)
    assert "want of memory" in error.what and error.code == Exit.MACHINE


def test_a_command_that_is_not_there_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        run_process([str(tmp_path / "none")], tmp_path / "log.txt")
    assert len(os.listdir("/proc/self/fd")) == before and str(tmp_path) not in (tmp_path / "log.txt").read_text()


def test_the_thread_that_crashed_is_the_one_that_is_named(tmp_path: Path) -> None:
    """Others wait at the time, and its own stack is deep."""
    (tmp_path / "deep.py").write_text(
        "import os, threading\n"
        "def wait(ready, ended):\n    ready.set()\n    ended.wait()\n"
        "def crash(depth):\n    if depth:\n        crash(depth - 1)\n    os.kill(os.getpid(), 11)\n"
        "for _ in range(4):\n    ready = threading.Event()\n"
        "    threading.Thread(target=wait, args=(ready, threading.Event()), daemon=True).start()\n    ready.wait()\n"
        "crash(80)\n"
    )
    ended = run_process([sys.executable, str(tmp_path / "deep.py")])
    assert ended.signal is signal.SIGSEGV and "in wait" in "\n".join(ended.tail)
    error = exit_error(ended, "x", None)
    assert error is not None and f'"{tmp_path}/deep.py", line 8 in crash' in str(error.given), error
    assert len(crashed_frames(ended.tail)) > 70


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_an_extension_built_for_another_cpu_is_named(tmp_path: Path) -> None:
    """A library whose loading runs an instruction that no CPU has."""
    library = tmp_path / f"foreign{sysconfig.get_config_var('EXT_SUFFIX')}"
    (tmp_path / "foreign.c").write_text("__attribute__((constructor)) static void begin(void) { __builtin_trap(); }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "foreign.c"], check=True)
    error = meaning(f"sys.path.insert(0, {str(tmp_path)!r}); import foreign")
    assert ("SIGILL" in str(error.given) or "SIGTRAP" in str(error.given)) and str(library) in str(error.given), (
        error.render()
    )


def test_a_lock_of_the_runner_holds_for_its_stages_and_for_nobody_else(tmp_path: Path) -> None:
    from shared.locks import hold, release

    body = (
        f"from pathlib import Path; from shared.locks import hold; hold(Path({str(tmp_path / 'out')!r})); print('in')"
    )
    hold(tmp_path / "out")
    try:
        assert ends(body).code == 0
        out = f"Path({str(tmp_path / 'out')!r})"
        waits = f"from pathlib import Path; from shared.locks import held; lock = held({out}); lock.__enter__(); lock.__exit__(None, None, None)"
        assert ends(waits).code == 0, "a stage that waits for what its runner holds would wait for ever"
        inner = run_process(
            [
                sys.executable,
                "-c",
                f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {OURS.format(body)!r}]).returncode)",
            ]
        )
        assert inner.code == Exit.BUSY, "a stage's own children are not the runner's"
        assert subprocess.run([sys.executable, "-c", OURS.format(body)], capture_output=True).returncode == Exit.BUSY
        assert (tmp_path / ".out.lock").exists(), "a stage that ends leaves the runner's lock"
    finally:
        release(tmp_path / ".out.lock")
    assert ends(body).code == 0


def test_no_stage_outlives_a_runner_that_is_killed() -> None:
    """The stage says its number when it is at work; its end is the system's event."""
    stage = OURS.format("print(os.getpid(), flush=True); time.sleep(600)")
    code = f"import os, sys; from shared.process import run_process; run_process([sys.executable, '-c', {stage!r}], out=lambda block: os.write(1, block))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as runner:
        assert runner.stdout is not None
        process = os.pidfd_open(int(runner.stdout.readline()))
        runner.kill()
    try:
        ended, _, _ = select.select([process], [], [], 60)
        if not ended:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            pytest.fail("the stage lives on")
    finally:
        os.close(process)


def test_the_log_has_what_was_said_and_nothing_that_was_drawn(tmp_path: Path) -> None:
    body = "print('\\r\\x1b[2K⠋ loading\\r\\x1b[2K\\x1b[32mdone\\x1b[0m in 3 s'); print('a' * 300); print('to stderr', file=sys.stderr)"
    ends(body, tmp_path / "log.txt")
    command, _, text = (tmp_path / "log.txt").read_text().partition("entry(main)'")
    assert " $ -c" in command and sorted(text.split("\n")) == ["", "", "a" * 300, "done in 3 s", "to stderr"]


@given(
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1),
    st.text(),
    st.sampled_from(["\r", "\x1b[2K", "\r\x1b[2K"]),
)
def test_the_last_thing_drawn_on_a_line_is_what_stands(text: str, before: str, erase: str) -> None:
    assert plain_line(f"{before}{erase}\x1b[1m{text}\x1b[0m") == text


PROGRESS = """
from shared.console import console, progress
with progress("loss") as bar:
    task = bar.add_task("healing", total=4, loss="loss 2.0")
    for _ in range(2):
        bar.advance(task)
        input()
    bar.advance(task, 2)
with console.status("starting"):
    input()
"""


def begin_progress(**environment: str) -> subprocess.Popen[str]:
    """A process that goes on with each line that it is sent."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "STEER_HEAL_PROGRESS_SECONDS": "0.1", **environment},
    )


def test_progress_away_from_a_terminal_is_a_line_now_and_then() -> None:
    with begin_progress() as process:
        assert process.stdin is not None and process.stdout is not None
        lines: list[str] = []
        for words in ("healing 1 of 4", "healing 2 of 4", "starting: "):
            while not (lines and words in lines[-1]):
                lines.append(process.stdout.readline())
                assert lines[-1] and len(lines) < 1000, lines[:5]
            process.stdin.write("\n")
            process.stdin.flush()
        process.stdout.read()
    assert process.returncode == 0
    assert any("healing 2 of 4" in line and "left" in line and "loss 2.0" in line for line in lines), lines
    assert any(line.startswith("healing 4 of 4") and "in all" in line for line in lines), lines


def test_progress_on_a_terminal_is_a_bar_and_lines_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "drawn.txt"
    log.touch()
    with begin_progress(STEER_HEAL_TERMINAL="1", STEER_HEAL_LOG=str(log), COLUMNS="80") as process:
        assert process.stdin is not None
        for words in ("healing 1 of 4", "healing 2 of 4", "starting: "):
            while words not in (text := log.read_text()):
                assert process.poll() is None and text.count("\n") < 1000, text[:500]
                time.sleep(0.02)
            process.stdin.write("\n")
            process.stdin.flush()
        drawn = process.communicate()[0]
    assert process.returncode == 0 and "\x1b[" in drawn and "━" in drawn
