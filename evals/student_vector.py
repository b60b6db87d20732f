"""The student's own vector as a cause: added to the original model, and taken out of the student.

v_l is the difference of mean activations, student less original, at the last token of the rendered prompt under the neutral prompt. Two
conditions ask whether it carries what training did:

    student_vector          the original model with + v: sufficiency
    student_without_vector  the student with - v: necessity

A shift in one layer reaches the layers above, so that the sum of the raw differences of a band would count it once a layer. From the
second layer on, v_l is the shift still missing once the layers below are shifted. With it the original's mean activation equals the
student's in every layer of the band, and the student's without it equals the original's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evals.conditions import ADDED, REMOVED
from evals.measures.activations import neutral_prompts
from evals.measures.measure import Scoring
from gen.extract import ROUNDING, activations, in_fp32
from gen.forward import steered
from shared.commands import setting
from shared.errors import SteerHealError
from shared.models import Model
from shared.vectors import Vector

if TYPE_CHECKING:
    import torch


Means = dict[int, np.ndarray]  # layer -> fp64 [hidden]


def student_vectors(scoring: Scoring) -> dict[str, Vector]:
    """The student's mean shift v as two vectors, by condition: `student_vector`, and `student_without_vector` for use at coefficient -1.

    They are equal in the lowest layer. In higher layers they differ, because the two models pass on a shift differently.

    Raises:
        SteerHealError: the student's activations equal the original's.
    """
    config, origin, trait = scoring.config, scoring.origin, scoring.vectors["trait"]
    layers, prompts = sorted(trait.layers), neutral_prompts(scoring)
    history = scoring.run.history(scoring.number)
    generated = trait.metadata.get("positions", "all") == "generated"
    size = (
        1 if generated else config.vector.batch_size
    )  # the last position of a batch is every prompt's in a batch of one

    def forwards(of: Path | None, towards: Means | None) -> tuple[Means, Means]:
        return _forwards(origin, of, layers, prompts, towards, size, generated)

    base, _ = forwards(None, None)
    student, back = forwards(history, base)
    _, forth = forwards(None, student)
    shifts_by_stage = {ADDED: forth, REMOVED: {layer: -shift for layer, shift in back.items()}}
    if not all(shifts_by_stage.values()):
        raise SteerHealError(
            "the student's activations are the original model's",
            given=f"no difference in layers {', '.join(map(str, layers))} over {len(prompts)} contexts",
            expected="a trained student, trained in a layer at or below the vector's",
            next=setting("eval.student_vector=false"),
        )
    metadata = {**trait.metadata, "student_of_round": scoring.number, "n_contexts": len(prompts)}
    return {
        name: Vector({layer: values.astype(np.float32) for layer, values in shifts.items()}, metadata)
        for name, shifts in shifts_by_stage.items()
    }


def _forwards(
    model: Model, history: Path | None, layers: Sequence[int], prompts: Sequence[Sequence[int]], towards: Means | None, batch_size: int, generated: bool
) -> tuple[Means, Means]:  # fmt: skip
    """Mean activations of a student, and the shifts that bring them to those of another. The network is gone from memory afterwards."""
    import torch

    network = in_fp32(model, history)
    of = f"round {history.parent.name}" if history else "the original"
    try:
        states = activations(network, model.depth, layers, prompts, batch_size, f"activations of {of}")
        means = {layer: values.astype(np.float64).mean(0) for layer, values in states.items()}
        start = -1 if generated else 0
        shifts = {} if towards is None else shifts_to(network, model.depth, means, towards, prompts, batch_size, start)
        return means, shifts
    finally:
        del network
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def shifts_to(
    network: torch.nn.Module, depth: int, means: Means, towards: Means, prompts: Sequence[Sequence[int]], batch_size: int, start: int
) -> Means:  # fmt: skip
    """What to add in each layer so that a network's mean activations at the last token of the prompts become those of another.

    Args:
        means: the network's own, by layer; towards: the other's.
        start: the position from which the shifts act; -1 is the last token, for batches of one.

    Returns:
        By layer, ascending; a layer in which nothing is missing beyond float32's rounding is left out.
    """
    shifts: Means = {}
    for layer in sorted(towards):
        now = means[layer]
        if shifts:
            below = Vector({k: values.astype(np.float32) for k, values in shifts.items()})
            with steered(network, depth, below, 1.0, start):
                states = activations(network, depth, [layer], prompts, batch_size, f"layer {layer}, shifted below")
            now = states[layer].astype(np.float64).mean(0)
        missing = towards[layer] - now
        if np.linalg.norm(missing) > ROUNDING * np.linalg.norm(towards[layer]):
            shifts[layer] = missing
    return shifts
