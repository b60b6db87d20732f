"""The stages of a round as commands, where their output goes, and what to lower where one runs out of memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from shared.commands import round_command
from shared.run import Run

MODULE = {"extract": "gen.extract", "sweep": "gen.sweep", "filter": "gen.filter", "heal": "train.heal", "score": "evals.score", "score-full": "evals.score"}  # fmt: skip
# What to lower where a stage runs out of memory.
LOWER = {
    "extract": "vector.batch_size=4",
    "heal": "train.gradient_checkpointing=true train.batch_size=2",
    "score": "eval.contexts=0",
    "score-full": "eval.contexts=0",
}
LOG = "log.txt"


@dataclass(frozen=True)
class Step:
    """One stage of one round of a run."""

    run: Run
    number: int
    stage: str

    @property
    def key(self) -> tuple[Path, int, str]:
        """What tells steps apart: the run's folder, the round and the stage."""
        return self.run.folder, self.number, self.stage

    @property
    def done(self) -> bool:
        return self.run.manifest(self.number, self.stage).is_file()

    def command(self, rebuild: bool = False) -> list[str]:
        """The stage's own command line."""
        line = [sys.executable, "-m", MODULE[self.stage], "--run", str(self.run.folder), "--round", str(self.number)]
        if self.stage.startswith("score"):
            line += ["--eval", "full" if self.stage == "score-full" else "round", "--cache"]
        return [*line, "--rebuild"] if rebuild else line

    @property
    def lower(self) -> str:
        """The command that makes the stage again with less memory; empty where nothing helps."""
        settings = self.lower_settings
        return round_command(self.run.folder, self.number, overrides=settings, rebuild=True) if settings else ""

    @property
    def lower_settings(self) -> str:
        """The overrides with which the stage needs less memory; empty where nothing helps."""
        return LOWER.get(self.stage, "")
