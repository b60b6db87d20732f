"""What training put into the weights: the shift of the student's own activations against the vectors that taught it.

v_student_r = mean over contexts of h_student_r(neutral, x) - h_student_r-1(neutral, x), at the last token of the rendered prompt, in
the layers of the round's vector; the cumulative one is taken from the original model (Blank et al. 2026, arXiv 2606.00995).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.conditions import Weights
from evals.measures.measure import Columns, Measure, Scoring, Session
from evals.rows import Scores, StudentLayer
from evals.table import Table
from gen.extract import activations, contexts_of, in_fp32
from shared.chat import neutral_for
from shared.console import format_number
from shared.models import Model
from shared.run import Run
from shared.schema import Config
from shared.sets import input_of, revisions_of
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


def student_layers(
    run: Run, number: int, origin: Model, prompts: Sequence[Sequence[int]], vector: Vector, first: Vector
) -> list[dict[str, Any]]:
    """The healed student's mean shift of activations over contexts under the neutral prompt.

    Returns:
        A row for each layer of the vector, with norms and cosines against this round's vector and the first round's.
    """
    config = run.config

    def at(history: Path | None) -> dict[int, np.ndarray]:
        return states(origin, history, sorted(vector.layers), prompts, config.vector.batch_size)

    base = at(None)
    before = base if number == 1 else at(run.history(number - 1))
    return student_vector(base, before, at(run.history(number)), vector, first)


def neutral_prompts(scoring: Scoring) -> list[list[int]]:
    """Token ids of the contexts over which a student's activations are averaged, under the neutral prompt."""
    return [
        scoring.chat.ids(context.turns, neutral_for(context.turns, scoring.trait.neutral))
        for context in contexts_of(scoring.config.vector, scoring.config.eval.contexts)
    ]


class ActivationsSession(Session):
    """Plain forwards alone; the layers stand in scores.json."""

    def __init__(self, scoring: Scoring):
        super().__init__()
        self.scoring = scoring
        self.layers: list[dict[str, Any]] = []

    def before_engine(self, groups: Sequence[Weights]) -> None:
        scoring, prompts = self.scoring, neutral_prompts(self.scoring)
        if prompts:
            self.layers = student_layers(
                scoring.run, scoring.number, scoring.origin, prompts, scoring.vectors["trait"], scoring.first
            )

    def write(self, folder: Path) -> Mapping[str, Any]:
        return {"student": self.layers}


class Activations(Measure):
    name = "activations"
    row = StudentLayer

    @property
    def file(self) -> str:
        return "scores.json"

    def inputs(self, run: Run, number: int, config: Config) -> Mapping[str, Path]:
        return input_of("contexts", config.vector.contexts)

    def revisions(self, config: Config) -> Mapping[str, str]:
        return revisions_of(contexts=config.vector.contexts)

    def begin(self, scoring: Scoring) -> ActivationsSession:
        return ActivationsSession(scoring)

    def read(self, folder: Path, scores: Scores, again: str) -> list[StudentLayer]:
        return scores.student

    def tables(self, rows: Sequence[Columns], read: Sequence[tuple[int, Any]]) -> list[Table]:
        return [shift_layers(read)]


def shift_layers(read: Sequence[tuple[int, Sequence[StudentLayer]]]) -> Table:
    """The layers of each round, by its number."""
    return Table(
        "The student's own shift",
        ["round, layer", "‖v_student‖ / ‖v‖", "cos to the round's vector", "cos to round 1's, from base", "split-half cosine"],
        [
            [
                f"{number}, {line.layer}",
                format_number(line.norm_ratio),
                format_number(line.cos_teacher, 3, signed=True),
                format_number(line.cos_round_1, 3, signed=True),
                format_number(line.split_half, 3, signed=True),
            ]
            for number, layers in read
            for line in layers
        ],
        "v_student: mean change of the residual stream at the last prompt token, under the neutral prompt, from the student before to this one; from base: from the "
        "original model to this one.",
    )  # fmt: skip
