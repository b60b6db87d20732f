"""A page to play on: prompt, persona, vector and healed student side by side, served at /play by gen.serve's server.

With --run the vector, the prompts and the student are a round's; the student is served as an adapter, at a few gates made ahead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from gen.commandline import play_options
from gen.engine.play import PAGE
from gen.gates import model_of
from shared.cli import configured, entry
from shared.commands import command_of
from shared.config import resolve_config
from shared.console import console
from shared.errors import SteerHealError
from shared.prompts import load_heldout
from shared.run import Run
from shared.schema import Config
from shared.traits import load_trait
from shared.vectors import load_vector

PROMPTS = 40  # of the held-out ones


def main() -> None:
    arguments = play_options().parse_args()
    words, page = _of_run(arguments) if arguments.run else _of_vector(arguments)
    os.environ[PAGE] = json.dumps(page)
    console.print(f"the page will be at http://{arguments.host}:{arguments.port}/play")
    from gen import serve

    same = {name: getattr(arguments, name, None) for name in ("host", "port", "slots", "keep", "set")}
    same |= {name: ",".join(map(str, getattr(arguments, name))) for name in ("layers", "gates")}
    sys.argv = [
        sys.argv[0],
        *(word for name, value in same.items() if value for word in (f"--{name}", str(value))),
        *words,
    ]
    serve.main()


def _of_vector(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """The words for gen.serve, and what the page is about, of vector files."""
    config = configured(arguments)
    if not arguments.vector:
        raise SteerHealError(
            "there is nothing to play with",
            given="neither --run nor --vector",
            expected="a run, or a vector file",
            next=command_of("gen.play", "--run", "runs/smollm2"),
        )
    offered = [text if "=" in text else f"trait={text}" for text in arguments.vector]
    name = arguments.model or config.model.name
    metadata = load_vector(Path(offered[0].partition("=")[2]), name).metadata
    words = ["--history", str(arguments.history)] if arguments.history else []
    words += ["--model", name, *(word for text in offered for word in ("--vector", text))]
    words += ["--config", str(chosen)] if (chosen := getattr(arguments, "config", None)) else []
    page: dict[str, Any] = {
        "title": name,
        "model": name,
        "trait": metadata.get("trait", ""),
        "neutral": metadata.get("neutral", ""),
        "prompts": _prompts(config),
        "gates": [{"model": model_of(gate), "gate": gate} for gate in arguments.gates] if arguments.history else [],
    }
    return [*words, "--", *arguments.vllm], page


def _of_run(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """The same of the newest round of a run that has a vector, or of the one that --round names."""
    if arguments.model or arguments.vector or getattr(arguments, "config", None) or arguments.history:
        raise SteerHealError(
            "options of plain files do not go with --run",
            given="--model, --vector, --history or --config",
            expected="--run and --round alone",
            next=command_of("gen.play", "--run", arguments.run),
        )
    frozen = arguments.run / "config.toml"
    config, _ = resolve_config(frozen, getattr(arguments, "set", ""))
    run = Run(arguments.run, config)
    numbers = run.rounds("extract")
    number = arguments.round or max(numbers, default=0)
    if number not in numbers:
        raise SteerHealError(
            "the run has no such vector yet",
            given=f"round {number or '1'} of {arguments.run}",
            expected=f"a round of {numbers}" if numbers else "a round whose vector is extracted",
            next=command_of("shared.pipeline", "--run", arguments.run, "--rounds", number or 1),
        )
    trait, name = load_trait(config.vector.trait), config.model.name
    page: dict[str, Any] = {
        "title": f"{arguments.run}, round {number}",
        "model": name,
        "trait": trait.trait,
        "neutral": trait.neutral,
        "prompts": _prompts(config),
        "gates": [],
    }
    words = ["--config", str(frozen), "--model", name, "--vector", f"trait={run.round(number) / 'vector.safetensors'}"]
    if number in run.rounds("heal"):
        words += ["--history", str(run.history(number))]
        page["gates"] = [{"model": model_of(gate), "gate": gate} for gate in arguments.gates]
    if number > 1 and 0.0 in arguments.gates and page["gates"]:  # the vector is of the student before it
        page["steered"] = model_of(0.0)
    return [*words, "--", *arguments.vllm], page


def _prompts(config: Config) -> list[str]:
    """Held-out prompts of one turn."""
    turns = [prompt.turns for prompt in load_heldout(config.eval.heldout)]
    return [each[-1]["content"] for each in turns if len(each) == 1][:PROMPTS]


if __name__ == "__main__":
    entry(main)
