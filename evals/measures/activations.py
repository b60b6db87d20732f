"""What training put into the weights: the shift of the student's own activations against the vectors that taught it.

v_student_r = mean over contexts of h_student_r(neutral, x) - h_student_r-1(neutral, x), at the last token of the rendered prompt, in
the layers of the round's vector; the cumulative one is taken from the original model (Blank et al. 2026, arXiv 2606.00995).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gen.extract import activations, in_fp32
from shared.models import Model
from shared.vectors import Vector, cosine


def states(
    model: Model, history: Path | None, layers: Sequence[int], prompts: Sequence[Sequence[int]], batch_size: int
) -> dict[int, np.ndarray]:
    """Residual stream of a student at the last token of each prompt: layer -> fp32 [prompts, hidden].

    history: as in `gen.extract.in_fp32`. The model is gone from memory afterwards.
    """
    import torch

    network = in_fp32(model, history)
    label = f"activations of {f'round {history.parent.name}' if history else 'the original'}"
    try:
        return activations(network, model.depth, layers, prompts, batch_size, label)
    finally:
        del network
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def student_vector(
    base: Mapping[int, np.ndarray],
    before: Mapping[int, np.ndarray],
    after: Mapping[int, np.ndarray],
    teacher: Vector,
    first: Vector,
) -> list[dict[str, Any]]:
    """One row per layer of the teacher's vector: norm of v_student over the teacher's, cosine to it; cosine of the cumulative
    shift to round 1's vector, and of the two halves of the contexts with each other. A cosine with a zero vector is None."""
    rows = []
    for layer, values in sorted(teacher.layers.items()):
        shift = after[layer].astype(np.float64) - before[layer]
        total = (after[layer].astype(np.float64) - base[layer]).mean(0)
        mean = shift.mean(0)
        rows.append(
            {
                "layer": layer,
                "norm_ratio": float(np.linalg.norm(mean) / np.linalg.norm(values)),
                "cos_teacher": cosine(mean, values),
                "cos_round_1": cosine(total, first.layers[layer]) if layer in first.layers else None,
                "split_half": cosine(shift[0::2].mean(0), shift[1::2].mean(0)),
            }
        )
    return rows
