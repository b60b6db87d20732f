"""The progress of a sweep at the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gen.rules import Yardstick, rules_of
from shared.console import console
from shared.records import Completion
from shared.schema import Config
from shared.tally import Tally

if TYPE_CHECKING:
    from rich.progress import Progress


class Board:
    """The progress of a sweep: one bar over all its rows, brought up to date with every window.

    It shows rows, tokens per second, time left, and what the filter would keep so far. A row is judged by the limits known when its window
    ended: exact where round 1's unsteered completions are given, and settling where the sweep samples its own, which are added to the
    yardstick when `grows`.
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
        """Count a finished window.

        Args:
            rows: of the window.
            name: of a window that this process made; it is printed on a line where no progress bar is drawn.
        """
        window = list(rows)
        if self.grows:
            self.yardstick.extend(window)
        if len(self.yardstick):
            reasons_of = rules_of(
                self.yardstick.limits(self.config.filter), self.config.filter, self.config.vector.trait
            )
            for row in window:
                self.tally.add(row, not reasons_of(row))
        self.count(len(window), sum(len(row.completion_ids) for row in window), name)

    def count(self, rows: int, tokens: int, name: str = "") -> None:
        """Count a finished window by its numbers of rows and tokens, without reading its rows."""
        self.rows += rows
        self.tokens += tokens
        self.bar.update(self.task, completed=self.rows, kept=self.kept)
        if name and not console.is_terminal:
            console.print(f"{name}: {self.rows} rows{f', {self.kept}' if self.kept else ''}")

    @property
    def kept(self) -> str:
        """The share that the filter would keep, by coefficient; empty before there are unsteered completions."""
        shares = [
            f"{'trait prompt' if prompted else f'{coefficient:g}'}:{group.kept / group.n:.2f}".replace(":0.", ":.")
            for (coefficient, prompted), group in sorted(self.tally.groups.items())
        ]
        return f"kept {' '.join(shares)}" if shares else ""
