"""A steered vLLM engine: requests with a vector slot and a coefficient each, one continuous batch for all of them."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gen.engine.options import (
    LARGEST_BATCH,
    engine_options,
    engine_uncompiled,
    set_environment,
    vision_explained,
)
from gen.engine.requests import Registry
from gen.engine.sampling import Output, Request, output_of, params_of
from gen.students import AdapterRoom, ServedStudent
from shared.console import console
from shared.errors import SteerHealError
from shared.runtime import gc_disabled
from shared.vectors import Vector


class Engine:
    """vLLM over one student at a time.

    folder: model folder; layers: the layers that any vector of this engine may steer; dtype of weights and cache; slots: vectors held
    at a time; students: those it is to serve, so that it makes room for their adapters; room: what the run makes room for besides;
    window: sweep.window, for how many sequences a GPU is set up; gpu_memory: share of a GPU's memory to take;
    tensor_parallel: GPUs that it is split over; read: whether requests may be read.

    vLLM compiles once for all engines of one model, dtype, context, layers, room and window.
    """

    def __init__(
        self,
        folder: Path,
        *,
        layers: Sequence[int],
        dtype: str,
        max_model_len: int,
        slots: int = 16,
        seed: int = 0,
        students: Sequence[ServedStudent] = (),
        room: AdapterRoom | None = None,
        window: int = LARGEST_BATCH,
        gpu_memory: float = 0.9,
        tensor_parallel: int = 1,
        read: bool = False,
        **options: Any,
    ):
        set_environment()
        options = {**engine_options(folder, dtype, students, room, window, gpu_memory, tensor_parallel), **options}
        adapted = sorted(set(room.layers if room else ()).union(*(student.layers for student in students)))
        self.folder, self.layers = folder, sorted(layers)
        self.adapter: Path | None = None
        with engine_uncompiled(options), gc_disabled(), vision_explained(folder):
            from vllm import LLM

            from gen.engine import plugin
            from gen.engine.settings import Settings

            plugin.register()
            self._llm = LLM(
                model=str(folder),
                worker_cls=plugin.WORKER,
                additional_config=Settings(layers=self.layers, slots=slots, count=True, adapted=adapted, read=read),
                trust_remote_code=False,
                dtype=dtype,
                max_model_len=max_model_len,
                seed=seed,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **options,
            )
        self._engine = self._llm.llm_engine
        self._registry: Registry = self._engine.input_processor.steering_registry
        self._names = itertools.count()
        self._adapters: dict[Path, int] = {}
        self.patched = self.patch(True)
        if [int(name.rpartition(".")[2]) for name in self.patched] != self.layers:
            raise RuntimeError(f"patched {self.patched}, wanted layers {self.layers}")
        self._self_test()

    def _self_test(self) -> None:
        """A non-zero coefficient must move the log-probabilities and coefficient 0 must not."""
        hidden = self._llm.model_config.hf_text_config.hidden_size
        probe = Vector({layer: np.full(hidden, 1.0, dtype=np.float32) for layer in self.layers})
        self.load("self-test", probe)
        ask = [
            Request([5, 6, 7, 8], label_ids=[9, 10, 11], vector=vector, coefficient=c)
            for vector, c in ((None, 0.0), ("self-test", 0.0), ("self-test", 4.0))
        ]
        plain, zero, moved = [output.label_logprobs for output in self.run(ask)]
        assert plain is not None and zero is not None and moved is not None
        if not np.allclose(plain, zero, atol=1e-3) or np.allclose(plain, moved, atol=1e-3):
            raise SteerHealError(
                "the steering patch has no effect in this engine",
                given=f"unsteered {plain}, at 0 {zero}, at 4 {moved}",
                expected="equal log-probabilities at 0 and different ones at 4",
                next="run `make doctor` and compare vllm with 0.32.0; clear ~/.cache/vllm",
            )
        self.unload("self-test")

    def load(self, name: str, vector: Vector) -> None:
        """Put a vector into a slot under a name; the same name again replaces it."""
        text = self._llm.model_config.hf_text_config
        vector.check(name, hidden=text.hidden_size, depth=text.num_hidden_layers)
        if outside := sorted(set(vector.layers) - set(self.layers)):
            raise SteerHealError(
                "a vector steers layers that this engine has not patched",
                given=f"layers {outside}",
                expected=f"layers among {self.layers}",
                next="start the engine with the layers of all its vectors",
            )
        loaded = self._registry.add(name, vector)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vector.safetensors"
            vector.save(path)
            self._llm.collective_rpc("steer_load", args=(loaded.slot, str(path)))

    def unload(self, name: str) -> None:
        """Free the slot of a vector."""
        self._registry.remove(name)

    def patch(self, on: bool) -> list[str]:
        """Put the patch on or take it off, to compare with stock vLLM; names of the patched layers. Not under compiled graphs."""
        names: list[str] = self._llm.collective_rpc("steer_patch", args=(on,))[0]
        return names

    def serve(self, student: ServedStudent) -> None:
        """Make these the weights of the requests that follow: swapped in place, or as an adapter over the engine's own."""
        if student.folder != self.folder:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(student.folder)})
            self.reset_cache()
            self.folder = student.folder
        self.adapter = student.adapter

    def reset_cache(self) -> None:
        """Drop the prefix cache, so that what follows does not depend on what ran before."""
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset: requests are still running")

    def run(self, requests: Sequence[Request], on_done: Callable[[int, Output], None] | None = None) -> list[Output]:
        """All requests in one continuous batch; results in request order, on_done(index, output) as each finishes.

        Raises RuntimeError when a steered request had no steered token: an unsteered answer is never returned for a steered one.
        """
        return [outputs[0] for outputs in self._batch(requests, None, on_done, len(requests))]

    def chain(
        self,
        requests: Sequence[Request],
        then: Callable[[int, list[Output]], Request | None],
        on_done: Callable[[int, Output], None] | None = None,
    ) -> list[list[Output]]:
        """Requests and what follows from them, in one continuous batch: then(index, outputs so far) is a chain's next request or None.

        A follower starts when the request before it ends, ahead of chains not yet begun, while the shared prefix is still cached.
        """
        return self._batch(requests, then, on_done, self._engine.vllm_config.scheduler_config.max_num_seqs)

    def _batch(
        self,
        requests: Sequence[Request],
        then: Callable[[int, list[Output]], Request | None] | None,
        on_done: Callable[[int, Output], None] | None,
        at_once: int,
    ) -> list[list[Output]]:
        outputs: list[list[Output]] = [[] for _ in requests]
        waiting = deque((index, request, self._checked(request)) for index, request in enumerate(requests))
        running: dict[str, tuple[int, Request]] = {}
        steered: dict[str, Request] = {}
        adapter = self._adapter()
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    index, request, params = waiting.popleft()
                    name = str(next(self._names))
                    prompt = {"prompt_token_ids": list(request.prompt_ids)}
                    # under its own name for vLLM, whose aborts and counters know no other
                    internal = self._engine.add_request(name, prompt, params, lora_request=adapter)
                    running[name] = index, request
                    if self._surely_steered(params, request):
                        steered[internal] = request
                for result in self._engine.step():
                    if not result.finished:
                        continue
                    index, request = running.pop(result.request_id)
                    if (output := output_of(result, request)) is None:
                        again = replace(request, score=True)
                        waiting.appendleft((index, again, self._checked(again)))
                        continue
                    outputs[index].append(output)
                    if on_done:
                        on_done(index, output)
                    if then and (follower := then(index, outputs[index])) is not None:
                        waiting.appendleft((index, follower, self._checked(follower)))
        except BaseException:
            self._engine.abort_request(list(running), internal=False)  # an interrupted batch leaves nothing behind
            raise
        fired = self._llm.collective_rpc("steer_fired")[0]
        idle = [request for name, request in steered.items() if not fired.get(name)]
        if idle:
            raise RuntimeError(f"{len(idle)} steered requests ran without one steered token, the first is {idle[0]}")
        return outputs

    def _checked(self, request: Request) -> Any:
        params = params_of(request)
        self._registry.read(params.extra_args, len(request.prompt_ids))
        return params

    def _surely_steered(self, params: Any, request: Request) -> bool:
        """Whether a window holds the prompt's last token. It runs whatever the cache holds; what stands before it may be cached with its
        steering, and an answer may end before what stands after it."""
        steer, _ = self._registry.read(params.extra_args, len(request.prompt_ids))
        return any(start < len(request.prompt_ids) <= end for _, _, start, end in steer)

    def _adapter(self) -> Any:
        from vllm.lora.request import LoRARequest

        if self.adapter is None:
            return None
        number = self._adapters.setdefault(self.adapter, len(self._adapters) + 1)
        return LoRARequest(str(self.adapter), number, str(self.adapter))

    @property
    def cache_blocks(self) -> int:
        """Blocks of the KV cache. Engines with fewer preempt sooner, and a preempted request may round differently."""
        return int(self._engine.vllm_config.cache_config.num_gpu_blocks)

    def close(self) -> None:
        self._engine.engine_core.shutdown()


def start(folder: Path, **options: Any) -> Engine:
    """An Engine, which whoever asked for it closes."""
    with console.status("starting vLLM"):
        return Engine(folder, **options)


@contextlib.contextmanager
def engine(folder: Path, **options: Any) -> Iterator[Engine]:
    """An Engine that is shut down afterwards."""
    llm = start(folder, **options)
    try:
        yield llm
    finally:
        llm.close()
