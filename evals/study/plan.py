"""A study as data: arms and controls x seeds x rounds over one configuration, from a TOML file with a [study] table.

The other tables are those of any configuration. An arm is that configuration with its own overrides; a cell is an arm with a seed,
and a run directory like any other, so that every command for runs works on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from evals.study.tau import logged_divergence, parse_tau, tau_of
from shared.commands import round_command
from shared.config import NOT_IN_RESULTS, flatten_config, resolve_config
from shared.errors import SteerHealError
from shared.run import STAGES, Run
from shared.schema import Config, Section, refuse_duplicates
from shared.strict import parse_toml, repeated

STEERING = "steering"  # plain steering of the original model, among the arms of a comparison
SHARED = STAGES[: STAGES.index("heal")]  # stages of round 1 that arms have in common where their settings agree


class Arm(Section):
    """One column of a study. rounds and seeds are the study's where they are left out."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", description="also part of the names of its run directories")
    set: str = Field("", description="overrides, as in make round SET=...")
    tau: str = Field("", description="train.tau as a share of an earlier arm's D, such as \"half of nll's late D\"")
    role: Literal["arm", "control"] = Field("arm", description="controls are not compared at a matched shift")
    rounds: int | None = Field(None, ge=1)
    seeds: list[int] | None = Field(None, min_length=1)
    says: str = Field("", description="what it is there for, a clause for the report")

    @field_validator("tau")
    @classmethod
    def _said(cls, words: str) -> str:
        if words:
            parse_tau(words)
        return words


class Study(Section):
    """The [study] table."""

    title: str = "A study"
    rounds: int = Field(ge=1)
    seeds: list[int] = Field(min_length=1)
    machine: str = Field("", description="of no effect; files of a version before have it")
    seconds: dict[str, float] = Field({}, description="likewise: seconds are estimated from the plan")
    arm: list[Arm] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Study:
        names = [arm.name for arm in self.arm]
        if twice := sorted(repeated(names)):
            raise ValueError(f"two arms are named {twice[0]}")
        if STEERING in names:
            raise ValueError(f"an arm is named {STEERING}, as plain steering is where arms are compared at one shift")
        for seeds in (self.seeds, *(arm.seeds or [] for arm in self.arm)):
            refuse_duplicates(seeds)
        return self


@dataclass(frozen=True)
class StudyCell:
    """An arm with a seed. config: of its run.

    tau_words: the source of its tau where that is another arm's D. waits: whether that arm is not trained yet; the config then has
    another tau, and the cell is not begun.
    """

    arm: Arm
    seed: int
    rounds: int
    folder: Path
    overrides: str
    config: Config
    tau_words: str = ""
    waits: bool = False

    @property
    def sources(self) -> dict[str, str]:
        """Sources of values, by key, for the frozen configuration to record."""
        return {"train.tau": self.tau_words} if self.tau_words else {}

    @property
    def run(self) -> Run:
        """The run of the cell; it need not have begun."""
        return Run(self.folder, self.config)

    @property
    def name(self) -> str:
        """The name of the folder, made from arm and seed."""
        return self.folder.name


@dataclass(frozen=True)
class Plan:
    """A study's file, the folder of its runs, its cells, and the folder of its results where that was named."""

    study: Study
    folder: Path
    file: Path
    cells: list[StudyCell]
    out: Path | None = None

    def command(self, folder: Path | None = None) -> str:
        """The command that runs this study. folder: of its runs, where it is to be another."""
        return study_command(self.file, folder or self.folder, self.out)


def read_plan(path: Path, folder: Path, out: Path | None = None) -> Plan:
    """The study of a file. A cell whose configuration a run in folder has already, of another study perhaps, is that run.

    Args:
        path: TOML file with a [study] table.
        folder: of the cells' run directories.
        out: folder of the results, for the commands of hints.

    Raises:
        SteerHealError: a file that is no study, an override of no key, or runs that were begun with other settings.
    """

    def refuse(given: str, expected: str) -> SteerHealError:
        again = study_command(path, folder, out)
        return SteerHealError(
            "a study could not be read", given=f"{path}: {given}", expected=expected, next=f"mend {path}, then {again}"
        )

    try:
        tree = parse_toml(path.read_bytes())
    except FileNotFoundError:
        raise SteerHealError(
            "there is no such study file",
            given=path,
            expected="a TOML file with a [study] table",
            next=study_command(Path("configs/study-smollm2.toml"), folder, out),
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(str(error), "a TOML file with a [study] table") from None
    if "study" not in tree:
        raise refuse("no [study] table", "rounds, seeds and [[study.arm]] tables")
    try:
        study = Study.model_validate(tree.pop("study"))
    except ValidationError as error:
        first = error.errors()[0]
        raise refuse(f"study.{'.'.join(map(str, first['loc']))}: {first['msg']}", "see evals/study/plan.py") from None
    existing = {_key(run.config): run.folder for run in runs_in(folder)}
    for arm in study.arm:
        if resolve_config(path, arm.set)[1]["seed"] == "SET":  # which the cell's own would take the place of
            raise refuse(f"the set of {arm.name} has a seed", "seeds = [...], of the arm or of the study")
    cells: list[StudyCell] = []
    for seed in dict.fromkeys(seed for arm in study.arm for seed in arm.seeds or study.seeds):
        for arm in study.arm:
            if seed in (arm.seeds or study.seeds):
                overrides = f"{arm.set} seed={seed}".strip()
                config = resolve_config(path, overrides)[0]
                words, waits = "", False
                if arm.tau:
                    try:
                        number, words = _tau(arm, seed, path, config, cells)
                    except ValueError as error:
                        raise refuse(f"tau of {arm.name}: {error}", "a share of the D of an earlier arm") from None
                    waits = number is None
                    if number is not None:
                        overrides = f"{overrides} train.tau={number!r}"
                        config = resolve_config(path, overrides)[0]
                cell_folder = folder / f"{arm.name}-s{seed}"
                where = cell_folder if waits else existing.get(_key(config), cell_folder)
                if waits and (cell_folder / "config.toml").is_file():
                    raise SteerHealError(
                        f"{cell_folder.name} was begun, but the round that its tau was taken from is missing",
                        given=f'tau = "{arm.tau}"',
                        expected="the trained round 1 of that arm",
                        next=f"restore it, or begin again: {study_command(path, Path(f'{folder}-2'), out)}",
                    )
                identity = (_key(config), words if waits else "")
                if twin := next(
                    (c for c in cells if (_key(c.config), c.tau_words if c.waits else "") == identity), None
                ):
                    raise refuse(f"{arm.name} and {twin.arm.name} have the same settings", "arms that differ")
                if not waits and _key(config) not in existing and (where / "config.toml").is_file():
                    raise SteerHealError(
                        f"the runs of {where.name} were begun with other settings",
                        given=where / "config.toml",
                        expected=f"those of {path}",
                        next=f"keep both: {study_command(path, Path(f'{folder}-2'), out)}",
                    )
                if cells and (other := _measured(config)) != (wanted := _measured(cells[0].config)):
                    differs = next(key for key in other if other[key] != wanted[key])
                    raise refuse(
                        f"{arm.name}: {differs} = {other[differs]!r} against {wanted[differs]!r}",
                        "arms that are all measured alike",
                    )
                cells.append(StudyCell(arm, seed, arm.rounds or study.rounds, where, overrides, config, words, waits))
    return Plan(study, folder, path, cells, out)


def _tau(arm: Arm, seed: int, path: Path, config: Config, cells: Sequence[StudyCell]) -> tuple[float | None, str]:
    """tau of an arm that takes it from another, None before that is trained; and the words for its source.

    Raises ValueError where the arm cannot take it.
    """
    source = parse_tau(arm.tau)
    reference = next((cell for cell in cells if (cell.arm.name, cell.seed) == (source.arm, seed)), None)
    if reference is None:
        raise ValueError(f"no arm {source.arm} of seed {seed} before it")
    if resolve_config(path, arm.set)[1]["train.tau"] == "SET":
        raise ValueError("its set has a train.tau as well")
    ours, theirs = config.train.divergence, logged_divergence(reference.config.train.divergence)
    if ours != theirs:
        raise ValueError(f"its D is {ours}, and {source.arm} logs {theirs}")
    number = None if reference.waits else tau_of(source, reference.run, config)
    return number, f"{source.words}, in {reference.name}"


def _measured(config: Config) -> dict[str, Any]:
    """What cells must have in common to be compared: the model, the trait and the eval."""
    scored = {"vector.trait": config.scored_trait}  # an arm may be trained for another trait than all are scored by
    return {
        key: scored.get(key, value)
        for key, value in flatten_config(config).items()
        if (key.startswith(("model.", "eval.")) or key in scored) and key not in {*NOT_IN_RESULTS, "eval.trait"}
    }


def _key(config: Config) -> str:
    """What a run makes depends on this: equal strings, one run. Where and how it runs is left out."""
    values = flatten_config(config)
    return repr([value for key, value in values.items() if key not in NOT_IN_RESULTS])


def runs_in(folder: Path) -> list[Run]:
    """The run directories of a folder."""
    return [Run(path.parent, resolve_config(path)[0]) for path in sorted(folder.glob("*/config.toml"))]


def depends(config: Config, stage: str) -> str:
    """The key of a shared stage of round 1, of the settings it depends on, as far as cells of one study can differ: equal strings, equal outputs."""
    random = config.vector.direction == "random"
    place = {key.removeprefix("model.") for key in NOT_IN_RESULTS if key.startswith("model.")}
    model = config.model.model_dump(exclude=place)
    parts: list[Any] = [stage, model, config.vector, config.seed if random else None]
    if stage != "extract":
        judged = config.walks or config.sweep.until_kept is not None
        parts += [config.sweep, config.seed, config.filter if judged else config.filter.source == "prompted"]
    if stage == "filter":
        parts.append(config.filter)
    return repr(parts)


def study_command(path: Path, folder: Path | None = None, out: Path | None = None) -> str:
    """The command that runs a study. folder: of its runs; out: of its results."""
    return round_command(folder, config=path, out=out, target="study")
