"""Run a study: every stage of every cell as the process it is in a run, the common stages of round 1 once.

What is done is skipped, so that the same command goes on after an interruption. A cell whose stage ends with an error is left at the
round before, with the error in stopped.json, and the study goes on without it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.markup import escape

from evals.scored import STEP
from evals.study.common import CellStep, donor, take_stage, to_make
from evals.study.plan import Plan, StudyCell, read_plan, runs_in
from evals.study.stopped import STOPPED, reason
from shared.config import resolve_config
from shared.console import console, print_table
from shared.errors import OF_THE_MACHINE, Exit, SteerHealError
from shared.estimate import print_estimate, remaining_words
from shared.locks import hold
from shared.old_students import remove_old_students
from shared.preconditions import check
from shared.prepare import preparation_commands
from shared.process import exit_error, run_process
from shared.publish import write_json
from shared.run import STAGES, open_run, refuse_links_out
from shared.schema import Config
from shared.stages import LOG


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


def drive(plan: Plan) -> dict[str, str]:
    """Bring every cell to its last round.

    Returns:
        The cells that stopped: by the cell's name, what its last stage wrote to stderr.

    Raises:
        SteerHealError: a cell cannot be begun, memory or disk will not suffice, or the machine is at fault.
    """
    refuse_links_out(plan.folder)
    hold(plan.folder, plan.folder / ".lock")
    everything = list(cell_steps(plan))
    waiting = [step for step in everything if not step.done]
    for step in everything:
        if step.done:
            step.run.verify(step.number, step.stage)
    for cell in plan.cells:
        if not (cell.folder / "config.toml").is_file():
            with _naming(cell):
                _as_written(check(cell.config), cell, plan)
    console.print(
        f"{len(plan.cells)} cells, {len(everything) - len(waiting)} of {len(everything)} stages done; "
        "interrupt at any time, the same command goes on"
    )
    _remove_old_students(plan, waiting)
    making = to_make(waiting, runs_in(plan.folder))
    seeds = dict.fromkeys(step.cell.seed for step in making)
    groups = [[step for step in making if step.cell.seed == seed] for seed in seeds]
    estimates = print_estimate(groups, plan.folder, [cell.run for cell in plan.cells])
    for command, name in preparation_commands(step.cell.run for step in making):
        if error := exit_error(run_process(command, plan.folder / LOG, name=name), name, plan.folder / LOG):
            raise error
    stopped: dict[str, str] = {}
    start = time.monotonic()
    for index, step in enumerate(waiting):
        if step.cell.name in stopped:
            continue
        if step.cell.waits:
            cell = settled_cell(plan, step.cell)
            if cell.waits:
                stopped[cell.name] = _unsettled(plan, cell).render()
                continue
            waiting[index:] = [_of(cell, later) for later in waiting[index:]]
            step = waiting[index]
        if _differs(step.cell):
            with _naming(step.cell):
                open_run(step.cell.folder, plan.file, step.cell.overrides, value_sources=step.cell.sources)
        runs = runs_in(plan.folder)
        if step.common is not None and (source := donor(runs, step)) is not None:
            take_stage(source, step)
            continue
        remaining = to_make([later for later in waiting[index:] if later.cell.name not in stopped], runs)
        console.print(
            f"[bold]{step.cell.name}[/] round {step.number} · {step.stage} [dim]({(time.monotonic() - start) / 60:.0f} min in, {remaining_words(estimates.left(remaining))})[/]"
        )
        error = _perform(step)
        if error:
            message = error.render()
            stopped[step.cell.name] = message
            write_json(
                step.cell.folder / STOPPED, {"version": 1, "round": step.number, "stage": step.stage, "said": message}
            )
            console.print(f"[red]{step.cell.name} stops in round {step.number}[/]: {escape(reason(message))}")
            continue
        estimates.ended(step.key, step.manifest)
        (step.cell.folder / STOPPED).unlink(missing_ok=True)
        if step.stage == STEP["full"]:  # the last of a cell; merged weights are large, and can be made again
            shutil.rmtree(step.run.students, ignore_errors=True)
    if stopped:
        print_table(
            "cells that stopped", ["cell", "why"], [[name, reason(message)] for name, message in stopped.items()]
        )
    return stopped


def settled_cell(plan: Plan, cell: StudyCell) -> StudyCell:
    """A cell whose tau is another arm's share, with its number where that arm is trained by now."""
    again = read_plan(plan.file, plan.folder, plan.out)
    return next(other for other in again.cells if (other.arm.name, other.seed) == (cell.arm.name, cell.seed))


def _of(cell: StudyCell, step: CellStep) -> CellStep:
    """A step with the settled cell in the place of the one that waited."""
    same = (step.cell.arm.name, step.cell.seed) == (cell.arm.name, cell.seed)
    return CellStep.of(step.plan, cell, step.number, step.stage) if same else step


def _unsettled(plan: Plan, cell: StudyCell) -> SteerHealError:
    return SteerHealError(
        "an arm's tau has no source",
        given=f"{cell.name}: {cell.tau_words}, whose round 1 was not trained",
        expected="the log of that round",
        next=f"see why that arm stopped, then {plan.command()}",
    )


def _remove_old_students(plan: Plan, waiting: Sequence[CellStep]) -> None:
    """Of every cell: a study that was interrupted, and cells run by themselves, leave merged weights behind."""
    first = {step.cell.name: step.number for step in reversed(waiting)}
    for cell in plan.cells:
        if cell.run.students.is_dir():
            cell.run.hold()
            try:
                remove_old_students(cell.run, first.get(cell.name))
            finally:
                cell.run.release()


def _differs(cell: StudyCell) -> bool:
    """Whether a cell is still to be begun, or its frozen configuration is another: then in settings that no result depends on, or `load` had refused it."""
    frozen = cell.folder / "config.toml"
    return not frozen.is_file() or resolve_config(frozen)[0] != cell.config


def _as_written(fit: Config, cell: StudyCell, plan: Plan) -> None:
    """Raise SteerHealError for a model.max_model_len that a run would take from its model: cells are known by what the file says."""
    if (length := fit.model.max_model_len) != cell.config.model.max_model_len:
        raise SteerHealError(
            "model.max_model_len is beyond the model's context",
            given=f"{cell.config.model.max_model_len}, the default",
            expected=f"at most {length}",
            next=f"write max_model_len = {length} into [model] of {plan.file}, then {plan.command()}",
        )


@contextmanager
def _naming(cell: StudyCell) -> Iterator[None]:
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
