"""vLLM's plugin entry point: every request is read before it enters an engine, in `vllm serve` as in a script.

Loaded by vLLM in each of its processes. An engine without steering behaves as it would without the plugin, but for one thing: a
request that asks for steering is refused there.
"""

from __future__ import annotations

import functools
from typing import Any

WORKER = "gen.engine.worker.Worker"


def register() -> None:
    """Wrap vLLM's input processor, once a process."""
    from vllm.v1.engine.input_processor import InputProcessor

    if not hasattr(InputProcessor, "steering_registry"):
        InputProcessor.__init__ = _with_registry(InputProcessor.__init__)
        InputProcessor.process_inputs = _with_steering(InputProcessor.process_inputs)
        InputProcessor.steering_registry = None


def _with_registry(stock: Any) -> Any:
    @functools.wraps(stock)
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        import torch

        from gen.engine.requests import Registry
        from gen.engine.settings import settings_of

        stock(self, vllm_config, *args, **kwargs)
        settings = settings_of(vllm_config)
        if settings is None:
            self.steering_registry = Registry(slots=0)
            return
        if vllm_config.parallel_config.worker_cls != WORKER:
            raise ValueError(f"steering is configured but the worker is not ours: --worker-cls {WORKER}")
        self.steering_registry = Registry(settings.slots, limit=float(torch.finfo(vllm_config.model_config.dtype).max))
        for name, vector in settings.load():
            self.steering_registry.add(name, vector)

    return init


def _with_steering(stock: Any) -> Any:
    @functools.wraps(stock)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.exceptions import VLLMValidationError

        from gen.engine.requests import RESOLVED
        from shared.errors import SteerHealError

        request = stock(self, request_id, prompt, params, *args, **kwargs)
        sampling = request.sampling_params
        if sampling is None or not sampling.extra_args:
            return request
        try:
            steer, salt = self.steering_registry.read(sampling.extra_args, len(request.prompt_token_ids or ()))
        except SteerHealError as error:
            raise VLLMValidationError(str(error), parameter="vllm_xargs") from None
        if salt is not None:
            sampling.extra_args = {**sampling.extra_args, RESOLVED: list(steer)}  # the engine's own copy of the params
            request.cache_salt = f"{request.cache_salt or ''}\0{salt}"
        return request

    return process_inputs
