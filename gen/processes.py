"""A pool of processes for work that Python does row by row, on all cores of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from shared.process import die_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 4  # items in work or waiting, per process


@contextmanager
def process_pool(size: int, start: Callable[[], None] | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool that ends with the command that began it, also where that is killed or interrupted.

    Args:
        size: number of processes. Each is spawned: a fork would copy threads of tokenizers and Arrow half way through their work.
        start: called once in every process, and picklable.
    """
    pool = ProcessPoolExecutor(size, multiprocessing.get_context("spawn"), _begin, (os.getpid(), start))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    pool: ProcessPoolExecutor, size: int, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in order; at most `AHEAD` items a process are taken beforehand, however many there are.

    Args:
        pool: of processes.
        size: its number of processes.
        function: of the module's top level, so that a process can import it.
        items: its arguments.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) >= AHEAD * size:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _begin(parent: int, start: Callable[[], None] | None) -> None:
    """In a process of the pool: a Ctrl-C is the parent's to handle, and this process ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if bind := die_with_parent(parent):
        bind()
    if start:
        start()
