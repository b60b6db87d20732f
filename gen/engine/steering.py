"""The steering op: hidden[t] += coefficient[t] * bank[row, slot[t]] over persistent per-token buffers.

One vector takes one slot whatever the number of coefficients, since the coefficient travels with the token. The op has no
host-side exit and reads only tensors at fixed addresses, so a compiled model or a captured graph that holds it stays valid from
step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from shared.layers import decoder_layers

VERSION = 2  # part of vLLM's compile-cache key: change it with the op


class Steer(NamedTuple):
    """What one request asks for: bank slot (0 is no vector), coefficient, and the first absolute position it applies to."""

    slot: int = 0
    coefficient: float = 0.0
    start: int = 0


UNSTEERED = Steer()


@dataclass
class Buffers:
    """What the op reads, allocated once before the model is compiled or captured.

    bank [steered layers, slots + 1, hidden] fp32, slot 0 all zeros; slot [tokens] int64 and coefficient [tokens] fp32 of the
    current step; ran [steered layers] int64, in how many steps with a steered row the op has run there, counted on the device.
    count: whether steered tokens are counted by request, for a report that somebody asks for.
    """

    bank: torch.Tensor
    slot: torch.Tensor
    coefficient: torch.Tensor
    ran: torch.Tensor
    rows: dict[int, int]  # model layer -> row of the bank
    count: bool = True
    used: int = 0  # tokens the last fill wrote
    steps: int = 0  # fills with a steered token since the last report
    fired: dict[str, int] = field(default_factory=dict)  # request id -> tokens steered since the last report

    @classmethod
    def allocate(cls, layers: Sequence[int], slots: int, tokens: int, hidden: int, device: torch.device) -> Buffers:
        return cls(
            bank=torch.zeros(len(layers), slots + 1, hidden, dtype=torch.float32, device=device),
            slot=torch.zeros(tokens, dtype=torch.int64, device=device),
            coefficient=torch.zeros(tokens, dtype=torch.float32, device=device),
            ran=torch.zeros(len(layers), dtype=torch.int64, device=device),
            rows={layer: row for row, layer in enumerate(layers)},
        )

    def put(self, slot: int, layers: dict[int, np.ndarray]) -> None:
        """Write a vector (layer -> fp32 [hidden]) into a slot; layers outside its band are zero."""
        self.bank[:, slot] = 0
        for layer, values in layers.items():
            self.bank[self.rows[layer], slot] = torch.from_numpy(values).to(self.bank.device)

    def fill(self, names: Sequence[str], steers: Sequence[Steer], scheduled: np.ndarray, computed: np.ndarray) -> None:
        """Set the buffers for one step.

        names, steers [requests], in batch order; scheduled [requests]: tokens each runs in this step; computed [requests]: tokens it
        has behind it. Rows past the batch, which graphs pad, are zero.
        """
        steered = [index for index, steer in enumerate(steers) if steer.slot]
        if not steered:
            self.clear()
            return
        activate(self)
        slot, coefficient, counts = token_rows(steers, scheduled, computed)
        total = len(slot)
        if total > len(self.slot):
            raise RuntimeError(f"a step of {total} tokens does not fit the steering buffers of {len(self.slot)}")
        self._copy(slot, self.slot)
        self._copy(coefficient, self.coefficient)
        if self.used > total:
            self.slot[total : self.used] = 0
            self.coefficient[total : self.used] = 0
        self.used = total
        if self.count:
            self.steps += bool(counts.any())
            for index in steered:
                self.fired[names[index]] = self.fired.get(names[index], 0) + int(counts[index])

    def _copy(self, values: np.ndarray, to: torch.Tensor) -> None:
        """Without a wait for the step in flight: from pinned memory, which the allocator keeps until the copy is done."""
        source = torch.from_numpy(values)
        to[: len(values)].copy_(source.pin_memory() if to.is_cuda else source, non_blocking=True)

    def clear(self) -> None:
        """Steer nothing: a step without steered requests, a dummy step."""
        activate(self)
        self.slot[: self.used] = 0
        self.coefficient[: self.used] = 0
        self.used = 0

    def forget(self) -> None:
        """Steer nothing, and count from here on."""
        self.clear()
        self.ran.zero_()
        self.steps, self.fired = 0, {}

    def report(self) -> dict[str, int]:
        """Tokens steered per request id since the last report.

        Raises RuntimeError when the op did not run once in every patched layer for every step that had a steered row: the model
        that ran is not the patched one.
        """
        ran, self.steps, steps = self.ran.tolist(), 0, self.steps
        self.ran.zero_()
        if set(ran) != {steps}:
            raise RuntimeError(
                f"{steps} steps had steered tokens, and the op ran {ran} times in layers {list(self.rows)}"
            )
        fired, self.fired = self.fired, {}
        return fired


def token_rows(
    steers: Sequence[Steer], scheduled: np.ndarray, computed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """slot [tokens] int64 and coefficient [tokens] fp32 of a step, requests in batch order, and steered tokens [requests].

    A token is steered when its absolute position is at or past its request's start.
    """
    slot = np.array([steer.slot for steer in steers], dtype=np.int64)
    coefficient = np.array([steer.coefficient for steer in steers], dtype=np.float32)
    start = np.array([steer.start for steer in steers], dtype=np.int64)
    scheduled, computed = np.asarray(scheduled, dtype=np.int64), np.asarray(computed, dtype=np.int64)
    owner = np.repeat(np.arange(len(steers)), scheduled)
    offset = np.arange(len(owner)) - (np.cumsum(scheduled) - scheduled)[owner]
    on = computed[owner] + offset >= start[owner]
    counts = np.where(slot > 0, np.clip(computed + scheduled - start, 0, scheduled), 0)
    return np.where(on, slot[owner], 0), np.where(on, coefficient[owner], np.float32(0)), counts


_active: Buffers | None = None


def activate(buffers: Buffers) -> None:
    """Make these the buffers the op reads: of several eager engines in a process, those of the one whose step it is."""
    global _active
    _active = buffers


def reference(hidden: torch.Tensor, bank: torch.Tensor, slot: torch.Tensor, coefficient: torch.Tensor) -> torch.Tensor:
    """The op in plain torch, its test oracle: hidden [tokens, hidden] + coefficient[:, None] * bank[slot], in fp32, rounded once."""
    return (hidden.float() + coefficient[:, None] * bank[slot]).to(hidden.dtype)


def _steer(hidden: torch.Tensor, row: int) -> None:
    buffers = _active
    assert buffers is not None, "steering buffers are not allocated"
    if hidden.dim() == 3 and hidden.shape[0] == 1:  # vLLM runs Transformers' own modules (OLMo-2) over a batch of one
        hidden = hidden[0]
    if hidden.dim() != 2 or hidden.shape[1] != buffers.bank.shape[2]:
        raise RuntimeError(f"a steered layer returns {list(hidden.shape)}, not [tokens, {buffers.bank.shape[2]}]")
    slot = buffers.slot[: hidden.shape[0]]
    shift = buffers.bank[row].index_select(0, slot)
    coefficient = buffers.coefficient[: hidden.shape[0]].unsqueeze(1)
    hidden.addcmul_(shift, coefficient)  # mixed dtypes: computed in fp32, rounded once
    buffers.ran[row].add_(slot.any())


# Defined by hand: the decorator of torch.library wraps every call in autograd code that costs more than the op on a small batch.
_library = torch.library.Library("steer_heal", "FRAGMENT")
_library.define("steer(Tensor(a!) hidden, int row) -> ()")
_library.impl("steer", _steer, "CompositeExplicitAutograd")


@torch.library.register_fake("steer_heal::steer")
def _(hidden: torch.Tensor, row: int) -> None:
    return None


class Patch:
    """The steered classes of a model's layers, put on and taken off in place.

    A layer's class changes and the module does not, so that parameter names, isinstance and LoRA wrapping survive. The residual
    after a layer is hidden + residual where both are returned; adding to hidden steers the sum.
    """

    def __init__(self, model: torch.nn.Module, depth: int, rows: dict[int, int]):
        name, stack = decoder_layers(model, depth)
        self.layers = {f"{name}.{layer}": (stack[layer], type(stack[layer]), row) for layer, row in rows.items()}

    def put_on(self) -> None:
        for module, stock, row in self.layers.values():
            module.__class__ = _steered(stock, row)

    def take_off(self) -> None:
        for module, stock, _ in self.layers.values():
            module.__class__ = stock


def _steered(base: type[torch.nn.Module], row: int) -> type[torch.nn.Module]:
    def forward(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        output = base.forward(self, *args, **kwargs)
        torch.ops.steer_heal.steer(output[0] if isinstance(output, tuple) else output, row)
        return output

    return type(f"Steered{base.__name__}", (base,), {"forward": forward})
