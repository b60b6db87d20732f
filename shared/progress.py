"""How far a stage is that was interrupted or is running: by its files on disk, and the time left by its log."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from shared.publish import seal_of
from shared.run import Run
from shared.strict import parse_json

TAIL = 20_000  # bytes of a log in which its last lines of progress stand
DAY = timedelta(days=1)
TO_GO = re.compile(r"^(\d\d:\d\d:\d\d) the run has about (\d+) s to go$")
LEFT = re.compile(r"^(\d\d:\d\d:\d\d) (.*), about (\d+) (s|min) left")


@dataclass(frozen=True)
class Half:
    """What an interrupted or running stage has so far. progress: in words; share: of its work, from 0 to 1."""

    round: int
    stage: str
    progress: str
    share: float = 0.0


def half_made(run: Run, number: int, stage: str) -> Half | None:
    """The unfinished work of a stage without a manifest; None where nothing of it is on disk."""
    folder = run.round(number)
    if stage == "sweep" and (windows := folder / ".sweep.jsonl.windows").is_dir():
        finished = sum(seal_of(path).is_file() for path in windows.glob("[0-9]*.jsonl"))
        total = _object(windows / "plan.json").get("windows")
        share = finished / total if isinstance(total, int) and 0 < finished <= total else 0.0
        return Half(number, stage, f"window {finished} of {total}" if total else f"window {finished}", share)
    if stage == "heal" and (healing := folder / "healing").is_dir():
        steps = {
            int(name): path
            for path in healing.glob("checkpoint-*/")
            if (name := path.name.rpartition("-")[2]).isdigit()
        }
        if not steps:
            return Half(number, stage, "before its first checkpoint")
        total = _object(steps[max(steps)] / "trainer_state.json").get("max_steps")
        share = max(steps) / total if isinstance(total, int) and 0 < max(steps) <= total else 0.0
        return Half(number, stage, f"checkpoint at step {max(steps)}", share)
    return None


def _object(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):  # being written, or gone
        return {}
    return value if isinstance(value, dict) else {}


def note_to_go(log: Path, seconds: float) -> None:
    """Write into a run's log how long its stages still take, seconds, for `time_left`."""
    with suppress(OSError), open(log, "a", encoding="utf-8") as file:  # a full disk is the stage's to report
        file.write(f"{time.strftime('%H:%M:%S')} the run has about {seconds:.0f} s to go\n")


def time_left(log: Path, now: datetime | None = None) -> tuple[float | None, str | None]:
    """The time left of a running run and of its stage, as its log has it.

    Args:
        log: of the run.
        now: the time to count from; None is this moment.

    Returns:
        Seconds of all that is left to do, and the last line of progress of the stage at work; None where the log does not say.
    """
    now = now or datetime.now()
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None, None
    seconds, stage = None, None
    for line in lines:
        if match := TO_GO.match(line):
            seconds = max(0.0, float(match[2]) - _since(match[1], now))
        elif " $ -m " in line:  # a stage begins
            stage = None
        elif match := LEFT.match(line):
            seconds_left = float(match[3]) * (60 if match[4] == "min" else 1) - _since(match[1], now)
            stage = f"{match[2]}, {in_minutes(max(0.0, seconds_left))} left"
    return seconds, stage


def _since(clock: str, now: datetime) -> float:
    """Seconds since a time of day, which was within the last day."""
    hours, minutes, seconds = map(int, clock.split(":"))
    return ((now - now.replace(hour=hours, minute=minutes, second=seconds, microsecond=0)) % DAY).total_seconds()


def in_minutes(seconds: float) -> str:
    """Seconds as words, to the minute."""
    return "under a minute" if seconds < 45 else f"about {seconds / 60:.0f} min"
