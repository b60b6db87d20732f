"""The folder of a round in the making: its recipe, the reference states, checkpoints and the log, so that a killed round goes on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from shared.commands import removal
from shared.console import say
from shared.errors import SteerHealError
from shared.provenance import differences, refuse_mixing
from shared.publish import intact, seal, seal_of, write_json, write_text
from shared.strict import parse_json, read_object

VERSION = 3  # 1 did not know the device, 2 not the code
LOGS = ("train.jsonl", "training.json", "kl_tokens.jsonl")  # the records of a training
CONTENT = ("adapter_config.json", "adapter_model.safetensors", "base.json", "README.md", *LOGS)  # an adapter's folder


def begun_on(folder: Path) -> date | None:
    """The day that the rows of an unfinished round were rendered with; None without one, or for a template without a clock."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return date.fromisoformat(parse_json((folder / "recipe.json").read_bytes())["date"])
    return None


class Unfinished:
    """Opened for one recipe: what the round is made from, JSON-able. A folder of another recipe is refused; with replace it is emptied and begun again."""

    def __init__(self, folder: Path, recipe: dict[str, Any], *, replace: bool = False):
        self.folder, self.log = folder, folder / "train.jsonl"
        recipe = json.loads(json.dumps({"version": VERSION, **recipe}))
        written = folder / "recipe.json"
        if written.is_file():
            again = f"begin again: {removal(folder, folder=True)}"
            old = read_object(
                written,
                what="an unfinished round could not be read",
                expected="the recipe that its training wrote, as JSON",
                next=again,
            )
            changed = differences(old, recipe)
            if not changed and not replace:
                return
            if not replace:
                refuse_mixing("round", folder, changed, folder)
                raise SteerHealError(
                    "an unfinished round was begun from something else",
                    given=f"{folder}: {'; '.join(changed)}",
                    expected="the model, history, data and settings it was begun with",
                    next=f"restore them, or begin again: {removal(folder, folder=True)}",
                )
            say(f"{'; '.join(changed) or 'this is a rebuild'}: the unfinished round begins again", "yellow")
        elif foreign := [path.name for path in (folder.iterdir() if folder.is_dir() else ()) if not _ours(path.name)]:
            raise SteerHealError(
                "a folder of the user's has the name of an unfinished round",
                given=f"{folder}: {sorted(foreign)[0]}",
                expected="no such folder, or one that a training left",
                next=f"mv -- {shlex.quote(str(folder))} ELSEWHERE, or take another --out",
            )
        shutil.rmtree(folder, ignore_errors=True)
        write_json(written, recipe)

    def states(self, reference: str) -> Path:
        """The file of a reference's final hidden states."""
        return self.folder / f"{reference}.safetensors"

    def best(self, step: int) -> Path:
        """The adapter after a step whose held-out cross-entropy was the lowest so far."""
        return self.folder / f"best-{step}"

    def seal(self, checkpoint: Path) -> None:
        """Sync a checkpoint and the log to disk, then mark the checkpoint as complete.

        An interrupted training resumes from the last checkpoint with this mark.
        """
        for file in [*checkpoint.rglob("*"), self.log]:
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        seal(checkpoint)

    def checkpoint(self) -> Path | None:
        """The last complete checkpoint; None before the first.

        Removes incomplete checkpoints, and the rows of the log after the one returned.
        """
        sealed = []
        for folder in self.folder.glob("checkpoint-*/"):
            if (
                folder.name.removeprefix("checkpoint-").isdecimal()
                and not folder.is_symlink()
                and seal_of(folder).is_file()
                and intact(folder)
            ):
                sealed.append(folder)
            else:
                (os.unlink if folder.is_symlink() else shutil.rmtree)(folder)
        last = max(sealed, key=_step, default=None)
        kept = [row for row in self.rows() if last is not None and row["step"] <= _step(last)]
        write_text(self.log, "".join(json.dumps(row) + "\n" for row in kept))
        return last

    def rows(self) -> Iterator[dict[str, Any]]:
        """The log's rows; a last line cut short by a kill is left out. Raises SteerHealError for any other that is no row."""
        if not self.log.is_file():
            return
        for number, line in enumerate(self.log.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = parse_json(line)
                row["step"] = int(row["step"])
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise SteerHealError(
                    "the log of an unfinished round could not be read",
                    given=f"{self.log}:{number}: {error!r}",
                    expected="a row with its step, as its training wrote it",
                    next=f"begin the round again: {removal(self.folder, folder=True)}",
                ) from None
            yield row

    def append(self, row: dict[str, Any]) -> None:
        """Append a row to the log. Raises ValueError for a number that is not finite."""
        with open(self.log, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, allow_nan=False) + "\n")

    def remove(self) -> None:
        """Once what it was for is published."""
        shutil.rmtree(self.folder)


def _ours(name: str) -> bool:
    """Whether a training writes files of this name into its folder."""
    return name in LOGS or any(fnmatch(name, pattern) for pattern in (".*", "recipe.json", "*.safetensors", "*.sha256", "checkpoint-*", "best-*"))  # fmt: skip


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
