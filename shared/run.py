"""A run directory: its frozen configuration, its paths, and stages that are done, stale or still to do."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.markup import escape

from shared import config as configuration
from shared.commands import CONFIG, round_command
from shared.console import console
from shared.errors import SteerHealError
from shared.machine import GIB, hardware, peak_memory
from shared.outputs import guard
from shared.preconditions import check
from shared.provenance import BESIDE, PACKAGES, commit, differences, versions
from shared.publish import digest, hold, release, write_json, write_text
from shared.records import Identity, Manifest, read_manifest
from shared.schema import Config

VERSION = 1
began: float | None = None  # when a stage's own process began, as `time.time` counts; None in a process of another kind
STAGES = ("extract", "sweep", "filter", "heal", "score")


class Run:
    """The folder of a run and the configuration frozen in it."""

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config
        self.checked = False  # by this process

    def check(self) -> None:
        """Raise SteerHealError for what its configuration names and cannot be had; a process looks once."""
        if not self.checked:
            check(self.config)
            self.checked = True

    @property
    def begun(self) -> datetime:
        """When its configuration was frozen first."""
        return configuration.begun(self.folder / "config.toml")

    @property
    def day(self) -> date:
        """The one day that a chat template with a clock writes in all its rounds."""
        return self.config.model.day or self.begun.date()

    def hold(self) -> None:
        """Be the one process that writes here, until it releases the run or ends. Raises SteerHealError while another is."""
        hold(self.folder, self.folder / ".lock")

    def release(self) -> None:
        release(self.folder / ".lock")

    def round(self, number: int) -> Path:
        return self.folder / "rounds" / f"{number:02d}"

    def manifest(self, number: int, stage: str) -> Path:
        return self.round(number) / "manifests" / f"{stage}.json"

    def history(self, number: int) -> Path | None:
        """The folded history of rounds 1..number; None for the original model."""
        return self.round(number) / "history" if number else None

    @property
    def students(self) -> Path:
        """Merged checkpoints of students, derived from the history and safe to remove."""
        return self.folder / "students"

    def changed(self, manifest: Manifest) -> list[str]:
        """What is missing or edited among the outputs that a manifest records."""
        problems = []
        for name, recorded in manifest.outputs.items():
            path = self.folder / name
            if not path.exists():
                problems.append(f"output {name} is missing")
            elif digest(path) != recorded:
                problems.append(f"output {name} was edited")
        return problems

    def verify(self, number: int, stage: str) -> Manifest:
        """The manifest of a stage whose outputs are what it records. Raises SteerHealError when they are not."""
        path = self.manifest(number, stage)
        manifest = read_manifest(path, f"remove {path}; the stage runs again")
        problems = self.changed(manifest)
        if (manifest.round or number, manifest.stage or stage) != (number, stage):
            problems.insert(0, f"its manifest is of round {manifest.round}, {manifest.stage}")
        if problems:
            raise SteerHealError(
                f"round {number} {stage} is not what it made",
                given="; ".join(problems),
                expected=f"what {path} records",
                next=f"restore it, or make it again: {round_command(self.folder, number, rebuild=True)}",
            )
        return manifest

    def rounds(self, stage: str = "score") -> list[int]:
        """Rounds whose stage has a manifest, ascending."""
        names = (path.parent.parent.name for path in self.folder.glob(f"rounds/*/manifests/{stage}.json"))
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name == f"{int(name):02d}")


def contained(folder: Path) -> None:
    """Raise SteerHealError for a link that leads out of a folder: what is written there would be written elsewhere."""
    inside = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
            raise SteerHealError(
                "a run holds a link that leads out of it",
                given=f"{path} -> {os.readlink(path)}",
                expected="files of its own",
                next="put what it leads to in its place, or remove it; the folder of a run may itself be a link",
            )


def open_run(
    folder: Path,
    config: Path | None = None,
    overrides: str | None = None,
    rebuild: bool = False,
    *,
    model: str | None = None,
    rounds: int | None = None,
    dry: bool = False,
) -> Run:
    """Open a run with its frozen configuration, or begin it when it has none yet and one is given.

    All that a configuration names is checked before it is frozen. One that differs from the frozen one is refused with the
    differences; with rebuild it replaces it, and so it does where it differs in configuration.NOT_IN_RESULTS alone.

    Args:
        folder: of the run.
        config: configuration file; None is the frozen one where there is one, else the defaults.
        overrides: keys over that file, or over the frozen configuration where no file is given; empty is none.
        rebuild: replace a frozen configuration that differs.
        model: model.name, over that of the file.
        rounds: N of the command, for hints.
        dry: refuse what would be refused, and write nothing.
    """
    frozen = folder / "config.toml"
    contained(folder)
    if config is None and not overrides and model is None:
        if not frozen.is_file():
            raise SteerHealError(
                "a run has no configuration",
                given=frozen,
                expected="the config.toml that begins a run",
                next=round_command(folder, rounds or 1, config=CONFIG),
            )
        return Run(folder, configuration.resolve(frozen)[0])
    wanted, sources = configuration.resolve(config or (frozen if frozen.is_file() else None), overrides or "", model)
    run = Run(folder, wanted)
    begun = None
    if not frozen.is_file():
        run.check()
        if dry:
            return run
        run.hold()  # before it is looked for again: of two that begin a run, the second compares
    if frozen.is_file():
        old, new = configuration.flat(configuration.resolve(frozen)[0]), configuration.flat(wanted)
        differing = [key for key in new if new[key] != old[key]]
        changed = {
            key: f"{key} = {new[key]!r} (was {old[key]!r})"
            for key in differing
            if key not in configuration.NOT_IN_RESULTS
        }
        if changed and not rebuild:
            given: dict[str, Any] = {"overrides": overrides, "model": model}
            other = _beside(folder, new["model.name"] if "model.name" in changed else None)
            raise SteerHealError(
                f"the configuration differs from the one frozen in {frozen}",
                given="; ".join(changed.values()),
                expected="the frozen configuration",
                next=f"go on with the frozen one: {round_command(folder, rounds)}; or keep both: {round_command(other, rounds, config=config or frozen, **given)}; "
                f"or replace this run's: {round_command(folder, rounds, rebuild=True, config=config, **given)}",
            )
        if dry or not differing:
            run.release()
            return run
        run.check()
        run.hold()
        begun = configuration.begun(frozen)
        sources = {
            **sources,
            **{key: words for key, words in configuration.sources_of(frozen).items() if key not in differing},
        }
    write_text(frozen, configuration.to_toml(wanted, sources, begun or datetime.now(UTC)))
    run.release()
    return run


def _beside(folder: Path, model: str | None) -> Path:
    """A folder for a run beside this one that is not there yet, named by its model where that is what differs."""
    name = re.sub(r"[^a-z0-9.]+", "-", Path(model).name.lower()).strip("-.") if model else ""
    names = [name] if name else []
    names += [f"{name or folder.name}-{number}" for number in range(2, 1000)]
    return next(path for path in (folder.parent / one for one in names) if not path.exists())


class Stage:
    """One stage of one round: skipped when intact, refused when stale, published with a manifest last.

    settings: the configuration it depends on, JSON-able. inputs and outputs: files or folders; an input that another stage made must be
    what that stage recorded. revisions: of inputs that are no files, by label: a data set of the hub, an installed package. clean: removes what the making leaves behind, once the manifest stands.
    """

    def __init__(
        self,
        run: Run,
        number: int,
        name: str,
        *,
        settings: dict[str, Any],
        inputs: dict[str, Path],
        revisions: Mapping[str, str] = MappingProxyType({}),
        outputs: list[Path],
        rebuild: bool = False,
        clean: Callable[[], None] = lambda: None,
    ):
        run.hold()
        self.run, self.number, self.name, self.rebuild = run, number, name, rebuild
        self.clean = clean
        self.settings = json.loads(json.dumps(settings))
        self.outputs = outputs
        self.path = run.manifest(number, name)
        for label, path in inputs.items():
            if not path.exists():
                raise SteerHealError(
                    f"round {number} {name} lacks its input",
                    given=path,
                    expected=label,
                    next=round_command(run.folder, number),
                )
        guard(outputs, inputs.values())
        self.inputs = {**{label: digest(path) for label, path in inputs.items()}, **revisions}
        self._as_made(inputs)
        self.started = began or time.time()

    def _as_made(self, inputs: dict[str, Path]) -> None:
        """Raise SteerHealError for a file of a round that its stage has not finished, or that was edited since."""
        made = {
            label: path.relative_to(self.run.folder)
            for label, path in inputs.items()
            if path.is_relative_to(self.run.folder / "rounds")
        }
        manifests = [
            read_manifest(path, f"remove {path}")
            for round_ in sorted({self.run.folder.joinpath(*name.parts[:2]) for name in made.values()})
            for path in sorted(round_.glob("manifests/*.json"))
        ]
        for label, name in made.items():
            recorded = [m.outputs[name.as_posix()] for m in manifests if name.as_posix() in m.outputs]
            if self.inputs[label] not in recorded:
                raise SteerHealError(
                    f"an input of round {self.number} {self.name} {'was edited' if recorded else 'is of a stage that did not finish'}",
                    given=inputs[label],
                    expected=f"what the manifests beside it record as {name.as_posix()}",
                    next=f"{round_command(self.run.folder, self.number, rebuild=True)}; a file of your own goes to the stage by its plain options",
                )

    def done(self) -> bool:
        """True when the outputs are there and nothing they depend on has changed. Raises SteerHealError when something has.

        With rebuild a stage that has changed loses its manifest: it is to be made.
        """
        if not self.path.is_file():
            console.print(f"[bold]round {self.number} · {self.name}[/]")
            return False
        manifest = read_manifest(self.path, f"remove {self.path}; the stage runs again")
        problems = differences(manifest.settings, self.settings) + [
            f"input {key} changed" for key in self.inputs if self.inputs[key] != manifest.inputs.get(key)
        ]
        named = [path.relative_to(self.run.folder).as_posix() for path in self.outputs]
        problems += self.run.changed(manifest) + [
            f"output {name} is missing" for name in named if name not in manifest.outputs
        ]
        if not problems:
            console.print(
                f"round {self.number} · {self.name}: done and intact, nothing to do [dim](took {manifest.seconds:.1f} s)[/]"
            )
            self.clean()
            self.run.release()
            return True
        if self.rebuild:
            console.print(f"[bold]round {self.number} · {self.name}[/]: rebuilding, {escape('; '.join(problems))}")
            console.print(
                "[dim]interrupted, the same command without REBUILD=1 (--rebuild) goes on; with it, it begins again[/]"
            )
            self.path.unlink()  # a stage with a manifest would be refused without REBUILD=1, half made as it is
            return False
        raise SteerHealError(
            f"round {self.number} {self.name} was made from something else",
            given="; ".join(problems),
            expected="what its manifest records",
            next=f"keep both: begin another run; or make it again: {round_command(self.run.folder, self.number, rebuild=True)}",
        )

    def finish(self, original: Identity, *, exact: bool = True, resumed: float = 0.0, **counts: Any) -> None:
        """Write the manifest: digests, settings, versions, hardware, counts and wall time. original: the model under all students;
        exact: the outputs depend on nothing that is not recorded, such as what a cache held; resumed: the share of the work, from 0 to 1,
        that an interrupted process had done before, and that the wall time leaves out."""
        seconds = time.time() - self.started
        write_json(
            self.path,
            {
                "version": VERSION,
                "stage": self.name,
                "round": self.number,
                "model": original.model_dump(),
                "config": configuration.flat(self.run.config),
                "settings": self.settings,
                "inputs": self.inputs,
                "outputs": {path.relative_to(self.run.folder).as_posix(): digest(path) for path in self.outputs},
                "counts": counts,
                "seconds": round(seconds, 3),
                "resumed": round(resumed, 3),
                "peak_memory_gib": round(peak_memory() / GIB, 2),
                "commit": commit(),
                "versions": versions((*PACKAGES, *BESIDE)),
                "hardware": (machine := hardware()),
                # same configuration, same bytes: promised for float32 on one CPU and these versions alone
                "deterministic": exact and machine["gpu"] is None and self.run.config.model.dtype == "float32",
            },
        )
        self.clean()
        self.run.release()
        console.print(f"[green]round {self.number} · {self.name} done[/] in {seconds:.1f} s")
