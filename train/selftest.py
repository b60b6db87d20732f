"""What a student is made to prove before it is trained, each a fault that would otherwise be silent."""

from __future__ import annotations

import torch

from shared.console import console
from shared.errors import SteerHealError
from train.unsloth_model import CURRENT, HISTORY, TrainedStudent


def self_test(student: TrainedStudent, batch: dict[str, torch.Tensor]) -> None:
    """Refuse to train on a model that does not do what it says. batch: input_ids and attention_mask.

    Only this round's adapter may be trainable; every adapter must count at alpha / rank, and the history beside another active
    adapter; the head of the hidden states must be the logits. Raises SteerHealError.
    """
    _trainable(student)
    _scales(student)
    with torch.no_grad():
        _head(student, batch)
        if HISTORY in student.adapters:
            _history(student, batch)


def _refuse(what: str, given: str, expected: str) -> SteerHealError:
    return SteerHealError(
        what, given=given, expected=expected, next="compare the installed versions with requirements/: make doctor"
    )


def _trainable(student: TrainedStudent) -> None:
    wrong = [n for n, value in student.network.named_parameters() if value.requires_grad != (f".{CURRENT}." in n)]
    if wrong:
        raise _refuse(
            "the history or the base is trainable, or this round's adapter is not",
            f"{wrong[0]} and {len(wrong) - 1} more",
            "this round's adapter trainable, and nothing else",
        )


def _scales(student: TrainedStudent) -> None:
    for name in student.adapters:
        settings = student.network.peft_config[name]
        expected = settings.lora_alpha / settings.r
        scales = {layer.scaling[name] for layer in student.layers if name in layer.scaling}
        if scales != {expected}:
            raise _refuse(
                "an adapter does not count at alpha / rank", f"{name}: {scales}", f"{expected}; rsLoRA is not supported"
            )


def _head(student: TrainedStudent, batch: dict[str, torch.Tensor]) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    full, hidden = student.logits(ids, mask), student.hidden(ids, mask)
    if hidden.shape[-1] != student.head.weight.shape[1]:
        raise _refuse(
            "the model does not hand out its final hidden states",
            f"{hidden.shape[-1]} numbers a position",
            f"{student.head.weight.shape[1]}",
        )
    ours, theirs = student.head.logits(hidden[mask.bool()]), full[mask.bool()].float()
    # the model's own logits are rounded to its dtype, ours are not
    limit = 1e-3 if full.dtype == torch.float32 else 2 * torch.finfo(full.dtype).eps * float(theirs.abs().max())
    if (apart := float((ours - theirs).abs().max())) > limit:
        raise _refuse(
            "the head of the hidden states is not the logits", f"they differ by {apart:.4f}", f"at most {limit:.4f}"
        )


def _history(student: TrainedStudent, batch: dict[str, torch.Tensor]) -> None:
    """Its effect beside this round's fresh adapter, which adds nothing, must be its effect alone, in either order."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if not any(value.any() for name, value in student.parameters(HISTORY).items() if "lora_B" in name):
        console.print("[yellow]the history adds nothing: its rounds learned nothing, or all their gates are off[/]")
        return

    def logits(*adapters: str) -> torch.Tensor:
        with student.only(*adapters):
            return student.logits(ids, mask)[mask.bool()].float()

    without, alone = logits(CURRENT), logits(HISTORY)
    effect = float((alone - without).abs().mean())
    for order in ((HISTORY, CURRENT), (CURRENT, HISTORY)):
        # half, not all: in half precision one adapter and two take kernels that round differently
        if not effect or float((logits(*order) - alone).abs().mean()) > 0.5 * effect:
            raise _refuse(
                "the history does not count beside another adapter: PEFT's LoRA forward has been replaced",
                f"{' and '.join(order)} active together are not the history alone",
                "the history's effect under every order of adapters",
            )
