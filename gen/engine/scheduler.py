"""vLLM's scheduler for a steered engine: no request meets what another left in the cache, and one that overflows ends in an error.

vLLM reuses cache blocks as they are. Its attention kernels read whole blocks and give the positions after a sequence's end
weight 0, and 0 * NaN is NaN: what an overflowed request left in a block would reach the next one that gets it. vLLM zeroes blocks
as they are allocated for models that need it; a steered engine needs it. Zeroed then rather than when they are freed, a block is
clean however its last request ended: stopped, aborted, preempted or in an error.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheConfig

from gen.engine.reading import slot_of

logger = init_logger(f"vllm.{__name__}")  # under vLLM's own, for its level and form


class ZeroedCacheConfig(KVCacheConfig):
    """A cache whose blocks are zeroed when they are allocated."""

    needs_kv_cache_zeroing = True  # there a property of the model


class IsolatingScheduler(Scheduler):
    """Mixin over vLLM's schedulers."""

    def __init__(self, *args: Any, kv_cache_config: KVCacheConfig, **kwargs: Any):
        zeroed = ZeroedCacheConfig(
            **{field.name: getattr(kv_cache_config, field.name) for field in fields(kv_cache_config)}
        )
        self.reading: set[str] = set()  # requests whose residual stream is read
        super().__init__(*args, kv_cache_config=zeroed, **kwargs)

    def add_request(self, request: Any) -> None:
        """As vLLM's; gen/engine/reading.py takes what was read with the tokens of these requests."""
        if slot_of(request.sampling_params):
            self.reading.add(request.request_id)
        super().add_request(request)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """As vLLM's, but a request with a logit that is not finite ends with the finish reason `error`.

        The token drawn from such logits is dropped: it would be sampled text.
        """
        counts = model_runner_output.num_nans_in_logits or {}
        for name in [name for name, count in counts.items() if count]:
            logger.warning("request %s ends in an error: its logits are not finite", name)
            row = model_runner_output.req_id_to_index[name]
            if model_runner_output.sampled_token_ids:
                model_runner_output.sampled_token_ids[row] = []
            model_runner_output.prompt_logprobs_dict.pop(name, None)
            self.grammar_compile_error_reqs.add(name)  # vLLM's list of what ends in an error with this step
        return super().update_from_output(scheduler_output, model_runner_output)


class SynchronousScheduler(IsolatingScheduler):
    """One step after the other, as on a CPU."""


class AsynchronousScheduler(IsolatingScheduler, AsyncScheduler):
    """The next step is scheduled while one runs, as on a GPU."""


def scheduler(vllm_config: Any, **options: Any) -> IsolatingScheduler:
    """The scheduler of a steered engine, for vLLM's scheduler_cls."""
    kind = AsynchronousScheduler if vllm_config.scheduler_config.async_scheduling else SynchronousScheduler
    return kind(vllm_config=vllm_config, **options)
