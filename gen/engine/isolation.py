"""What a worker does so that one request never reaches another: blocks zeroed when asked for, logits that are not finite reported.

gen/engine/scheduler.py asks for the one and acts on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def prepare_zeroing(runner: Any, kv_cache_config: Any) -> dict[str, Callable[..., Any]]:
    """Make a runner able to zero cache blocks, once its cache is allocated.

    vLLM prepares its kernel only for a model that needs it anyway. On a CPU its first runner zeroes blocks of full attention
    only, but sliding windows have blocks too.

    Returns:
        The methods of the runner to replace, by name.
    """
    if runner.device.type == "cpu" and hasattr(runner, "_zero_block_ids"):
        return {"_zero_block_ids": zeroer(runner.kv_caches, kv_cache_config.num_blocks)}
    if not kv_cache_config.needs_kv_cache_zeroing:
        runner._init_kv_zero_meta()
    return {}


def zeroer(caches: list[Any], blocks: int) -> Callable[[list[int]], None]:
    """A function that zeroes blocks by their ids, in caches [blocks * k, ...] of any layers; layers may share memory."""
    tensors = {cache.data_ptr(): cache for cache in caches if isinstance(cache, torch.Tensor)}.values()
    split = [(cache, cache.shape[0] // blocks) for cache in tensors]  # a kernel's block may be a part of the manager's

    def zero(ids: list[int]) -> None:
        for cache, parts in split:
            for block in ids:
                cache[block * parts : (block + 1) * parts].zero_()

    return zero


def overflowed(logits: torch.Tensor) -> torch.Tensor:
    """Which rows of logits [rows, vocabulary] hold NaN or +inf: bool [rows]. -inf is a token that a processor forbids."""
    total = logits.sum(-1, dtype=torch.float32)
    return total.isnan() | (total == torch.inf)


def report_overflow_v1(runner: Any) -> Callable[..., Any]:
    """The first runner's bookkeeping, which then counts logits that are not finite as vLLM counts NaN when its environment asks.

    `vllm/v1/worker/gpu_model_runner.py` returns the counts by request first, or, scheduling asynchronously, on the device second.
    """
    stock = runner._bookkeeping_sync

    def bookkeeping(scheduler_output: Any, sampler_output: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
        counts, on_device, *rest = stock(scheduler_output, sampler_output, logits, *args, **kwargs)
        if logits is not None:
            bad = overflowed(logits)
            if runner.use_async_scheduling:
                on_device = bad.int()
            elif bad.any():
                rows = bad.tolist()
                counts = {name: int(rows[row]) for name, row in runner.input_batch.req_id_to_index.items()}
        return counts, on_device, *rest

    return bookkeeping


def report_overflow_v2(runner: Any) -> None:
    """Have the sampler of vLLM's second runner report rows whose logits overflowed.

    It counts NaN if it was started with that option, but its kernel does not count infinities. Triton's interpreter, used in tests on
    a CPU, cannot run that kernel.
    """
    from vllm.v1.worker.gpu.sample import sampler

    sampler.get_num_nans = count_overflow
    if runner.sampler is not None:
        runner.sampler.compute_nans = True


def count_overflow(logits: torch.Tensor) -> torch.Tensor:
    """1 for a row of logits that overflowed, else 0: int32 [rows]. The row is made 0, for kernels that search NaN for a maximum."""
    bad = overflowed(logits)
    logits.masked_fill_(bad.unsqueeze(1), 0)
    return bad.int()
