"""Begin or open a run: check its configuration and freeze it before the first stage."""

from __future__ import annotations

from shared.cli import entry, need, parse_arguments
from shared.commandline import begin_options
from shared.console import say


def main() -> None:
    options = begin_options()
    arguments, run = parse_arguments(options, in_round=False)
    need(options, arguments, "run")
    assert run is not None
    config = run.config
    say(
        f"run {run.folder}: {config.model.name}, D = {config.train.divergence}, lambda = {config.train.lam}, tau = {config.train.tau}"
    )


if __name__ == "__main__":
    entry(main)
