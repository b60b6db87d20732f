"""Dequantise a GGUF model into the cache, in a separate process before a run's first stage.

    python -m shared.prepare --model NAME [--revision COMMIT]

The stage that needs the model would do it too; but then that stage's seconds would be partly the model's, and the estimates of the
stages to come are corrected by them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from shared.cli import entry
from shared.commandline import prepare_options
from shared.models import resolve_model
from shared.run import Run
from shared.work import to_build


def preparation_commands(runs: Iterable[Run]) -> list[tuple[list[str], str]]:
    """For each model of these runs that must be dequantised and is not in the cache: a command, and its name in messages."""
    models = dict.fromkeys((run.config.model.name, run.config.model.revision) for run in runs)
    return [
        (
            [sys.executable, "-m", "shared.prepare", "--model", name, *(["--revision", revision] if revision else [])],
            f"dequantising {name}",
        )
        for name, revision in models
        if to_build(name, revision)
    ]


def main() -> None:
    arguments = prepare_options().parse_args()
    _ = resolve_model(arguments.model, arguments.revision).folder


if __name__ == "__main__":
    entry(main)
