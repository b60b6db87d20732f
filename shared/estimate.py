"""How long the stages of a run will take, and what memory and disk they need, before the first one begins.

Seconds are the float operations and bytes of a stage's plan over what this machine does in a second (`shared.calibrate`), at the
share of it that the stage reaches, and a start-up: both constants were measured (docs/profile.md). A stage that has ended corrects
those still to come.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.console import console, number, say, table
from shared.errors import Exit, SteerHealError
from shared.machine import hardware, memory_available
from shared.models import cache_folder
from shared.records import read_manifest
from shared.run import Run
from shared.stages import Step
from shared.work import Work, disk_of, memory_of, work_of

GIB = 2**30
MARGIN = 1.5  # an estimate of memory may be wrong by this factor
RESUMED = 0.4  # of what was predicted: less than this was not made from its beginning


@dataclass(frozen=True)
class Speed:
    """What a stage's process does: its start-up in seconds, the share of the machine's matrix products that it reaches, and seconds
    per request besides."""

    start: float
    share: float
    request: float = 0.0


# Measured on two AVX2 cores of an AMD EPYC with the embedded model in fp32; docs/profile.md.
SPEED = {
    "extract": Speed(6.0, 0.75),
    "sweep": Speed(20.0, 0.45, 0.02),
    "filter": Speed(1.5, 1.0),
    "heal": Speed(25.0, 0.40),
    "score": Speed(25.0, 0.50, 0.01),
}
UNMEASURED = Speed(5.0, 0.5)


@dataclass
class Estimates:
    """Seconds of the stages to do, by (round, stage), corrected by those that ended."""

    predicted: dict[tuple[int, str], float]
    ratios: dict[str, float] = field(default_factory=dict)  # of what a stage took over what was predicted, the latest

    def seconds(self, number: int, stage: str) -> float | None:
        """What a stage is expected to take now; None for one that was not planned."""
        predicted = self.predicted.get((number, stage))
        return None if predicted is None else predicted * self._ratio(stage)

    def _ratio(self, stage: str) -> float:
        """The stage's own from a round before, or else the geometric mean of the others'."""
        if stage in self.ratios or not self.ratios:
            return self.ratios.get(stage, 1.0)
        return math.exp(sum(map(math.log, self.ratios.values())) / len(self.ratios))

    def ended(self, number: int, stage: str, seconds: float) -> None:
        """A stage took so long: its ratio from now on, and it is to do no longer."""
        predicted = self.predicted.pop((number, stage), None)
        if predicted and stage != "filter":  # whose start-up says nothing of the machine
            self.learn(stage, seconds / predicted)

    def learn(self, stage: str, ratio: float) -> None:
        """Correct by a ratio, unless it is so small that the stage went on from half of its work or took it from a cache."""
        if ratio > RESUMED:
            self.ratios[stage] = ratio

    def left(self) -> float:
        """Seconds of all that is still to do."""
        return sum(self.seconds(*key) or 0.0 for key in self.predicted)


def calibrated() -> dict[str, float | str]:
    """`shared.calibrate`'s figures, from a process of its own."""
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
    return dict(json.loads(done.stdout))


def predict(work: Work, stage: str, machine: dict[str, float | str]) -> float:
    """Seconds of a stage's work on a machine: what binds, arithmetic or memory, and the start-up."""
    speed = SPEED.get(stage.partition("-")[0], UNMEASURED)
    flops, copied = float(machine["flops"]), float(machine["bytes"])
    return speed.start + max(work.flops / (flops * speed.share), work.bytes / copied) + work.requests * speed.request


def before(run: Run, todo: Sequence[tuple[int, str]]) -> Estimates:
    """Print what the stages to do will take and need. Raises SteerHealError where memory or disk will not suffice."""
    if not todo:
        say("nothing is left to do")
        return Estimates({})
    machine = calibrated()
    estimates = Estimates({key: predict(work_of(run, *key), key[1], machine) for key in todo})
    _learn(run, estimates, machine)
    memory = {stage: memory_of(run, stage) for stage in dict.fromkeys(stage for _, stage in todo)}
    disk = disk_of(run, todo, adapters=machine["device"] == "cuda")
    stages = list(memory)
    table(
        f"{run.folder}: what it will take",
        ["stage", "minutes", "memory, GiB"],
        [
            *[
                [stage, _minutes(sum(estimates.seconds(*key) or 0.0 for key in todo if key[1] == stage)), number(memory[stage] / GIB, 1)]
                for stage in stages
            ],
            ["in all", _minutes(estimates.left()), number(max(memory.values()) / GIB, 1)],
        ],
    )  # fmt: skip
    measured = "they were not measured on a GPU yet" if machine["device"] == "cuda" else "within a factor of 1.5 there"
    say(
        f"an estimate by constants of one machine (docs/profile.md), {measured}; {disk / GIB:.1f} GiB of disk; every stage that ends corrects it"
    )
    _room(run, memory, disk, on_gpu=machine["device"] == "cuda")
    return estimates


def _learn(run: Run, estimates: Estimates, machine: dict[str, float | str]) -> None:
    """Correct by the stages of this run that ended on this machine before."""
    here = {
        key: value for key, value in hardware().items() if key != "gpu"
    }  # torch, which sees one, is not loaded here
    for stage in ("extract", "sweep", "heal", "score", "score-full"):
        for round_ in run.rounds(stage):
            path = run.manifest(round_, stage)
            manifest = read_manifest(path, f"remove {path}")
            if {key: manifest.hardware.get(key) for key in here} == here and not manifest.counts.get(
                "taken_from_cache"
            ):
                predicted = predict(work_of(run, round_, stage), stage, machine)
                estimates.learn(stage, manifest.seconds / predicted)


def _minutes(seconds: float) -> str:
    return "under 1" if seconds < 45 else f"{seconds / 60:.0f}"


def _room(run: Run, memory: dict[str, float], disk: float, *, on_gpu: bool) -> None:
    """Raise SteerHealError where a disk is too small or the memory far too small; warn where it is close."""
    for folder, needed in ((run.folder, disk), (cache_folder(), 0.05 * disk)):  # the cache takes rows of scores
        place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if (free := shutil.disk_usage(place).free) < needed:
            raise SteerHealError(
                "there is too little room on a disk",
                given=f"{free / GIB:.1f} GiB free at {place}",
                expected=f"{needed / GIB:.1f} GiB for the stages to do",
                next="free some, or name another place: RUN=/path/to/run, and STEER_HEAL_CACHE=/path/to/cache for the cache",
                code=Exit.MACHINE,
            )
    stage, most = max(memory.items(), key=lambda item: item[1])
    available = memory_available()
    if on_gpu or most <= available:
        return
    if most > MARGIN * available:
        raise SteerHealError(
            "there is too little memory for a stage",
            given=f"{available / GIB:.1f} GiB available",
            expected=f"about {most / GIB:.1f} GiB, for {stage}",
            next=" or ".join(["end other work", *([lower] if (lower := Step(run, 1, stage).lower) else [])]),
            code=Exit.MACHINE,
        )
    say(
        f"{stage} will need about {most / GIB:.1f} GiB, and {available / GIB:.1f} are available: it may be killed",
        "yellow",
    )
