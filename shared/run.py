"""A run directory: its frozen configuration, its paths, and what its manifests say of its files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from shared.commands import CONFIG, round_command, stage_command
from shared.config import NOT_IN_RESULTS, flatten_config, frozen_at, resolve_config, sources_of, to_toml
from shared.context import KEY, SOURCE, with_length
from shared.errors import SteerHealError
from shared.locks import hold, release
from shared.preconditions import check
from shared.publish import digest, write_text
from shared.records import Manifest, read_manifest
from shared.schema import Config
from shared.think import with_its_think

STAGES = ("extract", "sweep", "filter", "heal", "score")


class Run:
    """The folder of a run and the configuration frozen in it."""

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config
        self.checked = False  # by this process

    def check(self, *, weights: bool = True) -> None:
        """Raise SteerHealError for what its configuration names and cannot be had; a process looks once.

        Without weights, for a dry run, those of the model are not downloaded.

        A model.max_model_len that nobody set is the model's context from then on, where that is shorter.
        """
        if not self.checked:
            self.config = check(self.config, weights=weights)
            self.checked = True

    @property
    def begun(self) -> datetime:
        """When its configuration was frozen first."""
        return frozen_at(self.folder / "config.toml")

    @property
    def day(self) -> date:
        """The one day that a chat template with a clock writes in all its rounds."""
        return self.config.model.day or self.begun.date()

    def hold(self) -> None:
        """Be the one process that writes here, until it releases the run or ends. Raises SteerHealError while another is."""
        hold(self.folder, self.folder / ".lock")

    def release(self) -> None:
        """Let another process write here: the counterpart of hold."""
        release(self.folder / ".lock")

    def round(self, number: int) -> Path:
        """The folder of a round, numbered from 1."""
        return self.folder / "rounds" / f"{number:02d}"

    def manifest(self, number: int, stage: str) -> Path:
        """The path of the manifest of a stage of a round."""
        return self.round(number) / "manifests" / f"{stage}.json"

    def history(self, number: int) -> Path | None:
        """The folded history of rounds 1..number; None for the original model."""
        return self.round(number) / "history" if number else None

    @property
    def students(self) -> Path:
        """Merged checkpoints of students, derived from the history and safe to remove."""
        return self.folder / "students"

    def changed(self, manifest: Manifest) -> list[str]:
        """The outputs of a manifest that are missing or edited."""
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
                f"round {number} {stage} is not what it made: files changed after the stage",
                given="; ".join(problems),
                expected=f"what {path} records",
                next=f"restore it, or make it again: {stage_command(self.folder, number, stage, rebuild=True)}",
            )
        return manifest

    def rounds(self, stage: str = "score") -> list[int]:
        """Rounds whose stage has a manifest, ascending."""
        names = (path.parent.parent.name for path in self.folder.glob(f"rounds/*/manifests/{stage}.json"))
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name == f"{int(name):02d}")


def refuse_links_out(folder: Path) -> None:
    """Raise SteerHealError for a link that leads out of a folder: what is written there would be written elsewhere."""
    inside = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
            raise SteerHealError(
                "a run holds a link that leads out of it",
                given=f"{path} -> {os.readlink(path)}",
                expected="files inside the run",
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
    value_sources: Mapping[str, str] | None = None,
) -> Run:
    """Open a run with its frozen configuration, or begin it when it has none yet and one is given.

    All that a configuration names is checked before it is frozen. One that differs from the frozen one is refused with the
    differences; with rebuild it replaces it, and so it does where it differs in shared.config.NOT_IN_RESULTS alone.

    Args:
        folder: of the run.
        config: configuration file; None is the frozen one where there is one, else the defaults.
        overrides: keys over that file, or over the frozen configuration where no file is given; empty is none.
        rebuild: replace a frozen configuration that differs.
        model: model.name, over that of the file.
        rounds: N of the command, for hints.
        dry: refuse what would be refused, and write nothing.
        value_sources: by key, the source of a value that stands in the frozen configuration in place of SET.
    """
    frozen = folder / "config.toml"
    refuse_links_out(folder)
    if config is None and not overrides and model is None:
        if not frozen.is_file():
            raise SteerHealError(
                "a run has no configuration",
                given=frozen,
                expected="the config.toml that begins a run",
                next=round_command(folder, rounds or 1, config=CONFIG, dry=dry),
            )
        return Run(folder, resolve_config(frozen)[0])
    config_now, sources = resolve_config(config or (frozen if frozen.is_file() else None), overrides or "", model)
    sources |= value_sources or {}
    if frozen.is_file():
        config_now = with_its_think(_with_its_length(config_now, frozen), frozen)
    run = Run(folder, config_now)
    begun = None
    if not frozen.is_file():
        run.check(weights=not dry)
        if dry:
            return run
        run.hold()  # before it is looked for again: of two that begin a run, the second compares
    if frozen.is_file():
        old, new = flatten_config(resolve_config(frozen)[0]), flatten_config(run.config)
        differing = [key for key in new if new[key] != old[key]]
        changed = {key: f"{key} = {new[key]!r} (was {old[key]!r})" for key in differing if key not in NOT_IN_RESULTS}
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
        begun = frozen_at(frozen)
        sources = {
            **sources,
            **{
                key: words
                for key, words in sources_of(frozen).items()
                if not any(key == other or key.startswith(f"{other}.") for other in differing)
            },
        }
    if sources[KEY] == "default" and run.config.model.max_model_len != Config().model.max_model_len:
        sources[KEY] = SOURCE
    write_text(frozen, to_toml(run.config, sources, begun or datetime.now(UTC)))
    run.release()
    return run


def _with_its_length(config: Config, frozen: Path) -> Config:
    """A configuration that does not say model.max_model_len, with that which a frozen one took from the same model."""
    if "max_model_len" in config.model.model_fields_set or sources_of(frozen).get(KEY) != SOURCE:
        return config
    old = resolve_config(frozen)[0].model
    same = (old.name, old.revision) == (config.model.name, config.model.revision)
    return with_length(config, old.max_model_len) if same else config


def _beside(folder: Path, model: str | None) -> Path:
    """A folder for a run beside this one that is not there yet, named by its model where that is what differs."""
    name = re.sub(r"[^a-z0-9.]+", "-", Path(model).name.lower()).strip("-.") if model else ""
    names = [name] if name else []
    names += [f"{name or folder.name}-{number}" for number in range(2, 1000)]
    return next(path for path in (folder.parent / candidate for candidate in names) if not path.exists())
