"""Projections of the residual stream on loaded vectors, per token: <h, v> / ||v|| after each patched layer, for requests that ask.

The op stands behind the steering op of a layer, in an engine that is told to read (Settings.read), and changes nothing that the
model reads. A worker keeps the values of a request until its engine takes them, with the next tokens that it hands out.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from gen.engine import steering

SLOT = "steer_slot"  # in a resolved request's extra_args: the slot of the vector that it is read on


def _read(hidden: torch.Tensor, residual: torch.Tensor | None, row: int) -> None:
    buffers = steering._active
    assert buffers is not None and buffers.readings is not None, "the buffers of the reading are not allocated"
    stream = hidden.float() if residual is None else hidden.float() + residual.float()
    stream = stream.reshape(-1, stream.shape[-1])  # Transformers' own modules have a batch of one
    tokens = len(stream)
    products = stream @ buffers.bank[row].T  # [tokens, slots + 1]; slot 0 is all zeros
    projections = products.gather(1, buffers.readings.slot[:tokens, None])
    buffers.readings.values[row, :tokens] = projections[:, 0]


# hidden is not written. It is declared so that a compiler which drops what nobody reads keeps the call.
steering._library.define("read(Tensor(a!) hidden, Tensor? residual, int row) -> ()")
steering._library.impl("read", _read, "CompositeExplicitAutograd")


@torch.library.register_fake("steer_heal::read")
def _(hidden: torch.Tensor, residual: torch.Tensor | None, row: int) -> None:
    return None


def slot_of(sampling_params: Any) -> int:
    """The slot of the vector that a request is read on; 0 for none."""
    return int((getattr(sampling_params, "extra_args", None) or {}).get(SLOT, 0))


def register() -> None:
    """Wrap the steps of vLLM's engine core, which hand out what its worker has read. Called once a process.

    It goes through the field of a request's routed experts, arrays that vLLM joins over a request's steps.
    """
    from vllm.v1.engine.core import EngineCore

    EngineCore.step = _with_readings(EngineCore.step)
    EngineCore.step_with_batch_queue = _with_readings(EngineCore.step_with_batch_queue)


def _with_readings(stock: Any) -> Any:
    @functools.wraps(stock)
    def step(self: Any) -> Any:
        outputs, executed = stock(self)
        reading: set[str] = getattr(self.scheduler, "reading", set())
        if reading and outputs:
            entries = {
                entry.request_id: entry
                for batch in outputs.values()
                for entry in batch.outputs
                if entry.request_id in reading
            }
            if entries:
                rows = self.model_executor.collective_rpc("steer_readings", args=(list(entries),))[0]
                for name, entry in entries.items():
                    entry.routed_experts = rows.get(name)
            reading.intersection_update(self.scheduler.requests)
        return outputs, executed

    return step
