"""Distil kept completions into this round's adapter behind the barrier, and fold it onto the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.cli import entry, need, parser, run_of
from shared.config import Config, TrainConfig, resolve
from shared.console import console, table
from shared.folding import fold, rounds_of
from shared.models import Model
from shared.models import resolve as resolve_model
from shared.publish import atomic_folder, digest, write_text
from shared.run import Run, Stage

if TYPE_CHECKING:
    import torch

    from train.unsloth_model import Student


@dataclass(frozen=True)
class Healed:
    """What a round's training measured. rows: the log, one per optimiser step; start: D of the first step's student to each reference, nats."""

    rows: list[dict[str, Any]]
    examples: int
    tokens: int
    start: dict[str, float]


def heal(model: Model, data: Path, history: Path | None, out: Path, config: Config, number: int) -> Healed:
    """Train round `number` over a frozen history and write its adapter folder `out`, the log inside it as train.jsonl.

    Raises RuntimeError when the history or the original model changed, or what was written is not what was trained.
    """
    from train.unsloth_model import CURRENT, HISTORY, load_student, self_test  # noqa: I001 (Unsloth comes before transformers)
    from shared.chat import load_tokenizer
    from train.data import collate, load_examples

    load_tokenizer(str(model.folder))  # refuses a model without a chat template before anything heavy
    with console.status("loading the student"):
        student = load_student(model, config, history)
    from train.trainer import HealTrainer, Live, reference_states

    train = config.train
    examples = load_examples(data, student.tokenizer, config)
    device = next(student.network.parameters()).device
    probe = {name: value.to(device) for name, value in collate(examples[:2], 0).items()}
    ids, mask = probe["input_ids"], probe["attention_mask"]
    self_test(student, probe)
    with student.only():
        original = student.logits(ids, mask)
    frozen = {name: value.detach().clone() for name, value in student.parameters(HISTORY).items()}
    to_base = reference_states(student, examples, (), train.batch_size, "reference: base")
    to_previous = (
        reference_states(student, examples, (HISTORY,), train.batch_size, "reference: previous") if history else to_base
    )
    start = {"base": _distance(student, to_previous, to_base, train), "previous": 0.0}
    lam = train.lam * number**train.lam_round_power
    with atomic_folder(out) as temporary:
        live = Live(train.aggregate)
        trainer = HealTrainer(
            student,
            examples,
            to_base if train.reference == "base" else to_previous,
            config,
            lam,
            temporary / "train.jsonl",
            callbacks=[live],
        )
        _without_printing(trainer)
        live.trainer = trainer
        trainer.train()
        student.network.eval()
        with student.only():
            if not _equal(student.logits(ids, mask), original):
                raise RuntimeError("with all gates off the model is no longer the original")
        if any(not _equal(value, frozen[name]) for name, value in student.parameters(HISTORY).items()):
            raise RuntimeError("the frozen history changed while the round was trained")
        student.network.save_pretrained(str(temporary), selected_adapters=[CURRENT], save_embedding_layers=False)
        _same_as_trained(student, temporary)
        (temporary / "README.md").unlink(missing_ok=True)
    return Healed(trainer.rows, len(examples), sum(len(example.completion) for example in examples), start)


def _without_printing(trainer: Any) -> None:
    """Trainer's own callback prints every log; the progress bar shows it."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    return torch.equal(a, b)


def _distance(
    student: Student, ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], train: TrainConfig
) -> float:
    """D between two sets of cached hidden states, in the configured aggregate."""
    import torch

    from train.objective import aggregate, per_position

    if ours is theirs:
        return 0.0
    kind = train.divergence if train.divergence == "kl_fwd" else "kl_rev"
    with torch.no_grad():
        kl = [
            per_position(a, torch.zeros(len(a), dtype=torch.long, device=a.device), b, student.head, kind, train.chunk)[
                1
            ]
            for a, b in zip(ours, theirs, strict=True)
        ]
    return float(aggregate(torch.cat(kl).float(), train.aggregate))


def _same_as_trained(student: Student, folder: Path) -> None:
    """The adapter on disk must equal the one in memory, tensor by tensor."""
    import torch
    from safetensors.torch import load_file

    from train.unsloth_model import CURRENT

    written = load_file(folder / "adapter_model.safetensors")
    trained = {
        name.replace(f".{CURRENT}.", "."): value.detach().cpu() for name, value in student.parameters(CURRENT).items()
    }
    if written.keys() != trained.keys() or any(not torch.equal(written[name], trained[name]) for name in trained):
        raise RuntimeError("the adapter that was written is not the one that was trained")


def show(healed: Healed, train: TrainConfig) -> None:
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
    with TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / "adapter"
        before = digest(history) if history else None
        healed = heal(origin, folder / "kept.jsonl", history, made, config, number)
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
    plain = options.add_argument_group("on plain files")
    plain.add_argument("--model", help="'embedded', a Hugging Face id or a local folder")
    plain.add_argument("--data", type=Path, help="kept rows, or rows of prompt (or messages) and completion; JSONL")
    plain.add_argument("--history", type=Path, help="folded history to train over")
    plain.add_argument("--out", type=Path, help="adapter folder to write")
    arguments = options.parse_args()
    run = run_of(arguments)
    if run:
        stage(run, arguments.round, arguments.rebuild)
        return
    need(arguments, "model", "data", "out")
    config = resolve(getattr(arguments, "config", None), getattr(arguments, "set", ""))[0]
    number = 1 + (len(rounds_of(arguments.history)) if arguments.history else 0)
    healed = heal(
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
