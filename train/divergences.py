"""The divergences of the barrier as functions of two distributions, each with its gradient.

A function takes log-probabilities [positions, vocabulary] of the student, logp, its probabilities, p, and log-probabilities of the
reference, logq, all fp32. It returns the divergence [positions], nats, and, where `with_gradient`, its gradient at the student's logits
[positions, vocabulary]. It may overwrite logq; logp and p stay. What is known without computing is in shared/divergences.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from shared.divergences import has_barrier

Result = tuple[torch.Tensor, torch.Tensor | None]
Function = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], Result]


def forward_kl(logp: torch.Tensor, p: torch.Tensor, logq: torch.Tensor, with_gradient: bool) -> Result:
    """KL(ref || theta) = sum q (log q - log p); its gradient is p - q."""
    q = logq.exp()
    divergence = torch.linalg.vecdot(q, logq.sub_(logp))
    return divergence, q.neg_().add_(p) if with_gradient else None


def reverse_kl(logp: torch.Tensor, p: torch.Tensor, logq: torch.Tensor, with_gradient: bool) -> Result:
    """KL(theta || ref) = sum p (log p - log q); its gradient is p (log p - log q - KL)."""
    apart = logq.neg_().add_(logp)
    divergence = torch.linalg.vecdot(p, apart)
    return divergence, apart.sub_(divergence[:, None]).mul_(p) if with_gradient else None


def jensen_shannon(logp: torch.Tensor, p: torch.Tensor, logq: torch.Tensor, with_gradient: bool) -> Result:
    """(KL(theta || m) + KL(ref || m)) / 2 with m = (p + q) / 2; its gradient is p (log p - log m - KL(theta || m)) / 2.

    Source: Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information Theory 37(1), 1991.
    """
    logm = torch.logaddexp(logp, logq).sub_(math.log(2))
    q = logq.exp()
    reference_part = torch.linalg.vecdot(q, logq.sub_(logm))
    apart = logm.neg_().add_(logp)
    student_part = torch.linalg.vecdot(p, apart)
    divergence = (student_part + reference_part) / 2
    return divergence, apart.sub_(student_part[:, None]).mul_(p).div_(2) if with_gradient else None


FUNCTIONS: dict[str, Function] = {"kl_fwd": forward_kl, "kl_rev": reverse_kl, "js": jensen_shannon}


def function_of(name: str) -> Function:
    """The function of a divergence; where the objective has no barrier, KL(theta || ref), which is logged all the same."""
    return FUNCTIONS[name] if has_barrier(name) else reverse_kl
