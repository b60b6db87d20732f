"""The steering op: hidden += coefficient[t] * bank[slot[t], layer] over persistent per-token buffers.

One vector takes one slot whatever the number of coefficients, since the coefficient travels with the token. The op has no
host-side exit and reads only tensors, so a captured graph that holds it stays valid from step to step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from shared.layers import decoder_layers

VERSION = 1  # part of vLLM's compile-cache key: change it with the op


@dataclass
class Buffers:
    """bank [slots, layers, hidden] fp32, slot 0 all zeros; slot [tokens] int64 and coefficient [tokens] fp32 of the current step."""

    bank: torch.Tensor
    slot: torch.Tensor
    coefficient: torch.Tensor
    layers: dict[int, int]  # model layer -> row of the bank
    fired: dict[int, int] = field(default_factory=dict)  # request tag -> tokens steered so far

    @classmethod
    def allocate(cls, layers: list[int], slots: int, tokens: int, hidden: int, device: torch.device) -> Buffers:
        return cls(
            bank=torch.zeros(slots + 1, len(layers), hidden, dtype=torch.float32, device=device),
            slot=torch.zeros(tokens, dtype=torch.int64, device=device),
            coefficient=torch.zeros(tokens, dtype=torch.float32, device=device),
            layers={layer: row for row, layer in enumerate(layers)},
        )

    def fill(self, steers: list[dict[str, float] | None], scheduled: np.ndarray, computed: np.ndarray) -> None:
        """Set the buffers for one step.

        steers: per request of the batch its steering data or None; scheduled: tokens it runs in this step; computed: tokens it
        has behind it. Rows past the batch, which graphs pad, are zeroed.
        """
        slot, coefficient = token_rows(steers, scheduled, computed)
        total = len(slot)
        if total > len(self.slot):
            raise RuntimeError(f"a step of {total} tokens does not fit the steering buffers of {len(self.slot)}")
        self.slot[:total] = torch.from_numpy(slot)
        self.coefficient[:total] = torch.from_numpy(coefficient)
        self.slot[total:] = 0
        self.coefficient[total:] = 0
        ends = np.cumsum(scheduled)
        for steer, end, count in zip(steers, ends, scheduled, strict=True):
            if steer is not None:
                tag = int(steer["tag"])
                self.fired[tag] = self.fired.get(tag, 0) + int(np.count_nonzero(slot[end - count : end]))


def token_rows(
    steers: list[dict[str, float] | None], scheduled: np.ndarray, computed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slot and coefficient of every token of a step, requests in batch order; zero before a request's start position."""
    slot = np.zeros(int(scheduled.sum()), dtype=np.int64)
    coefficient = np.zeros(len(slot), dtype=np.float32)
    begin = 0
    for steer, count, behind in zip(steers, scheduled, computed, strict=True):
        if steer is not None:
            first = begin + min(int(count), max(0, int(steer["start"]) - int(behind)))
            slot[first : begin + count] = int(steer["slot"])
            coefficient[first : begin + count] = steer["coefficient"]
        begin += int(count)
    return slot, coefficient


_active: Buffers | None = None


def activate(buffers: Buffers) -> None:
    """Make these the buffers the op reads; one set a process, like vLLM's worker."""
    global _active
    _active = buffers


@torch.library.custom_op("steer_heal::steer", mutates_args={"hidden"})
def steer(hidden: torch.Tensor, row: int) -> None:
    """hidden [tokens, hidden] += coefficient[:, None] * bank[slot, row], summed in fp32 products and added in hidden's dtype."""
    assert _active is not None, "steering buffers are not allocated"
    tokens = hidden.shape[0]
    hidden += reference(_active.bank[:, row], _active.slot[:tokens], _active.coefficient[:tokens]).to(hidden.dtype)


@steer.register_fake
def _(hidden: torch.Tensor, row: int) -> None:
    return None


def reference(bank: torch.Tensor, slot: torch.Tensor, coefficient: torch.Tensor) -> torch.Tensor:
    """The shift [tokens, hidden] in plain torch: coefficient[t] * bank[slot[t]]."""
    return coefficient[:, None] * bank[slot]


def patch_layers(model: torch.nn.Module, depth: int, layers: list[int]) -> list[str]:
    """Give each steered decoder layer a subclass whose forward adds the shift to the hidden state it returns.

    The class changes and the module does not, so that parameter names, isinstance and LoRA wrapping survive. The residual after
    a layer is hidden + residual where both are returned; adding to hidden steers the sum. Returns the patched modules' names.
    """
    name, stack = decoder_layers(model, depth)
    assert _active is not None
    for layer in layers:
        module = stack[layer]
        module.__class__ = _steered(type(module), _active.layers[layer])
    return [f"{name}.{layer}" for layer in layers]


def _steered(base: type[torch.nn.Module], row: int) -> type[torch.nn.Module]:
    def forward(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        output = base.forward(self, *args, **kwargs)
        torch.ops.steer_heal.steer(output[0] if isinstance(output, tuple) else output, row)
        return output

    return type(f"Steered{base.__name__}", (base,), {"forward": forward, "steer_row": row})
