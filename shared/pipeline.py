"""The runner of stages: rounds 1 to N of a run, each stage a process, behind `make round` and `make report`.

It holds the run for all its stages, says beforehand how long they will take and what they need, writes all their output to
RUN/log.txt, and turns the way a process ended into an error that names the next command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.cards import show_cards
from shared.cli import entry, parse_arguments
from shared.commandline import round_options
from shared.config import resolve_config
from shared.console import console, format_number, print_table, say
from shared.errors import SteerHealError
from shared.estimate import Estimates, print_estimate, remaining_words
from shared.old_students import remove_old_students
from shared.prepare import preparation_commands
from shared.process import exit_error, run_process
from shared.progress import note_to_go
from shared.records import Manifest
from shared.run import STAGES, Run
from shared.stages import LOG, Step
from shared.stale import stale_steps
from shared.think import wants_preflight


@dataclass
class Took:
    """What a step took, as its manifest has it, and the seconds that were estimated before it began; None for one that looked done."""

    step: Step
    manifest: Manifest
    estimated: float | None


@dataclass
class Pipeline:
    """The steps of a run, one after another."""

    run: Run
    rebuild: bool = False
    took: list[Took] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """The path of the log of the run."""
        return self.run.folder / LOG

    def perform(self, step: Step, estimates: Estimates | None = None) -> None:
        """Run a step's process to its end.

        Args:
            step: one of this run.
            estimates: which it corrects by the time that it took.

        Raises:
            Failed: it ended with an error that it has printed.
            SteerHealError: the process failed in another way.
            KeyboardInterrupt: it was interrupted.
        """
        estimated = estimates.seconds(step.key) if estimates else None
        name = f"round {step.number} {step.stage}"
        before = _written(step)
        ended = run_process(step.command(self.rebuild), self.log, _out, _err, name=name)
        if error := exit_error(ended, name, self.log, step.lower):
            raise Failed(error) if error is ended.error else error
        if _written(step) == before:  # the process found it done: its seconds are those of another day
            if estimates:
                estimates.intact(step.key)
            return
        manifest = step.manifest
        self.took.append(Took(step, manifest, estimated))
        if estimates:
            estimates.ended(step.key, manifest)

    def report(self, mode: str) -> None:
        """Make the report in a separate process. mode: EVAL, `round` or `full`. Raises as `perform` does."""
        self._process(
            [sys.executable, "-m", "evals.report", "--run", str(self.run.folder), "--eval", mode], "the report"
        )

    def prepare(self) -> None:
        """Dequantise the run's model unless the cache has it. Raises as `perform` does."""
        for command, name in preparation_commands([self.run]):
            self._process(command, name)

    def preflight(self) -> None:
        """Find the think tokens of a run that was not told them, in a process that freezes them. Raises as `perform` does."""
        console.print("eval.think is not set: the preflight looks for the fewest think tokens that the model needs")
        self._process([sys.executable, "-m", "evals.preflight", "--run", str(self.run.folder)], "the preflight")
        self.run.config = resolve_config(self.run.folder / "config.toml")[0]

    def _process(self, command: Sequence[str], name: str) -> None:
        ended = run_process(command, self.log, _out, _err, name=name)
        if error := exit_error(ended, name, self.log):
            raise Failed(error) if error is ended.error else error

    def show(self) -> None:
        """Seconds, estimate and peak memory of each step that was made."""
        print_table(
            f"{self.run.folder}: what it took",
            ["stage", "seconds", "estimated", "peak memory, GiB"],
            [
                [f"round {t.step.number} · {t.step.stage}", format_number(t.manifest.seconds, 1), format_number(t.estimated, 0), format_number(t.manifest.peak_memory_gib, 1)]
                for t in self.took
            ],
        )  # fmt: skip


def _written(step: Step) -> int | None:
    """When a step's manifest was written, in nanoseconds; None where it has no manifest."""
    path = step.run.manifest(step.number, step.stage)
    return path.stat().st_mtime_ns if path.is_file() else None


class Failed(Exception):
    """A stage ended with an error that it has printed itself."""

    def __init__(self, error: SteerHealError):
        super().__init__(error.what)
        self.error = error


def _out(block: bytes) -> None:
    sys.stdout.buffer.write(block)
    sys.stdout.flush()


def _err(block: bytes) -> None:
    sys.stderr.buffer.write(block)
    sys.stderr.flush()


def round_steps(run: Run, rounds: Sequence[int], mode: str) -> list[Step]:
    """The steps that bring a run to the last of these rounds. mode: EVAL, `round` or `full`."""
    last = "score" if mode == "round" else "score-full"
    return [Step(run, number, stage) for number in rounds for stage in (*STAGES[:-1], last)]


def healed(run: Run, mode: str) -> list[Step]:
    """The steps that score what is healed already: those of EVAL=full, since a round's own scores are made with it."""
    return [Step(run, number, "score-full") for number in run.rounds("heal")] if mode == "full" else []


def pending(todo: Sequence[Step], rebuild: bool) -> list[Step]:
    """The steps that are not done, or, where what has changed is made again, those that have."""
    return stale_steps(todo) if rebuild else [step for step in todo if not step.done]


def run_steps(run: Run, todo: Sequence[Step], mode: str, rebuild: bool) -> None:
    """Hold the run, say what the steps will take, run them, and make the report.

    Args:
        run: a run that has begun.
        todo: its steps, in order; those that are done are skipped by their own processes.
        mode: EVAL, `round` or `full`.
        rebuild: make steps again whose settings or inputs changed.

    Raises:
        Failed: a step ended with an error that it has printed.
        SteerHealError: memory or disk will not suffice, or a process failed in another way.
        KeyboardInterrupt: a step was interrupted.
    """
    run.hold()
    pipeline = Pipeline(run, rebuild)
    waiting = pending(todo, rebuild)
    remove_old_students(run, waiting[0].number if waiting else None)
    if waiting:
        run.check()  # a file may have gone since the run was begun
    if waiting and wants_preflight(run.folder, run.config):
        pipeline.prepare()
        pipeline.preflight()
    estimates = print_estimate([waiting], run.folder, [run]) if waiting else None
    if estimates:
        say(f"all output goes to {pipeline.log} as well; interrupt at any time, the same command goes on")
    if waiting:
        pipeline.prepare()
    for step in todo:
        if estimates and step in waiting:
            note_to_go(pipeline.log, estimates.left())
        pipeline.perform(step, estimates)
        if estimates and step in waiting and (rest := estimates.left()):
            console.print(f"[dim]{remaining_words(rest)}[/]")
    if pipeline.took:
        pipeline.show()
    pipeline.report(mode)  # last, since it ends with what the run came to


def main() -> None:
    options = round_options()
    begins = not options.parse_args().report
    arguments, run = parse_arguments(options, in_round=False, begins=begins)
    assert run is not None  # --run is required
    train = run.config.train
    say(f"run {run.folder}: {run.config.model.name}, D = {train.divergence}, lambda = {train.lam}, tau = {train.tau}")
    todo = (
        healed(run, arguments.eval)
        if arguments.report
        else round_steps(run, range(1, arguments.rounds + 1), arguments.eval)
    )
    if arguments.dry_run:
        run.check(weights=False)
        waiting = pending(todo, arguments.rebuild)
        if waiting:
            show_cards(waiting)  # first: this machine may have too little memory for a model that a GPU holds
        print_estimate([waiting], run.folder, [run])
        return
    try:
        run_steps(run, todo, arguments.eval, arguments.rebuild)
    except Failed as failed:  # the stage has said it
        failed.error.hand_over()
        sys.exit(failed.error.code)


if __name__ == "__main__":
    entry(main)
