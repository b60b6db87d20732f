"""Projections of the residual stream on loaded vectors, per token: <h, v> / ||v|| after each patched layer, for requests that ask.

The op stands behind the steering op of a layer, in an engine that is told to read (Settings.read), and changes nothing that the
model reads. A worker keeps the values of a request until its engine takes them, with the next tokens that it hands out.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gen.engine import steering

if TYPE_CHECKING:
    from gen.engine.steering import Buffers

SLOT = "steer_slot"  # in a resolved request's extra_args: the slot of the vector that it is read on


@dataclass
class Readings:
    """What the op reads and writes, allocated once as the steering buffers are.

    slot [tokens] int64 of the current step, 0 for a token that is not read; values [patched layers, tokens] fp32, the products <h, v>.
    alive: ids of the requests that a worker has; what was read of others is dropped.
    """

    slot: torch.Tensor
    values: torch.Tensor
    bank: torch.Tensor
    alive: Container[str] = ()
    used: int = 0  # tokens the last fill wrote
    step: list[tuple[str, int, slice, int]] = field(
        default_factory=list
    )  # of it: request, first position, tokens, slot
    past: dict[str, list[tuple[int, torch.Tensor]]] = field(
        default_factory=dict
    )  # by request: first position, [layers, n]

    @classmethod
    def allocate(cls, buffers: Buffers) -> Readings:
        """Zeroed buffers for the tokens and layers of the steering buffers, on their device."""
        layers, tokens, device = len(buffers.bank), len(buffers.slot), buffers.bank.device
        return cls(
            slot=torch.zeros(tokens, dtype=torch.int64, device=device),
            values=torch.zeros(layers, tokens, dtype=torch.float32, device=device),
            bank=buffers.bank,
        )

    def fill(self, names: Sequence[str], slots: Sequence[int], scheduled: np.ndarray, computed: np.ndarray) -> None:
        """Set the buffers for one step; names, scheduled and computed as of the steering buffers, slots [requests]."""
        self.clear()
        if not any(slots):
            return
        rows = np.repeat(np.asarray(slots, dtype=np.int64), scheduled)
        source = torch.from_numpy(rows)
        self.slot[: len(rows)].copy_(source.pin_memory() if self.slot.is_cuda else source, non_blocking=True)
        self.used = len(rows)
        ends = np.cumsum(scheduled)
        for name, slot, end, count, first in zip(names, slots, ends, scheduled, computed, strict=True):
            if slot:
                self.step.append((name, int(first), slice(int(end - count), int(end)), slot))

    def clear(self) -> None:
        """Keep what the last step has read, and read nothing in the next one."""
        self._keep()
        self.past = {name: parts for name, parts in self.past.items() if name in self.alive}
        self.slot[: self.used] = 0
        self.used = 0

    def _keep(self) -> None:
        """A copy on the device: no wait for a step in flight."""
        for name, first, rows, slot in self.step:
            norms = self.bank[:, slot].norm(dim=1, keepdim=True)  # 0 in a layer without the vector: NaN
            self.past.setdefault(name, []).append((first, self.values[:, rows] / norms))
        self.step = []

    def take(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The readings of requests since the last call: fp32 [n, 1 + layers], the position and the projections."""
        self._keep()
        readings = {}
        for name in names:
            parts = self.past.pop(name, [])
            rows = [
                np.column_stack([np.arange(first, first + values.shape[1]), values.T.cpu().numpy()])
                for first, values in parts
            ]
            if rows:
                readings[name] = np.concatenate(rows).astype(np.float32)
        return readings


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
