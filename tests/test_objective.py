"""The objective against the naive formula in fp64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_code import copied

from shared.divergences import DIVERGENCES
from train.divergences import FUNCTIONS
from train.objective import EPS, Head, aggregate, barrier, chunk_for, gradient_ratio, halves, per_position


def js(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    middle = ((ours.exp() + theirs.exp()) / 2).log()
    return sum((one.exp() * (one - middle)).sum(-1) for one in (ours, theirs)) / 2


DEFINITIONS = {
    "kl_fwd": lambda ours, theirs: (theirs.exp() * (theirs - ours)).sum(-1),
    "kl_rev": lambda ours, theirs: (ours.exp() * (ours - theirs)).sum(-1),
    "js": js,
}


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
    if divergence in ("nll", "wd"):
        return ce
    kl = DEFINITIONS[divergence](ours, theirs)
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
    found = per_position(hidden, targets, [reference], head, divergence, chunk)
    return found.ce.mean() + barrier(found.kl[0], divergence, kind, lam, tau)


@pytest.mark.parametrize("divergence", DIVERGENCES)
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
@pytest.mark.parametrize("divergence", FUNCTIONS)
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
    whole = per_position(hidden, targets, [reference], head, "kl_rev", 10_000)[:2]
    parts = per_position(hidden, targets, [reference], head, "kl_rev", chunk)[:2]
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
        found = per_position(hidden.clone().requires_grad_(), targets, [reference], head, divergence, 3)
        assert not found.kl.requires_grad and (found.kl > 0).all()
        assert barrier(found.kl[0], divergence, "rmse", 1.0, 0.0).item() == 0
        assert gradient_ratio(found, divergence, "rmse", 1.0, 0.0) == 0


@pytest.mark.parametrize("divergence", ["nll", *FUNCTIONS])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_bf16_weights_are_exact(divergence: str, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in fp32: the only rounding is that of the weights and states themselves, over blocks of the vocabulary."""
    monkeypatch.setattr("train.objective.BLOCK", 7)
    hidden, targets, reference, head = case(9, 4, softcap, bias=True)
    low = Head(head.weight.bfloat16(), head.bias.bfloat16(), softcap)
    a = hidden.bfloat16().requires_grad_()
    b = a.detach().double().requires_grad_()
    value = ours(a, targets, reference.bfloat16(), low, divergence, "rmse", 0.7, 0.1, chunk=4)
    wanted = naive(b, targets, reference.bfloat16().double(), low, divergence, "rmse", 0.7, 0.1)
    value.backward()
    wanted.backward()
    assert value.dtype == torch.float32 and value.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.equal(a.grad, b.grad.bfloat16()) or (a.grad.double() - b.grad).norm() <= 2**-8 * b.grad.norm()
    found = per_position(a, targets, [reference.bfloat16()], low, divergence, 4)
    exact = torch.autograd.grad(per_position_naive(b, targets, low).sum(), b)[0]
    assert (found.grad_ce.double() - exact).norm() <= 1e-5 * exact.norm()


def test_a_gpu_takes_the_head_as_it_is() -> None:
    """Half-precision factors go into one product with fp32 sums; nothing of the head's size is made. Without a GPU, by its shapes."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode():
        head = Head(torch.empty(31, 12, dtype=torch.bfloat16, device="cuda"))
        hidden = torch.empty(5, 12, dtype=torch.bfloat16, device="cuda")
        with Ops():
            logits = head.logits(hidden)
    assert logits.dtype == torch.float32 and logits.shape == (5, 31)
    assert "aten.mm.dtype" in names and not any("_to_copy" in name for name in names)


def per_position_naive(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    logits = hidden @ head.weight.double().T + head.bias.double()
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def test_every_reference_is_measured_and_the_first_alone_pulls() -> None:
    hidden, targets, first, head = case(8, 5)
    second = hidden + 0.1
    states = hidden.clone().requires_grad_()
    both = per_position(states, targets, [first, second], head, "kl_rev", 3)
    alone = [per_position(hidden, targets, [reference], head, "kl_rev", 3).kl[0] for reference in (first, second)]
    torch.testing.assert_close(both.kl, torch.stack(alone))
    assert both.kl[0].max() != both.kl[1].max()
    (pulled,) = torch.autograd.grad(both.kl.sum(), states, retain_graph=True)
    (wanted,) = torch.autograd.grad(both.kl[0].sum(), states)
    assert torch.equal(pulled, wanted) and pulled.abs().sum() > 0


@pytest.mark.parametrize("divergence", FUNCTIONS)
def test_ratio_of_gradient_norms_is_that_of_autograd(divergence: str) -> None:
    hidden, targets, reference, head = case(11, 6)
    states = hidden.double().requires_grad_()
    parts = [naive(states, targets, reference.double(), head, kind, "rmse", 0.7, 0.1) for kind in ("nll", divergence)]
    ce, both = (torch.autograd.grad(part, states)[0] for part in parts)
    found = per_position(hidden.clone().requires_grad_(), targets, [reference], head, divergence, 4)
    ratio = float(gradient_ratio(found, divergence, "rmse", 0.7, 0.1))
    assert ratio == pytest.approx(float((both - ce).norm() / ce.norm()), rel=1e-4) and ratio > 0


def test_no_buffer_holds_all_positions_times_the_vocabulary() -> None:
    """Counted at the allocator's door: every tensor made while loss and gradient are computed."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            made = func(*args, **(kwargs or {}))
            sizes = [t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
            Largest.numbers = max(Largest.numbers, *sizes, 0)
            return made

    draws = torch.Generator().manual_seed(0)
    hidden, reference = (torch.randn(64, 8, generator=draws) for _ in range(2))
    head = Head(torch.randn(1000, 8, generator=draws))
    states = hidden.requires_grad_()
    with Largest():
        ours(states, torch.arange(64), reference, head, "kl_rev", "rmse", 1.0, 0.0, chunk=4).backward()
    assert Largest.numbers == max(4 * 1000, head.weight.numel())


def test_every_divergence_has_what_it_needs() -> None:
    """A function for each with a barrier, and for no other; a definition here for each function."""
    assert {name for name, entry in DIVERGENCES.items() if entry.barrier} == {*FUNCTIONS} == {*DEFINITIONS}


def test_js_is_symmetric_and_bounded() -> None:
    """Of distributions that share nothing it is ln 2, where both KL are hundreds of nats."""
    logits = torch.tensor([[400.0, 0.0, 0.0], [0.0, 400.0, 0.0]])
    logp = logits.log_softmax(-1)
    there, _ = FUNCTIONS["js"](logp, logp.exp(), logp.flip(0), False)
    back, _ = FUNCTIONS["js"](logp.flip(0), logp.flip(0).exp(), logp.clone(), False)
    torch.testing.assert_close(there, torch.full((2,), 2.0).log())
    torch.testing.assert_close(there, back)


ADDED = """
import sys; sys.path.insert(0, {folder!r})
import torch
from shared.config import resolve_config
from train.objective import Head, barrier, per_position
config, _ = resolve_config(None, "train.divergence=tv")
a, b, weight = (torch.randn(shape) for shape in ((9, 5), (9, 5), (7, 5)))
states, plain = a.clone().requires_grad_(), a.double().requires_grad_()
found = per_position(states, torch.zeros(9, dtype=torch.long), [b], Head(weight), config.train.divergence, 4)
barrier(found.kl[0], config.train.divergence, "mean", 1.0, 0.0).backward()
p, q = ((x @ weight.double().T).softmax(-1) for x in (plain, b.double()))
((p - q).abs().sum(-1) / 2).mean().backward()
torch.testing.assert_close(states.grad.double(), plain.grad, atol=1e-6, rtol=1e-4)
print("added")
"""
FUNCTION = """

def total_variation(logp: torch.Tensor, p: torch.Tensor, logq: torch.Tensor, wanted: bool) -> Result:
    apart = (p - logq.exp()).sign() / 2
    divergence = ((p - logq.exp()).abs() / 2).sum(-1)
    return divergence, p * (apart - (p * apart).sum(-1, keepdim=True)) if wanted else None


FUNCTIONS["tv"] = total_variation
"""


def test_a_divergence_is_added_by_an_entry_and_a_function(tmp_path: Path) -> None:
    copied(tmp_path, "shared", "train")
    entries, functions = tmp_path / "shared" / "divergences.py", tmp_path / "train" / "divergences.py"
    entries.write_text(
        entries.read_text().replace(
            "DIVERGENCES = {", 'DIVERGENCES = {"tv": Divergence("total variation", symbol="TV"),'
        )
    )
    functions.write_text(functions.read_text() + FUNCTION)
    done = subprocess.run(
        [sys.executable, "-c", ADDED.format(folder=str(tmp_path))], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "added", done.stderr
    named = [path for name in ("shared", "train", "evals") for path in (ROOT / name).rglob("*.py") if '("kl_fwd", "kl_rev"' in path.read_text()]  # fmt: skip
    assert not named, "which divergences have a barrier is asked of shared/divergences.py"


SIZES = (7, 1, 4, 11)


def by_rows(kind: str, divergence: str, lam: float, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The barrier of rows, and its gradient, in fp64 word for word: a loop over rows."""
    hidden, targets, reference, head = case(sum(SIZES), 5)
    hidden = hidden.double().requires_grad_()
    parts = zip(hidden.split(SIZES), targets.split(SIZES), reference.double().split(SIZES), strict=True)
    walls = [
        naive(ours, goal, theirs, head, divergence, kind, lam, tau)
        - naive(ours, goal, theirs, head, "nll", kind, 0.0, 0.0)
        for ours, goal, theirs in parts
    ]
    total = sum(walls) / len(SIZES)
    total.backward()
    return total.detach(), hidden.grad


@pytest.mark.parametrize("divergence", ["kl_rev", "kl_fwd", "js"])
@pytest.mark.parametrize("kind", ["rmse", "mean", "p95", "max"])
def test_a_barrier_of_rows_is_the_mean_over_rows_in_whatever_micro_batches(divergence: str, kind: str) -> None:
    lam, tau = 0.7, 0.05
    wanted, slope = by_rows(kind, divergence, lam, tau)
    assert wanted > 0
    for cut in (0, 1, 3):  # rows of the first micro-batch
        hidden, targets, reference, head = case(sum(SIZES), 5)
        hidden.requires_grad_()
        total = hidden.new_zeros(())
        for first, last in ((0, cut), (cut, len(SIZES))):
            if first == last:
                continue
            here, sizes = slice(sum(SIZES[:first]), sum(SIZES[:last])), SIZES[first:last]
            found = per_position(hidden[here], targets[here], [reference[here]], head, divergence, 5)
            total = total + barrier(found.kl[0], divergence, kind, lam, tau, sizes) * len(sizes) / len(SIZES)
        total.backward()
        assert total.item() == pytest.approx(wanted.item(), rel=1e-5)
        assert (hidden.grad.double() - slope).norm() <= 1e-5 * slope.norm()


def test_a_looping_row_is_seen_by_rows_and_drowns_in_a_batch() -> None:
    kl = torch.cat([torch.full((20,), 1.5), torch.full((620,), 0.05)])
    assert barrier(kl, "kl_rev", "rmse", 1.0, 0.3) == 0
    assert float(barrier(kl, "kl_rev", "rmse", 1.0, 0.3, [20] * 32)) == pytest.approx(1.2 / 32, rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-20])
def test_a_slope_is_two_bfloat16_numbers(scale: float) -> None:
    """On a GPU its product with the head is two half-precision ones: what is lost is a 2**-16th, whatever its size."""
    draws = torch.Generator().manual_seed(0)
    slope = (torch.rand(64, 1000, generator=draws) ** 4 + 1e-9) * scale
    weight = (torch.randn(1000, 32, generator=draws) * 0.05).bfloat16()
    high, low = halves(slope)
    assert high.dtype == low.dtype == torch.bfloat16
    assert ((high.double() + low.double() - slope.double()).abs() <= 2**-16 * slope.double()).all()
    exact = slope.double() @ weight.double()
    two = high.float() @ weight.float() + low.float() @ weight.float()
    one = high.float() @ weight.float()
    assert (two.double() - exact).norm() < 2**-15 * exact.norm() < 0.1 * (one.double() - exact).norm()


def test_a_gpu_takes_the_gradient_from_the_head_as_it_is() -> None:
    """By its shapes, without a GPU: bfloat16 products with fp32 sums, nothing of the head's size in fp32."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        head = Head(torch.empty(31, 12, dtype=torch.bfloat16, device="cuda"))
        found = head.gradient(torch.empty(5, 31, device="cuda"))
        assert found.dtype == torch.float32 and found.shape == (5, 12)


def test_a_chunk_is_as_large_as_a_quarter_of_the_free_memory() -> None:
    gib = 2**30
    assert chunk_for(128, 262_144, None) == 128 and chunk_for(100, 262_144, 0) == 100
    assert chunk_for(128, 262_144, 12 * gib) == 256 and chunk_for(128, 262_144, 65 * gib) == 1024
    assert chunk_for(128, 49_152, 10**15) == 1024 and chunk_for(4096, 49_152, 10**15) == 4096
