"""Run a study: every stage of every cell as the process it is in a run, the common stages of round 1 once.

What is done is skipped, so that the same command goes on after an interruption. A cell whose stage ends with an error is left at the
round before, with the error in stopped.json, and the study goes on without it.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.markup import escape

from evals.scored import STEP
from evals.study.plan import SHARED, Cell, Plan, depends, runs_in
from shared import config as configuration
from shared.console import console, table
from shared.errors import OF_THE_MACHINE, SteerHealError
from shared.process import problem, run_process
from shared.publish import atomic_file, digest, hold, write_json
from shared.records import Record, data_file, read_manifest
from shared.run import STAGES, Run, contained
from shared.sets import input_of
from shared.stages import LOG
from shared.stages import Step as RunStep
from shared.strict import read_object

FILES = {"extract": ("vector.safetensors",), "sweep": ("sweep.jsonl",), "filter": ("kept.jsonl", "rejected.jsonl")}
STOPPED = "stopped.json"


class Stopped(Record):
    """stopped.json: the round and stage at which a cell ended, and what the stage said on stderr."""

    round: int
    stage: str
    said: str


@dataclass(frozen=True)
class Step:
    cell: Cell
    number: int
    stage: str

    @property
    def of_run(self) -> RunStep:
        return RunStep(self.cell.run, self.number, self.stage)

    @property
    def done(self) -> bool:
        return self.of_run.done

    @property
    def common(self) -> str | None:
        """What other cells may have made already, by the settings it depends on; None for a step of this cell alone."""
        return depends(self.cell.config, self.stage) if self.number == 1 and self.stage in SHARED else None


def steps(plan: Plan) -> Iterator[Step]:
    """In the order of work: round by round over the cells of a seed, so that an early end leaves arms that can be compared."""
    for seed in dict.fromkeys(cell.seed for cell in plan.cells):
        cells = [cell for cell in plan.cells if cell.seed == seed]
        for number in range(1, max(cell.rounds for cell in cells) + 1):
            for cell in cells:
                if number <= cell.rounds:
                    last = (STEP["full"],) if number == cell.rounds else ()
                    for stage in (*STAGES, *last):
                        yield Step(cell, number, stage)


def donor(runs: Sequence[Run], step: Step) -> Run | None:
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
            and all(same(name, run) for name in earlier)
            and _reads_the_same(run, step)
        ),
        None,
    )


def _reads_the_same(run: Run, step: Step) -> bool:
    """Whether the files that a cell's configuration names are, by now, still those that the stage of a run has read."""
    config = step.cell.config
    files = {
        "trait": data_file(config.vector.trait, "trait.json"),
        "contexts": data_file(config.vector.contexts, "contexts.jsonl"),
        **input_of("dilemmas", config.sweep.dilemmas),
        **input_of("mundane", config.sweep.mundane),
    }
    path = run.manifest(1, step.stage)
    read = read_manifest(path, f"remove {path}").inputs
    return all(digest(file) == read[label] for label, file in files.items() if label in read and file.exists())


def take(donor: Run, step: Step) -> None:
    """A stage's files from a run that has them, the manifest last, with a note of where they are from."""
    donor.verify(1, step.stage)
    source, target = donor.round(1), step.cell.run.round(1)
    for path in (source / name for name in FILES[step.stage]):
        with atomic_file(target / path.relative_to(source)) as temporary:
            shutil.copyfile(path, temporary)
    manifest = read_object(
        donor.manifest(1, step.stage),
        what="a manifest could not be read",
        expected="that of a stage",
        next="make study",
    )
    write_json(step.cell.run.manifest(1, step.stage), {"taken_from": donor.folder.name, **manifest})


def estimate(plan: Plan, left: Sequence[Step]) -> tuple[float, str]:
    """(seconds for the steps left, where the figures are from). A stage that has run here counts with its median here, one of
    which nothing is known with nothing, and is named."""
    measured = {stage: statistics.median(times) for stage, times in seconds_here(plan).items()}
    known = {**plan.study.seconds, **measured}
    runs, made, total, unknown = runs_in(plan.folder), set[str](), 0.0, dict[str, None]()
    for step in left:
        if step.common is not None:
            if step.common in made or donor(runs, step) is not None:
                continue
            made.add(step.common)
        total += known.get(step.stage, 0.0)
        if step.stage not in known:
            unknown[step.stage] = None
    source = "by stages that ran here" if measured else f"by {plan.study.machine}" if known else "nothing measured yet"
    return total, f"{source}, without {', '.join(unknown)}" if known and unknown else source


def seconds_here(plan: Plan) -> dict[str, list[float]]:
    """Wall seconds of the stages that have run, by stage, those taken from another cell once."""
    found: dict[str, dict[str, float]] = {}
    for cell in plan.cells:
        for path in sorted(cell.folder.glob("rounds/*/manifests/*.json")):
            manifest = read_manifest(path, f"remove {path}")
            key = f"{manifest.outputs}" if path.stem in SHARED else str(path)
            found.setdefault(path.stem, {})[key] = manifest.seconds
    return {stage: list(times.values()) for stage, times in found.items()}


def drive(plan: Plan) -> bool:
    """Bring every cell to its last round; True where nothing had to stop."""
    contained(plan.folder)
    hold(plan.folder, plan.folder / ".lock")
    everything = list(steps(plan))
    left = [step for step in everything if not step.done]
    for step in everything:
        if step.done:
            step.cell.run.verify(step.number, step.stage)
    total, source = estimate(plan, left)
    console.print(
        f"{len(plan.cells)} cells, {len(everything) - len(left)} of {len(everything)} stages done; about {total / 60:.0f} min to go ({source}); "
        "interrupt at any time, the same command goes on"
    )
    stopped: dict[str, str] = {}
    begun = time.monotonic()
    for index, step in enumerate(left):
        if step.cell.name in stopped:
            continue
        if _differs(step.cell):
            _begin(step.cell, plan)
        if step.common is not None and (known := donor(runs_in(plan.folder), step)) is not None:
            take(known, step)
            continue
        remaining, _ = estimate(plan, left[index:])
        console.print(
            f"[bold]{step.cell.name}[/] round {step.number} · {step.stage} [dim]({(time.monotonic() - begun) / 60:.0f} min in, about {remaining / 60:.0f} to go)[/]"
        )
        if error := _perform(step):
            said = error.render()
            stopped[step.cell.name] = said
            write_json(
                step.cell.folder / STOPPED, {"version": 1, "round": step.number, "stage": step.stage, "said": said}
            )
            console.print(f"[red]{step.cell.name} stops in round {step.number}[/]: {escape(reason(said))}")
        else:
            (step.cell.folder / STOPPED).unlink(missing_ok=True)
            if (
                step.stage == STEP["full"]
            ):  # the last of a cell; merged weights are a gigabyte a round, and can be made again
                shutil.rmtree(step.cell.run.students, ignore_errors=True)
    if stopped:
        table("cells that stopped", ["cell", "why"], [[name, reason(said)] for name, said in stopped.items()])
    return not stopped


def reason(said: str) -> str:
    """What a stage said on stderr, in one line: our error with what it was given, or else the last line."""
    lines = said.splitlines()
    begin = next((index for index in reversed(range(len(lines))) if lines[index].startswith("error: ")), len(lines) - 1)
    return "; ".join(" ".join(line.split()) for line in lines[begin : begin + 2]).removeprefix("error: ")


def _differs(cell: Cell) -> bool:
    """Whether a cell is still to be begun, or its frozen configuration is another: then in place-only settings, or `load` had refused it."""
    frozen = cell.folder / "config.toml"
    return not frozen.is_file() or configuration.resolve(frozen)[0] != cell.config


def _begin(cell: Cell, plan: Plan) -> None:
    """Freeze a cell's configuration."""
    log = plan.folder / "study.log"
    line = ["--run", str(cell.folder), "--config", str(plan.file), "--set", cell.overrides]
    if error := problem(run_process([sys.executable, "-m", "shared.begin", *line], log), f"{cell.name} begin", log):
        raise SteerHealError(
            "a cell of the study could not be begun",
            given=f"{cell.name}: {error.what}; {error.given}",
            expected=error.expected,
            next=error.next,
            code=error.code,
        )


def _perform(step: Step) -> SteerHealError | None:
    """Run a stage, its output in the cell's log; the error where it says something of the arm.

    Raises SteerHealError for a failure that is the machine's and says nothing of the arm: a kill, a lock, a full disk.
    """
    log = step.cell.folder / LOG
    step.cell.run.hold()
    try:
        ended = run_process(step.of_run.command(), log)
        error = problem(ended, f"{step.cell.name} round {step.number} {step.stage}", log)
    finally:
        step.cell.run.release()
    if error is not None and error.code in OF_THE_MACHINE:
        raise error
    return error
