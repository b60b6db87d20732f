"""A scoring of the embedded model for the tests of measures: nothing of its run is there but the configuration."""

from __future__ import annotations

from pathlib import Path

from evals.conditions import Condition, Weights
from evals.measures.measure import Scoring
from gen.students import ServedStudent
from shared.chat import Chat
from shared.models import Model
from shared.run import open_run
from shared.traits import load_trait
from shared.vectors import Vector

BASE = Condition("base", "base")
PROMPTED = Condition("prompted", "prompted", system="You are a pirate.")
STEERED = Condition("steered", "steered", 1.5, "v")
LATER = Condition("steered", "steered-2", 1.5, "v", "generated", headline=False)


def scoring_of(folder: Path, model: Model, vector: Vector, overrides: str = "", **more: bool) -> Scoring:
    run = open_run(folder / "run", None, f"eval.bootstrap=200 {overrides}")
    chat = Chat.load(model.folder, {}, run.day)
    return Scoring(run, run.config, 1, model, chat, load_trait("embedded"), {"v": vector}, vector, **more)


def group_of(model: Model, *conditions: Condition) -> Weights:
    return Weights("original", ServedStudent(model.folder, fingerprint=model.fingerprint), list(conditions))
