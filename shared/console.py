"""The terminal: one console, one style of table, one style of progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def say(text: str, style: str | None = None) -> None:
    """Print a line with text from elsewhere in it, paths above all, as it is: nothing in it is the terminal's markup."""
    console.print(text, style=style, markup=False)


def number(value: object, digits: int = 3, signed: bool = False) -> str:
    """A cell: a dash for None, fixed digits for floats, plain text for the rest."""
    if value is None:
        return "–"
    if isinstance(value, float):
        value = round(value, digits) + 0.0  # no -0.000
        return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return str(value)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, its texts as they are; the first column is text, the others are right-aligned."""
    grid = Table(title=escape(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        grid.add_column(escape(column), justify="left" if index == 0 else "right")
    for row in rows:
        grid.add_row(*[escape(number(cell)) for cell in row])
    console.print(grid)


def progress(*extra: str) -> Progress:
    """A progress bar; extra are names of task fields shown after the count."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *[TextColumn(f"{{task.fields[{name}]}}") for name in extra],
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def counting(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar for work in equal parts; calling what it gives counts one."""
    with progress() as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
