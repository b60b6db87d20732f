"""A transformers.Trainer whose loss is the healing objective, with a log that explains itself and a resume that is exact."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME, TrainerState

from shared.commands import removal
from shared.divergences import has_barrier
from shared.errors import SteerHealError, in_one_line
from shared.publish import atomic_folder, write_json
from shared.schema import Config
from shared.strict import parse_json
from train.arguments import training_arguments
from train.data import IGNORED, Example, collate
from train.objective import AGGREGATES, aggregate, barrier, chunk_for, divergences_of, gradient_ratio, per_position
from train.reference import States
from train.unfinished import Unfinished
from train.unsloth_model import TrainedStudent

VERSION = 1
PARTS = "parts.json"  # micro-batches since the last row of the log


class HealTrainer(Trainer):
    """CE over the tokens of the whole step plus the barrier, which is defined on the micro-batch or on the row.

    The barrier is not linear in D. On the micro-batch, the step's barrier under gradient accumulation is the mean of its
    micro-batches' barriers; on the row it is the mean over the step's rows, whatever the micro-batches.
    It depends on neither padding nor the order of rows within the micro-batch.

    references: states of the barrier's reference first, by name; lam: lambda of this round; heldout: examples whose cross-entropy is
    taken before the first step and after every epoch. Raises SteerHealError when loss or gradient is not finite, naming the rows.
    """

    def __init__(
        self,
        student: TrainedStudent,
        examples: Sequence[Example],
        heldout: Sequence[Example],
        references: Mapping[str, States],
        config: Config,
        lam: float,
        work: Unfinished,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        rows = [{"row": index} for index in range(len(examples))]
        super().__init__(
            model=student.network,
            args=training_arguments(config, work.folder, bool(heldout)),
            train_dataset=rows,
            eval_dataset=rows,  # never read: evaluate() has its own rows, and Trainer asks for some
            data_collator=self._collate,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)  # the progress bar shows what it would print
        self.model_accepts_loss_kwargs = True  # num_items_in_batch normalises CE; Trainer must not divide again
        self.student, self.examples, self.heldout, self.references = student, examples, heldout, references
        self.config, self.lam, self.work = config, lam, work
        free = torch.cuda.mem_get_info()[0] if student.device.type == "cuda" else None
        self.chunk = chunk_for(config.train.chunk, len(student.head.weight), free)
        self.rows: list[dict[str, Any]] = []
        self._parts: list[dict[str, float]] = []
        self._seen: list[int] = []  # rows of the optimiser step in the making
        self._rows_of_step: int | None = None
        self.checkpoint: Path | None = None

    def _collate(self, rows: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        batch = collate([self.examples[row["row"]] for row in rows], self.student.multiple)
        return {**batch, "row": torch.tensor([row["row"] for row in rows])}

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        train = self.config.train
        rows = inputs["row"].tolist()
        states, targets = _completions(self.student, inputs)
        references = {name: states_.of(rows).to(states.device) for name, states_ in self.references.items()}
        positions = per_position(
            states, targets, list(references.values()), self.student.head, train.divergence, self.chunk
        )
        lengths = [len(self.examples[row].completion) for row in rows]
        sizes = lengths if train.barrier_unit == "row" else None
        how = (train.divergence, train.aggregate, self.lam, train.tau, sizes)
        wall = barrier(positions.kl[0], *how)
        share = 1 / self.current_gradient_accumulation_steps
        if sizes is not None and self._rows_of_step:  # a step's last micro-batch may be short
            share = len(rows) / self._rows_of_step
        total = positions.ce.sum() / (len(targets) if num_items_in_batch is None else num_items_in_batch) + wall * share
        if not torch.isfinite(total):
            good = torch.isfinite(positions.ce) & torch.isfinite(positions.kl).all(0)
            parts = good.split(lengths)
            bad = [row for row, part in zip(rows, parts, strict=True) if not part.all()]
            raise self._not_finite("the loss", [self.examples[row] for row in bad or rows])
        by_reference = dict(zip(references, positions.kl.detach(), strict=True))
        for name in ("base", "previous"):  # in round 1 the previous student is the base
            by_reference.setdefault(name, positions.kl[0].detach())
        figures = {
            "ce": positions.ce.detach().sum(),
            "barrier": wall.detach(),
            "gradient_ratio": gradient_ratio(positions, *how),
            "fired": (divergences_of(positions.kl[0].detach(), train.aggregate, sizes) > train.tau).float().mean(),
            **{f"kl_{name}_{kind}": aggregate(kl, kind) for name, kl in by_reference.items() for kind in AGGREGATES},
        }
        values = torch.stack([value.float() for value in figures.values()]).tolist()  # one transfer from the device
        part = {"tokens": float(len(targets)), "rows": float(len(rows)), **dict(zip(figures, values, strict=True))}
        part["fired"] *= has_barrier(train.divergence)
        self._parts.append(part)
        return total

    def _not_finite(self, what: str, rows: Sequence[Example]) -> SteerHealError:
        """The error that stops a round before anything that is not finite reaches the weights or a checkpoint."""
        kept = f"; {self.checkpoint} is the last good checkpoint" if self.checkpoint else ""
        return SteerHealError(
            f"{what} is not finite",
            given=f"step {self.state.global_step + 1}, rows {', '.join(row.key for row in rows)}{kept}",
            expected="numbers",
            next=f"leave these rows out or lower train.learning_rate; either begins the round again: {removal(self.work.folder, folder=True)}",
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One row per logging step: CE a mean over tokens, max a maximum, a barrier of rows a mean over rows, the rest means over micro-batches."""
        if not self._parts:
            return
        parts, self._parts = self._parts, []
        names = [name for name in parts[0] if name not in ("tokens", "rows", "ce")]
        tokens = sum(part["tokens"] for part in parts)
        figures = {
            name: float((np.max if name.endswith("_max") else np.mean)([part[name] for part in parts]))
            for name in names
        }
        if self.config.train.barrier_unit == "row":
            rows = [part["rows"] for part in parts]
            figures |= {n: float(np.average([part[n] for part in parts], weights=rows)) for n in ("barrier", "fired")}
        ce = sum(part["ce"] for part in parts) / tokens
        row = {
            "version": VERSION, "step": self.state.global_step, "epoch": self.state.epoch, "loss": ce + figures["barrier"], "ce": ce,
            **figures, "learning_rate": logs["learning_rate"], "grad_norm": float(logs["grad_norm"]), "tokens": int(tokens),
        }  # fmt: skip
        self._keep(row)

    def get_batch_samples(self, *rest: Any, **options: Any) -> Any:
        """The micro-batches of an optimiser step, whose rows are counted."""
        batches, items = super().get_batch_samples(*rest, **options)
        self._rows_of_step = sum(len(batch["row"]) for batch in batches)
        return batches, items

    def _maybe_log_save_evaluate(self, *rest: Any, **options: Any) -> None:
        """A row ends with its epoch and with the training, so that no step is left out of the log and none is logged twice."""
        if self._parts and (float(self.state.epoch).is_integer() or self.state.global_step == self.config.train.steps):
            self.control.should_log = True
        super()._maybe_log_save_evaluate(*rest, **options)

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> torch.Tensor:
        self._seen += inputs["row"].tolist()
        return super().training_step(model, inputs, *rest, **options)

    def _clip_grad_norm(self, model: Any) -> Any:
        rows, self._seen = self._seen, []
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(float(norm)):
            raise self._not_finite("the gradient", [self.examples[row] for row in rows])
        return norm

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.work.append(row)
        super().log({name: value for name, value in row.items() if name not in ("version", "step", "epoch")})

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Cross-entropy of the held-out rows, a mean over their tokens; with early_stop, the stop and the best adapter so far."""
        train = self.config.train
        if self._held_out and self._held_out[-1]["step"] == self.state.global_step:  # taken for this step's checkpoint
            return {"eval_loss": self._held_out[-1]["heldout_ce"]}
        total = tokens = 0.0
        with torch.no_grad():
            for begin in range(0, len(self.heldout), train.batch_size):
                batch = collate(self.heldout[begin : begin + train.batch_size], self.student.multiple)
                states, targets = _completions(self.student, {k: v.to(self.student.device) for k, v in batch.items()})
                values = per_position(states, targets, [], self.student.head, "nll", self.chunk)
                total, tokens = total + float(values.ce.sum()), tokens + len(targets)
        best = min((row["heldout_ce"] for row in self._held_out), default=math.inf)
        ce = total / tokens
        if not math.isfinite(ce):
            raise self._not_finite("the held-out cross-entropy", self.heldout)
        self._keep({"version": VERSION, "step": self.state.global_step, "epoch": self.state.epoch or 0.0, "heldout_ce": ce})  # fmt: skip
        if train.early_stop and ce < best:
            with atomic_folder(self.work.best(self.state.global_step)) as temporary:
                self.student.save(temporary)
        self.control.should_training_stop |= self._stopped
        return {"eval_loss": ce}

    @property
    def _held_out(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if "heldout_ce" in row]

    @property
    def _stopped(self) -> bool:
        """Whether early_stop epochs have passed without a lower held-out cross-entropy."""
        values = [row["heldout_ce"] for row in self._held_out]
        patience = self.config.train.early_stop
        return bool(patience and values) and len(values) - 1 - int(np.argmin(values)) >= patience

    def go_on(self, checkpoint: Path | None) -> None:
        """Train to the end: from the start, with the held-out cross-entropy first, or from a whole checkpoint."""
        self.checkpoint = checkpoint
        self.rows = list(self.work.rows())
        if checkpoint is None and self.heldout:
            self.evaluate()
        if not self._stopped:
            state = TrainerState()
            if checkpoint is not None:
                with self._read(checkpoint):  # before Trainer does, which knows no errors of ours
                    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            if checkpoint is not None and state.global_step == self.config.train.steps:
                self._end_at(checkpoint, state)
            else:
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.config.train.early_stop and self.heldout:
            best = min(self._held_out, key=lambda row: float(row["heldout_ce"]))
            self.student.load(self.work.best(best["step"]))

    def _end_at(self, checkpoint: Path, state: TrainerState) -> None:
        """Take the checkpoint of the last of train.steps: within an epoch Trainer would take one step more."""
        self.student.load(checkpoint)
        self.state = state
        if self.heldout:
            self.evaluate()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """This round's adapter alone: the history is on disk already, and Trainer would save it under the same step."""
        self.student.save(Path(str(output_dir)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.heldout and float(self.state.epoch).is_integer():  # a resume from here begins the next epoch
            self.evaluate()
        super()._save_checkpoint(model, trial)
        self.checkpoint = self.work.folder / f"checkpoint-{self.state.global_step}"
        write_json(self.checkpoint / PARTS, self._parts)
        self.work.seal(self.checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.student.load(Path(resume_from_checkpoint))
        with self._read(resume_from_checkpoint):
            parts = parse_json((Path(resume_from_checkpoint) / PARTS).read_bytes())
            self._parts = [{str(name): float(value) for name, value in part.items()} for part in parts]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Trainer's own resume forgets one of two adapters; whatever loaded the checkpoint, it must be in memory now."""
        if checkpoint is not None and not self.student.holds(Path(checkpoint)):
            raise SteerHealError(
                "resuming did not restore this round's adapter",
                given=checkpoint,
                expected="the adapter of the checkpoint in memory",
                next="compare the installed versions with requirements/: make doctor",
            )
        with self._read(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with self._read(checkpoint):
            super()._load_rng_state(checkpoint)

    @contextmanager
    def _read(self, checkpoint: object) -> Iterator[None]:
        """Around the reading of a checkpoint: what it cannot be read for is our error, whichever library reads it."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (
            pickle.UnpicklingError,
            FileNotFoundError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            EOFError,
            RuntimeError,
        ) as error:
            # torch unpickles tensors and nothing else: a folder from a stranger does not get to run anything
            raise SteerHealError(
                "a checkpoint could not be used",
                given=f"{checkpoint}: {in_one_line(error)}",
                expected="the optimiser, the random state and the counts that its training wrote",
                next=f"compare the installed versions with requirements/ (make doctor); if they are the same, begin the round again: {removal(self.work.folder, folder=True)}",
            ) from error


def _completions(student: TrainedStudent, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Final hidden states [positions, hidden] that predict the completions' tokens, and these tokens [positions]."""
    hidden = student.hidden(batch["input_ids"], batch["attention_mask"])
    predicts = batch["labels"][:, 1:] != IGNORED
    return hidden[:, :-1][predicts], batch["labels"][:, 1:][predicts]
