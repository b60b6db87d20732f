"""The same objective as it is usually written: two forwards, and log-softmax over the whole vocabulary at every position.

This is the benchmark's other side: Hugging Face and PEFT without Unsloth, the reference under `disable_adapter` in every step, prompt
and completion through the softmax and the loss masked afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from shared.models import load_network
from shared.schema import TrainConfig
from train.data import IGNORED
from train.objective import EPS


class Naive:
    """One training step after another on batches of input_ids, attention_mask and labels; CE + lambda relu(D - tau), kl_rev, rmse."""

    def __init__(self, folder: Path, targets: str, train: TrainConfig, dtype: str = "float32"):
        network = load_network(folder, getattr(torch, dtype))
        settings = LoraConfig(r=train.rank, lora_alpha=train.alpha, target_modules=targets, task_type="CAUSAL_LM")
        self.network = get_peft_model(network, settings).to("cuda" if torch.cuda.is_available() else "cpu")
        self.train, self.parameters = train, [value for value in self.network.parameters() if value.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=train.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """One optimiser step on a batch; the loss before it."""
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        logits = self.network(**inputs).logits
        with torch.no_grad(), self.network.disable_adapter():
            reference = self.network(**inputs).logits
        loss = naive_loss(logits, reference, batch["labels"], self.train.lam, self.train.tau)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return float(loss.detach())


def naive_loss(logits: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor, lam: float, tau: float) -> Any:
    """CE + lam * relu(rmse of KL(theta || ref) - tau) of logits [batch, length, vocabulary].

    Args:
        logits: of the student.
        reference: logits of the reference, of the same shape.
        labels: token ids [batch, length], IGNORED outside the completions.
        lam, tau: of the barrier.
    """
    ours, theirs = logits[:, :-1].float().log_softmax(-1), reference[:, :-1].float().log_softmax(-1)
    targets, mask = labels[:, 1:], labels[:, 1:] != IGNORED
    ce = -ours.gather(-1, targets.clamp(min=0)[..., None])[..., 0][mask].mean()
    kl = (ours.exp() * (ours - theirs)).sum(-1)[mask]
    return ce + lam * torch.relu((kl.square().mean() + EPS).sqrt() - tau)
