"""How long the stages of a run will take, and what memory and disk they need, before the first one begins.

Seconds are the float operations and bytes of a stage's plan over what this machine does in a second (`shared.calibrate`), at the
share of it that the stage reaches, and a start-up: both constants were measured (docs/profile.md). A stage that has ended corrects
those still to come.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from shared.console import console, format_number, print_table, say
from shared.errors import Exit, SteerHealError
from shared.machine import GIB, free_disk, hardware, memory_available
from shared.models import cache_folder
from shared.progress import half_made, in_minutes
from shared.records import Manifest, read_manifest
from shared.run import Run
from shared.stages import Step
from shared.work import Work, disk_of, memory_of, to_build, work_of

Key = tuple[Path, int, str]  # of a step: the folder of its run, round, stage
MARGIN = 1.5  # an estimate of memory may be wrong by this factor


@dataclass(frozen=True)
class Speed:
    """What a stage's process does: its start-up in seconds, the share of the machine's matrix products that it reaches, and which of
    `shared.calibrate`'s figures says how fast these are."""

    start: float
    share: float
    by: str = "flops"


# Measured on two idle cores of an AMD EPYC (Zen 5) with the embedded model in fp32, with AVX-512 and with AVX2 alone; docs/profile.md.
SPEED = {
    "extract": Speed(7.0, 0.90),
    "sweep": Speed(24.0, 0.62, by="engine_flops"),
    "filter": Speed(1.5, 1.0),
    "heal": Speed(25.0, 0.85),
    "score": Speed(22.0, 0.75, by="engine_flops"),
}
UNMEASURED = Speed(5.0, 0.5)
DEQUANTISE_START, DEQUANTISE_BYTES = (
    10.0,
    35e6,
)  # seconds, and bytes a second after that, of models with 0.1 and 0.5 billion weights


@dataclass
class Estimates:
    """Seconds of the steps to do, by `Step.key`, corrected by those that ended.

    resumed: steps of which an interrupted process has made a part, so that they say little of the others.
    """

    predicted: dict[Key, float]
    resumed: Set[Key] = frozenset()
    ratios: dict[str, float] = field(default_factory=dict)  # of what a stage took over what was predicted, the latest

    def seconds(self, key: Key) -> float | None:
        """Expected seconds of a step, corrected by the steps measured so far; None for a step that was not planned."""
        predicted = self.predicted.get(key)
        return None if predicted is None else predicted * self._ratio(key[2])

    def _ratio(self, stage: str) -> float:
        """The stage's own from a round before, or else the geometric mean of the others'."""
        if stage in self.ratios or not self.ratios:
            return self.ratios.get(stage, 1.0)
        return math.exp(sum(map(math.log, self.ratios.values())) / len(self.ratios))

    def ended(self, key: Key, manifest: Manifest) -> None:
        """A step has this manifest: its stage's ratio from now on, unless it made a part of its work alone, and it is to do no longer."""
        predicted = self.predicted.pop(key, None)
        # the filter's start-up says nothing of the machine
        if predicted and key[2] != "filter" and key not in self.resumed and made_all(manifest):
            self.learn(key[2], manifest, predicted)

    def intact(self, key: Key) -> None:
        """Count a step as done that REBUILD=1 did not have to run; it corrects no estimate."""
        self.predicted.pop(key, None)

    def learn(self, stage: str, manifest: Manifest, predicted: float) -> None:
        """Correct the estimates of a stage by the seconds that it took.

        Zero seconds are ignored: the manifest was written by hand, or the clock was set back.
        """
        if manifest.seconds > 0:
            self.ratios[stage] = manifest.seconds / predicted

    def left(self, steps: Iterable[Step] | None = None) -> float:
        """Expected seconds of these steps; by default of all steps still to do."""
        keys = self.predicted if steps is None else [step.key for step in steps]
        return sum(self.seconds(key) or 0.0 for key in keys)


def calibration() -> dict[str, float | str]:
    """`shared.calibrate`'s figures, from a separate process. Raises SteerHealError where torch does not work, or sees no GPU that it was built for."""
    with console.status("measuring this machine"):
        done = subprocess.run([sys.executable, "-m", "shared.calibrate"], capture_output=True, text=True)
    if done.returncode:
        raise SteerHealError(
            "this machine could not be measured",
            given=(done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1],
            expected="a torch that multiplies matrices",
            next="make doctor",
            code=Exit.MACHINE,
        )
    measured = dict(json.loads(done.stdout))
    if "error" in measured:
        raise SteerHealError.from_dict(measured["error"])
    return measured


def made_all(manifest: Manifest) -> bool:
    """Whether a stage's seconds are those of all its work: nothing was made by an interrupted process before, or taken from a cache.

    A manifest from before this was recorded does not say, and of a stage that can be gone on with it is not believed.
    """
    if manifest.resumed or (manifest.resumed is None and manifest.stage in ("sweep", "heal")):
        return False
    return not manifest.counts.get("taken_from_cache")


def predict(work: Work, stage: str, machine: dict[str, float | str], share: float = 1.0) -> float:
    """Seconds of a stage's work on a machine: what binds, arithmetic or memory, and the start-up.

    Args:
        work: of the stage.
        stage: its name.
        machine: as `calibration` gives it, every figure of one second.
        share: of the work that is left to do.
    """
    speed = SPEED.get(stage.partition("-")[0], UNMEASURED)
    flops, copied = float(machine[speed.by]), float(machine["bytes"])
    return speed.start + share * max(work.flops / (flops * speed.share), work.weight_bytes / copied)


def print_estimate(groups: Sequence[Sequence[Step]], folder: Path, measured: Iterable[Run]) -> Estimates:
    """Print what steps to do will take and need, of one run or of all the cells of a study.

    Args:
        groups: the steps. Merged students of one group are on the disk at the same time; those of different groups are not.
        folder: what the steps are written below, the run's or the study's.
        measured: runs whose finished stages correct the estimate.

    Raises:
        SteerHealError: memory or disk will not suffice.
    """
    todo = [step for group in groups for step in group]
    if not todo:
        say("nothing is left to do")
        return Estimates({})
    speed = calibration()
    shares = {step.key: half.share for step in todo if (half := half_made(step.run, step.number, step.stage))}
    estimates = Estimates(
        {
            step.key: predict(
                work_of(step.run, step.number, step.stage), step.stage, speed, 1 - shares.get(step.key, 0.0)
            )
            for step in todo
        },
        {key for key, share in shares.items() if share},
    )
    _learn(measured, estimates, speed)
    need = memory_and_disk(groups, adapters=speed["device"] == "cuda")
    _show(folder, todo, estimates, need)
    accuracy = (
        "they were not measured on a GPU yet"
        if speed["device"] == "cuda"
        else "other work on the machine makes it longer"
    )
    say(
        f"an estimate by constants of one machine (docs/profile.md), {accuracy}; {(need.disk + need.cache) / GIB:.1f} GiB of disk; every stage that ends corrects it"
    )
    _room(folder, need, on_gpu=speed["device"] == "cuda")
    return estimates


@dataclass(frozen=True)
class Need:
    """What steps need. memory: bytes by stage, with the step that needs most; disk: bytes in all; cache: bytes of models to dequantise."""

    memory: dict[str, tuple[float, Step]]
    disk: float
    cache: float = 0.0

    @property
    def dequantising(self) -> float:
        """Seconds for dequantising the models; 0 where none is a GGUF file."""
        return DEQUANTISE_START + self.cache / DEQUANTISE_BYTES if self.cache else 0.0


def memory_and_disk(groups: Sequence[Sequence[Step]], *, adapters: bool) -> Need:
    """The memory and disk that steps need. groups: as for `print_estimate`. adapters: as for `disk_of`."""
    memory: dict[str, tuple[float, Step]] = {}
    files, students = 0.0, [0.0]
    for group in groups:
        of_run: dict[Path, list[Step]] = {}
        for step in group:
            of_run.setdefault(step.run.folder, []).append(step)
            most = memory_of(step.run, step.stage), step
            memory[step.stage] = max(memory.get(step.stage, most), most, key=lambda item: item[0])
        disks = [
            disk_of(steps[0].run, [(step.number, step.stage) for step in steps], adapters=adapters)
            for steps in of_run.values()
        ]
        files += sum(disk.files for disk in disks)
        students.append(sum(disk.students for disk in disks))
    models = {(step.run.config.model.name, step.run.config.model.revision) for group in groups for step in group}
    return Need(memory, files + max(students), sum(to_build(*model) for model in models))


def _show(folder: Path, todo: Sequence[Step], estimates: Estimates, need: Need) -> None:
    """The table of minutes and memory by stage."""
    print_table(
        f"{folder}: what it will take",
        ["stage", "minutes", "memory, GiB"],
        [
            *[
                [stage, _rounded_minutes(estimates.left(step for step in todo if step.stage == stage)), format_number(memory / GIB, 1)]
                for stage, (memory, _) in need.memory.items()
            ],
            *([["dequantise the model, once", _rounded_minutes(need.dequantising), ""]] if need.cache else []),
            ["in all", _rounded_minutes(estimates.left() + need.dequantising), format_number(max(memory for memory, _ in need.memory.values()) / GIB, 1)],
        ],
    )  # fmt: skip


def _learn(runs: Iterable[Run], estimates: Estimates, speed: dict[str, float | str]) -> None:
    """Correct by the stages of runs that ended on this machine before."""
    measured = {
        key: value for key, value in hardware().items() if key != "gpu"
    }  # torch, which sees one, is not loaded here
    for run in runs:
        for stage in ("extract", "sweep", "heal", "score", "score-full"):
            for round_ in run.rounds(stage):
                path = run.manifest(round_, stage)
                manifest = read_manifest(path, f"remove {path}")
                if {key: manifest.hardware.get(key) for key in measured} == measured and made_all(manifest):
                    estimates.learn(stage, manifest, predict(work_of(run, round_, stage), stage, speed))


def remaining_words(seconds: float) -> str:
    """The time left as words, for a line between two stages."""
    return f"{in_minutes(seconds)} to go"


def _rounded_minutes(seconds: float) -> str:
    return "under 1" if seconds < 45 else f"{seconds / 60:.0f}"


def _room(folder: Path, need: Need, *, on_gpu: bool) -> None:
    """Raise SteerHealError where a disk is too small or the memory far too small; warn where it is close."""
    scores = 0.05 * need.disk  # rows of scores, which the cache takes
    for place, size in ((folder, need.disk), (cache_folder(), scores + need.cache)):
        free, parent = free_disk(place)
        if free < size:
            raise SteerHealError(
                "there is too little room on a disk",
                given=f"{free / GIB:.1f} GiB free at {parent}",
                expected=f"{size / GIB:.1f} GiB for the stages to do",
                next="free some, or name another place: RUN=/path/to/run, and STEER_HEAL_CACHE=/path/to/cache for the cache",
                code=Exit.MACHINE,
            )
    most, step = max(need.memory.values(), key=lambda item: item[0])
    available = memory_available()
    if on_gpu or most <= available:
        return
    if most > MARGIN * available:
        raise SteerHealError(
            "there is too little memory for a stage",
            given=f"{available / GIB:.1f} GiB available",
            expected=f"about {most / GIB:.1f} GiB, for {step.stage}",
            next=" or ".join(["end other work", *([step.lower] if step.lower else [])]),
            code=Exit.MACHINE,
        )
    say(
        f"{step.stage} will need about {most / GIB:.1f} GiB, and {available / GIB:.1f} are available: it may be killed",
        "yellow",
    )
