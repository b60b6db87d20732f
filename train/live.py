"""The progress of a training at the terminal: loss, D, how often the barrier fired, held-out cross-entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import TrainerCallback

from shared.console import progress
from train.trainer import HealTrainer


class Live(TrainerCallback):
    """One bar of optimiser steps. trainer is set once it exists."""

    trainer: HealTrainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = progress("loss", "divergence", "fired", "heldout")
        self.bar.start()
        self.task = self.bar.add_task(
            "healing",
            total=state.max_steps,
            completed=state.global_step,
            loss="",
            divergence="",
            fired="",
            heldout="",
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        train = self.trainer.config.train
        steps = [row for row in self.trainer.rows if "ce" in row]
        heldout = [row["heldout_ce"] for row in self.trainer.rows if "heldout_ce" in row]
        if not hasattr(self, "task") or not steps:  # the held-out cross-entropy before the first step
            return
        self.bar.update(
            self.task,
            loss=f"loss {steps[-1]['loss']:.3f}",
            divergence=f"D {train.aggregate} {steps[-1][f'kl_{train.reference}_{train.aggregate}']:.3f}",
            fired=f"fires {float(np.mean([row['fired'] for row in steps])):.0%}",
            heldout=f"held out {heldout[-1]:.3f}" if heldout else "",
        )

    def stop(self) -> None:
        """Give the terminal back, however the training ended."""
        if hasattr(self, "bar"):
            self.bar.stop()
