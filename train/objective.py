"""The healing objective: cross-entropy + lambda * relu(D - tau) over completion positions, in chunks.

Logits are held for one chunk of positions at a time and made again in the backward pass, so that memory is chunk x vocabulary.
Per-position values come back as a vector, so that any aggregate is plain autograd and exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

EPS = 1e-8  # inside the root of rmse: a fresh adapter has D = 0, where the root's gradient is infinite


@dataclass(frozen=True)
class Head:
    """From final hidden states to logits: weight [vocabulary, hidden], bias, and a final logit softcap (Gemma 2) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None

    def logprobs(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-softmax [positions, vocabulary], fp32."""
        logits = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits.log_softmax(-1)


def per_position(
    hidden: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor, head: Head, divergence: str, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and KL of every position, [positions] each, nats.

    hidden and reference [positions, hidden]: final hidden states of the student and of the reference, at the positions that
    predict targets [positions]. kl_fwd is KL(ref || theta); every other divergence gives KL(theta || ref), without gradient
    for nll and wd, where it is only measured.
    """
    measured_only = divergence not in ("kl_fwd", "kl_rev")

    def values(h: torch.Tensor, t: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ours = head.logprobs(h)
        with torch.no_grad():
            theirs = head.logprobs(r)
        ce = -ours.gather(1, t[:, None])[:, 0]
        if measured_only:
            ours = ours.detach()
        kl = (
            (theirs.exp() * (theirs - ours)).sum(-1)
            if divergence == "kl_fwd"
            else (ours.exp() * (ours - theirs)).sum(-1)
        )
        return ce, kl

    parts = [
        checkpoint(values, *block, use_reentrant=False)
        for block in zip(hidden.split(chunk), targets.split(chunk), reference.split(chunk), strict=True)
    ]
    return torch.cat([ce for ce, _ in parts]), torch.cat([kl for _, kl in parts])


def aggregate(kl: torch.Tensor, kind: str) -> torch.Tensor:
    """D from per-position KL [positions]: rmse = sqrt(mean(kl^2) + 1e-8), mean, p95 or max, nats."""
    if kind == "rmse":
        return (kl.square().mean() + EPS).sqrt()
    return {"mean": lambda: kl.mean(), "p95": lambda: torch.quantile(kl, 0.95), "max": lambda: kl.max()}[kind]()


def barrier(kl: torch.Tensor, divergence: str, kind: str, lam: float, tau: float) -> torch.Tensor:
    """lambda * relu(D - tau) of a micro-batch; 0 for nll and wd."""
    if divergence not in ("kl_fwd", "kl_rev"):
        return kl.new_zeros(())
    return lam * torch.relu(aggregate(kl, kind) - tau)
