"""What the op of gen/engine/reading.py reads and writes, and what was read of every request until its engine takes it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


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
    def allocate(cls, bank: torch.Tensor, tokens: int) -> Readings:
        """Zeroed buffers, on the device of the bank.

        Args:
            bank: of the steering buffers, [patched layers, slots + 1, hidden].
            tokens: of a step, at most.
        """
        layers, device = len(bank), bank.device
        return cls(
            slot=torch.zeros(tokens, dtype=torch.int64, device=device),
            values=torch.zeros(layers, tokens, dtype=torch.float32, device=device),
            bank=bank,
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
