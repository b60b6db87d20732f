"""The stages of a round as commands, where their output goes, and what to lower where one runs out of memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from shared.commands import stage_command
from shared.config import NOT_IN_RESULTS, flatten_config
from shared.records import Manifest, read_manifest
from shared.run import Run
from shared.schema import Config

MODULE = {"extract": "gen.extract", "sweep": "gen.sweep", "filter": "gen.filter", "heal": "train.heal", "score": "evals.score", "score-full": "evals.score"}  # fmt: skip
LOG = "log.txt"


@dataclass(frozen=True)
class Step:
    """One stage of one round of a run."""

    run: Run
    number: int
    stage: str

    @property
    def key(self) -> tuple[Path, int, str]:
        """The identity of a step: the run's folder, the round and the stage."""
        return self.run.folder, self.number, self.stage

    @property
    def done(self) -> bool:
        """Whether the manifest of this step exists."""
        return self.run.manifest(self.number, self.stage).is_file()

    @property
    def manifest(self) -> Manifest:
        """The stage's manifest. Raises SteerHealError where the stage has no manifest."""
        path = self.run.manifest(self.number, self.stage)
        return read_manifest(path, f"remove {path}; the stage runs again")

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
        if not settings:
            return ""
        remade = not changed_freely(settings)
        return stage_command(self.run.folder, self.number, self.stage, overrides=settings, rebuild=remade)

    @property
    def lower_settings(self) -> str:
        """The overrides with which the stage needs less memory; empty where nothing helps."""
        return " ".join(
            f"{key}={str(value).lower()}" for key, value in less_memory(self.run.config, self.stage).items()
        )


def changed_freely(settings: str) -> bool:
    """Whether overrides change only settings that no result depends on, so that a run continues with its finished stages."""
    return all(item.partition("=")[0] in NOT_IN_RESULTS for item in settings.split())


def less_memory(config: Config, stage: str) -> dict[str, int]:
    """Settings with which a stage needs less memory than with a configuration; none that the configuration has already."""
    settings: dict[str, int] = {}
    if stage == "extract":
        settings = {"vector.batch_size": max(1, min(4, config.vector.batch_size // 2))}
    elif stage == "sweep" and config.sweep.workers > 1:
        settings = {"sweep.workers": config.sweep.workers // 2}
    elif stage == "heal":
        batch = max(1, min(2, config.train.batch_size // 2))
        settings = {"train.gradient_checkpointing": True, "train.batch_size": batch}
    elif stage.startswith("score"):
        settings = {"eval.contexts": 0}
    now = flatten_config(config)
    return {key: value for key, value in settings.items() if value != now[key]}
