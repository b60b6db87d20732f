"""The profile against the raters' on rated answers, where both are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_statistics import COUNT, answers, without

from evals.measures.forced_choice.levels import condition_levels
from evals.report.figures.profile import HUMAN, bars, profiles
from evals.report.panel import panels_png, svg
from shared.instrument import FOUNDATIONS

RATED = replace(answers(), label=np.random.default_rng(5).dirichlet(np.ones(7), 28))


def test_raters_and_conditions_are_means_over_the_same_items() -> None:
    healed = without(replace(answers(shift=-1.0), label=RATED.label), 3, 17)
    found = profiles({"base": RATED, "healed": healed})
    assert list(found) == [HUMAN[0], "base", "healed"]
    kept = np.setdiff1d(np.arange(28), [3, 17])
    for name, values in ((HUMAN[0], RATED.label), ("base", RATED.p), ("healed", healed.p)):
        shown = found[name]
        assert [value.value for value in shown] == pytest.approx(values[kept].mean(0))
        assert sum(value.value for value in shown) == pytest.approx(1.0)
        assert all(value.interval[0] <= value.value <= value.interval[1] for value in shown)
    panel = bars(found)
    largest = kept_largest(RATED.label[kept].mean(0))
    assert f"{HUMAN[0]} {largest}" in panel.finding and "beside the raters" in panel.title
    assert "authority" in svg(panel, "profile") and panels_png([panel], 1).startswith(b"\x89PNG")


def kept_largest(mean: np.ndarray) -> str:
    return f"{FOUNDATIONS[int(mean.argmax())]} {mean.max():.2f}"


def test_one_item_without_a_rating_leaves_no_human_profile() -> None:
    label = RATED.label.copy()
    label[4] = np.nan
    assert list(profiles({"base": replace(RATED, label=label)})) == ["base"]


def test_informedness_is_against_the_raters_where_there_are_some() -> None:
    """Raters who see everything as the model does make it fully informed."""
    guessing = answers(signal=0.0)
    label = np.eye(7)[guessing.score.argmax(1)]
    assert condition_levels(replace(guessing, label=label), COUNT, 0)["informedness"].value == pytest.approx(1.0)
    assert condition_levels(guessing, COUNT, 0)["informedness"].value < 0.5
