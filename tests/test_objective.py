"""The objective against the naive formula in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.objective import EPS, Head, aggregate, barrier, per_position


def naive(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    reference: torch.Tensor,
    head: Head,
    divergence: str,
    kind: str,
    lam: float,
    tau: float,
) -> torch.Tensor:
    """Whole logits, whole log-softmax, the definition word for word."""

    def logprobs(states: torch.Tensor) -> torch.Tensor:
        logits = states @ head.weight.to(states).T + (0 if head.bias is None else head.bias.to(states))
        if head.softcap:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        return torch.log_softmax(logits, -1)

    ours, theirs = logprobs(hidden), logprobs(reference).detach()
    ce = -ours[torch.arange(len(targets)), targets].mean()
    if divergence not in ("kl_fwd", "kl_rev"):
        return ce
    p, q = (theirs, ours) if divergence == "kl_fwd" else (ours, theirs)
    kl = (p.exp() * (p - q)).sum(-1)
    d = {
        "rmse": lambda: (kl.square().mean() + EPS).sqrt(),
        "mean": kl.mean,
        "p95": lambda: kl.quantile(0.95),
        "max": kl.max,
    }[kind]()
    return ce + lam * torch.relu(d - tau)


def case(
    positions: int, seed: int, softcap: float | None = None, bias: bool = False, apart: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Head]:
    draws = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, 12, generator=draws)
    reference = hidden + apart * torch.randn(positions, 12, generator=draws)
    weight = torch.randn(31, 12, generator=draws)
    return (
        hidden,
        torch.randint(31, (positions,), generator=draws),
        reference,
        Head(weight, torch.randn(31, generator=draws) if bias else None, softcap),
    )


def ours(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    reference: torch.Tensor,
    head: Head,
    divergence: str,
    kind: str,
    lam: float,
    tau: float,
    chunk: int,
) -> torch.Tensor:
    ce, kl = per_position(hidden, targets, reference, head, divergence, chunk)
    return ce.mean() + barrier(kl, divergence, kind, lam, tau)


@pytest.mark.parametrize("divergence", ["nll", "kl_fwd", "kl_rev", "wd"])
@pytest.mark.parametrize("kind", ["rmse", "mean", "p95", "max"])
@pytest.mark.parametrize(("softcap", "bias"), [(None, False), (3.0, True)])
@pytest.mark.parametrize("positions", [1, 7, 23])
def test_value_and_gradient(divergence: str, kind: str, softcap: float | None, bias: bool, positions: int) -> None:
    hidden, targets, reference, head = case(positions, 3, softcap, bias)
    a, b = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    value = ours(a, targets, reference, head, divergence, kind, 0.7, 0.1, chunk=5)
    wanted = naive(b, targets, reference.double(), head, divergence, kind, 0.7, 0.1)
    value.backward()
    wanted.backward()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert (a.grad.double() - b.grad).norm() <= 1e-5 * b.grad.norm()


@pytest.mark.parametrize("kind", ["rmse", "mean", "p95", "max"])
@pytest.mark.parametrize("divergence", ["kl_fwd", "kl_rev"])
def test_zero_divergence_has_a_finite_gradient(kind: str, divergence: str) -> None:
    hidden, targets, _, head = case(6, 1)
    states = hidden.clone().requires_grad_()
    ours(states, targets, hidden, head, divergence, kind, 1.0, 0.0, chunk=4).backward()
    plain = hidden.double().requires_grad_()
    naive(plain, targets, hidden.double(), head, "nll", kind, 1.0, 0.0).backward()
    assert torch.isfinite(states.grad).all()
    torch.testing.assert_close(states.grad.double(), plain.grad, atol=1e-4, rtol=1e-4)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_chunks_do_not_matter(positions: int, chunk: int, seed: int) -> None:
    hidden, targets, reference, head = case(positions, seed)
    whole = per_position(hidden, targets, reference, head, "kl_rev", 10_000)
    parts = per_position(hidden, targets, reference, head, "kl_rev", chunk)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@given(st.permutations(range(9)), st.sampled_from(["rmse", "mean", "p95", "max"]))
@settings(deadline=None, max_examples=30)
def test_order_does_not_matter(order: list[int], kind: str) -> None:
    kl = torch.linspace(0.01, 2, 9)
    torch.testing.assert_close(aggregate(kl[order], kind), aggregate(kl, kind), atol=1e-6, rtol=1e-6)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=30))
def test_aggregates_are_ordered(values: list[float]) -> None:
    kl = torch.tensor(values, dtype=torch.float64)
    found = {kind: aggregate(kl, kind).item() for kind in ("mean", "rmse", "p95", "max")}
    assert (
        found["mean"] <= found["rmse"] + 1e-9
        and found["rmse"] <= found["max"] + 1e-4
        and found["p95"] <= found["max"] + 1e-9
    )


def test_below_tau_the_barrier_is_silent() -> None:
    kl = torch.full((4,), 0.2, requires_grad=True)
    silent = barrier(kl, "kl_rev", "mean", 5.0, 0.3)
    silent.backward()
    assert silent.item() == 0 and not kl.grad.any()


def test_nll_and_wd_measure_without_gradient() -> None:
    hidden, targets, reference, head = case(5, 2)
    for divergence in ("nll", "wd"):
        _, kl = per_position(hidden.clone().requires_grad_(), targets, reference, head, divergence, 3)
        assert not kl.requires_grad and (kl > 0).all() and barrier(kl, divergence, "rmse", 1.0, 0.0).item() == 0


def test_bf16_head() -> None:
    hidden, targets, reference, head = case(9, 4)
    low = Head(head.weight.bfloat16())
    ce, kl = per_position(hidden.bfloat16(), targets, reference.bfloat16(), low, "kl_rev", 4)
    wanted = per_position(
        hidden.bfloat16().float(), targets, reference.bfloat16().float(), Head(low.weight.float()), "kl_rev", 4
    )
    assert ce.dtype == kl.dtype == torch.float32
    torch.testing.assert_close(ce, wanted[0], atol=0.05, rtol=0.02)
    torch.testing.assert_close(kl, wanted[1], atol=0.05, rtol=0.05)
