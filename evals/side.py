"""A scored run as `compare RUN RUN` takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.measures.free_text.rows import Generation
from evals.results import results_of
from evals.round import Round
from evals.scored import scored_rounds
from shared.commands import command_of
from shared.config import resolve_config
from shared.nearby import nearest_run, no_such_run
from shared.run import Run


@dataclass(frozen=True)
class ScoredRun:
    """A scored run. rows: of results.json."""

    run: Run
    rounds: Sequence[Round]
    rows: Sequence[dict[str, Any]]

    @property
    def name(self) -> str:
        """The path of the run."""
        return str(self.run.folder)

    def row(self, number: int, stage: str) -> dict[str, Any] | None:
        """The row of results.json of a round and stage; None where that stage was not scored."""
        return next((row for row in self.rows if (row["round"], row["stage"]) == (number, stage)), None)

    def at(self, number: int) -> Round:
        """A round, numbered from 1."""
        return self.rounds[number - 1]

    def condition(self, number: int, stage: str) -> str | None:
        """The name of a round's headline condition; the base's and the prompted base's are in the first round."""
        lines = self.at(max(number, 1)).scores.conditions
        return next((line.name for line in lines if line.stage == stage and line.headline), None)

    def texts(self, number: int, stage: str) -> list[Generation]:
        """The generations of a stage's headline condition; empty where it has none."""
        name = self.condition(number, stage)
        return self.at(max(number, 1)).generations.get(name, []) if name else []


def read_side(folder: Path, mode: str) -> ScoredRun:
    """A run with its scored rounds. mode: EVAL, `round` or `full`. Raises SteerHealError for one that is missing, edited or not scored."""
    if not (folder / "config.toml").is_file():
        meant = nearest_run(folder)
        raise no_such_run(folder, command_of("shared.status", "--run", meant or folder.parent), meant)
    run = Run(folder, resolve_config(folder / "config.toml")[0])
    rounds = scored_rounds(run, mode)
    return ScoredRun(run, rounds, results_of(run, rounds)["rows"])
