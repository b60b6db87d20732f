"""Who makes the windows of a sweep: this process, workers on this machine, or workers on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from gen.plan import Job, Planned, sampled_on
from gen.pool import Executor, Item, Pool
from gen.prompts import PromptRenderer
from gen.sampler import Sampler, start_sampler
from gen.students import ServedStudent
from shared.commands import setting
from shared.console import console
from shared.errors import SteerHealError
from shared.records import Completion, as_jsonl

if TYPE_CHECKING:
    from gen.engine.engine import Engine

Advance = Callable[[float, int], None]


class Crew(Protocol):
    """about: how many workers, their threads and machines, for the manifest."""

    about: dict[str, Any]

    def made_in(self) -> dict[str, Any]:
        """The conditions of its workers that rows depend on in addition to their plan, as `gen.plan.sampled_on` returns them."""

    def begin(self) -> None:
        """Start its engines, where they have not started; the first is ready when this returns."""

    def make(self, work: Iterable[Item], advance: Advance) -> Iterator[tuple[int, bytes]]:
        """The windows and their rows as JSONL, each once, in whatever order; advance(rows, tokens) where it is known on the way."""

    def rows(self, planned: Sequence[Planned]) -> list[Completion]:
        """The completions of planned rows, in their order."""


class Alone:
    """This process."""

    def __init__(self, job: Job, renderer: PromptRenderer):
        self._job, self._renderer = job, renderer
        self._engine: Engine | None = None
        self._sampler: Sampler | None = None
        self.about = {"count": 1}

    def made_in(self) -> dict[str, Any]:
        return sampled_on()

    def begin(self) -> None:
        if self._sampler is None:
            self._engine, self._sampler = start_sampler(
                self._job.config,
                self._renderer,
                self._job.student,
                ServedStudent(self._job.origin.folder),
                self._job.vector,
            )

    def make(self, work: Iterable[Item], advance: Advance) -> Iterator[tuple[int, bytes]]:
        for index, planned in work:
            assert self._sampler is not None
            yield index, as_jsonl(self._sampler(planned, advance))

    def rows(self, planned: Sequence[Planned]) -> list[Completion]:
        assert self._sampler is not None
        return self._sampler(planned, lambda *_: None)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


class Workers:
    """Workers of an executor."""

    def __init__(self, executor: Executor, size: int, made_in: dict[str, Any] | None):
        """made_in: what they have to be; None where the first of them says it."""
        self._pool, self._made_in = Pool(executor, size, made_in), made_in
        self.about: dict[str, Any] = {"count": size, "on": executor.name}

    def made_in(self) -> dict[str, Any]:
        if self._made_in is not None:
            return self._made_in
        self.begin()
        return dict(self._pool.about["place"])

    def begin(self) -> None:
        if not self._pool.about:
            with console.status("starting the workers"):
                about = self._pool.begin()
            self.about |= {name: about[name] for name in ("threads", "cache_blocks")}

    def make(self, work: Iterable[Item], advance: Advance) -> Iterator[tuple[int, bytes]]:
        return self._pool.make(work)

    def rows(self, planned: Sequence[Planned]) -> list[Completion]:
        ((_, rows),) = self._pool.make([(0, planned)])
        return [Completion.model_validate_json(line) for line in rows.splitlines()]

    def close(self) -> None:
        self._pool.close()


@contextmanager
def employ(job: Job, renderer: PromptRenderer) -> Iterator[Crew]:
    """The crew that the configuration asks for; its engines and processes end with the context.

    Raises SteerHealError where there are fewer GPUs than workers.
    """
    size, address = job.config.sweep.workers, job.config.cluster.address
    if address is not None:
        from gen.cluster import Cluster, threads_of_worker
        from gen.recipe import Recipe

        recipe = Recipe.of(job, renderer.chat.day, threads_of_worker())
        with Cluster(recipe, address, size) as cluster, closing(Workers(cluster, size, None)) as crew:
            yield crew
    elif size > 1:
        from gen.local import Local, devices_here, threads_of
        from gen.recipe import Recipe

        each = job.config.model.tensor_parallel
        devices = devices_here(each)
        if len(devices) < size and devices_here():
            raise SteerHealError(
                "there are fewer GPUs than workers",
                given=f"{size} workers of {each} GPUs, {len(devices_here())} GPUs",
                expected=f"{each} GPUs for each worker",
                next=f"{setting(f'sweep.workers={max(1, len(devices))}')}, or name a cluster: {setting('cluster.address=HOST:PORT')}",
            )
        local = Local(Recipe.of(job, renderer.chat.day, threads_of(size)), devices)
        with closing(Workers(local, size, sampled_on())) as crew:
            yield crew
    else:
        with closing(Alone(job, renderer)) as alone:
            yield alone
