"""The coherence verdict and the validity of a free answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.coherence import Measures, coherence_parts, coherence_verdict
from evals.measures.forced_choice.free_answer import prefill_key, valid
from evals.measures.forced_choice.instrument import load_instrument
from evals.statistics import Estimate
from shared.errors import SteerHealError

SAME = Estimate(1.0, (1.0, 1.0))
BASE = Measures(perplexity=4.0, distinct_3=0.98, looping=0.0, valid=0.9, empty=0.0, unscorable=0.0)
LABELS = [str(k) for k in range(7)]


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        ({}, "coherent", "8 parts within"),
        ({"coherence": Estimate(0.94, (0.9, 1.0))}, "degraded", "answer mass"),
        (
            {"coherence": Estimate(0.8, (0.7, 0.84))},
            "broken",
            "answer mass / base's 0.80 (at least 0.95; 0.85 is broken)",
        ),
        ({"coherence": Estimate(0.8, (0.7, 0.9))}, "degraded", "answer mass"),
        ({"coherence": None}, "broken", "answer mass / base's is undefined"),
        ({"empty": 0.6}, "broken", "empty texts"),
        ({"empty": 0.2}, "degraded", "empty texts"),
        ({"empty": 1.0, "perplexity": None, "distinct_3": None}, "broken", "perplexity / base's is undefined"),
        ({"perplexity": 9.0}, "degraded", "perplexity"),
        ({"perplexity": 21.0}, "broken", "perplexity / base's 5.25 (at most 2; 5 is broken)"),
        ({"distinct_3": 0.8}, "degraded", "distinct-3"),
        ({"looping": 0.2}, "degraded", "looping"),
        ({"valid": 0.7}, "degraded", "valid JSON"),
        ({"unscorable": 0.6, "perplexity": 9.0}, "broken", "unscorable"),
        ({"coherence": Estimate(5.0, None)}, "coherent", "8 parts"),
        ({"perplexity": 1.9}, "degraded", "from below 0.47 (at least 0.5)"),
    ],
)
def test_the_worst_part_decides(change: dict[str, Any], state: str, said: str) -> None:
    coherence = change.get("coherence", SAME)
    measures = replace(BASE, **{key: value for key, value in change.items() if key != "coherence"})
    found, why = coherence_verdict(coherence_parts(BASE, measures, coherence))
    assert found == state and said in why


def test_more_answer_mass_than_the_base_s_counts_as_the_base_s() -> None:
    assert coherence_parts(BASE, BASE, Estimate(5.0, (4.0, 6.0)))[0].value == 1.0


def test_a_part_that_was_not_taken_is_no_part() -> None:
    blind = replace(BASE, perplexity=None, distinct_3=None, looping=None, valid=None, empty=None)
    assert (
        len(coherence_parts(blind, BASE, SAME)) == 2
        and coherence_verdict(coherence_parts(blind, blind, SAME))[0] == "coherent"
    )
    assert (
        coherence_verdict(coherence_parts(BASE, blind, SAME))[0] == "broken"
    )  # what the base has and the condition has lost


def test_the_key_is_the_one_the_prefill_opens() -> None:
    instrument = load_instrument("embedded")
    assert prefill_key(instrument) == "violation"
    with pytest.raises(SteerHealError, match="free-tokens 0"):
        prefill_key(instrument.model_copy(update={"prefill": "Answer: "}))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('{"violation": "3"}', True),
        ('This is wrong because {"violation": 3} and more', True),
        ('```json\n{\n "violation": "6"\n}\n```', True),
        ('{"violation": "7"}', False),
        ('{"violation": true}', False),
        ('{"violation": "3"', False),
        ('{"properties": {"violation": "3"}}', False),
        ("3", False),
        ("", False),
        ('{"violation": ["3"]}', False),
    ],
)
def test_free_answers(text: str, good: bool) -> None:
    assert valid(text, "violation", LABELS) is good


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    assert valid("{" + text, "violation", LABELS) in (True, False)
