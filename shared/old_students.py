"""Merged checkpoints in RUN/students that no stage to come reads: each is as large as the model, and can be made again."""

from __future__ import annotations

import shutil

from shared.console import say
from shared.machine import GIB
from shared.merging import merged_folder
from shared.models import resolve_model
from shared.run import Run


def remove_old_students(run: Run, number: int | None) -> None:
    """Remove students in RUN/students that no later stage reads, and print what was removed.

    The students that the round `number` starts from and ends with are kept.

    Args:
        run: a run that no other process writes to.
        number: the round of the next stage; None after the last stage, when all students are removed.
    """
    folders = [path for path in run.students.glob("*") if path.is_dir() and not path.is_symlink()]
    if not folders:
        return
    kept = _needed(run, number) if number else set()
    removed = [path for path in folders if path.name not in kept]
    size = sum(file.stat().st_size for path in removed for file in path.rglob("*") if file.is_file())
    for path in removed:
        shutil.rmtree(path)
    if removed:
        say(
            f"removed {len(removed)} folder{'s' if len(removed) > 1 else ''} of merged or dialled students from {run.students}, "
            f"{size / GIB:.1f} GiB: no stage to come reads them"
        )


def _needed(run: Run, number: int) -> set[str]:
    """Names of the folders of a round's students, whether or not they are there."""
    config = run.config
    origin = resolve_model(config.model.name, config.model.revision)
    histories = [history for round_ in (number - 1, number) if (history := run.history(round_))]
    return {
        merged_folder(origin, history, run.students, config.model.dtype).name
        for history in histories
        if (history / "adapter_model.safetensors").is_file()
    }
