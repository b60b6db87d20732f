"""Windows of a sweep made by workers: who gets which, and what is done about those that die, hang or differ."""

from __future__ import annotations

import bisect
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gen.plan import Planned
from shared.console import say
from shared.errors import Exit, SteerHealError
from shared.provenance import differences

TRIES = 3  # workers that a window may lose before it is set aside
START_SECONDS = 1800.0  # until a worker has to be ready: downloading a large model is part of it
FIRST_SECONDS = 3600.0  # for a window, before any is known to take less
SLACK = 10.0  # times the median window, after which a worker hangs
LEAST_SECONDS = 300.0  # that no window is refused
Item = tuple[int, Sequence[Planned]]  # a window: its index and its planned rows


@dataclass(frozen=True)
class Ready:
    """A worker has its engine. about: as gen.recipe.Maker.about returns it."""

    about: dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A worker has made its window: lines of JSONL."""

    rows: bytes


@dataclass(frozen=True)
class RefusedWindow:
    """A worker met an error that another worker would meet too."""

    error: SteerHealError


@dataclass(frozen=True)
class Lost:
    """A worker is gone, with the window that it had."""

    reason: str


Message = Ready | Made | RefusedWindow | Lost


class Executor(Protocol):
    """Where workers run. A worker is named by a number, used once."""

    name: str

    def start(self) -> int:
        """Start a worker; its first message is Ready, Refused or Lost."""

    def give(self, worker: int, rows: Sequence[Planned]) -> None:
        """Have a worker that is ready make a window; its next message is Made, Refused or Lost."""

    def wait(self, seconds: float) -> list[tuple[int, Message]]:
        """The messages that have come, after waiting at most `seconds`; there may be none."""

    def stop(self, worker: int) -> None:
        """End a worker at once. Nothing comes from it afterwards."""


@dataclass
class _At:
    """What a worker is at: a window and since when, or its start."""

    since: float
    item: Item | None = None


@dataclass
class Pool:
    """Makes windows on `size` workers of an executor, in whatever order they end.

    A worker that dies or hangs is replaced, and its window given to another. A window that has cost TRIES workers is set aside and
    named at the end. Workers whose rows would differ from the first one's are refused by name.

    Args:
        made_in: what `gen.plan.sampled_on` of every worker has to return; None for that of the first.
        start_seconds, first_seconds, slack, least_seconds: deadlines, as the constants above say.
    """

    executor: Executor
    size: int
    made_in: dict[str, Any] | None = None
    start_seconds: float = START_SECONDS
    first_seconds: float = FIRST_SECONDS
    slack: float = SLACK
    least_seconds: float = LEAST_SECONDS
    clock: Callable[[], float] = time.monotonic
    about: dict[str, Any] = field(default_factory=dict)
    _at: dict[int, _At] = field(default_factory=dict)
    _idle: deque[int] = field(default_factory=deque)
    _took: list[float] = field(default_factory=list)  # seconds of the windows that are made, ascending
    _died_early: int = 0

    def begin(self) -> dict[str, Any]:
        """Start the workers, and wait for the first. Returns its `about`.

        Raises SteerHealError where none becomes ready.
        """
        for _ in range(self.size):
            self._start()
        while not self.about:
            self._step()
        return self.about

    def make(self, work: Iterable[Item]) -> Iterator[tuple[int, bytes]]:
        """The windows and their rows as JSONL, each once, in the order in which they end.

        Raises SteerHealError for an error that every worker would meet, and at the end where a window was set aside.
        """
        rest, again = iter(work), deque[Item]()
        losses: Counter[int] = Counter()
        reasons: dict[int, str] = {}
        ended = False
        while True:
            while self._idle and not ended:
                item = again.popleft() if again else next(rest, None)
                if item is None:
                    ended = True
                    break
                worker = self._idle.popleft()
                self._at[worker] = _At(self.clock(), item)
                self.executor.give(worker, item[1])
            busy = any(post.item for post in self._at.values())
            if ended and not busy:
                if not again:
                    break
                ended = False  # a window came back behind the last one
                continue
            for worker, item, message in self._step():
                index = item[0]
                if isinstance(message, Made):
                    yield index, message.rows
                    continue
                losses[index] += 1
                reasons[index] = message.reason
                aside = losses[index] >= TRIES
                say(
                    f"window {index + 1}: worker {worker} is lost ({message.reason}); "
                    + ("set aside" if aside else "another worker makes it")
                )
                if not aside:
                    again.append(item)
                    ended = False
        if hopeless := sorted(index for index, count in losses.items() if count >= TRIES):
            raise SteerHealError(
                "every worker that samples a certain window of the sweep dies",
                given="; ".join(f"window {index + 1}: {reasons[index]}" for index in hopeless),
                expected=f"one of {TRIES} workers to finish the window",
                next="lower sweep.window or model.gpu_memory if its workers ran out of memory; the same command tries those windows again",
                code=Exit.MACHINE,
            )

    def close(self) -> None:
        """End all workers."""
        for worker in [*self._at, *self._idle]:
            self.executor.stop(worker)
        self._at.clear()
        self._idle.clear()

    def _start(self) -> None:
        self._at[self.executor.start()] = _At(self.clock())

    def _step(self) -> list[tuple[int, Item, Made | Lost]]:
        """Wait a moment; what became of windows at work. Workers that start, fail to, or die while idle are seen to here."""
        heard = [(worker, self._heard(worker, message)) for worker, message in self.executor.wait(1.0)]
        # behind the answers: a worker that answered late has answered
        heard += [(worker, self._heard(worker, message)) for worker, message in self._overdue()]
        return [(worker, *end) for worker, end in heard if end is not None]

    def _heard(self, worker: int, message: Message) -> tuple[Item, Made | Lost] | None:
        """Take note of a message; the window that it ends, with itself, or None."""
        if worker in self._idle and isinstance(message, Lost):
            self._idle.remove(worker)
            self._start()
            return None
        post = self._at.get(worker)
        if post is None:
            return None
        if isinstance(message, RefusedWindow):
            raise message.error
        if isinstance(message, Ready):
            self._admit(worker, message.about)
            return None
        del self._at[worker]
        if post.item is None:
            assert isinstance(message, Lost)
            self._not_started(worker, message.reason)
            return None
        if isinstance(message, Made):
            bisect.insort(self._took, self.clock() - post.since)
            self._idle.append(worker)
        else:
            self._start()
        return post.item, message

    def _overdue(self) -> list[tuple[int, Message]]:
        limit = (
            max(self.least_seconds, self.slack * self._took[len(self._took) // 2]) if self._took else self.first_seconds
        )
        overdue: list[tuple[int, Message]] = []
        for worker, post in self._at.items():
            allowed = self.start_seconds if post.item is None else limit
            if self.clock() - post.since > allowed:
                self.executor.stop(worker)
                overdue.append((worker, Lost(f"no answer within {allowed:.0f} s")))
        return overdue

    def _admit(self, worker: int, about: dict[str, Any]) -> None:
        first = self.about or about
        expected = {
            "place": self.made_in or first["place"],
            "cache_blocks": first["cache_blocks"],
            "threads": first["threads"],
        }
        if unlike := differences(expected, {name: about[name] for name in expected}):
            raise SteerHealError(
                "a worker would make other rows than the others",
                given=f"worker {worker} (process {about['process']} on {about['host']}): {'; '.join(unlike)}",
                expected="the same code, versions, device, cache and threads for every worker",
                next="leave that machine out, or install the same checkout and lock there",
                code=Exit.MACHINE,
            )  # fmt: skip
        self.about, self._died_early = first, 0
        del self._at[worker]
        self._idle.append(worker)
        say(f"worker {worker}: process {about['process']} on {about['host']}, ready in {about['start_seconds']:.0f} s")

    def _not_started(self, worker: int, reason: str) -> None:
        self._died_early += 1
        say(f"worker {worker} did not start: {reason}")
        if self._died_early < 2 * self.size + 1:
            self._start()
        elif not any(post.item for post in self._at.values()) and not self._idle:
            raise SteerHealError(
                f"no worker starts on {self.executor.name}",
                given=f"{self._died_early} attempts, the last: {reason}",
                expected="a worker that loads the model and starts vLLM",
                next="make doctor on that machine says what is missing; the same command goes on",
                code=Exit.MACHINE,
            )
