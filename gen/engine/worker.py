"""vLLM workers with the steering patch, resolved by name through `worker_cls`; both generations of vLLM's model runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from vllm.platforms import current_platform
from vllm.v1.worker.worker_base import WorkerBase

from gen.engine import adapters, isolation, steering
from gen.engine.generators import make_rewindable
from gen.engine.plugin import SCHEDULER
from gen.engine.read_buffers import Readings
from gen.engine.reading import slot_of
from gen.engine.requests import RESOLVED
from gen.engine.settings import key_by_graph, settings_of
from gen.engine.steering import UNSTEERED, Steer, Term
from shared.vectors import load_vector


def steer_of(sampling_params: Any) -> Steer:
    """The steering that the input processor resolved for a request. Raises RuntimeError for one that asks for steering and never met it."""
    extra = getattr(sampling_params, "extra_args", None) or {}
    if RESOLVED in extra:
        return tuple(extra[RESOLVED])
    if any(key.startswith(RESOLVED) for key in extra):
        raise RuntimeError(f"{extra} was not read by gen.engine.plugin: is it left out of VLLM_PLUGINS?")
    return UNSTEERED


class Steering(WorkerBase):
    """Mixin over a vLLM worker: patches the layers after loading, fills the buffers before every step."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        settings = settings_of(self.vllm_config)
        if settings is None:
            raise RuntimeError("a steered worker without additional_config['steering']")
        if self.scheduler_config.scheduler_cls != SCHEDULER:
            raise RuntimeError(f"steering is configured but the scheduler is not ours: --scheduler-cls {SCHEDULER}")
        key_by_graph(self.vllm_config, settings)
        text = self.model_config.hf_text_config
        if settings.adapted:
            adapters.narrow(self.model_runner, settings.adapted, text.num_hidden_layers)
        super().load_model(*args, **kwargs)
        self.steering = steering.Buffers.allocate(
            settings.layers,
            settings.slots,
            self.scheduler_config.max_num_batched_tokens,
            text.hidden_size,
            self.model_runner.device,
        )
        self.steering.count = settings.count
        if settings.read:
            self.steering.readings = Readings.allocate(self.steering.bank, len(self.steering.slot))
        steering.use_buffers(self.steering)
        for slot, (name, vector) in enumerate(settings.load(), start=1):
            vector.check(name, hidden=text.hidden_size, depth=text.num_hidden_layers)
            self.steering.put(slot, vector.layers)
        self.patch = steering.Patch(
            self.model_runner.get_model(), text.num_hidden_layers, self.steering.rows, read=settings.read
        )
        self.patch_on = self.probing = False
        second = hasattr(self.model_runner, "req_states")
        if not second and self.model_runner.device.type == "cpu":
            make_rewindable(self.model_runner)
        self.followed = (_follow_v2 if second else _follow_v1)(self)
        self.stock = {name: getattr(self.model_runner, name) for name in self.followed}
        self.steer_patch(True)

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """After vLLM's own, which allocates the cache."""
        super().initialize_from_config(kv_cache_config)
        for name, method in isolation.prepare_zeroing(self.model_runner, kv_cache_config).items():
            self.followed[name], self.stock[name] = method, lambda _: None  # stock vLLM zeroes no block of such a model
            setattr(self.model_runner, name, method)

    def compile_or_warm_up_model(self) -> Any:
        """After vLLM's own: prove that what will run holds the op, whatever cache it was loaded from."""
        times = super().compile_or_warm_up_model()
        self.steering.forget()
        probe = (Term(slot=1, coefficient=0.0),)
        self.steering.fill(["probe"], [probe], np.array([1]), np.array([0]))
        self.probing = True
        self.model_runner._dummy_run(1)
        self.probing = False
        if not all(ran := self.steering.ran.tolist()):
            raise RuntimeError(
                f"the op ran {ran} times in layers {list(self.steering.rows)}: a compiled model without it was loaded; "
                "remove ~/.cache/vllm and start again"
            )
        self.steering.forget()
        return times

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """vLLM's own, but that experts on the CPU are packed for their kernel again.

        vLLM packs them when it sets the kernel up, which it leaves out at a reload: the kernel would read the new weights, which
        are not packed, as packed ones, and answer nonsense without an error.
        """
        if self.model_runner.device.type == "cpu":
            for module in self.model_runner.get_model().modules():
                method: Any = getattr(module, "quant_method", None)
                if getattr(method, "moe_kernel", None) is not None:
                    method.moe_kernel = None
        super().reload_weights(*args, **kwargs)

    def steer_patch(self, on: bool) -> list[str]:
        """Put the patch on, or take it off: stock layer classes and stock runner methods. Returns the names of its layers."""
        if on == self.patch_on:
            return list(self.patch.layers)
        self.patch_on = on
        (self.patch.put_on if on else self.patch.take_off)()
        for name, method in (self.followed if on else self.stock).items():
            setattr(self.model_runner, name, method)
        return list(self.patch.layers)

    def steer_load(self, slot: int, path: str) -> None:
        """Put a vector file into a slot of the bank."""
        self.steering.put(slot, load_vector(Path(path)).layers)

    def steer_readings(self, names: list[str]) -> dict[str, np.ndarray]:
        """The readings of requests since the last call, by id: fp32 [n, 1 + patched layers], positions and projections."""
        return self.steering.readings.take(names) if self.steering.readings is not None else {}

    def steer_fired(self) -> dict[str, int]:
        """Tokens steered per request id since the last call."""
        return self.steering.report()


def _follow_v1(worker: Any) -> dict[str, Any]:
    """Runner methods of the first generation (`vllm/v1/worker/gpu_model_runner.py`), which the CPU runner inherits.

    Inside _prepare_inputs the batch is reordered for this step; before it, it is the last step's.
    """
    runner = worker.model_runner
    stock = runner._prepare_inputs

    def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any) -> Any:
        batch = runner.input_batch
        count = len(batch.req_ids)
        worker.steering.fill(
            batch.req_ids,
            [steer_of(runner.requests[name].sampling_params) for name in batch.req_ids],
            num_scheduled_tokens[:count],
            batch.num_computed_tokens_cpu[:count],
        )
        if (readings := worker.steering.readings) is not None:
            readings.alive = runner.requests
            slots = [slot_of(runner.requests[name].sampling_params) for name in batch.req_ids]
            readings.fill(batch.req_ids, slots, num_scheduled_tokens[:count], batch.num_computed_tokens_cpu[:count])
        return stock(scheduler_output, num_scheduled_tokens, *args, **kwargs)

    return {"_prepare_inputs": prepare_inputs, "_bookkeeping_sync": isolation.report_overflow_v1(runner)}


def _follow_v2(worker: Any) -> dict[str, Any]:
    """Runner methods of the second generation (`vllm/v1/worker/gpu/model_runner.py`).

    It forgets the sampling parameters once a request is added, and adds a preempted request again when it resumes. Dummy steps,
    which graphs are captured in, prepare no inputs: they find the buffers cleared.
    """
    runner, steers, slots = worker.model_runner, dict[str, Steer](), dict[str, int]()
    isolation.report_overflow_v2(runner)
    add, prepare, execute = runner.add_requests, runner.prepare_inputs, runner.execute_model

    def add_requests(scheduler_output: Any) -> None:
        for name in scheduler_output.finished_req_ids:
            steers.pop(name, None)
            slots.pop(name, None)
        for new in scheduler_output.scheduled_new_reqs:
            steers[new.req_id] = steer_of(new.sampling_params)
            slots[new.req_id] = slot_of(new.sampling_params)
        add(scheduler_output)

    def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
        batch = prepare(*args, **kwargs)
        scheduled = np.asarray(batch.num_scheduled_tokens[: batch.num_reqs])
        computed = batch.num_computed_tokens_np[: batch.num_reqs]
        worker.steering.fill(batch.req_ids, [steers[name] for name in batch.req_ids], scheduled, computed)
        if (readings := worker.steering.readings) is not None:
            readings.alive = slots
            readings.fill(batch.req_ids, [slots[name] for name in batch.req_ids], scheduled, computed)
        return batch

    def execute_model(scheduler_output: Any, *args: Any, dummy_run: bool = False, **kwargs: Any) -> Any:
        if dummy_run and not worker.probing:
            worker.steering.clear()
        return execute(scheduler_output, *args, dummy_run=dummy_run, **kwargs)

    return {"add_requests": add_requests, "prepare_inputs": prepare_inputs, "execute_model": execute_model}


if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker

    class Worker(Steering, CPUWorker):
        """The CPU worker, steered."""
else:
    from vllm.v1.worker import gpu_worker

    class Worker(Steering, gpu_worker.Worker):  # type: ignore[no-redef]
        """The GPU worker, steered, over either generation of its model runner."""
