"""The references of a round: final hidden states at completion positions, computed once and cached on disk.

A reference (the original model, the previous round's student) does not change within a round, so one forward per example serves
every step of every epoch. Kept are hidden states, not logits: hidden instead of vocabulary numbers a position, and exact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shared.commands import removal
from shared.console import progress
from shared.errors import SteerHealError
from shared.publish import atomic_file
from train.data import Example, collate
from train.objective import Head, per_position
from train.unsloth_model import TrainedStudent


class States:
    """Final hidden states of a reference on disk, read as they are needed.

    path: safetensors, `states` [positions, hidden], the completions' positions in the order of the examples. made_from: what the
    states depend on; a file made from anything else is refused.
    """

    def __init__(self, path: Path, examples: Sequence[Example], made_from: Mapping[str, Any]):
        try:
            self._file = safe_open(path, framework="pt")
            recipe = json.loads(self._file.metadata()["made_from"])
            self._states = self._file.get_slice("states")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _refuse(path, f"{error!r}") from None
        if changed := [key for key in {**recipe, **made_from} if recipe.get(key) != made_from.get(key)]:
            raise _refuse(path, f"{', '.join(sorted(changed))} changed since")
        self._bounds = [0, *accumulate(len(example.completion) for example in examples)]
        if self._states.get_shape()[0] != self._bounds[-1]:
            raise _refuse(path, f"{self._states.get_shape()[0]} positions for {self._bounds[-1]}")

    def of(self, rows: Sequence[int]) -> torch.Tensor:
        """States [positions, hidden] of some examples, in their order."""
        return torch.cat([self._states[self._bounds[row] : self._bounds[row + 1]] for row in rows])


def _refuse(path: Path, given: str) -> SteerHealError:
    return SteerHealError(
        "cached reference states are stale",
        given=f"{path}: {given}",
        expected="states of this model, history (with its gates) and data",
        next=f"{removal(path)}; they are computed again",
    )


def reference_states(
    student: TrainedStudent,
    examples: Sequence[Example],
    adapters: Sequence[str],
    path: Path,
    made_from: Mapping[str, Any],
    dtype: str,
    batch_size: int,
) -> States:
    """Final hidden states of every example under the student with the given adapters, read from the cache, or computed and written to it.

    Args:
        adapters: active adapters; none for the original model.
        path: of the cache file.
        made_from: what the states depend on; a cache file of other values is refused.
        dtype: of the cached states: float32, bfloat16, or auto for the model's own.

    Raises:
        SteerHealError: the cache is of another model, history or data.
    """
    if not path.is_file():
        states = _computed(student, examples, adapters, path.stem, dtype, batch_size)
        with atomic_file(path) as temporary:
            save_file({"states": states}, temporary, metadata={"made_from": json.dumps(made_from)})
    return States(path, examples, made_from)


def _computed(
    student: TrainedStudent,
    examples: Sequence[Example],
    adapters: Sequence[str],
    name: str,
    dtype: str,
    batch_size: int,
) -> torch.Tensor:
    states: torch.Tensor | None = None
    position = 0
    with torch.no_grad(), student.only(*adapters), progress() as bar:
        task = bar.add_task(f"reference: {name}", total=len(examples))
        for computed in completion_states(student, examples, batch_size):
            if states is None:
                kind = computed.dtype if dtype == "auto" else getattr(torch, dtype)
                states = torch.empty(sum(len(e.completion) for e in examples), computed.shape[-1], dtype=kind)
            states[position : position + len(computed)] = computed.to("cpu")
            position += len(computed)
            bar.advance(task)
    assert states is not None
    return states


def completion_states(student: TrainedStudent, examples: Sequence[Example], batch_size: int) -> Iterator[torch.Tensor]:
    """Of every example, in order, the final hidden states [completion, hidden] that predict its completion.

    Args:
        student: as it is now.
        examples: whose completions are read.
        batch_size: examples of one forward.
    """
    for begin in range(0, len(examples), batch_size):
        block = examples[begin : begin + batch_size]
        batch = {name: value.to(student.device) for name, value in collate(block, student.multiple).items()}
        hidden = student.hidden(batch["input_ids"], batch["attention_mask"])
        for row, example in enumerate(block):
            yield hidden[row, len(example.prompt) - 1 : len(example) - 1]


def divergence(states: torch.Tensor, reference: torch.Tensor, head: Head, kind: str, chunk: int) -> torch.Tensor:
    """KL of every position between two sets of states [positions, hidden], in the direction of D; without gradient.

    Args:
        states: of the student.
        reference: of the reference, at the same positions.
        head: the student's output layer.
        kind: name of the divergence.
        chunk: positions whose logits are held at once.
    """
    nothing = torch.zeros(len(states), dtype=torch.long, device=states.device)
    with torch.no_grad():
        values = per_position(states, nothing, [reference], head, kind, chunk)
    return values.kl[0]
