"""Vectors of decoy personas: a harder null than random directions.

A random direction of 576 or 4,096 numbers is nearly orthogonal to all that a model uses, so that steering along it says little of
what any other persona would do. The vector of a decoy is made as the trait's is, of the mean difference of activations between the
persona's system prompt and the neutral one, and scaled in each layer to the norm of the trait's: it is as long, and as much of a persona.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evals.measures.activations import states
from gen.extract import contexts_of
from shared.chat import Chat, neutral_for
from shared.commands import setting
from shared.errors import SteerHealError
from shared.models import Model
from shared.schema import Config
from shared.traits import Trait, load_trait
from shared.vectors import Vector


def personas(config: Config) -> Trait:
    """The trait file whose decoys are taken. Raises SteerHealError for one without."""
    trait = load_trait(config.vector.trait)
    if not trait.decoys:
        raise SteerHealError(
            "a trait file has no decoys",
            given=f"vector.trait = {config.vector.trait}, eval.decoy_vectors = true",
            expected="personas that have nothing to do with the trait, of like length, in its list decoys",
            next=f"write some there, or {setting('eval.decoy_vectors=false')}",
        )
    return trait


def decoy_vectors(config: Config, model: Model, history: Path | None, chat: Chat, like: Vector) -> dict[str, Vector]:
    """The vectors of a trait file's decoys on the student of a history, by the names that conditions know them under.

    Args:
        config: of the run: the contexts and the other side of the difference are those of its vector.
        model, history: the original model, and the folded rounds that make the student (None: the original).
        chat: of the model.
        like: the round's own vector, whose layers and norms they have.

    Raises:
        SteerHealError: a trait file without decoys, or a decoy that changes nothing in some layer.
    """
    trait, layers = personas(config), sorted(like.layers)
    contexts = contexts_of(config.vector, config.vector.n_contexts)

    def under(system: str | None) -> list[list[int]]:
        return [chat.ids(row.turns, neutral_for(row.turns, trait.neutral) if system is None else system) for row in contexts]  # fmt: skip

    sides: Sequence[list[list[int]]] = [
        under(trait.opposite if config.vector.contrast else None),
        *map(under, trait.decoys),
    ]
    hidden = states(model, history, layers, [ids for side in sides for ids in side], config.vector.batch_size)
    count, vectors = len(contexts), {}
    for draw, persona in enumerate(trait.decoys, start=1):
        values = {}
        for layer in layers:
            away, towards = hidden[layer][:count], hidden[layer][draw * count : (draw + 1) * count]
            raw = (towards.astype(np.float64) - away).mean(0)
            norm = float(np.linalg.norm(raw))
            if not norm > 0:
                raise SteerHealError(
                    "a decoy does not reach the model",
                    given=f"{persona!r}: no difference in layer {layer}",
                    expected="a persona that differs from the neutral prompt",
                    next=f"write another into the decoys of vector.trait = {config.vector.trait}",
                )
            values[layer] = (raw * (like.norm(layer) / norm)).astype(np.float32)
        vectors[decoy_name(draw)] = Vector(values, {**like.metadata, "trait": persona})
    return vectors


def decoy_name(draw: int) -> str:
    """The name of a decoy's condition and vector."""
    return f"decoy-{draw}"
