"""tau of an arm, set from what a reference arm did: `tau = "half of nll's late D"`.

A barrier acts where D is beyond tau, so that one tau means another thing for every model, rank and learning rate. A share of the D that
plain cross-entropy comes to means the same. D is the reference arm's of the same seed, in round 1, by the arm's own train.aggregate:
the mean over the last quarter of the logged steps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from evals.rows import LogRow
from shared.commands import stage_command
from shared.divergences import has_barrier
from shared.quarters import last_quarter
from shared.records import read_jsonl
from shared.run import Run
from shared.schema import Config

FORM = "half of nll's late D"  # for errors
PARTS = {"half": 1 / 2, "a third": 1 / 3, "a quarter": 1 / 4, "twice": 2.0}
WORDS = re.compile(rf"({'|'.join(PARTS)}|\d*\.?\d+)(?: of)? ([a-z0-9][a-z0-9_.-]*)'s late D")


@dataclass(frozen=True)
class TauFrom:
    """A tau that a study file gives as a share of the late D of another arm."""

    words: str
    share: float
    arm: str


def parse_tau(words: str) -> TauFrom:
    """A tau such as "half of nll's late D", as a share and an arm. Raises ValueError for any other form."""
    match = WORDS.fullmatch(words)
    if match is None:
        raise ValueError(f'{words!r} is not of the form "{FORM}", or "0.5 of nll\'s late D"')
    share = PARTS[match[1]] if match[1] in PARTS else float(match[1])
    return TauFrom(words, share, match[2])


def logged_divergence(divergence: str) -> str:
    """The divergence that a training logs as D: its own, or the reverse KL where the objective has no barrier."""
    return divergence if has_barrier(divergence) else "kl_rev"


def late_d(run: Run, config: Config) -> float | None:
    """D in the last quarter of the steps of a run's round 1, nats, by the aggregate of a configuration; None before that is trained.

    Raises SteerHealError where the log is not what the stage made.
    """
    if not run.manifest(1, "heal").is_file():
        return None
    run.verify(1, "heal")
    rows = read_jsonl(run.round(1) / "train.jsonl", LogRow, made_by=stage_command(run.folder, 1, "heal"))
    steps = [row.model_dump() for row in rows if row.heldout_ce is None]
    late = steps[last_quarter(len(steps))]
    return float(np.mean([row[f"kl_base_{config.train.aggregate}"] for row in late]))


def tau_of(source: TauFrom, run: Run, config: Config) -> float | None:
    """tau of an arm: the share of the reference arm's late D, in nats.

    Args:
        source: the share, and the name of the reference arm.
        run: of the reference arm, with the same seed.
        config: of the arm that needs the tau; its train.aggregate says how D is averaged.

    Returns:
        tau with four digits, as the frozen configuration writes it. None before round 1 of the reference arm is trained.

    Raises:
        SteerHealError: the training log of the reference arm was edited.
    """
    late = late_d(run, config)
    return None if late is None else float(f"{source.share * late:.4g}")
