"""vLLM workers with the steering patch, resolved by name through `worker_cls`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.worker.worker_base import WorkerBase

from gen.engine import steering
from gen.engine.generators import mark_partial
from shared.vectors import load_vector


class Steering(WorkerBase):
    """Mixin over a vLLM worker: patches the layers after loading, fills the buffers before every step.

    Configured by additional_config["steering"] = {"version", "layers", "slots"}, which is part of vLLM's compile-cache key:
    without it an unsteered compiled model would be loaded and the steering silently gone.
    """

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        settings = self.vllm_config.additional_config["steering"]
        text = self.model_config.hf_text_config
        self.steering = steering.Buffers.allocate(
            settings["layers"],
            settings["slots"],
            self.scheduler_config.max_num_batched_tokens,
            text.hidden_size,
            self.model_runner.device,
        )
        steering.activate(self.steering)
        self.patched_layers = steering.patch_layers(
            self.model_runner.get_model(), text.num_hidden_layers, settings["layers"]
        )
        self._follow_batches()

    def _follow_batches(self) -> None:
        runner, prepare = self.model_runner, self.model_runner._prepare_inputs
        on_cpu = runner.device.type == "cpu"

        def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any) -> Any:
            batch = runner.input_batch  # reordered by now; before this call it is the last step's
            steers = [(runner.requests[name].sampling_params.extra_args or {}).get("steer") for name in batch.req_ids]
            self.steering.fill(steers, num_scheduled_tokens, batch.num_computed_tokens_cpu[: len(steers)])
            prepared = prepare(scheduler_output, num_scheduled_tokens, *args, **kwargs)
            if on_cpu:
                mark_partial(runner)
            return prepared

        runner._prepare_inputs = prepare_inputs

    def steer_layers(self) -> list[str]:
        return self.patched_layers

    def steer_load(self, slot: int, path: str) -> None:
        """Put a vector file into a slot of the bank; layers outside the band stay zero."""
        vector = load_vector(Path(path))
        self.steering.bank[slot] = 0
        for layer, values in vector.layers.items():
            self.steering.bank[slot, self.steering.layers[layer]] = torch.from_numpy(values).to(
                self.steering.bank.device
            )

    def steer_fired(self) -> dict[int, int]:
        """Tokens steered per request tag since the last call."""
        fired, self.steering.fired = self.steering.fired, {}
        return fired


if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker

    class Worker(Steering, CPUWorker):
        """The CPU worker, steered."""
else:
    from vllm.v1.worker.gpu_worker import Worker as GPUWorker

    class Worker(Steering, GPUWorker):  # type: ignore[no-redef]
        """The GPU worker (V1 runner), steered."""
