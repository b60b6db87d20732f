"""A stage's process: what its end means, its locks, its log, and that it never outlives the one that started it."""

from __future__ import annotations

import os
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

from shared.errors import Exit, SteerHealError
from shared.process import Ended, plain_line, problem, run_process

# A command of ours: its errors and interruptions are handled by the one entry.
OURS = (
    "from shared.cli import entry; from shared.errors import *; import os, sys, time\ndef main():\n    {}\nentry(main)"
)


def ends(body: str, log: Path | None = None) -> Ended:
    return run_process([sys.executable, "-c", OURS.format(body)], log)


def meaning(body: str, lower: str = "") -> SteerHealError:
    error = problem(ends(body), "round 1 heal", None, lower)
    assert error is not None
    return error


def test_a_process_that_ends_well_has_no_problem_and_its_figures(tmp_path: Path) -> None:
    ended = ends("x = b'x' * (200 << 20); time.sleep(0.5); print(len(x))", tmp_path / "log.txt")
    assert problem(ended, "x", None) is None and ended.code == 0
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
    error = problem(ended, "round 1 sweep", None)
    assert ended.code == 137 and error is not None and "want of memory" in error.what


@pytest.mark.parametrize(
    "body", ["raise KeyboardInterrupt", "os.kill(os.getpid(), 15); time.sleep(9)", "sys.exit(130)"]
)
def test_an_interruption_is_one_here_as_well(body: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        problem(ends(body), "x", None)


def test_what_no_error_of_ours_explains_is_said(tmp_path: Path) -> None:
    error = problem(
        ends("print('half a word', file=sys.stderr); os._exit(7)", tmp_path / "log.txt"), "x", tmp_path / "log.txt"
    )
    assert error is not None and error.code == Exit.UNKNOWN
    assert "7: half a word" in error.render() and "log.txt" in error.render()


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
    from shared.publish import hold, release

    body = (
        f"from pathlib import Path; from shared.publish import hold; hold(Path({str(tmp_path / 'out')!r})); print('in')"
    )
    hold(tmp_path / "out")
    try:
        assert ends(body).code == 0
        out = f"Path({str(tmp_path / 'out')!r})"
        waits = f"from pathlib import Path; from shared.publish import held; lock = held({out}); lock.__enter__(); lock.__exit__(None, None, None)"
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


def test_no_stage_outlives_a_runner_that_is_killed(tmp_path: Path) -> None:
    stage = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import sys; from shared.process import run_process; run_process([sys.executable, '-c', {OURS.format(stage)!r}])"
    with subprocess.Popen([sys.executable, "-c", code]) as runner:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        runner.kill()
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the stage lives on")


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


def test_progress_away_from_a_terminal_is_a_line_now_and_then(tmp_path: Path) -> None:
    code = "import time; from shared.console import console, progress\nwith progress('loss') as bar:\n    task = bar.add_task('healing', total=4, loss='loss 2.0')\n    for _ in range(4):\n        time.sleep(1.2); bar.advance(task)\nwith console.status('starting'): time.sleep(0.7)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "STEER_HEAL_PROGRESS_SECONDS": "0.3"},
    )
    lines = done.stdout.splitlines()
    assert any("healing 2 of 4" in line and "left" in line and "loss 2.0" in line for line in lines), lines
    assert (
        any(line.startswith("healing 4 of 4") and "in all" in line for line in lines) and "starting: 0 s" in done.stdout
    )
    drawn = tmp_path / "drawn.txt"
    env = {
        **os.environ,
        "STEER_HEAL_PROGRESS_SECONDS": "0.3",
        "STEER_HEAL_TERMINAL": "1",
        "STEER_HEAL_LOG": str(drawn),
        "COLUMNS": "80",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "\x1b[" in done.stdout and "━" in done.stdout and "healing 2 of 4" in drawn.read_text()
