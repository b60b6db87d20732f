"""Workers of a sweep on a Ray cluster: actors, one GPU each, that need no disk of the driver's. The one file that imports ray."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from gen.plan import Planned
from gen.pool import Lost, Message
from gen.recipe import Recipe, as_plain
from shared.errors import SteerHealError, in_one_line
from shared.machine import cores

# settings of the driver that a worker needs as well; Ray's workers have the environment of `ray start`
PASSED = ("STEER_HEAL_", "VLLM_", "HF_", "TRANSFORMERS_", "GOMP_")


def threads_of_worker() -> int:
    """CPU threads of each worker: OMP_NUM_THREADS of the driver, or 1, which is what Ray gives."""
    return int(os.environ.get("OMP_NUM_THREADS") or 1)


class Cluster:
    """An executor: a worker is an actor. The context connects to the cluster, and leaves it."""

    def __init__(self, recipe: Recipe, address: str, size: int):
        """address: HOST:PORT of a cluster, 'auto' for the one that runs on this machine, 'local' for one of this machine's own.

        Raises SteerHealError where Ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise SteerHealError(
                "Ray is not installed",
                given=in_one_line(error),
                expected="the packages of requirements/cluster.txt, on every machine of the cluster",
                next=".venv/bin/uv pip install --no-deps -r requirements/cluster.txt",
            ) from None
        self._ray, self._recipe, self._address, self._size = ray, recipe, address, size
        self.name = f"the Ray cluster {address}"
        self._numbers = itertools.count(1)
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, int] = {}

    def __enter__(self) -> Cluster:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")
        local = self._address == "local"
        environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
        environment |= {"OMP_NUM_THREADS": str(self._recipe.threads)}
        if local and (path := os.environ.get("PYTHONPATH")):
            environment["PYTHONPATH"] = path
        own = {"num_cpus": max(self._size, cores()), "object_store_memory": 200 << 20, "include_dashboard": False}
        try:
            self._ray.init(
                # never None: that attaches to whatever cluster already runs on this machine
                address="local" if local else self._address,
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"env_vars": environment},
                **(own if local else {}),
            )
        except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
            raise SteerHealError(
                "the Ray cluster does not answer",
                given=f"{self._address}: {in_one_line(error)}",
                expected="a cluster begun with `ray start --head`, of this version of Ray and with this token",
                next="ray status says what runs; docs/scale.md says how a cluster is begun",
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()

    def start(self) -> int:
        number = next(self._numbers)
        gpus = (
            {"num_gpus": self._recipe.config.model.tensor_parallel}
            if self._ray.cluster_resources().get("GPU")
            else {"num_cpus": 1}
        )
        # Lost actors are replaced by the pool: a restarted one would keep the window that killed it.
        actor = self._ray.remote(Actor).options(max_restarts=0, **gpus).remote(self._recipe.model_dump(mode="json"))
        self._actors[number] = actor
        self._pending[actor.about.remote()] = number
        return number

    def give(self, worker: int, rows: Sequence[Planned]) -> None:
        self._pending[self._actors[worker].make.remote(as_plain(rows))] = worker

    def wait(self, seconds: float) -> list[tuple[int, Message]]:
        if not self._pending:
            return []
        ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=seconds)
        return [(self._pending[result], self._read(result, self._pending.pop(result))) for result in ready]

    def stop(self, worker: int) -> None:
        self._pending = {result: number for result, number in self._pending.items() if number != worker}
        if (actor := self._actors.pop(worker, None)) is not None:
            self._ray.kill(actor)

    def _read(self, result: Any, worker: int) -> Message:
        from gen.local import read_message

        try:
            return read_message(self._ray.get(result))
        except (self._ray.exceptions.RayError, OSError) as error:
            self._actors.pop(worker, None)
            return Lost(in_one_line(error))


class Actor:
    """A worker: the same engine and the same answers as gen.worker's."""

    def __init__(self, recipe: dict[str, Any]):
        from gen.recipe import Maker
        from shared.cli import quiet

        quiet()
        self._error: SteerHealError | None = None
        try:
            self._maker = Maker(Recipe.model_validate(recipe))
        except SteerHealError as error:
            self._error = error  # an error in here would reach the driver as text

    def about(self) -> dict[str, Any]:
        return {"error": self._error.as_dict()} if self._error else {"about": self._maker.about()}

    def make(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        from gen.worker import reply_to

        return reply_to(self._maker, {"rows": rows})
