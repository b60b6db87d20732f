"""Distil kept completions into this round's adapter behind the barrier, and fold it onto the history."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape

from shared.cli import configured, entry, need, parse_arguments
from shared.commands import command_of, removal, round_command
from shared.console import console, print_table, say
from shared.divergences import DIVERGENCES
from shared.errors import SteerHealError
from shared.folding import fold, rounds_of
from shared.locks import hold
from shared.models import resolve_model
from shared.naming import means_path
from shared.outputs import guard
from shared.preconditions import tracker, trainable
from shared.publish import digest, replaceable
from shared.run import Run
from shared.schema import TrainConfig, band
from shared.sets import names_set, refuse_missing
from shared.stage import Stage
from shared.traits import load_trait
from train.commandline import heal_options
from train.diagnosis import quarters
from train.rows import refuse_unusable_rows
from train.unfinished import CONTENT, LOGS

if TYPE_CHECKING:
    from train.distil import Distilled


def show_training(healed: Distilled, train: TrainConfig) -> None:
    """The table of a training, and the diagnosis."""
    steps = healed.steps
    heldout = [row["heldout_ce"] for row in healed.rows if "heldout_ce" in row]
    again = healed.start["base"] > 0  # a round after the first, whose two references differ
    references = {"base": "the original", **({"previous": "the previous student"} if again else {})}
    print_table(
        f"healing: {healed.examples} rows and {healed.heldout} held out, {healed.tokens} completion tokens, {steps[-1]['step']} steps, D = {train.divergence}",
        ["nats", "first quarter", "last quarter"],
        [
            *([["cross-entropy, held out (before, after)", heldout[0], heldout[-1]]] if heldout else []),
            ["cross-entropy", *quarters(steps, "ce")],
            *[
                [f"{DIVERGENCES[train.divergence].symbol} to {words}, {kind}", *quarters(steps, f"kl_{name}_{kind}")]
                for name, words in references.items()
                for kind in ("mean", "rmse", "p95", "max")
            ],
            ["barrier", *quarters(steps, "barrier")],
        ],
    )
    fired, ratio = (float(np.mean([row[name] for row in steps])) for name in ("fired", "gradient_ratio"))
    console.print(
        f"the barrier fired in {fired:.0%} of the steps, its gradient on average {ratio:.2f} times that of the cross-entropy; "
        f"before the first step D to the original was {healed.start['base']:.3f}"
    )
    for finding in healed.findings:
        colour = "green" if finding.name == "nothing stands out" else "yellow"
        console.print(f"[{colour}]{finding.name}[/]: {escape(finding.sentence)}")


def stage(run: Run, number: int, rebuild: bool) -> None:
    config, folder = run.config, run.round(number)
    origin = resolve_model(config.model.name, config.model.revision)
    history = run.history(number - 1)
    adapter, folded = folder / "adapter", folder / "history"
    job = Stage(
        run, number, "heal",
        settings={"model": origin.fingerprint, "dtype": config.model.dtype, **config.model.rendering, "train": config.train.determining(), "seed": config.seed},
        inputs={"kept": folder / "kept.jsonl", **({"history": history} if history else {})},
        outputs=[adapter, folded, *[folder / name for name in LOGS]], rebuild=rebuild,
        clean=lambda: shutil.rmtree(folder / "healing", ignore_errors=True),
    )  # fmt: skip
    if job.done():
        return
    from train.distil import distil

    merged = f"{removal(run.students, folder=True)}; " if history else ""  # a stale merge would be sampled from again
    again = f"{merged}{round_command(run.folder, number, rebuild=True)}"
    healed = distil(origin, folder / "kept.jsonl", history, adapter, config, number, work=folder / "healing", logs=folder, replace=rebuild, again=again, day=run.day)  # fmt: skip
    if history and digest(history) != job.inputs["history"]:
        raise SteerHealError(
            "the history changed on disk while the round was trained",
            given=history,
            expected="one process at a time in a run",
            next=round_command(run.folder, number, rebuild=True),
        )
    fold([*(rounds_of(history) if history else []), (adapter, 1.0)], folded)
    show_training(healed, config.train)
    job.finish(
        origin.identity,
        resumed=healed.resumed,
        rows=healed.examples,
        heldout=healed.heldout,
        tokens=healed.tokens,
        steps=healed.steps[-1]["step"],
        fire_rate=float(np.mean([row["fired"] for row in healed.steps])),
        start=healed.start,
        findings=[finding.name for finding in healed.findings],
    )


def main() -> None:
    options = heal_options()
    arguments, run = parse_arguments(options)
    if run:
        stage(run, arguments.round, arguments.rebuild)
        return
    need(options, arguments, "model", "data", "out")
    if names_set(arguments.data):
        refuse_missing(arguments.data, what="a data set to train on could not be loaded", next="--data FILE")
    elif not os.path.isfile(arguments.data):
        raise SteerHealError(
            "there is no such data file",
            given=arguments.data,
            expected='JSONL, CSV or Parquet rows such as {"prompt": "...", "completion": "..."}, kept rows of gen.filter, or a data set: <id>:<split>',
            next="--data FILE"
            if means_path(arguments.data) and not os.path.isdir(arguments.data)
            else f"--data FILE, or as a data set: --data {arguments.data}:train",
        )
    config = configured(arguments)
    refuse_unusable_rows(arguments.data, config.train.rows)
    for name in config.train.report_to:
        tracker(name)
    load_trait(config.vector.trait)
    before = [adapter for adapter, _ in rounds_of(arguments.history)] if arguments.history else []
    number = 1 + len(before)
    model = resolve_model(arguments.model, config.model.revision)
    guard(arguments.outputs, [*before, model.place])
    model.chats()
    trainable(config, model.context)
    band(config.train.layers, model.depth, "train.layers")
    replaceable(arguments.out, CONTENT)  # now, not after the training
    hold(arguments.out)
    from train.distil import distil

    healed = distil(
        model,
        arguments.data,
        arguments.history,
        arguments.out,
        config,
        number,
        day=config.model.day,
    )
    show_training(healed, config.train)
    say(
        f"wrote {arguments.out}\nnext: {command_of('evals.score', '--model', arguments.model, '--adapter', arguments.out, '--dtype', config.model.dtype, '--out', 'scores.jsonl')}, or {command_of('train.export', '--help')}"
    )
    healed.work.remove()


if __name__ == "__main__":
    entry(main)
