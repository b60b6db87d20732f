"""A stage of a round: skipped when intact, refused when stale, made and then recorded by its manifest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.markup import escape

from shared.commands import stage_command
from shared.config import flatten_config
from shared.console import console
from shared.errors import SteerHealError
from shared.machine import GIB, hardware, peak_memory
from shared.outputs import guard
from shared.provenance import BESIDE, PACKAGES, commit, differences, versions
from shared.publish import digest, write_json
from shared.records import Identity, read_manifest
from shared.run import Run

VERSION = 1
began: float | None = None  # when a stage's own process began, as `time.time` counts; None in a process of another kind


class Stage:
    """One stage of one round: skipped when intact, refused when stale, published with a manifest last.

    Args:
        settings: the configuration it depends on, JSON-able.
        inputs: files or folders it reads; one that another stage made must be what that stage recorded.
        revisions: of inputs that are no files, by label: a data set of the hub, an installed package.
        outputs: files or folders it makes.
        rebuild: make it again where something has changed.
        clean: removes what the making leaves behind, once the manifest stands.
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
                    next=stage_command(run.folder, number, name),
                )
        guard(outputs, inputs.values())
        self.inputs = {**{label: digest(path) for label, path in inputs.items()}, **revisions}
        self._as_made(inputs)
        self.started = began or time.time()

    def _as_made(self, inputs: dict[str, Path]) -> None:
        """Raise SteerHealError for a file of a round that its stage has not finished, or that was edited since."""
        round_inputs = {
            label: path.relative_to(self.run.folder)
            for label, path in inputs.items()
            if path.is_relative_to(self.run.folder / "rounds")
        }
        manifests = [
            read_manifest(path, f"remove {path}")
            for round_ in sorted({self.run.folder.joinpath(*name.parts[:2]) for name in round_inputs.values()})
            for path in sorted(round_.glob("manifests/*.json"))
        ]
        for label, name in round_inputs.items():
            recorded = [m.outputs[name.as_posix()] for m in manifests if name.as_posix() in m.outputs]
            if self.inputs[label] not in recorded:
                raise SteerHealError(
                    f"an input of round {self.number} {self.name} {'was edited' if recorded else 'is of a stage that did not finish'}",
                    given=inputs[label],
                    expected=f"what the manifests beside it record as {name.as_posix()}",
                    next=f"{stage_command(self.run.folder, self.number, self.name, rebuild=True)}; a file of your own goes to the stage by its plain options",
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
        names = [path.relative_to(self.run.folder).as_posix() for path in self.outputs]
        problems += self.run.changed(manifest) + [
            f"output {name} is missing" for name in names if name not in manifest.outputs
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
            next=f"keep both: begin another run; or make it again: {stage_command(self.run.folder, self.number, self.name, rebuild=True)}",
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
                "config": flatten_config(self.run.config),
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
