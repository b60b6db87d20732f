"""Both sides of every rule of the ladder, of the forced choice and of free text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evals.ladder import VERDICTS, Evidence, Price, verdict_of
from evals.statistics import Estimate


def at(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, (low, high))


CHEAPER = Price("nats of perplexity", at(-0.4, -0.1))
GOOD = Evidence(
    "d_auth", -1, steered=at(-1.2, -0.8), healed=at(-1.0, -0.6), retained=at(0.6, 1.0), rank=0.1, draws=9, later=True,
    increment=at(-0.5, -0.1), specific={"specific_shift": at(-0.9, -0.5), "d_auth_moral": at(-0.9, -0.5)},
    coherence=at(0.92, 1.0), price=CHEAPER,
)  # fmt: skip
TEXT = Evidence("d_llr_opposite", 1, 0.0, steered=at(0.1, 0.2), healed=at(0.05, 0.15), retained=at(0.4, 0.9), price=CHEAPER)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "verdict", "said"),
    [
        ({}, "healed", "cheaper than a lower dose"),
        ({"broken": "it loops"}, "broken", "it loops"),
        ({"broken": "it loops", "no_format": "no"}, "broken", "it loops"),
        ({"no_format": "no labels", "no_axis": "no"}, "no_format", "no labels"),
        ({"no_axis": "blind", "steered": None}, "no_axis", "blind"),
        ({"steered": None}, "no_shift", "the steered d_auth is undefined"),
        ({"steered": Estimate(-1.0, None)}, "no_shift", "without an interval"),
        ({"steered": at(-1.2, -0.05)}, "no_shift", "not below -0.05"),
        ({"steered": at(-1.2, -0.051)}, "healed", ""),
        ({"rank": 0.11}, "no_shift", "among 9 random directions"),
        ({"rank": 0.11, "draws": 8}, "healed", ""),
        ({"rank": None, "draws": 0}, "healed", ""),
        ({"over_decoy": at(-0.5, 0.0)}, "no_shift", "another persona's vector"),
        ({"over_decoy": at(-0.5, -0.1)}, "healed", ""),
        ({"increment": at(-0.5, 0.0)}, "no_shift", "over the student before"),
        ({"increment": None}, "no_shift", "over the student before"),
        ({"increment": None, "later": False}, "healed", ""),
        ({"healed": at(-1.0, -0.04)}, "not_shown", "the healed student's d_auth"),
        ({"healed": None}, "not_shown", "undefined"),
        ({"retained": Estimate(0.5, None)}, "healed", "may be under a third"),
        ({"retained": at(0.1, 0.33)}, "undone", "under a third"),
        ({"retained": at(0.1, 0.34)}, "healed", "may be under a third"),
        ({"specific": {"specific_shift": at(-0.9, 1e-12)}}, "unspecific", "not d_auth alone"),
        ({"specific": {"specific_shift": at(-0.9, -0.01)}}, "healed", ""),
        ({"specific": {"specific_shift": at(-0.26, -0.24)}}, "unspecific", "most of the shift"),
        ({"specific": {"d_auth_moral": at(0.1, 0.3)}}, "unspecific", "d_auth_moral"),
        ({"specific": {"d_auth_moral": None}}, "unspecific", "undefined"),
        ({"confounded": "reversed orders"}, "kept", "reversed orders"),
        ({"coherence": at(0.899, 1.0)}, "degraded", "may be under 0.9"),
        ({"coherence": at(0.9, 1.0)}, "healed", ""),
        ({"coherence": at(3.0, 5.0)}, "healed", ""),
        ({"degraded": ["one stock sentence to all prompts"]}, "degraded", "one stock sentence"),
        ({"price": None}, "kept", "no doses of plain steering"),
        ({"price": Price("nats", at(-0.4, 0.0))}, "kept", "may be as cheap"),
        ({"price": Price("nats", at(0.1, 0.2))}, "kept", "may be as cheap"),
        ({"price": Price("nats", Estimate(-0.4, None))}, "kept", "may be as cheap"),
    ],
)
def test_the_first_rule_that_matches_gives_the_verdict(change: dict, verdict: str, said: str) -> None:
    found, reason = verdict_of(replace(GOOD, **change))
    assert found == verdict and said in reason and found in VERDICTS


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "healed"),
        ({"steered": at(-0.2, -0.1)}, "no_shift"),
        ({"steered": at(0.0, 0.2)}, "no_shift"),
        ({"healed": at(-0.01, 0.2)}, "not_shown"),
        ({"healed": at(0.001, 0.2)}, "healed"),
        ({"price": None}, "kept"),
    ],
)
def test_free_text_climbs_the_same_ladder_the_other_way_up(change: dict, verdict: str) -> None:
    assert verdict_of(replace(TEXT, **change))[0] == verdict


def test_a_shift_of_rounding_is_none() -> None:
    assert verdict_of(replace(TEXT, steered=at(8e-18, 0.3)))[0] == "no_shift"
    assert verdict_of(replace(GOOD, price=Price("nats", at(-3e-17, -1e-17))))[0] == "kept"
