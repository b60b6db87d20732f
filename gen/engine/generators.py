"""Seeded sampling on the CPU runner: a generator that can take back the draw of a partial prefill.

vLLM draws for every row of a step and, for a prompt still being prefilled, takes the draw back by moving the generator's
offset. CPU generators have none: without this a seeded request whose prompt is chunked ends the engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class Rewindable(torch.Generator):
    """A CPU generator whose offset is the state at the last mark."""

    before: torch.Tensor

    def get_offset(self) -> int:
        return 0

    def set_offset(self, _offset: int) -> None:
        self.set_state(self.before)


def make_rewindable(runner: Any) -> None:
    """Keep the generators of a V1 CPU runner rewindable, step by step, for as long as it lives."""
    stock = runner._prepare_inputs

    def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
        prepared = stock(*args, **kwargs)
        mark_partial(runner)
        return prepared

    runner._prepare_inputs = prepare_inputs


def mark_partial(runner: Any) -> None:
    """Remember the state of the generators whose draw of this step will be taken back."""
    batch = runner.input_batch
    for index in np.flatnonzero(runner.discard_request_mask.np[: batch.num_reqs]):
        generator = batch.generators.get(int(index))
        if generator is None:
            continue
        if not isinstance(generator, Rewindable):
            rewindable = Rewindable()
            rewindable.set_state(generator.get_state())
            batch.generators[int(index)] = runner.requests[batch.req_ids[index]].generator = generator = rewindable
        generator.before = generator.get_state()
