"""The op and the row mapping, without an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gen.engine import steering

windows = st.tuples(st.integers(0, 30), st.one_of(st.just(steering.END), st.integers(0, 45)))
terms = st.builds(
    lambda slot, coefficient, window: steering.Term(slot, coefficient, *window),
    st.integers(1, 4),
    st.floats(-4, 4, width=32),
    windows,  # an end before its start among them
)
asks = st.lists(terms, max_size=steering.TERMS).map(tuple)
batches = st.lists(st.tuples(asks, st.integers(1, 12), st.integers(0, 30)), min_size=1, max_size=8)


def places(steer: steering.Steer, position: int) -> list[tuple[int, float]]:
    """What the buffers hold for a token: its terms in their places, (0, 0.0) in the others."""
    on = [(term.slot, term.coefficient) if term.start <= position < term.end else (0, 0.0) for term in steer]
    return on + [(0, 0.0)] * (steering.TERMS - len(on))


def rows(slot: np.ndarray, coefficient: np.ndarray) -> list[list[tuple[int, float]]]:
    return [list(zip(*row, strict=True)) for row in zip(slot.tolist(), coefficient.tolist(), strict=True)]


def fresh(tokens: int = 128) -> steering.Buffers:
    return steering.Buffers.allocate([3], 4, tokens, 5, torch.device("cpu"))


@given(batches)
def test_rows_equal_a_walk_over_every_token(batch: list) -> None:
    steers = [ask for ask, _, _ in batch]
    scheduled, computed = np.array([b[1] for b in batch]), np.array([b[2] for b in batch])
    slot, coefficient, counts = steering.steered_token_rows(steers, scheduled, computed)
    expected, steered = [], []
    for steer, count, behind in batch:
        here = [places(steer, position) for position in range(behind, behind + count)]
        expected += here
        steered.append(sum(any(slot for slot, _ in each) for each in here))
    assert rows(slot, coefficient) == expected
    assert counts.tolist() == steered


@given(st.lists(batches, min_size=1, max_size=4))
def test_fill_leaves_nothing_of_the_step_before(steps: list[list]) -> None:
    """Steps of falling and rising size: rows past the batch, which graphs pad, are zero."""
    buffers = fresh()
    for batch in steps:
        scheduled, computed = np.array([b[1] for b in batch]), np.array([b[2] for b in batch])
        buffers.fill([str(i) for i in range(len(batch))], [b[0] for b in batch], scheduled, computed)
        total = int(scheduled.sum())
        assert not buffers.slot[total:].any() and not buffers.coefficient[total:].any()
        slot, coefficient, _ = steering.steered_token_rows([b[0] for b in batch], scheduled, computed)
        any_term = any(b[0] for b in batch)  # without one the buffers are cleared and not written
        assert buffers.slot[:total].tolist() == (slot if any_term else 0 * slot).tolist()
        assert buffers.coefficient[:total].tolist() == (coefficient if any_term else 0 * coefficient).tolist()


@dataclass
class Asked:
    """A request in the model of the scheduler: prompt and output lengths, tokens computed so far."""

    steer: steering.Steer
    prompt: int
    output: int
    computed: int = 0
    sampled: int = 0
    seen: dict[int, tuple[int, float]] = field(default_factory=dict)

    @property
    def pending(self) -> int:
        return self.prompt + self.sampled - self.computed


@given(st.data(), st.lists(st.tuples(asks, st.integers(1, 40), st.integers(1, 6)), min_size=1, max_size=6))
def test_every_position_is_steered_rightly_whatever_the_scheduler_does(data: st.DataObject, sizes: list) -> None:
    """Chunked prefill, preemption with recomputation, prefix-cache hits, seats taken over, against a table of positions."""
    requests = {f"r{i}": Asked(steer, prompt, output) for i, (steer, prompt, output) in enumerate(sizes)}
    waiting, running = list(requests), []
    buffers = fresh()
    expected_fired: dict[str, int] = {}
    for _ in range(400):
        while waiting and len(running) < 3 and data.draw(st.booleans() if running else st.just(True)):
            name = waiting.pop(0)
            request = requests[name]
            request.computed = data.draw(st.integers(0, request.prompt + request.sampled - 1), label="cached")
            running.append(name)
        if not running:
            break
        if len(running) > 1 and data.draw(st.integers(0, 7)) == 0:
            waiting.insert(0, running.pop())
        budget = data.draw(st.integers(len(running), 48), label="budget")
        order = data.draw(st.permutations(running))
        scheduled = []
        for place, name in enumerate(order):
            scheduled.append(min(requests[name].pending, budget - (len(order) - place - 1)))
            budget -= scheduled[-1]
        computed = np.array([requests[name].computed for name in order])
        buffers.fill(order, [requests[name].steer for name in order], np.array(scheduled), computed)
        row = 0
        for name, count in zip(order, scheduled, strict=True):
            request = requests[name]
            for position in range(request.computed, request.computed + count):
                expected = places(request.steer, position)
                assert rows(buffers.slot[row : row + 1], buffers.coefficient[row : row + 1]) == [expected]
                if any(slot for slot, _ in expected):
                    expected_fired[name] = expected_fired.get(name, 0) + 1
                row += 1
            request.computed += count
            if request.pending == 0:
                request.sampled += 1
                if request.sampled > request.output:
                    running.remove(name)
        assert not buffers.slot[row:].any()
    buffers.ran += buffers.steps
    assert {name: count for name, count in buffers.report().items() if count} == expected_fired


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_op_equals_its_reference_in_plain_torch(dtype: torch.dtype) -> None:
    buffers = steering.Buffers.allocate([2, 7], 3, 16, 8, torch.device("cpu"))
    buffers.bank[:, 1:] = torch.randn(2, 3, 8)
    buffers.slot[:6] = torch.tensor(
        [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [2, 3, 1, 2], [3, 1, 0, 0], [0, 0, 0, 0]]
    )
    buffers.coefficient[:6] = torch.tensor(
        [[0.0] * 4, [0.5, 0, 0, 0], [0, 0, -2.0, 0], [1, 0.5, -1, 3], [0.0] * 4, [3.0] * 4]
    )
    steering.use_buffers(buffers)
    hidden = torch.randn(6, 8).to(dtype)
    before = hidden.clone()
    expected = steering.steer_reference(hidden, buffers.bank[1], buffers.slot[:6], buffers.coefficient[:6])
    torch.ops.steer_heal.steer(hidden, 1)
    step = torch.finfo(dtype).eps * 4  # one rounding of the sum: a fused multiply-add may differ in the last bit
    torch.testing.assert_close(hidden, expected, atol=step, rtol=step)
    for untouched in (0, 4, 5):
        assert torch.equal(hidden[untouched], before[untouched]), "slot 0 and coefficient 0 of all change no bit"
    one = before[1:2].clone()
    buffers.slot[0], buffers.coefficient[0] = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 0.5])
    torch.ops.steer_heal.steer(one, 1)
    assert torch.equal(one[0], hidden[1]), "a term's bits depend neither on its place nor on its batchmates"
    buffers.slot[0], buffers.coefficient[0] = 0, 0.0
    torch.ops.steer_heal.steer(hidden[:1].clone(), 1)  # an unsteered row alone
    assert buffers.ran.tolist() == [0, 2], "runs with a steered row are counted"


def test_a_batch_of_one_is_steered_as_its_tokens_are() -> None:
    """Families without a model of vLLM's own run Transformers' modules, which return [1, tokens, hidden]."""
    buffers = steering.Buffers.allocate([0], 1, 16, 8, torch.device("cpu"))
    buffers.bank[0, 1], buffers.slot[:3, 0], buffers.coefficient[:3, 0] = torch.randn(8), 1, 0.5
    steering.use_buffers(buffers)
    flat = torch.randn(3, 8)
    batch = flat.clone()[None]
    torch.ops.steer_heal.steer(flat, 0)
    torch.ops.steer_heal.steer(batch, 0)
    assert torch.equal(batch[0], flat)
    with pytest.raises(RuntimeError, match=r"returns \[2, 3, 8\]"):
        torch.ops.steer_heal.steer(batch.expand(2, 3, 8).clone(), 0)


def test_a_report_compares_steps_with_runs_of_the_op() -> None:
    buffers = fresh()
    buffers.fill(["a"], [(steering.Term(1, 1.0),)], np.array([4]), np.array([0]))
    with pytest.raises(RuntimeError, match="1 steps had steered tokens, and the op ran"):
        buffers.report()
    buffers.fill(
        ["a", "b"],
        [(steering.Term(1, 1.0, 6), steering.Term(2, 1.0, 9)), steering.UNSTEERED],
        np.array([4, 1]),
        np.array([4, 9]),
    )
    buffers.ran += 1
    assert buffers.report() == {"a": 6} and buffers.report() == {}


def test_op_is_traceable() -> None:
    buffers = steering.Buffers.allocate([0], 1, 16, 8, torch.device("cpu"))
    steering.use_buffers(buffers)
    torch.library.opcheck(
        torch.ops.steer_heal.steer, (torch.randn(4, 8), 0), test_utils=("test_schema", "test_faketensor")
    )
