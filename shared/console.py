"""The terminal: one console, one style of table, one style of progress bar; away from a terminal, a line now and then.

A stage that runs for another process is told by its environment whether that one has a terminal, and the log to write progress to.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

TERMINAL, LOG = "STEER_HEAL_TERMINAL", "STEER_HEAL_LOG"
EVERY = 30.0  # seconds between two lines of progress
with suppress(ValueError):
    EVERY = float(os.environ.get("STEER_HEAL_PROGRESS_SECONDS", EVERY))
on_terminal = bool(os.environ.get(TERMINAL)) or sys.stdout.isatty()


class Terminal(Console):
    """rich's console, whose `status` also speaks where nothing can spin."""

    @contextmanager
    def status(self, status: Any, **options: Any) -> Iterator[Any]:  # type: ignore[override]
        begin = time.monotonic()
        with (
            _repeated(lambda: f"{status}: {_duration(time.monotonic() - begin)}"),
            super().status(status, **options) as spinner,
        ):
            yield spinner


console = Terminal(
    highlight=False, soft_wrap=True, force_terminal=True if on_terminal else None, width=None if on_terminal else 120
)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@contextmanager
def _repeated(line: Callable[[], str]) -> Iterator[None]:
    """Write a line every EVERY seconds: to the console where it is no terminal, and to the log of the process that runs this one."""
    log = os.environ.get(LOG)
    if console.is_terminal and not log:
        yield
        return
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(EVERY):
            if not (text := line()):
                continue
            text = f"{time.strftime('%H:%M:%S')} {text}"
            if not console.is_terminal:
                console.print(text, markup=False)  # the other process writes it to the log
            elif log:
                with (
                    suppress(OSError),
                    open(log, "a", encoding="utf-8") as file,
                ):  # a full disk is the stage's to report
                    file.write(text + "\n")

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


def say(text: str, style: str | None = None) -> None:
    """Print a line with text from elsewhere in it, paths above all, as it is: nothing in it is the terminal's markup."""
    console.print(text, style=style, markup=False)


def format_number(value: object, digits: int = 3, signed: bool = False) -> str:
    """A cell: a dash for None, fixed digits for floats, plain text for the rest."""
    if value is None:
        return "–"
    if isinstance(value, float):
        value = round(value, digits) + 0.0  # no -0.000
        return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return str(value)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, its texts as they are; the first column is text, the others are right-aligned."""
    grid = Table(title=escape(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        grid.add_column(escape(column), justify="left" if index == 0 else "right")
    for row in rows:
        grid.add_row(*[escape(format_number(cell)) for cell in row])
    console.print(grid)


class Bars(Progress):
    """rich's bars; where they cannot be drawn, a line with time, count, rate and time left every EVERY seconds."""

    def __init__(self, *columns: Any, extra: Sequence[str] = ()):
        # a speed over the whole task: a step may take longer than rich's window of 30 s
        super().__init__(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=1e9)
        self._extra = extra
        self._lines = ExitStack()

    def start(self) -> None:
        super().start()
        self._lines.enter_context(
            _repeated(lambda: "; ".join(self._line(task) for task in self.tasks if not task.finished))
        )

    def stop(self) -> None:
        self._lines.close()
        super().stop()
        if not console.is_terminal:
            for task in self.tasks:
                console.print(self._line(task), markup=False)

    def _line(self, task: Task) -> str:
        """A task in words: what, how far, how fast, how much longer, and its own fields."""
        total = f" of {task.total:.0f}" if task.total is not None else ""
        elapsed = task.finished_time if task.finished_time is not None else task.elapsed
        parts = [f"{task.description} {task.completed:.0f}{total}"]
        if task.speed:
            parts.append(f"{task.speed:.1f} a second" if task.speed >= 1 else f"{1 / task.speed:.1f} s each")
        if task.finished or not elapsed:
            parts.append(f"{_duration(elapsed or 0)} in all")
        elif task.time_remaining is not None:
            parts.append(f"about {_duration(task.time_remaining)} left")
        return ", ".join([*parts, *[str(value) for name in self._extra if (value := task.fields.get(name))]])


def progress(*extra: str) -> Progress:
    """A progress bar; extra are names of task fields shown after the count."""
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *[TextColumn(f"{{task.fields[{name}]}}") for name in extra],
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        extra=extra,
    )


@contextmanager
def counting(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar for work in equal parts; calling what it gives counts one."""
    with progress() as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
