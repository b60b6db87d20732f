"""The progress of a sweep: rows, tokens per second, time left, and what the filter would keep so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gen.rules import Tally, Yardstick, judge
from shared.console import console
from shared.records import Completion
from shared.schema import Config

if TYPE_CHECKING:
    from rich.progress import Progress


class Board:
    """One bar over all rows of a sweep, brought up to date with every window.

    A row is judged by the limits known when its window ended: exact where round 1's unsteered completions are given, and
    settling where the sweep samples its own, which are added to the yardstick when `grows`.
    """

    def __init__(self, bar: Progress, total: int, yardstick: Yardstick, config: Config, *, grows: bool):
        self.bar, self.yardstick, self.config, self.grows = bar, yardstick, config, grows
        self.tally = Tally()
        self.rows = self.tokens = self._fresh = 0
        self.task = bar.add_task("sampling", total=total, rate="", kept="")

    def advance(self, rows: float, tokens: int) -> None:
        """Parts of rows that are done, and tokens sampled for them."""
        self._fresh += tokens
        elapsed = self.bar.tasks[self.task].elapsed or 0.0
        self.bar.update(self.task, advance=rows, rate=f"{self._fresh / elapsed:.0f} tokens/s" if elapsed else "")

    def add(self, rows: Iterable[Completion], name: str = "") -> None:
        """A window that is whole; one just made has a name, and a line of its own where no bar is drawn."""
        window = list(rows)
        if self.grows:
            for row in window:
                if row.coefficient == 0:
                    self.yardstick.add(row)
        if len(self.yardstick):
            why = judge(self.yardstick.limits(self.config.filter), self.config.filter, self.config.vector.trait)
            for row in window:
                self.tally.add(row, not why(row))
        self.rows += len(window)
        self.tokens += sum(len(row.completion_ids) for row in window)
        self.bar.update(self.task, completed=self.rows, kept=self.kept)
        if name and not console.is_terminal:
            console.print(f"{name}: {self.rows} rows{f', {self.kept}' if self.kept else ''}")

    @property
    def kept(self) -> str:
        """The share that the filter would keep, by coefficient; empty before there are unsteered completions."""
        shares = [
            f"{coefficient:g}:{group.kept / group.n:.2f}".replace(":0.", ":.")
            for coefficient, group in sorted(self.tally.groups.items())
        ]
        return f"kept {' '.join(shares)}" if shares else ""
