"""Run a study: every stage of every cell as the process it is in a run, the common stages of round 1 once.

What is done is skipped, so that the same command goes on after an interruption. A cell whose stage ends with an error is left at the
round before, with the error in stopped.json, and the study goes on without it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.markup import escape

from evals.scored import STEP
from evals.study.plan import SHARED, Cell, Plan, depends, runs_in
from shared import config as configuration
from shared import prepare as preparation
from shared.commands import removal
from shared.console import console, table
from shared.errors import OF_THE_MACHINE, Exit, SteerHealError
from shared.estimate import before, to_go
from shared.locks import hold
from shared.old_students import remove_old_students
from shared.preconditions import check
from shared.process import exit_error, run_process
from shared.publish import atomic_file, digest, write_json
from shared.records import Record, data_file, read_manifest
from shared.run import STAGES, Run, contained, open_run
from shared.schema import Config
from shared.sets import input_of, revisions_of
from shared.stages import LOG, Step
from shared.strict import read_object

FILES = {
    "extract": ("vector.safetensors",),
    "sweep": ("sweep.jsonl",),
    "filter": ("kept.jsonl", "rejected.jsonl", "filter.json"),
}
STOPPED = "stopped.json"


class Stopped(Record):
    """stopped.json: the round and stage at which a cell ended, and what the stage said on stderr."""

    round: int
    stage: str
    said: str


@dataclass(frozen=True)
class CellStep(Step):
    """One stage of one round of a cell."""

    cell: Cell
    plan: Plan

    @classmethod
    def of(cls, plan: Plan, cell: Cell, number: int, stage: str) -> CellStep:
        return cls(cell.run, number, stage, cell, plan)

    @property
    def common(self) -> str | None:
        """What other cells may have made already, by the settings it depends on; None for a step of this cell alone."""
        return depends(self.cell.config, self.stage) if self.number == 1 and self.stage in SHARED else None

    @property
    def lower(self) -> str:
        """What makes the stage with less memory: another study, since all cells of one are measured alike."""
        if not self.lower_settings:
            return ""
        other = self.plan.command(folder=self.plan.folder.with_name(f"{self.plan.folder.name}-2"))
        return f"set {self.lower_settings} in {self.plan.file}, then {other}"


def cell_steps(plan: Plan) -> Iterator[CellStep]:
    """In the order of work: round by round over the cells of a seed, so that an early end leaves arms that can be compared."""
    for seed in dict.fromkeys(cell.seed for cell in plan.cells):
        cells = [cell for cell in plan.cells if cell.seed == seed]
        for number in range(1, max(cell.rounds for cell in cells) + 1):
            for cell in cells:
                if number <= cell.rounds:
                    last = (STEP["full"],) if number == cell.rounds else ()
                    for stage in (*STAGES, *last):
                        yield CellStep.of(plan, cell, number, stage)


def donor(runs: Sequence[Run], step: CellStep) -> Run | None:
    """A run of the study's folder whose stage of round 1 is this one's, by the settings and the files it depends on."""
    if (wanted := step.common) is None:
        return None
    earlier = [name for stage in SHARED[: SHARED.index(step.stage)] for name in FILES[stage]]

    def same(name: str, run: Run) -> bool:
        files = [folder.round(1) / name for folder in (run, step.cell.run)]
        return all(file.is_file() for file in files) and digest(files[0]) == digest(files[1])

    return next(
        (
            run
            for run in runs
            if run.folder != step.cell.folder
            and run.manifest(1, step.stage).is_file()
            and depends(run.config, step.stage) == wanted
            and all((run.round(1) / name).is_file() for name in FILES[step.stage])  # earlier versions wrote fewer
            and all(same(name, run) for name in earlier)
            and _reads_the_same(run, step)
        ),
        None,
    )


def _reads_the_same(run: Run, step: CellStep) -> bool:
    """Whether the files that a cell's configuration names are, by now, still those that the stage of a run has read."""
    config = step.cell.config
    files = {
        "trait": data_file(config.vector.trait, "trait.json"),
        **input_of("contexts", config.vector.contexts),
        **input_of("dilemmas", config.sweep.dilemmas),
        **input_of("mundane", config.sweep.mundane),
    }
    path = run.manifest(1, step.stage)
    read = read_manifest(path, f"remove {path}").inputs
    now = {label: digest(file) for label, file in files.items() if file.exists()}
    now |= revisions_of(dilemmas=config.sweep.dilemmas, mundane=config.sweep.mundane)
    return all(value == read[label] for label, value in now.items() if label in read)


def take(donor: Run, step: CellStep) -> None:
    """A stage's files from a run that has them, the manifest last, with a note of where they are from.

    Raises:
        SteerHealError: they are not what the run made, or another process is at work in the cell.
    """
    donor.verify(1, step.stage)
    step.run.hold()
    try:
        _copy(donor, step)
    finally:
        step.run.release()


def _copy(donor: Run, step: CellStep) -> None:
    source, target = donor.round(1), step.cell.run.round(1)
    for path in (source / name for name in FILES[step.stage]):
        with atomic_file(target / path.relative_to(source)) as temporary:
            shutil.copyfile(path, temporary)
    path = donor.manifest(1, step.stage)
    manifest = read_object(
        path,
        what="a manifest could not be read",
        expected="that of a stage",
        next=f"{removal(path)}, then {step.plan.command()}",
    )
    write_json(step.cell.run.manifest(1, step.stage), {"taken_from": donor.folder.name, **manifest})


def to_make(left: Sequence[CellStep], runs: Sequence[Run]) -> list[CellStep]:
    """The steps that will run: of those that cells have in common the first, and none that a run here has made already."""
    chosen: list[CellStep] = []
    common: set[str] = set()
    for step in left:
        if step.common is not None:
            if step.common in common or donor(runs, step) is not None:
                continue
            common.add(step.common)
        chosen.append(step)
    return chosen


def drive(plan: Plan) -> dict[str, str]:
    """Bring every cell to its last round.

    Returns:
        What the last stage of each cell that had to stop said on stderr, by the cell's name.

    Raises:
        SteerHealError: a cell cannot be begun, memory or disk will not suffice, or a failure that is the machine's.
    """
    contained(plan.folder)
    hold(plan.folder, plan.folder / ".lock")
    everything = list(cell_steps(plan))
    left = [step for step in everything if not step.done]
    for step in everything:
        if step.done:
            step.run.verify(step.number, step.stage)
    for cell in plan.cells:
        if not (cell.folder / "config.toml").is_file():
            with _naming(cell):
                _as_written(check(cell.config), cell, plan)
    console.print(
        f"{len(plan.cells)} cells, {len(everything) - len(left)} of {len(everything)} stages done; "
        "interrupt at any time, the same command goes on"
    )
    _remove_old_students(plan, left)
    making = to_make(left, runs_in(plan.folder))
    seeds = dict.fromkeys(step.cell.seed for step in making)
    groups = [[step for step in making if step.cell.seed == seed] for seed in seeds]
    estimates = before(groups, plan.folder, [cell.run for cell in plan.cells])
    for command in preparation.commands(step.cell.run for step in making):
        name = f"dequantising {command[command.index('--model') + 1]}"
        if error := exit_error(run_process(command, plan.folder / LOG, name=name), name, plan.folder / LOG):
            raise error
    stopped: dict[str, str] = {}
    begun = time.monotonic()
    for index, step in enumerate(left):
        if step.cell.name in stopped:
            continue
        if _differs(step.cell):
            with _naming(step.cell):
                open_run(step.cell.folder, plan.file, step.cell.overrides)
        runs = runs_in(plan.folder)
        if step.common is not None and (known := donor(runs, step)) is not None:
            take(known, step)
            continue
        remaining = to_make([later for later in left[index:] if later.cell.name not in stopped], runs)
        console.print(
            f"[bold]{step.cell.name}[/] round {step.number} · {step.stage} [dim]({(time.monotonic() - begun) / 60:.0f} min in, {to_go(estimates.left(remaining))})[/]"
        )
        error = _perform(step)
        if error:
            said = error.render()
            stopped[step.cell.name] = said
            write_json(
                step.cell.folder / STOPPED, {"version": 1, "round": step.number, "stage": step.stage, "said": said}
            )
            console.print(f"[red]{step.cell.name} stops in round {step.number}[/]: {escape(reason(said))}")
            continue
        estimates.ended(step.key, step.manifest)
        (step.cell.folder / STOPPED).unlink(missing_ok=True)
        if step.stage == STEP["full"]:  # the last of a cell; merged weights are large, and can be made again
            shutil.rmtree(step.run.students, ignore_errors=True)
    if stopped:
        table("cells that stopped", ["cell", "why"], [[name, reason(said)] for name, said in stopped.items()])
    return stopped


def _remove_old_students(plan: Plan, left: Sequence[CellStep]) -> None:
    """Of every cell: a study that was interrupted, and cells run by themselves, leave merged weights behind."""
    first = {step.cell.name: step.number for step in reversed(left)}
    for cell in plan.cells:
        if cell.run.students.is_dir():
            cell.run.hold()
            try:
                remove_old_students(cell.run, first.get(cell.name))
            finally:
                cell.run.release()


def reason(said: str) -> str:
    """What a stage said on stderr, in one line: our error with what it was given, or else the last line."""
    lines = said.splitlines()
    begin = next((index for index in reversed(range(len(lines))) if lines[index].startswith("error: ")), len(lines) - 1)
    return "; ".join(" ".join(line.split()) for line in lines[begin : begin + 2]).removeprefix("error: ")


def _differs(cell: Cell) -> bool:
    """Whether a cell is still to be begun, or its frozen configuration is another: then in settings that no result depends on, or `load` had refused it."""
    frozen = cell.folder / "config.toml"
    return not frozen.is_file() or configuration.resolve(frozen)[0] != cell.config


def _as_written(fit: Config, cell: Cell, plan: Plan) -> None:
    """Raise SteerHealError for a model.max_model_len that a run would take from its model: cells are known by what the file says."""
    if (length := fit.model.max_model_len) != cell.config.model.max_model_len:
        raise SteerHealError(
            "model.max_model_len is beyond the model's context",
            given=f"{cell.config.model.max_model_len}, the default",
            expected=f"at most {length}",
            next=f"write max_model_len = {length} into [model] of {plan.file}, then {plan.command()}",
        )


@contextmanager
def _naming(cell: Cell) -> Iterator[None]:
    """Name the cell in the error that keeps it from being begun."""
    try:
        yield
    except SteerHealError as error:
        raise SteerHealError(
            "a cell of the study could not be begun",
            given=f"{cell.name}: {error.what}; {error.given}",
            expected=error.expected,
            next=error.next,
            code=error.code,
        ) from None


def _perform(step: CellStep) -> SteerHealError | None:
    """Run a stage, its output in the cell's log. Returns the error where it says something of the arm.

    Raises SteerHealError for one that says nothing of the arm: a kill, a signal, a lock, a full disk.
    """
    log, name = step.cell.folder / LOG, f"{step.cell.name} round {step.number} {step.stage}"
    step.run.hold()
    try:
        with console.status(f"{step.cell.name} round {step.number} · {step.stage}"):
            ended = run_process(step.command(), log, name=name)
        error = exit_error(ended, name, log, step.lower)
    finally:
        step.run.release()
    if error is not None and error.code in {*OF_THE_MACHINE, Exit.INTERRUPTED}:
        raise error
    return error
