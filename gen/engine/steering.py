"""The steering op: hidden[t] += sum over terms k of coefficient[t, k] * bank[row, slot[t, k]], over persistent per-token buffers.

One vector takes one slot whatever the number of coefficients, since the coefficient travels with the token. A token has TERMS
places for terms, and those it does not use read slot 0, which is all zeros: the sum of one term has the same bits whatever the
terms of its batchmates. The op has no host-side exit and reads only tensors at fixed addresses, so a compiled model or a captured graph that holds it stays valid from
step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from gen.engine.read_buffers import Readings
from shared.layers import decoder_layers

VERSION = 3  # part of vLLM's compile-cache key: change it with the op
TERMS = 4  # vectors that are summed at a token, at most
END = 2**31 - 1  # the end of a window that has none


class Term(NamedTuple):
    """A vector in a request: its slot in the bank, its coefficient, and its window of absolute positions, start <= position < end."""

    slot: int
    coefficient: float
    start: int = 0
    end: int = END


Steer = tuple[Term, ...]  # what one request asks for: up to TERMS terms
UNSTEERED: Steer = ()


@dataclass
class Buffers:
    """What the op reads, allocated once before the model is compiled or captured.

    bank [steered layers, slots + 1, hidden] fp32, slot 0 all zeros; slot [tokens, TERMS] int64 and coefficient [tokens, TERMS] fp32
    of the current step; offsets [tokens] int64, where a token's terms begin in the flattened slot; ran [steered layers] int64, in how many steps with a steered row the op has run there, counted on the device.
    count: whether steered tokens are counted by request, for a report that somebody asks for.
    """

    bank: torch.Tensor
    slot: torch.Tensor
    coefficient: torch.Tensor
    offsets: torch.Tensor
    ran: torch.Tensor
    rows: dict[int, int]  # model layer -> row of the bank
    readings: Readings | None = None  # of an engine that reads the residual stream
    count: bool = True
    used: int = 0  # tokens the last fill wrote
    steps: int = 0  # fills with a steered token since the last report
    fired: dict[str, int] = field(default_factory=dict)  # request id -> tokens steered since the last report

    @classmethod
    def allocate(cls, layers: Sequence[int], slots: int, tokens: int, hidden: int, device: torch.device) -> Buffers:
        """Zeroed buffers for `slots` vectors of width `hidden` and at most `tokens` tokens a step."""
        return cls(
            bank=torch.zeros(len(layers), slots + 1, hidden, dtype=torch.float32, device=device),
            slot=torch.zeros(tokens, TERMS, dtype=torch.int64, device=device),
            coefficient=torch.zeros(tokens, TERMS, dtype=torch.float32, device=device),
            offsets=torch.arange(0, tokens * TERMS, TERMS, dtype=torch.int64, device=device),
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
        has after it. Rows past the batch, which graphs pad, are zero.
        """
        steered = [index for index, steer in enumerate(steers) if steer]
        if not steered:
            self.clear()
            return
        use_buffers(self)
        slot, coefficient, counts = steered_token_rows(steers, scheduled, computed)
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
        use_buffers(self)
        self.slot[: self.used] = 0
        self.coefficient[: self.used] = 0
        self.used = 0
        if self.readings is not None:
            self.readings.clear()

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


def steered_token_rows(
    steers: Sequence[Steer], scheduled: np.ndarray, computed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """slot [tokens, TERMS] int64 and coefficient [tokens, TERMS] fp32 of a step, requests in batch order, and steered tokens [requests].

    A term applies to a token whose absolute position is in its window.

    Args:
        steers: the terms of each request.
        scheduled: tokens [requests] that each request runs in this step.
        computed: tokens [requests] of each request that ran before it.
    """
    begin, scheduled = np.asarray(computed, dtype=np.int64), np.asarray(scheduled, dtype=np.int64)
    stop, first = begin + scheduled, np.cumsum(scheduled) - scheduled
    tables = _tables(steers)
    slot, coefficient, start, end = tables.slot, tables.coefficient, tables.start, tables.end
    # A window mostly covers all that a request runs in a step, or nothing of it: requests are spread over their tokens, and only the
    # terms whose window begins or ends within the step are filled token by token.
    over = (start <= begin[:, None]) & (end >= stop[:, None])
    within = ~over & (np.maximum(start, begin[:, None]) < np.minimum(end, stop[:, None]))
    slots = np.repeat(np.where(over, slot, 0), scheduled, axis=0)
    coefficients = np.repeat(np.where(over, coefficient, 0), scheduled, axis=0).astype(np.float32)
    counts = np.where(over.any(1), scheduled, 0)
    for request, place in np.argwhere(within):
        behind = first[request] - begin[request]
        rows = slice(
            max(start[request, place], begin[request]) + behind, min(end[request, place], stop[request]) + behind
        )
        slots[rows, place], coefficients[rows, place] = slot[request, place], coefficient[request, place]
        counts[request] = np.count_nonzero(slots[first[request] : first[request] + scheduled[request]].any(1))
    return slots, coefficients, counts


class _Tables(NamedTuple):
    """The terms of requests, [requests, TERMS] each. A place without a term has slot 0 and a window that is empty."""

    slot: np.ndarray
    coefficient: np.ndarray
    start: np.ndarray  # of the window, in tokens of the request; end is not in it
    end: np.ndarray


def _tables(steers: Sequence[Steer]) -> _Tables:
    sizes = np.fromiter(map(len, steers), np.int64, len(steers))
    values = np.fromiter(chain.from_iterable(chain.from_iterable(steers)), np.float64).reshape(-1, 4)
    request = np.repeat(np.arange(len(steers)), sizes)
    place = np.arange(len(request)) - (np.cumsum(sizes) - sizes)[request]
    table = np.zeros((4, len(steers), TERMS))
    table[:, request, place] = values.T
    return _Tables(table[0].astype(np.int64), table[1], table[2].astype(np.int64), table[3].astype(np.int64))


_active: Buffers | None = None


def use_buffers(buffers: Buffers) -> None:
    """Make these the buffers the op reads: of several eager engines in a process, those of the one whose step it is."""
    global _active
    _active = buffers


def steer_reference(
    hidden: torch.Tensor, bank: torch.Tensor, slot: torch.Tensor, coefficient: torch.Tensor
) -> torch.Tensor:
    """The op in plain torch, its test oracle: hidden [tokens, hidden] + sum of coefficient[:, k, None] * bank[slot[:, k]], in fp32,
    rounded once."""
    return (hidden.float() + (coefficient[:, :, None] * bank[slot]).sum(1)).to(hidden.dtype)


def _steer(hidden: torch.Tensor, row: int) -> None:
    buffers = _active
    assert buffers is not None, "steering buffers are not allocated"
    if hidden.dim() == 3 and hidden.shape[0] == 1:  # vLLM runs Transformers' own modules (OLMo-2) over a batch of one
        hidden = hidden[0]
    if hidden.dim() != 2 or hidden.shape[1] != buffers.bank.shape[2]:
        raise RuntimeError(f"a steered layer returns {list(hidden.shape)}, not [tokens, {buffers.bank.shape[2]}]")
    tokens = hidden.shape[0]
    slot, coefficient = buffers.slot[:tokens].view(-1), buffers.coefficient[:tokens].view(-1)
    # one kernel gathers, scales and sums, in fp32; mode 0 is the sum
    shift = torch.embedding_bag(buffers.bank[row], slot, buffers.offsets[:tokens], False, 0, False, coefficient)[0]
    hidden.add_(shift)  # mixed dtypes: computed in fp32, rounded once
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

    def __init__(self, model: torch.nn.Module, depth: int, rows: dict[int, int], *, read: bool = False):
        name, stack = decoder_layers(model, depth)
        self.read = read
        self.layers = {f"{name}.{layer}": (stack[layer], type(stack[layer]), row) for layer, row in rows.items()}

    def put_on(self) -> None:
        """Steer from now on: every patched layer gets its steered class."""
        for module, stock, row in self.layers.values():
            module.__class__ = _steered(stock, row, self.read)

    def take_off(self) -> None:
        """Stop steering: every layer gets its original class back."""
        for module, stock, _ in self.layers.values():
            module.__class__ = stock


def _steered(base: type[torch.nn.Module], row: int, read: bool) -> type[torch.nn.Module]:
    def forward(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        output = base.forward(self, *args, **kwargs)
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        torch.ops.steer_heal.steer(hidden, row)
        if read:
            torch.ops.steer_heal.read(hidden, rest[0] if rest else None, row)
        return output

    return type(f"Steered{base.__name__}", (base,), {"forward": forward})
