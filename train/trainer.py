"""A transformers.Trainer whose loss is the healing objective, with a JSONL log and live progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from shared.config import Config
from shared.console import progress
from train.data import IGNORED, Example, collate
from train.objective import aggregate, barrier, per_position
from train.unsloth_model import Student

AGGREGATES = ("mean", "rmse", "p95", "max")


def reference_states(
    student: Student, examples: Sequence[Example], adapters: Sequence[str], batch_size: int, label: str
) -> list[torch.Tensor]:
    """The reference's final hidden states at the positions that predict each completion: per example [completion, hidden].

    The reference does not change within a round, so one forward per example serves every step.
    """
    device = next(student.network.parameters()).device
    states: list[torch.Tensor] = []
    with torch.no_grad(), student.only(*adapters), progress() as bar:
        task = bar.add_task(label, total=len(examples))
        for begin in range(0, len(examples), batch_size):
            block = list(examples[begin : begin + batch_size])
            batch = collate(block)
            hidden = student.hidden(batch["input_ids"].to(device), batch["attention_mask"].to(device))
            states += [hidden[i, len(e.prompt) - 1 : len(e) - 1].clone() for i, e in enumerate(block)]
            bar.advance(task, len(block))
    return states


class HealTrainer(Trainer):
    """CE over the tokens of the whole step plus the barrier, which is defined on the micro-batch.

    The barrier is not linear in D: under gradient accumulation the step's barrier is the mean of its micro-batches' barriers.
    It depends on neither padding nor the order of rows within the micro-batch.
    """

    def __init__(
        self,
        student: Student,
        examples: list[Example],
        reference: list[torch.Tensor],
        config: Config,
        lam: float,
        log: Path,
        **options: Any,
    ):
        train = config.train
        rows = [{"row": index} for index in range(len(examples))]
        super().__init__(
            model=student.network,
            args=TrainingArguments(
                output_dir=str(log.parent),
                per_device_train_batch_size=train.batch_size,
                gradient_accumulation_steps=train.gradient_accumulation,
                num_train_epochs=train.epochs,
                learning_rate=train.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=train.warmup,
                optim="adamw_torch",
                adam_beta1=0.9,
                adam_beta2=0.95,
                weight_decay=train.weight_decay if train.divergence == "wd" else 0.0,
                max_grad_norm=1.0,
                seed=config.seed,
                data_seed=config.seed,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
                fp16=False,
            ),
            train_dataset=rows,
            data_collator=self._collate,
            **options,
        )
        self.model_accepts_loss_kwargs = True  # num_items_in_batch normalises CE; Trainer must not divide again
        self.student, self.examples, self.reference = student, examples, reference
        self.config, self.lam, self.path = config, lam, log
        self.rows: list[dict[str, float | int | None]] = []
        self._parts: list[dict[str, float]] = []

    def _collate(self, rows: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        batch = collate([self.examples[row["row"]] for row in rows])
        return {**batch, "row": torch.tensor([row["row"] for row in rows])}

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        train = self.config.train
        hidden = self.student.hidden(inputs["input_ids"], inputs["attention_mask"])
        predicts = inputs["labels"][:, 1:] != IGNORED
        states, targets = hidden[:, :-1][predicts], inputs["labels"][:, 1:][predicts]
        reference = torch.cat([self.reference[row] for row in inputs["row"].tolist()]).to(states)
        ce, kl = per_position(states, targets, reference, self.student.head, train.divergence, train.chunk)
        wall = barrier(kl, train.divergence, train.aggregate, self.lam, train.tau)
        total = (
            ce.sum() / (len(targets) if num_items_in_batch is None else num_items_in_batch)
            + wall / self.current_gradient_accumulation_steps
        )
        measured = {f"divergence_{kind}": float(aggregate(kl.detach().float(), kind)) for kind in AGGREGATES}
        over = train.divergence in ("kl_fwd", "kl_rev") and measured[f"divergence_{train.aggregate}"] > train.tau
        self._parts.append(
            {
                "tokens": len(targets),
                "ce": float(ce.detach().sum()),
                "barrier": float(wall.detach()),
                "fired": float(over),
                **measured,
            }
        )
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One row per optimiser step; what is not a mean over micro-batches is CE, a mean over tokens."""
        if not self._parts:
            return
        parts, self._parts = self._parts, []
        tokens = sum(part["tokens"] for part in parts)
        means = {
            name: float(np.mean([part[name] for part in parts]))
            for name in ("barrier", "fired", *[f"divergence_{kind}" for kind in AGGREGATES])
        }
        ce = sum(part["ce"] for part in parts) / tokens
        row = {
            "version": 1, "step": self.state.global_step, "epoch": logs.get("epoch", self.state.epoch), "loss": ce + means["barrier"], "ce": ce, **means,
            "learning_rate": logs["learning_rate"], "grad_norm": float(logs["grad_norm"]), "tokens": int(tokens),
        }  # fmt: skip
        if not all(np.isfinite(value) for value in row.values() if value is not None):
            raise RuntimeError(f"training diverged at step {row['step']}: {row}")
        self.rows.append(row)
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")


class Live(TrainerCallback):
    """A progress bar with loss, D and the share of steps in which the barrier fired."""

    def __init__(self, aggregate_kind: str):
        self.kind = aggregate_kind
        self.bar = progress("loss", "divergence", "fired")
        self.trainer: HealTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.start()
        self.task = self.bar.add_task("healing", total=state.max_steps, loss="", divergence="", fired="")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(state)

    def show(self, state: Any) -> None:
        rows = self.trainer.rows if self.trainer else []
        if rows:
            fired = float(np.mean([row["fired"] for row in rows]))
            self.bar.update(
                self.task,
                completed=state.global_step,
                loss=f"loss {rows[-1]['loss']:.3f}",
                divergence=f"D {self.kind} {rows[-1][f'divergence_{self.kind}']:.3f}",
                fired=f"fires {fired:.0%}",
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(state)
        self.bar.stop()
