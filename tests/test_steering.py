"""The op and the row mapping, without an engine."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gen.engine import steering

requests = st.lists(
    st.tuples(
        st.one_of(st.none(), st.tuples(st.integers(1, 4), st.floats(-4, 4, width=32), st.integers(0, 30))),
        st.integers(1, 12),
        st.integers(0, 30),
    ),
    min_size=1,
    max_size=8,
)


@given(requests)
def test_rows_equal_a_walk_over_every_token(batch: list) -> None:
    steers = [
        None if s is None else {"slot": s[0], "coefficient": s[1], "start": s[2], "tag": i}
        for i, (s, _, _) in enumerate(batch)
    ]
    scheduled, computed = np.array([b[1] for b in batch]), np.array([b[2] for b in batch])
    slot, coefficient = steering.token_rows(steers, scheduled, computed)
    expected = []
    for steer, (_, count, behind) in zip(steers, batch, strict=True):
        for position in range(behind, behind + count):
            steered = steer is not None and position >= steer["start"]
            expected.append((steer["slot"], steer["coefficient"]) if steered else (0, 0.0))
    assert list(zip(slot.tolist(), coefficient.tolist(), strict=True)) == expected


@given(requests)
def test_fill_zeroes_the_padding_and_counts_what_fires(batch: list) -> None:
    buffers = steering.Buffers.allocate([3], 4, 128, 5, torch.device("cpu"))
    buffers.slot.fill_(9)
    buffers.coefficient.fill_(9)
    steers = [
        None if s is None else {"slot": s[0], "coefficient": s[1], "start": s[2], "tag": i}
        for i, (s, _, _) in enumerate(batch)
    ]
    scheduled, computed = np.array([b[1] for b in batch]), np.array([b[2] for b in batch])
    buffers.fill(steers, scheduled, computed)
    total = int(scheduled.sum())
    assert not buffers.slot[total:].any() and not buffers.coefficient[total:].any()
    assert sum(buffers.fired.values()) == int((buffers.slot > 0).sum())


def test_op_adds_in_place_and_equals_plain_torch() -> None:
    buffers = steering.Buffers.allocate([2, 7], 3, 16, 8, torch.device("cpu"))
    buffers.bank[1:] = torch.randn(3, 2, 8)
    buffers.slot[:6] = torch.tensor([0, 1, 1, 2, 3, 0])
    buffers.coefficient[:6] = torch.tensor([0.0, 0.5, -2.0, 1.0, 0.0, 3.0])
    steering.activate(buffers)
    for dtype, tolerance in ((torch.float32, 0.0), (torch.bfloat16, 0.0)):
        hidden = torch.randn(6, 8).to(dtype)
        expected = hidden.clone()
        for token in range(6):
            expected[token] += (buffers.coefficient[token] * buffers.bank[buffers.slot[token], 1]).to(dtype)
        torch.ops.steer_heal.steer(hidden, 1)
        torch.testing.assert_close(hidden, expected, atol=tolerance, rtol=0)


def test_op_is_traceable() -> None:
    buffers = steering.Buffers.allocate([0], 1, 16, 8, torch.device("cpu"))
    steering.activate(buffers)
    torch.library.opcheck(
        torch.ops.steer_heal.steer, (torch.randn(4, 8), 0), test_utils=("test_schema", "test_faketensor")
    )
