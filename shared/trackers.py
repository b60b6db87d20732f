"""Experiment trackers by name: the project that a training's curve and a round's scores both go to."""

from __future__ import annotations

import os

PROJECT = "steer-heal"
# environment variables by which trackers are told a project, which transformers reads as well
VARIABLES = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME", "trackio": "TRACKIO_PROJECT"}
# trackers that also get the scores and the verdicts; the others of transformers get the training's curve alone
SCORED = ("tensorboard", "trackio", "wandb", "mlflow")


def project(name: str) -> str:
    """The project of a tracker: what its environment variable says, or else steer-heal."""
    return os.environ.get(VARIABLES.get(name, ""), "") or PROJECT


def name_projects() -> None:
    """Tell transformers' reporters the project where the user has not."""
    for variable in VARIABLES.values():
        os.environ.setdefault(variable, PROJECT)
