"""One round of training: this round's adapter over a frozen history, and proof that nothing else changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.unsloth_model import CURRENT, HISTORY, Student, load_student, self_test  # isort: skip (Unsloth comes before transformers)

import torch
from safetensors.torch import load_file
from transformers import PrinterCallback

from shared.chat import load_tokenizer
from shared.config import Config, TrainConfig
from shared.console import console
from shared.models import Model
from shared.publish import atomic_folder
from train.data import Example, collate, load_examples
from train.objective import aggregate, per_position
from train.trainer import HealTrainer, Live, reference_states

PROBE = 32  # examples over which the history's divergence to the base is measured before the first step


@dataclass(frozen=True)
class Distilled:
    """What a round's training measured.

    rows: the log, one per optimiser step; start: D before the first step to the base and to the previous student, nats.
    """

    rows: list[dict[str, Any]]
    examples: int
    tokens: int
    start: dict[str, float]


def distil(model: Model, data: Path, history: Path | None, out: Path, config: Config, number: int) -> Distilled:
    """Train round `number` and write its adapter folder `out`, the log inside it as train.jsonl.

    Raises RuntimeError when the history or the original model changed, or what was written is not what was trained.
    """
    train = config.train
    tokenizer = load_tokenizer(str(model.folder))
    examples = load_examples(data, tokenizer, config)
    with console.status("loading the student"):
        student = load_student(model, config, history)
    device = next(student.network.parameters()).device
    probe = {name: value.to(device) for name, value in collate(examples[:2]).items()}
    ids, mask = probe["input_ids"], probe["attention_mask"]
    self_test(student, probe)
    with student.only():
        original = student.logits(ids, mask)
    frozen = {name: value.detach().clone() for name, value in student.parameters(HISTORY).items()}
    anchor = () if train.reference == "base" or history is None else (HISTORY,)
    reference = reference_states(student, examples, anchor, train.batch_size, f"reference: {train.reference}")
    start = {"base": _history_to_base(student, examples[:PROBE], train) if history else 0.0, "previous": 0.0}
    with atomic_folder(out) as temporary:
        live = Live(train.aggregate)
        lam = train.lam * number**train.lam_round_power
        trainer = HealTrainer(student, examples, reference, config, lam, temporary / "train.jsonl", callbacks=[live])
        trainer.remove_callback(PrinterCallback)  # the progress bar shows what it would print
        live.trainer = trainer
        trainer.train()
        student.network.eval()
        with student.only():
            if not torch.equal(student.logits(ids, mask), original):
                raise RuntimeError("with all gates off the model is no longer the original")
        if any(not torch.equal(value, frozen[name]) for name, value in student.parameters(HISTORY).items()):
            raise RuntimeError("the frozen history changed while the round was trained")
        student.network.save_pretrained(str(temporary), selected_adapters=[CURRENT], save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)
        _same_as_trained(student, temporary)
    return Distilled(trainer.rows, len(examples), sum(len(example.completion) for example in examples), start)


def _history_to_base(student: Student, examples: Sequence[Example], train: TrainConfig) -> float:
    """D between the history and the original model over some examples, in the configured aggregate."""

    def states(label: str, *adapters: str) -> torch.Tensor:
        return torch.cat(reference_states(student, examples, adapters, train.batch_size, f"step 0: {label}"))

    previous, base = states("previous", HISTORY), states("base")
    kind = train.divergence if train.divergence == "kl_fwd" else "kl_rev"
    nothing = torch.zeros(len(previous), dtype=torch.long, device=previous.device)
    with torch.no_grad():
        _, kl = per_position(previous, nothing, base, student.head, kind, train.chunk)
    return float(aggregate(kl.float(), train.aggregate))


def _same_as_trained(student: Student, folder: Path) -> None:
    """The adapter on disk must equal the one in memory, tensor by tensor."""
    written = load_file(folder / "adapter_model.safetensors")
    trained = {
        name.replace(f".{CURRENT}.", "."): value.detach().cpu() for name, value in student.parameters(CURRENT).items()
    }
    if written.keys() != trained.keys() or any(not torch.equal(written[name], trained[name]) for name in trained):
        raise RuntimeError("the adapter that was written is not the one that was trained")
