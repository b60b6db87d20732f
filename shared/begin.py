"""Begin or open a run: freeze its configuration before the first stage."""

from __future__ import annotations

from shared.cli import entry, need, parse, parser
from shared.console import console


def main() -> None:
    options = parser("shared.begin", "Freeze the configuration of a run in its config.toml.")
    arguments, run = parse(options, in_round=False)
    need(options, arguments, "run", "config")
    assert run is not None
    console.print(
        f"run {run.folder}: {run.config.model.name}, D = {run.config.train.divergence}, lambda = {run.config.train.lam}, tau = {run.config.train.tau}"
    )


if __name__ == "__main__":
    entry(main)
