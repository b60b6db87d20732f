"""The healing objective: cross-entropy + lambda * relu(D - tau) over completion positions, in chunks.

A position's cross-entropy and KL depend on its own hidden state alone. So each chunk of logits also yields both gradients at
that state, [positions, hidden] each, and the backward pass only weighs them: logits are held for one chunk at a time and never
made twice, any aggregate is plain autograd over the per-position values, and the gradient is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from shared.divergences import has_barrier
from train.divergences import function_of

EPS = 1e-8  # inside the root of rmse: a fresh adapter has D = 0, where the root's gradient is infinite
AGGREGATES = ("mean", "rmse", "p95", "max")
BLOCK = 2**15  # tokens of a half-precision head's vocabulary that are made fp32 at a time
SHARE, BUFFERS, MOST = (
    0.25,
    8,
    1024,
)  # of free memory; fp32 tensors of a chunk's logits; positions from which on more is no faster
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Head:
    """From final hidden states to logits: weight [vocabulary, hidden], bias, and a final logit softcap (Gemma 2) or None.

    Products are taken in fp32 whatever the weight's dtype: half-precision logits carry errors of the order of the divergence.
    A GPU multiplies half-precision factors exactly and sums in fp32, without a copy of the weight; a slope, which is fp32, goes there
    as two bfloat16 numbers, whose sum has 16 of its 24 bits.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None

    def _blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        if self.weight.dtype == torch.float32:
            yield slice(None), self.weight
            return
        for begin in range(0, len(self.weight), BLOCK):
            yield slice(begin, begin + BLOCK), self.weight[begin : begin + BLOCK].float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [positions, vocabulary] of hidden [positions, hidden], fp32, softcapped."""
        if self.weight.is_cuda and self.weight.dtype in HALVES and hidden.dtype == self.weight.dtype:
            logits = torch.mm(hidden, self.weight.T, out_dtype=torch.float32)
        else:
            hidden = hidden.float()
            logits = hidden.new_empty(len(hidden), len(self.weight))
            for tokens, weight in self._blocks():
                logits[:, tokens] = hidden @ weight.T
        if self.bias is not None:
            logits += self.bias
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def logprobs(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-softmax [positions, vocabulary], fp32."""
        return self.logits(hidden).log_softmax(-1)

    def gradient(self, slope: torch.Tensor) -> torch.Tensor:
        """Gradient [positions, hidden] at the hidden states, from the one before the softcap, [positions, vocabulary]."""
        if self.weight.is_cuda and self.weight.dtype == torch.bfloat16:  # float16 has no room for small slopes
            high, low = halves(slope)
            return torch.mm(high, self.weight, out_dtype=torch.float32).add_(torch.mm(low, self.weight, out_dtype=torch.float32))  # fmt: skip
        total: torch.Tensor | None = None
        for tokens, weight in self._blocks():
            part = slope[:, tokens] @ weight
            total = part if total is None else total.add_(part)
        assert total is not None
        return total


def halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two bfloat16 tensors whose sum is fp32 values within 2**-16 of each."""
    high = values.bfloat16()
    return high, (values - high.float()).bfloat16()


def chunk_for(least: int, vocabulary: int, free: int | None) -> int:
    """Positions whose logits are held at a time: on a GPU as many as a part of its free memory holds, since large products are faster.

    Args:
        least: train.chunk, which is taken as it is without a GPU.
        vocabulary: of the head.
        free: bytes of the GPU's memory; None without one.
    """
    chunk = least
    while free is not None and 2 * chunk <= min(MOST, free * SHARE / (BUFFERS * 4 * vocabulary)):
        chunk *= 2
    return chunk


class Positions(NamedTuple):
    """Values of every completion position, fp32.

    ce [positions], nats. kl [references, positions], nats, the divergence from each reference. grad_ce and grad_kl
    [positions, hidden]: gradients of ce and of kl[0] at the hidden states; grad_kl is 0 where the divergence is only measured.
    """

    ce: torch.Tensor
    kl: torch.Tensor
    grad_ce: torch.Tensor
    grad_kl: torch.Tensor


def per_position(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    references: Sequence[torch.Tensor],
    head: Head,
    divergence: str,
    chunk: int,
) -> Positions:
    """Cross-entropy and divergence of every position.

    hidden and each of references [positions, hidden]: final hidden states of the student and of the references, at the positions
    that predict targets [positions]. divergence is a name of shared.divergences; without a barrier KL(theta || ref) is measured.
    The first reference's carries a gradient where there is a barrier; all others are only measured.
    """
    return Positions(*_PerPosition.apply(hidden, targets, tuple(references), head, divergence, chunk))


class _PerPosition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, references: tuple[torch.Tensor, ...], head: Head, divergence: str, chunk: int) -> tuple[torch.Tensor, ...]:  # fmt: skip
        with_gradient = ctx.needs_input_grad[0]
        barred = with_gradient and has_barrier(divergence)
        function = function_of(divergence)
        size = len(hidden)
        ce = hidden.new_empty(size, dtype=torch.float32)
        kl = hidden.new_empty(len(references), size, dtype=torch.float32)
        grad_ce = hidden.new_zeros(hidden.shape if with_gradient else (0,), dtype=torch.float32)
        grad_kl = hidden.new_zeros(hidden.shape if barred else (0,), dtype=torch.float32)
        for begin in range(0, size, chunk):
            part = slice(begin, begin + chunk)
            # The reference whose gradient is wanted comes last: its buffers are turned into the gradient in place.
            logp = head.logits(hidden[part])
            slope = None if head.softcap is None or not with_gradient else 1 - (logp / head.softcap).square_()
            logp = logp.log_softmax(-1)
            p = logp.exp()
            rows = torch.arange(len(logp), device=logp.device)
            ce[part] = -logp[rows, targets[part]]
            for index in reversed(range(len(references))):
                last = barred and index == 0
                logq = head.logprobs(references[index][part])
                kl[index, part], bend = function(logp, p, logq, last)
                if bend is not None:
                    grad_kl[part] = head.gradient(bend if slope is None else bend.mul_(slope))
            if with_gradient:
                p[rows, targets[part]] -= 1
                grad_ce[part] = head.gradient(p if slope is None else p.mul_(slope))
        ctx.save_for_backward(grad_ce, grad_kl)
        ctx.like, ctx.barred = hidden.dtype, barred
        ctx.mark_non_differentiable(grad_ce, grad_kl, *(() if barred else (kl,)))
        return ce, kl, grad_ce, grad_kl

    @staticmethod
    def backward(ctx: Any, by_ce: torch.Tensor, by_kl: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        grad_ce, grad_kl = ctx.saved_tensors
        total = grad_ce * by_ce[:, None]
        if ctx.barred:
            total.addcmul_(grad_kl, by_kl[0][:, None])
        return total.to(ctx.like), None, None, None, None, None


def aggregate(kl: torch.Tensor, kind: str) -> torch.Tensor:
    """D from per-position KL [positions]: rmse = sqrt(mean(kl^2) + 1e-8), mean, p95 or max, nats."""
    if kind == "rmse":
        return (kl.square().mean() + EPS).sqrt()
    return {"mean": lambda: kl.mean(), "p95": lambda: torch.quantile(kl, 0.95), "max": lambda: kl.max()}[kind]()


def barrier(
    kl: torch.Tensor, divergence: str, kind: str, lam: float, tau: float, sizes: Sequence[int] | None = None
) -> torch.Tensor:
    """lambda * relu(D - tau) of a micro-batch from per-position KL [positions]; 0 for a divergence without a barrier.

    Args:
        kl: divergence [positions] of every position, nats.
        divergence: its name.
        kind: how positions become D: rmse, mean, p95 or max.
        lam, tau: of the barrier.
        sizes: positions of each row in turn; with them D is taken row by row, and the barrier is the mean of relu(D_i - tau) over rows.
    """
    if not has_barrier(divergence):
        return kl.new_zeros(())
    return lam * torch.relu(divergences_of(kl, kind, sizes) - tau).mean()


def divergences_of(kl: torch.Tensor, kind: str, sizes: Sequence[int] | None) -> torch.Tensor:
    """D of every row [rows], or of the whole micro-batch [1] without sizes, from per-position KL [positions]."""
    parts = [kl] if sizes is None else kl.split(list(sizes))
    return torch.stack([aggregate(part, kind) for part in parts])


def gradient_ratio(
    positions: Positions, divergence: str, kind: str, lam: float, tau: float, sizes: Sequence[int] | None = None
) -> torch.Tensor:
    """Norm of the barrier's gradient over that of the mean cross-entropy's, both at the final hidden states.

    Taken where the two enter the network: in the parameters it would cost a second backward pass.

    Args:
        positions: of `per_position`, with their gradients.
        divergence: its name.
        kind: how positions become D.
        lam, tau: of the barrier.
        sizes: as of `barrier`.
    """
    if not has_barrier(divergence):
        return positions.ce.new_zeros(())
    with torch.enable_grad():
        kl = positions.kl[0].detach().requires_grad_()
        (weights,) = torch.autograd.grad(barrier(kl, divergence, kind, lam, tau, sizes), kl)
    ours = torch.linalg.vector_norm(positions.grad_kl * weights[:, None])
    return ours / (torch.linalg.vector_norm(positions.grad_ce) / len(kl))
