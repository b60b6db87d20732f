"""One round of training: this round's adapter over a frozen history, and proof that nothing else changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from train.unsloth_model import HISTORY, TrainedStudent, load_student  # isort: skip (Unsloth comes before transformers)

import torch

from shared.adapter_card import write_round_card
from shared.adapters import Base, note_base
from shared.chat import Chat
from shared.cli import heed_interruption
from shared.code import code_digest
from shared.console import console, say
from shared.divergences import DIVERGENCES
from shared.errors import SteerHealError
from shared.logprobs import Agreement
from shared.machine import device
from shared.models import Model
from shared.preconditions import trainable
from shared.provenance import versions
from shared.publish import atomic_folder, digest, write_json, write_text
from shared.records import Finding, write_jsonl
from shared.schema import Config, TrainConfig
from shared.sources import origin_of
from train.agreement import agree
from train.arguments import reporters
from train.data import Example, collate, held_out, identity, read_examples, refuse_unknown_tokens
from train.diagnosis import diagnose
from train.live import Live
from train.objective import aggregate
from train.precision import blocks_uncompiled, tensor_cores
from train.recorded import recorded_beside
from train.reference import States, divergence, reference_states
from train.selftest import self_test
from train.tokens import divergence_token_rows
from train.trainer import HealTrainer
from train.unfinished import CONTENT, LOGS, Unfinished, begun_on

VERSION = 1
PROBE = 32  # examples over which the first divergences are measured and the tokens shown are chosen


@dataclass(frozen=True)
class Distilled:
    """What a round's training measured.

    rows: the log; start: D before the first step to the base and to the previous student, nats; tokens: of the completions trained
    on; resumed: the share of the steps that an interrupted training had done before; work: the folder it was made in, to be removed once its results are published; left_out: rows not trained on, by the reason.
    """

    rows: list[dict[str, Any]]
    examples: int
    heldout: int
    tokens: int
    start: dict[str, float]
    agreement: Agreement
    findings: list[Finding]
    work: Unfinished
    left_out: dict[str, int]
    resumed: float = 0.0

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The rows of the log that are training steps, in order."""
        return [row for row in self.rows if "ce" in row]


def distil(
    model: Model, data: str | Path, history: Path | None, out: Path, config: Config, number: int, *, work: Path | None = None, logs: Path | None = None, replace: bool = False, again: str | None = None, day: date | None = None,
) -> Distilled:  # fmt: skip
    """Train round `number` and write its adapter folder `out`; train.jsonl, training.json and kl_tokens.jsonl go into `logs`.

    day is what a chat template with a clock writes: by default that of an interrupted call, or today's.
    An interrupted call goes on from its last checkpoint in `work` (beside `out` by default), to the same bytes on a CPU. replace:
    begin again when the unfinished round is of other settings, instead of raising SteerHealError, which is also raised when
    the history or the original model changed, or what was written is not what was trained. again: the command that makes the rows
    again, for the error where the sampler's log-probabilities in them are not the student's.
    """
    heed_interruption()  # this module's imports may have swallowed one
    train = config.train
    live = Live()
    callbacks = [*reporters(train.report_to, out.parent / "tensorboard"), live]
    folder = work or out.with_name(f"{out.name}.healing")
    chat = Chat.load(model.folder, config.model.chat_template_kwargs, day or (None if replace else begun_on(folder)))
    loaded = read_examples(data, chat, config)
    rows = loaded.examples
    origin = origin_of(str(data))
    examples, heldout = held_out(rows, train.heldout, config.seed)
    trainable(config, model.context, len(heldout))
    depends: dict[str, Any] = {
        "model": model.fingerprint, "history": digest(history) if history else None, "data": identity(examples),
        "dtype": config.model.dtype, "4bit": train.load_in_4bit, "states": train.reference_dtype,
    }  # fmt: skip
    recipe = {**depends, "held out": identity(heldout), "train": train.determining(), "seed": config.seed, "round": number, "code": code_digest("train"), "versions": versions(), "device": device(), **({"date": chat.day.isoformat()} if chat.dated else {})}  # fmt: skip
    unfinished = Unfinished(folder, recipe, replace=replace)
    with console.status("loading the student"):
        student = load_student(model, config, history)
    refuse_unknown_tokens(rows, data, student.head.weight.shape[0])
    probe = {name: value.to(student.device) for name, value in collate(examples[:2], student.multiple).items()}
    with blocks_uncompiled(student.device.type):
        self_test(student, probe)
    agreement = agree(student, rows, chat, config, again, lambda: recorded_beside(data, chat))
    with student.only(), blocks_uncompiled(student.device.type):
        # in the host's memory: it is kept for as long as the training runs
        original = student.logits(probe["input_ids"], probe["attention_mask"]).cpu()
    frozen = {name: value.detach().clone() for name, value in student.parameters(HISTORY).items()}
    names = ["base"] if history is None else sorted(["base", "previous"], key=lambda name: name != train.reference)
    references = {
        name: reference_states(
            student, examples, (HISTORY,) if name == "previous" else (), unfinished.states(name),
            {**depends, "reference": name}, train.reference_dtype, train.batch_size,
        )
        for name in names
    }  # fmt: skip
    start = _start(student, examples[:PROBE], references, train)
    trainer = HealTrainer(student, examples, heldout, references, config, train.lam * number**train.lam_round_power, unfinished, callbacks)  # fmt: skip
    live.trainer = trainer
    checkpoint = unfinished.checkpoint()
    before = int(checkpoint.name.rpartition("-")[2]) if checkpoint is not None else 0
    if checkpoint is not None:
        say(f"going on from {checkpoint.name} of {unfinished.folder}")
    try:
        with tensor_cores(student.device.type, config.model.dtype):
            trainer.go_on(checkpoint)
    finally:
        live.stop()
    with student.only(), blocks_uncompiled(student.device.type):
        if not torch.equal(student.logits(probe["input_ids"], probe["attention_mask"]).cpu(), original):
            raise _changed("the original model", "with all gates off it gives other logits than before the training")
    if any(not torch.equal(value, frozen[name]) for name, value in student.parameters(HISTORY).items()):
        raise _changed("the frozen history", "its factors are not those of before the training")
    findings = diagnose(trainer.rows, start, train)
    # a training that had stopped early before it was interrupted takes no further step: its count stays 0
    steps = trainer.state.global_step or before
    distilled = Distilled(trainer.rows, len(examples), len(heldout), sum(len(example.completion) for example in examples), start, agreement, findings, unfinished, loaded.left_out, before / steps)  # fmt: skip
    write_json(unfinished.folder / "training.json", {**_summary(distilled, config, trainer.lam), "data": origin})
    shown = divergence_token_rows(
        student, examples[:PROBE], references, chat.tokenizer, train.divergence, train.batch_size, train.chunk
    )
    write_jsonl(unfinished.folder / "kl_tokens.jsonl", shown)
    with atomic_folder(out, names=CONTENT) as temporary:
        student.save(temporary)
        if not student.holds(temporary):
            raise _changed("the adapter", "what was written is not what was trained")
        base = Base(
            model=model.name,
            revision=model.revision,
            fingerprint=model.fingerprint,
            dtype=config.model.dtype,
            round=number,
        )
        note_base(temporary, base)
        write_round_card(temporary, base)
        for name in LOGS:
            write_text((logs or temporary) / name, (unfinished.folder / name).read_text(encoding="utf-8"))
    return distilled


def _changed(what: str, given: str) -> SteerHealError:
    return SteerHealError(
        f"{what} changed while the round was trained",
        given=given,
        expected="only this round's adapter trained, and published as trained",
        next="compare the installed versions with requirements/: make doctor",
    )


def _start(
    student: TrainedStudent, examples: Sequence[Example], references: Mapping[str, States], train: TrainConfig
) -> dict[str, float]:
    """D of the student before its first step, which is the previous round's, to both references."""
    if "previous" not in references:
        return {"base": 0.0, "previous": 0.0}
    rows = range(len(examples))
    previous, base = (references[name].of(rows).to(student.device) for name in ("previous", "base"))
    kl = divergence(previous, base, student.head, train.divergence, train.chunk)
    return {"base": float(aggregate(kl, train.aggregate)), "previous": 0.0}


def _summary(distilled: Distilled, config: Config, lam: float) -> dict[str, Any]:
    """The content of training.json: what was trained, on how much, and the diagnosis."""
    train = config.train
    wd = train.weight_decay if DIVERGENCES[train.divergence].weight_decay else 0.0
    ends = [0, *[row["step"] for row in distilled.steps]]
    rate = sum(
        row["learning_rate"] * (end - begin) for row, begin, end in zip(distilled.steps, ends, ends[1:], strict=False)
    )
    return {
        "version": VERSION, "divergence": train.divergence, "aggregate": train.aggregate, "reference": train.reference, "lam": lam, "tau": train.tau, "load_in_4bit": train.load_in_4bit,
        "examples": distilled.examples, "heldout": distilled.heldout, "tokens": distilled.tokens, "left_out": distilled.left_out, "steps": distilled.steps[-1]["step"], "start": distilled.start, "agreement": distilled.agreement.model_dump(),
        "shrink": 1 - math.exp(-wd * rate), "findings": [finding.model_dump(exclude={"version"}) for finding in distilled.findings],
    }  # fmt: skip
