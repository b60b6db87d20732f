"""Teacher-forced distributions of two networks on one text, over the full vocabulary, by plain forwards with hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.layers import decoder_layers
from shared.vectors import Vector

if TYPE_CHECKING:
    import torch

CHUNK = 128  # positions whose distributions are held at a time


@dataclass(frozen=True)
class Distance:
    """Sums over the tokens of one text, nats: nll of the tokens under a condition and under the base, and KL(base || condition).

    kl is None where a logit of either is not finite, and then so are the others.
    """

    tokens: int
    nll: float | None
    nll_base: float | None
    kl: float | None


@contextmanager
def steered(
    network: torch.nn.Module, depth: int, vector: Vector | None, coefficient: float, start: int
) -> Iterator[None]:
    """Within this block the layers of a vector add coefficient times it to their output, from position start on.

    Args:
        network: for one text at a time, without a cache: positions count from its first token.
        vector: None leaves the network as it is.
    """
    import torch

    layers = decoder_layers(network, depth)[1]

    def adding(values: torch.Tensor) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            shift = torch.zeros_like(states)
            shift[:, start:] = (coefficient * values).to(states)
            moved = states + shift
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return hook

    handles = [
        layers[layer].register_forward_hook(adding(torch.from_numpy(values)))
        for layer, values in (vector.layers if vector else {}).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits_of(network: torch.nn.Module, ids: Sequence[int], begin: int) -> torch.Tensor:
    """Logits [tokens - begin, vocabulary] that predict the tokens from begin on; begin is at least 1."""
    import torch

    device = next(network.parameters()).device
    with torch.inference_mode():
        logits: torch.Tensor = network(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits
    return logits[0, begin - 1 : -1]


def distance(base: torch.Tensor, other: torch.Tensor, targets: Sequence[int]) -> Distance:
    """The difference of logits [tokens, vocabulary] of two networks at the same positions. The softmax is in fp32, the sums in fp64.

    KL at a position is the sum over the whole vocabulary of p_base (ln p_base - ln p_other).
    """
    import torch

    nll = nll_base = kl = 0.0
    with torch.inference_mode():
        for begin in range(0, len(targets), CHUNK):
            chunk_targets = torch.tensor(list(targets[begin : begin + CHUNK]), device=base.device)
            p, q = (logits[begin : begin + CHUNK].float().log_softmax(-1) for logits in (base, other.to(base.device)))
            place = torch.arange(len(chunk_targets), device=base.device)
            nll_base -= float(p[place, chunk_targets].double().sum())
            nll -= float(q[place, chunk_targets].double().sum())
            kl += float(torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).double().sum())  # a padded head has -inf
    sums = (nll, nll_base, kl)
    if not all(map(_finite, sums)):
        return Distance(len(targets), None, None, None)
    return Distance(len(targets), *sums)


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def kl_by_token(other: torch.Tensor, base: torch.Tensor) -> np.ndarray:
    """KL(other || base) at each position of logits [tokens, vocabulary], nats [tokens]; NaN or infinite where a logit is."""
    import torch

    kl_chunks = []
    with torch.inference_mode():
        for start in range(0, len(base), CHUNK):
            q, p = (logits[start : start + CHUNK].float().log_softmax(-1) for logits in (other, base))
            kl = torch.where(q > -torch.inf, q.exp() * (q - p), 0.0)  # a padded head has -inf
            kl_chunks.append(kl.double().sum(-1))
    return np.asarray(torch.cat(kl_chunks))
