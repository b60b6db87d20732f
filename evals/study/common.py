"""What cells of a study have in common: a stage of round 1 that another cell has made already is taken from it.

Which settings a stage depends on is in `evals.study.plan`; here the files that it reads and writes are compared too.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from evals.study.plan import SHARED, Plan, StudyCell, depends
from shared.commands import removal
from shared.publish import atomic_file, digest, write_json
from shared.records import data_file, read_manifest
from shared.run import Run
from shared.sets import input_of, revisions_of
from shared.stages import Step
from shared.strict import read_object

FILES = {
    "extract": ("vector.safetensors",),
    "sweep": ("sweep.jsonl",),
    "filter": ("kept.jsonl", "rejected.jsonl", "filter.json"),
}


@dataclass(frozen=True)
class CellStep(Step):
    """One stage of one round of a cell."""

    cell: StudyCell
    plan: Plan

    @classmethod
    def of(cls, plan: Plan, cell: StudyCell, number: int, stage: str) -> CellStep:
        """The step of a cell: one stage of one round."""
        return cls(cell.run, number, stage, cell, plan)

    @property
    def common(self) -> str | None:
        """The key of a step that other cells may have made already, of the settings it depends on; None for a step of this cell alone."""
        return depends(self.cell.config, self.stage) if self.number == 1 and self.stage in SHARED else None

    @property
    def lower(self) -> str:
        """The hint for less memory: another study, since all cells of one are measured alike."""
        if not self.lower_settings:
            return ""
        other = self.plan.command(folder=self.plan.folder.with_name(f"{self.plan.folder.name}-2"))
        return f"set {self.lower_settings} in {self.plan.file}, then {other}"


def donor(runs: Sequence[Run], step: CellStep) -> Run | None:
    """A run of the study's folder whose stage of round 1 is this one's, by the settings and the files it depends on."""
    if (settings := step.common) is None:
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
            and depends(run.config, step.stage) == settings
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


def take_stage(donor: Run, step: CellStep) -> None:
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


def to_make(waiting: Sequence[CellStep], runs: Sequence[Run]) -> list[CellStep]:
    """The steps that will run: of those that cells have in common the first, and none that a run here has made already."""
    chosen: list[CellStep] = []
    common: set[str] = set()
    for step in waiting:
        if step.common is not None:
            if step.common in common or donor(runs, step) is not None:
                continue
            common.add(step.common)
        chosen.append(step)
    return chosen
