"""Scores, verdicts and sweep of every round, sent to the trackers of `train.report_to` when a report is made.

A tracker gets a round once: RUN/tracked.json holds the digest of what it was sent, and a round that was made again is sent again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from evals.answer import card_of
from evals.round import Round
from evals.table import Table, markdown
from shared.console import format_number, say
from shared.errors import in_one_line
from shared.publish import write_json
from shared.run import Run
from shared.strict import parse_json
from shared.trackers import SCORED, project

NAME = "tracked.json"
NO_SCORES = {"seed", "round", "draw", "gate"}  # numbers of a row that say which row it is
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """What a tracker is told of a round, whose number is its step. texts are Markdown."""

    step: int
    scalars: Mapping[str, float]
    texts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """sha256 of the entry: one already sent is not sent again."""
        return sha256(json.dumps([self.step, self.scalars, self.texts], sort_keys=True).encode()).hexdigest()


class Tracker(Protocol):
    """A run at a tracker, open."""

    def send(self, entry: Entry) -> None:
        """Send a round."""

    def close(self) -> None:
        """Write what is pending."""


class TensorBoard:
    """Event files in RUN/tensorboard, beside which `tensorboard --logdir RUN` finds the trainings' curves."""

    def __init__(self, run: Run):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # the other package that transformers takes
            from tensorboardX import SummaryWriter
        self._writer = SummaryWriter(log_dir=str(run.folder / "tensorboard"))

    def send(self, entry: Entry) -> None:
        for name, value in entry.scalars.items():
            self._writer.add_scalar(name, value, entry.step)
        for name, text in entry.texts.items():
            self._writer.add_text(name, text, entry.step)

    def close(self) -> None:
        self._writer.close()


class Trackio:
    def __init__(self, run: Run):
        import trackio

        self._trackio = trackio
        trackio.init(project=project("trackio"), name=f"{run.folder.name}-scores", resume="allow")

    def send(self, entry: Entry) -> None:
        self._trackio.log({**entry.scalars, **entry.texts}, step=entry.step)

    def close(self) -> None:
        self._trackio.finish()


class WeightsAndBiases:
    def __init__(self, run: Run):
        import wandb

        name = f"{run.folder.name}-scores"
        key = sha256(str(run.folder.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(project=project("wandb"), name=name, id=f"{key}-scores", resume="allow")
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")  # a round that is sent again is a later step of W&B's own

    def send(self, entry: Entry) -> None:
        self._run.log({**entry.scalars, "round": entry.step})
        for name, text in entry.texts.items():
            self._run.summary[f"round {entry.step}/{name}"] = text

    def close(self) -> None:
        self._run.finish()


class MLflow:
    def __init__(self, run: Run):
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(project("mlflow"))
        mlflow.start_run(run_name=f"{run.folder.name}-scores")

    def send(self, entry: Entry) -> None:
        self._mlflow.log_metrics({_plain(name): value for name, value in entry.scalars.items()}, step=entry.step)
        for name, text in entry.texts.items():
            self._mlflow.log_text(text, f"round-{entry.step}/{name.replace('/', '-')}.md")

    def close(self) -> None:
        self._mlflow.end_run()


def _plain(name: str) -> str:
    """A name that MLflow takes for a metric."""
    return "".join(letter if letter.isalnum() or letter in "_-. :/" else "_" for letter in name)


TRACKERS: dict[str, Callable[[Run], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
assert tuple(TRACKERS) == SCORED


def entries(rounds: Sequence[Round], rows: Sequence[Row], page: Path) -> list[Entry]:
    """The entries to send: the base and the prompted base at step 0, then every round.

    Args:
        rounds: scored rounds of a run.
        rows: of its results.json.
        page: of its report.
    """
    entries_ = [Entry(0, _scalars([row for row in rows if row["round"] == 0]), {})]
    for round_ in rounds:
        round_rows = [row for row in rows if row["round"] == round_.number]
        rows_so_far = [row for row in rows if row["round"] <= round_.number]
        swept = {
            f"sweep/{line.coefficient:g}/{name}": float(value)
            for line in round_.scores.sweep
            for name, value in (("kept", line.kept / line.n if line.n else None), ("perplexity", line.perplexity), ("trait_llr", line.trait_llr))
            if value is not None
        }  # fmt: skip
        card = card_of(rows_so_far, read_for=round_.scores.read_for is not None)
        texts = {
            "answer": "\n".join(f"- **{line.name}**: {line.text}" for line in (card.headline, *card.lines)),
            "sweep": markdown(_sweep(round_)),
            "report": str(page.resolve()),
        }
        entries_.append(Entry(round_.number, {**_scalars(round_rows), **swept}, texts))
    return entries_


def _scalars(rows: Sequence[Row]) -> dict[str, float]:
    """Every number of every headline row by stage and column."""
    return {
        f"{row['stage']}/{name}": float(value)
        for row in rows
        for name, value in row.items()
        if name not in NO_SCORES and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _sweep(round_: Round) -> Table:
    lines = [
        [f"{line.coefficient:g}", str(line.n), str(line.kept), format_number(line.perplexity, 2), format_number(line.trait_llr, 3, True)]
        for line in round_.scores.sweep
    ]  # fmt: skip
    return Table(f"Sweep of round {round_.number}", ["coefficient", "sampled", "kept", "perplexity", "trait_llr"], lines)  # fmt: skip


def track(run: Run, rounds: Sequence[Round], rows: Sequence[Row], page: Path) -> None:
    """Send what the trackers of `train.report_to` have not been sent yet.

    The report stands whatever a tracker does: one that fails is said, with its own words, and is sent the same next time.
    """
    names = [name for name in run.config.train.report_to if name in TRACKERS]
    if not names:
        return
    path = run.folder / NAME
    digests: dict[str, dict[str, str]] = {}
    with suppress(OSError, ValueError):  # none yet, or half of one: everything is sent again
        digests = parse_json(path.read_bytes())["sent"]
    for name in names:
        before = digests.get(name, {})
        todo = [entry for entry in entries(rounds, rows, page) if before.get(str(entry.step)) != entry.digest]
        if not todo:
            continue
        try:
            tracker = TRACKERS[name](run)
            for entry in todo:
                tracker.send(entry)
            tracker.close()
        except Exception as error:
            say(
                f"{name} took no scores: {in_one_line(error)}; the report is complete, and the next one tries again",
                "yellow",
            )
            continue
        digests[name] = {**before, **{str(entry.step): entry.digest for entry in todo}}
        write_json(path, {"version": 1, "sent": digests})
        say(f"scores of {len(todo)} steps sent to {name}")
