"""Which foundations moved, against naive formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_statistics import answers, without

from evals.measures.forced_choice.moved import detectable, foundation_shifts, holm
from evals.statistics import AUTHORITY
from shared.instrument import FOUNDATIONS


def test_only_what_moved_is_said_to_have_moved() -> None:
    base, other = answers(), answers(shift=-1.0)
    found = foundation_shifts(base, other)
    assert found is not None and [line.foundation for line in found] == list(FOUNDATIONS)
    authority = found[AUTHORITY]
    assert authority.moved and authority.change.value == pytest.approx(
        np.log(other.p[:, AUTHORITY].mean() / base.p[:, AUTHORITY].mean())
    )
    same = foundation_shifts(base, base)
    assert same is not None and all(line.p == 1.0 and not line.moved for line in same)


@pytest.mark.parametrize("factor", [0.9, 1 / 3, 1 - 1e-15])
def test_a_shift_alike_in_every_item_has_no_error(factor: float) -> None:
    """The draws differ by rounding alone, over which any shift is certain."""
    base = answers(per=6)
    other = replace(base, p=base.p * factor)
    assert detectable(base, other) is None
    found = foundation_shifts(base, other)
    if factor > 0.99:
        assert found is not None and not any(line.moved or line.change.excludes_zero() for line in found)
    else:
        assert found is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_steps_down(p: list[float]) -> None:
    corrected = holm(p)
    order = np.argsort(p)
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, p[index] * (len(p) - rank)))
        assert corrected[index] == pytest.approx(worst)
    assert all(after >= before for before, after in zip(p, corrected, strict=True))


def test_the_detectable_shift_falls_with_the_items() -> None:
    few = detectable(answers(per=4), answers(1, per=4))
    many = detectable(answers(per=32), answers(1, per=32))
    assert (
        few is not None and many is not None and 2 < few / many < 7
    )  # an eighth of the variance, and degrees of freedom of four items a foundation
    assert detectable(answers(), answers()) is None


def test_unscorable_items_leave_both_sides() -> None:
    base, other = answers(), answers(shift=-1.0)
    assert foundation_shifts(without(base, 0, 5), other) == foundation_shifts(base, without(other, 0, 5))
