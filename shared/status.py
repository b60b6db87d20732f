"""`steer-heal status`: the runs of a folder, what is done and half-made in them, what is running and what comes next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.cli import entry
from shared.commandline import status_options
from shared.commands import COMMANDS, NAMES, option, round_command
from shared.config import resolve_config
from shared.console import format_number, print_table, say
from shared.errors import SteerHealError
from shared.locks import lock_holder
from shared.nearby import nearest_run, no_such_run
from shared.progress import Half, half_made, in_minutes, time_left
from shared.records import read_manifest
from shared.run import STAGES, Run
from shared.stages import LOG
from shared.strict import parse_json

DEFAULT = Path("runs")  # whose absence is no mistake: a fresh clone has none
EXTRA = ("score-full",)  # stages that a round may have in addition


@dataclass(frozen=True)
class Done:
    """A stage that has its manifest."""

    round: int
    stage: str
    seconds: float


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    left: seconds that a running one still takes, by its own estimate; stage_left: its stage's last line of progress, in words; both None where
    its log does not say. rounds: complete ones. done: stages with a manifest, in order. half: the stage in the making, None where it has left nothing.
    running: the process that holds the run, None where nobody does, 0 where it is one of another machine or container. next: the command that goes on. problem: why it is no run.
    """

    run: str
    begun: str | None
    model: str | None
    rounds: int
    done: list[Done]
    half: Half | None
    running: int | None
    working_on: str | None
    stopped: str | None
    next: str
    problem: str | None = None
    left: float | None = None
    stage_left: str | None = None


def runs_below(folder: Path) -> list[Path]:
    """The run directories of a folder, and those of the studies in it; itself where it is one."""
    if (folder / "config.toml").is_file():
        return [folder]
    folders = {path.parent for pattern in ("*/config.toml", "*/*/config.toml") for path in folder.glob(pattern)}
    return sorted(folders)


def status_of(folder: Path) -> Status:
    """The status of the run of a folder; raises nothing.

    Args:
        folder: one with a config.toml. What cannot be read in it is the problem of the result.
    """
    holder = lock_holder(folder / ".lock")
    try:
        run = Run(folder, resolve_config(folder / "config.toml")[0])
        done = sorted(_done(run), key=lambda stage_done: (stage_done.round, [*STAGES, *EXTRA].index(stage_done.stage)))
    except SteerHealError as error:
        problem = f"{error.what}: {error.given}"
        return Status(str(folder), None, None, 0, [], None, holder, None, None, error.next, problem)
    complete = [k for k in run.rounds() if all(run.manifest(k, stage).is_file() for stage in STAGES)]
    rounds = next(k for k in range(len(complete) + 2) if k + 1 not in complete)
    current = rounds + 1
    stage = next((name for name in STAGES if not run.manifest(current, name).is_file()), STAGES[0])
    begun = run.round(current).is_dir()
    half = half_made(run, current, stage)
    left, stage_left = time_left(folder / LOG) if holder is not None else (None, None)
    again = round_command(folder, current if begun or not rounds else rounds + 1)
    return Status(
        run=str(folder),
        begun=run.begun.isoformat(timespec="seconds"),
        model=run.config.model.name,
        rounds=rounds,
        done=done,
        half=half,
        running=holder,
        working_on=activity_of(holder) if holder is not None else None,
        stopped=_stopped(run),
        next=again if rounds == 0 or begun or (folder / "report").is_dir() else round_command(folder, target="report"),
        left=left,
        stage_left=stage_left,
    )


def _done(run: Run) -> Iterator[Done]:
    for stage in (*STAGES, *EXTRA):
        for number in run.rounds(stage):
            path = run.manifest(number, stage)
            yield Done(number, stage, read_manifest(path, f"remove {path}; the stage runs again").seconds)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):  # being written, or gone
        return {}
    return value if isinstance(value, dict) else {}


def _stopped(run: Run) -> str | None:
    """Where and why a study left the run, unless that stage was made since."""
    if not (path := run.folder / "stopped.json").is_file():
        return None
    value = _read(path)
    if any(
        (stage_done.round, stage_done.stage) == (value.get("round"), value.get("stage")) for stage_done in _done(run)
    ):
        return None
    lines = str(value.get("said", "")).strip().splitlines()
    return (
        f"round {value.get('round')} {value.get('stage')}: {lines[0].removeprefix('error: ') if lines else 'no reason'}"
    )


def activity_of(process: int) -> str:
    """The activity of a process: the stage that it or a process under it runs, or else its command."""
    if process == 0:
        return "a process of another machine or container"
    for candidate in [*_children(process), process]:
        words = _words(Path(f"/proc/{candidate}/cmdline"))
        names = [NAMES[word] for word in words if word in NAMES] or [word for word in words[1:3] if word in COMMANDS]
        if names and names[0] in STAGES and "--round" in words[:-1]:
            return f"round {words[words.index('--round') + 1]} {names[0]}"
    words = _words(Path(f"/proc/{process}/cmdline"))
    return " ".join(Path(word).name for word in words[:3]) or "a command"


def _children(process: int) -> list[int]:
    try:
        below = [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return [descendant for child in below for descendant in (*_children(child), child)]


def _words(file: Path) -> list[str]:
    try:
        return [word for word in file.read_bytes().decode(errors="replace").split("\0") if word]
    except OSError:  # it has ended
        return []


def runs_overview(states: list[Status]) -> None:
    """The table of several runs."""
    rows = []
    for status in states:
        if status.running is not None:
            now = _running(status)
        elif status.stopped or status.problem:
            now = "stopped" if status.stopped else "cannot be read"
        elif status.half:
            now = f"idle; {status.half.stage} half-made, {status.half.progress}"
        else:
            now = "idle"
        last = status.done[-1] if status.done else None
        rows.append([status.run, status.model, status.rounds, f"{last.round} {last.stage}" if last else None, now])
    print_table("runs", ["run", "model", "rounds", "last done", "now"], rows)
    for status in states:
        if status.running is None:
            why = (
                f"stopped in {status.stopped}; " if status.stopped else f"{status.problem}; " if status.problem else ""
            )
            say(f"{status.run}: {why}next: {status.next}")


def _running(status: Status) -> str:
    parts = [str(status.working_on), *([f"process {status.running}"] if status.running else [])]
    parts += [status.stage_left] if status.stage_left else []
    return ", ".join([*parts, *([f"{in_minutes(status.left)} left in all"] if status.left is not None else [])])


def details(status: Status) -> None:
    """A run with its stages and their seconds."""
    if status.problem:
        say(f"{status.run}: {status.problem}\nnext: {status.next}")
        return
    numbers = sorted({done.round for done in status.done} | ({status.half.round} if status.half else set())) or [1]
    seconds = {(done.round, done.stage): done.seconds for done in status.done}
    stages = [*STAGES, *(stage for stage in EXTRA if any(done.stage == stage for done in status.done))]

    def cell(number: int, stage: str) -> str:
        if (number, stage) in seconds:
            return format_number(seconds[number, stage], 1)
        half = status.half
        return half.progress if half and (half.round, half.stage) == (number, stage) else format_number(None)

    print_table(
        f"{status.run}: {status.model}, begun {status.begun}, {status.rounds} rounds done",
        ["seconds", *(f"round {k}" for k in numbers)],
        [[stage, *(cell(k, stage) for k in numbers)] for stage in stages],
    )
    if status.running is not None:
        say(f"running: {_running(status)}")
        return
    if status.stopped:
        say(f"stopped in {status.stopped}")
    say(f"next: {status.next}")


def main() -> None:
    arguments = status_options().parse_args()
    folder = arguments.run
    states = [status_of(path) for path in runs_below(folder)]
    if arguments.json:
        print(json.dumps({"version": 1, "runs": [asdict(status) for status in states]}, indent=2, ensure_ascii=False))
    elif not states and not folder.exists() and folder != DEFAULT:
        meant = nearest_run(folder)
        next_ = f"the same command with {option('RUN', '--run', meant)}" if meant else round_command(rounds=1)
        raise no_such_run(folder, next_, meant, "a run, or a folder of runs")
    elif not states:
        say(f"there are no runs in {folder}/ yet\nnext: {round_command(rounds=1)}")
    elif (folder / "config.toml").is_file():
        details(states[0])
    else:
        runs_overview(states)


if __name__ == "__main__":
    entry(main)
