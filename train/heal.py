"""Distil kept completions into this round's adapter behind the barrier, and fold it onto the history."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from shared.cli import entry, need, parse, parser, plain
from shared.config import TrainConfig, resolve
from shared.console import console, table
from shared.folding import fold, rounds_of
from shared.models import resolve as resolve_model
from shared.publish import atomic_folder, digest, write_text
from shared.run import Run, Stage

if TYPE_CHECKING:
    from train.distil import Distilled


def show(healed: Distilled, train: TrainConfig) -> None:
    """The table of a training, and what its figures say by rule."""
    first, last = healed.rows[0], healed.rows[-1]
    fired = float(np.mean([row["fired"] for row in healed.rows]))
    late = healed.rows[len(healed.rows) // 2 :]
    table(
        f"healing: {healed.examples} rows, {healed.tokens} completion tokens, {len(healed.rows)} steps, D = {train.divergence}",
        ["measure", "first step", "last step"],
        [
            ["cross-entropy, nats", first["ce"], last["ce"]],
            *[
                [f"divergence, {kind}, nats", first[f"divergence_{kind}"], last[f"divergence_{kind}"]]
                for kind in ("mean", "rmse", "p95", "max")
            ],
            ["barrier", first["barrier"], last["barrier"]],
        ],
    )
    console.print(
        f"the barrier fired in {fired:.0%} of the steps; at the start D to the base was {healed.start['base']:.3f}, to the previous student {healed.start['previous']:.3f}"
    )
    if train.divergence in ("kl_fwd", "kl_rev"):
        mean, tail = (float(np.mean([row[f"divergence_{kind}"] for row in late])) for kind in ("mean", "p95"))
        if fired == 0:
            console.print(
                f"[yellow]barrier inert: D never passed tau = {train.tau:g}; lower train.tau to make it count[/]"
            )
        if mean < train.tau < tail and train.aggregate == "mean":
            console.print(
                f"[yellow]mean diluted: the mean divergence {mean:.3f} is under tau = {train.tau:g}, the 95th percentile {tail:.3f} above; use train.aggregate=rmse[/]"
            )
        if train.reference == "base" and healed.start["base"] > train.tau:
            console.print(
                f"[yellow]history eroding: D to the base is {healed.start['base']:.3f} before the first step, past tau = {train.tau:g}; consider train.reference=previous[/]"
            )
    if len(healed.rows) > 1 and last["ce"] >= first["ce"]:
        console.print(
            "[yellow]nothing learned: cross-entropy did not fall; raise train.learning_rate or train.epochs, or lower train.lam[/]"
        )


def stage(run: Run, number: int, rebuild: bool) -> None:
    config, folder = run.config, run.round(number)
    origin = resolve_model(config.model.name, config.model.revision)
    history = run.history(number - 1)
    adapter, folded, log = folder / "adapter", folder / "history", folder / "train.jsonl"
    job = Stage(
        run, number, "heal",
        settings={"model": origin.fingerprint, "dtype": config.model.dtype, "chat_template_kwargs": config.model.chat_template_kwargs, "train": config.train.model_dump(), "seed": config.seed},
        inputs={"kept": folder / "kept.jsonl", **({"history": history} if history else {})},
        outputs=[adapter, folded, log], rebuild=rebuild,
    )  # fmt: skip
    if job.done():
        return
    from train.distil import distil

    with TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / "adapter"
        before = digest(history) if history else None
        healed = distil(origin, folder / "kept.jsonl", history, made, config, number)
        if history and digest(history) != before:
            raise RuntimeError(f"{history} changed on disk while the round was trained")
        text = (made / "train.jsonl").read_text(encoding="utf-8")
        (made / "train.jsonl").unlink()
        with atomic_folder(adapter) as temporary:
            for file in made.iterdir():
                file.rename(temporary / file.name)
    write_text(log, text)
    fold([*(rounds_of(history) if history else []), (adapter, 1.0)], folded)
    show(healed, config.train)
    job.finish(
        rows=healed.examples,
        tokens=healed.tokens,
        steps=len(healed.rows),
        fire_rate=float(np.mean([row["fired"] for row in healed.rows])),
        start=healed.start,
    )


def main() -> None:
    options = parser("train.heal", "Distil kept completions into a LoRA behind a divergence barrier.")
    files = plain(options)
    files.add_argument("--model", help="'embedded', a Hugging Face id or a local folder")
    files.add_argument("--data", type=Path, help="kept rows, or rows of prompt (or messages) and completion; JSONL")
    files.add_argument("--history", type=Path, help="folded history to train over")
    files.add_argument("--out", type=Path, help="adapter folder to write")
    arguments, run = parse(options)
    if run:
        stage(run, arguments.round, arguments.rebuild)
        return
    need(options, arguments, "model", "data", "out")
    config = resolve(getattr(arguments, "config", None), getattr(arguments, "set", ""))[0]
    from train.distil import distil

    number = 1 + (len(rounds_of(arguments.history)) if arguments.history else 0)
    healed = distil(
        resolve_model(arguments.model, config.model.revision),
        arguments.data,
        arguments.history,
        arguments.out,
        config,
        number,
    )
    show(healed, config.train)
    console.print(f"wrote {arguments.out}")


if __name__ == "__main__":
    entry(main)
