"""Windows given to workers: each comes back once and as it was made, whatever happens to the workers."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen.plan import Planned
from gen.pool import TRIES, Lost, Made, Message, Pool, Ready, RefusedWindow
from shared.errors import Exit, SteerHealError
from shared.records import Prompt

PLACE = {"code": "c", "device": "d"}
FATES = ("make", "die", "hang", "slow")


def window(index: int) -> list[Planned]:
    return [Planned(f"w{index}", index, Prompt(prompt="a"), 1.0, 0, index)]


class Simulated:
    """Workers whose fates are given in order of their windows, on a clock of their own."""

    name = "a simulation"

    def __init__(self, fates: Sequence[str] = (), starts: Sequence[Message] = (), poison: Sequence[str] = ()):
        self.fates, self.starts, self.poison = iter(fates), iter(starts), set(poison)
        self.now = 0.0
        self.numbers = itertools.count(1)
        self.alive: set[int] = set()
        self.due: list[tuple[float, int, Message]] = []
        self.most = 0

    def clock(self) -> float:
        return self.now

    def about(self, worker: int, **changes: Any) -> dict[str, Any]:
        return {"place": PLACE, "cache_blocks": 9, "threads": 1, "host": "h", "process": worker, "start_seconds": 1.0, **changes}  # fmt: skip

    def start(self) -> int:
        worker = next(self.numbers)
        self.alive.add(worker)
        self.most = max(self.most, len(self.alive))
        self.due.append((self.now + 20, worker, next(self.starts, None) or Ready(self.about(worker))))
        return worker

    def give(self, worker: int, rows: Sequence[Planned]) -> None:
        assert worker in self.alive and not any(other == worker for _, other, _ in self.due)
        fate = "die" if rows[0].key in self.poison else next(self.fates, "make")
        made = Made("".join(f"{row.key}\n" for row in rows).encode())
        if fate == "die":
            self.due.append((self.now + 3, worker, Lost("killed by signal 9")))
        elif fate != "hang":
            self.due.append((self.now + (10 if fate == "make" else 60), worker, made))

    def wait(self, seconds: float) -> list[tuple[int, Message]]:
        self.now += seconds
        ready = [(worker, message) for at, worker, message in self.due if at <= self.now]
        self.due = [entry for entry in self.due if entry[0] > self.now]
        self.alive -= {worker for worker, message in ready if isinstance(message, Lost)}
        return ready

    def stop(self, worker: int) -> None:
        self.alive.discard(worker)
        self.due = [entry for entry in self.due if entry[1] != worker]


def pool(executor: Simulated, size: int, **options: Any) -> Pool:
    limits = {"start_seconds": 100.0, "first_seconds": 200.0, "least_seconds": 90.0}
    return Pool(executor, size, clock=executor.clock, **{**limits, **options})


@given(st.integers(1, 4), st.integers(0, 12), st.lists(st.sampled_from(FATES), max_size=24))
def test_every_window_comes_back_once(size: int, count: int, fates: list[str]) -> None:
    executor = Simulated(fates)
    crew = pool(executor, size)
    crew.begin()
    made: list[tuple[int, bytes]] = []
    failed: SteerHealError | None = None
    try:
        made.extend(crew.make((index, window(index)) for index in range(count)))
    except SteerHealError as error:
        failed = error
    finally:
        crew.close()
    lost = sum(fate in ("die", "hang") for fate in fates)
    assert len({index for index, _ in made}) == len(made)
    assert all(rows == f"w{index}\n".encode() for index, rows in made)
    assert len(made) == count or (failed is not None and lost >= TRIES)
    assert executor.most <= size and not executor.alive


def test_a_window_that_kills_its_workers_is_set_aside_and_named() -> None:
    """The others are made all the same."""
    executor = Simulated(poison=["w1"])
    crew = pool(executor, 2)
    crew.begin()
    made = []
    with pytest.raises(SteerHealError, match="window 2: killed by signal 9") as caught:
        for index, _ in crew.make((index, window(index)) for index in range(6)):
            made.append(index)
    assert sorted(made) == [0, 2, 3, 4, 5] and caught.value.code == Exit.MACHINE
    crew.close()
    assert not executor.alive


def test_a_worker_that_dies_behind_its_window_is_replaced() -> None:
    """Both messages may come at once, and the window counts as made."""

    class Short(Simulated):
        def wait(self, seconds: float) -> list[tuple[int, Message]]:
            news = super().wait(seconds)
            ends = [(worker, Lost("killed by signal 9")) for worker, message in news if isinstance(message, Made)]
            self.alive -= {worker for worker, _ in ends}
            return [*news, *ends]

    executor = Short()
    crew = pool(executor, 2)
    crew.begin()
    assert sorted(index for index, _ in crew.make((index, window(index)) for index in range(6))) == list(range(6))
    crew.close()
    assert not executor.alive


def test_workers_that_differ_are_refused_by_name() -> None:
    executor = Simulated()
    other = Ready(executor.about(2, host="cousin", place={**PLACE, "code": "other"}))
    executor.starts = iter([Ready(executor.about(1)), other])
    crew = pool(executor, 2)
    with pytest.raises(SteerHealError, match=r"on cousin.*code"):
        crew.begin()
        list(crew.make((index, window(index)) for index in range(40)))


def test_the_plan_decides_what_a_worker_has_to_be() -> None:
    crew = pool(Simulated(), 1, made_in={**PLACE, "device": "another"})
    with pytest.raises(SteerHealError, match="device"):
        crew.begin()


def test_an_error_that_all_would_meet_ends_it() -> None:
    executor = Simulated(starts=[RefusedWindow(SteerHealError("no such model", next="name another"))])
    with pytest.raises(SteerHealError, match="no such model"):
        pool(executor, 2).begin()


def test_workers_that_never_start_are_given_up() -> None:
    executor = Simulated(starts=[Lost("exit code 1: no memory") for _ in range(99)])
    with pytest.raises(SteerHealError, match="no worker starts on a simulation") as caught:
        pool(executor, 3).begin()
    assert "7 attempts" in str(caught.value.given) and "no memory" in str(caught.value.given)


def test_one_worker_is_enough_where_the_others_do_not_start() -> None:
    executor = Simulated(starts=[Ready(Simulated().about(1)), *[Lost("no memory")] * 99])
    crew = pool(executor, 3)
    crew.begin()
    assert len(list(crew.make((index, window(index)) for index in range(20)))) == 20


class Timed(Simulated):
    """Workers that take their time, on a clock that goes from event to event: start-ups of 60 to 150 s, one window in a hundred four times
    as slow."""

    def __init__(self, seconds: float, seed: int = 0):
        super().__init__()
        self.seconds, self.draws = seconds, random.Random(seed)

    def start(self) -> int:
        worker = next(self.numbers)
        heapq.heappush(self.due, (self.now + self.draws.uniform(60, 150), worker, Ready(self.about(worker))))
        return worker

    def give(self, worker: int, rows: Sequence[Planned]) -> None:
        takes = max(self.draws.gauss(1, 0.25), 0.3) * self.seconds * (4 if self.draws.random() < 0.01 else 1)
        heapq.heappush(self.due, (self.now + takes, worker, Made(b"")))

    def wait(self, seconds: float) -> list[tuple[int, Message]]:
        self.now = max(self.now, self.due[0][0]) if self.due else self.now + seconds
        ready = []
        while self.due and self.due[0][0] <= self.now:
            ready.append(heapq.heappop(self.due)[1:])
        return ready

    def stop(self, worker: int) -> None:
        pass


def efficiency(workers: int, windows: int, seconds: float, driver: float) -> float:
    """Seconds that a sweep's windows take over those that its workers are held; driver: seconds of the driver a window."""
    executor = Timed(seconds)
    crew = Pool(executor, workers, clock=executor.clock)
    crew.begin()
    for _ in crew.make((index, []) for index in range(windows)):
        executor.now += driver
    return windows * seconds * 1.03 / (workers * executor.now)


@pytest.mark.parametrize(("workers", "windows", "least"), [(8, 50, 0.92), (8, 100, 0.95), (64, 100, 0.95)])
def test_workers_are_busy(workers: int, windows: int, least: float) -> None:
    """Of windows of a minute, as docs/scale.md advises."""
    assert least < efficiency(workers, workers * windows, 60.0, 0.08) < 1
