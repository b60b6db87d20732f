"""Where a sweep ends that goes on until enough rows are kept: with a window, by the order of the plan alone.

Windows may be made in any order and by any number of workers, and some beyond the last. Rows are counted in the order of the plan, and the
first window at whose end N rows pass is the last, so that a resumed sweep and one of many workers publish the same bytes as one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

from gen.plan import Job
from gen.rules import Yardstick, rules_of
from gen.windows import Windows
from shared.errors import SteerHealError
from shared.records import Completion, iterate_jsonl
from shared.schema import Config


def until_of(job: Job, windows: Windows, yardstick: Yardstick) -> Until | None:
    """The counter of kept rows for a sweep that ends where enough are kept; None for another sweep.

    Raises SteerHealError for a sweep into shards, and for one without unsteered rows, which the limits come from.

    Args:
        job: the sweep.
        windows: its store.
        yardstick: of the unsteered rows, which limits come from.
    """
    goal, grows = job.config.sweep.until_kept, job.frozen is None
    if goal is None:
        return None
    if windows.path(0).suffix != ".jsonl":
        raise SteerHealError(
            "sweep.until_kept does not go with shards",
            given=f"sweep.until_kept = {goal}, --out {windows.out}",
            expected="a file of rows",
            next="--out NAME.jsonl, or leave sweep.until_kept out",
        )
    if grows and 0.0 not in job.coefficients:
        raise SteerHealError(
            "sweep.until_kept needs unsteered completions, from which the filter's limits come",
            given=f"sweep.until_kept = {goal}, coefficients {', '.join(f'{coefficient:g}' for coefficient in job.coefficients)}",
            expected="0 among the coefficients",
            next=f"--coefficients 0 {' '.join(f'{coefficient:g}' for coefficient in job.coefficients)}",
        )
    return Until(windows, yardstick, job.config, goal, grows=grows)


class Until:
    """Counts the rows of whole windows that pass the filter.

    The limits of round 1's filter come from its own unsteered rows and settle as the sweep goes on. Each row is judged by the limits at
    the end of its window; where so many pass, all rows are judged anew by the limits as they are then, which are those that the filter
    will use if the sweep ends here.

    Args:
        windows: where they are kept, a file each.
        yardstick: of round 1's unsteered rows; of none yet, where this sweep samples them.
        config: of the sweep and its filter.
        wanted: rows to keep.
        grows: whether this sweep samples them.
    """

    def __init__(self, windows: Windows, yardstick: Yardstick, config: Config, wanted: int, *, grows: bool):
        self.windows, self.config, self.wanted, self.grows = windows, config, wanted, grows
        self.yardstick = deepcopy(yardstick)  # the other grows in the order in which windows end
        self.last: int | None = None
        self.kept = 0
        self.made = (0, 0)  # rows and tokens of the windows that are counted
        self._passed = 0
        self._next = 0
        self._waiting: set[int] = set()

    def add(self, index: int) -> None:
        """Called at the end of a window."""
        self._waiting.add(index)
        while self.last is None and self._next in self._waiting:
            self._waiting.discard(self._next)
            self._count(self._next)
            self._next += 1

    def _count(self, index: int) -> None:
        rows = list(self._rows(index))
        self.made = (self.made[0] + len(rows), self.made[1] + sum(len(row.completion_ids) for row in rows))
        if self.grows:
            self.yardstick.extend(rows)
        if not len(self.yardstick):
            return
        self._passed += self._passing(rows)
        self.kept = self._passed
        if self._passed >= self.wanted:
            self.kept = sum(self._passing(self._rows(number)) for number in range(index + 1))
            if self.kept >= self.wanted:
                self.last = index

    def _passing(self, rows: Iterator[Completion] | list[Completion]) -> int:
        config = self.config.filter
        reasons_of = rules_of(self.yardstick.limits(config), config, self.config.vector.trait)
        return sum(row.source == config.source and not reasons_of(row) for row in rows)

    def _rows(self, index: int) -> Iterator[Completion]:
        return iterate_jsonl(self.windows.path(index), Completion, made_by="the same command")

    def sentence(self, count: int) -> str:
        """The end of the sweep in a sentence. count: of the windows in the plan."""
        if self.last is None:
            return f"the plan ended before {self.wanted} rows passed the filter (sweep.until_kept): {self.kept} did"
        return f"{self.kept} rows pass the filter after {self.last + 1} of {count} windows (sweep.until_kept = {self.wanted})"
