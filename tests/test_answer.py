"""The card on top of the page: words by intervals, and what was not measured is said."""

from __future__ import annotations

from typing import Any

import pytest

from evals.answer import MORAL, OVERALL, SYMBOLS, AnswerCard, card_of, together
from evals.ladder import VERDICTS
from evals.report.html import answer_cards
from evals.table import trait_column

BASE = {"round": 0, "stage": "base", "perplexity": 4.3}
PROMPTED = {"round": 0, "stage": "prompted", "perplexity": 5.0, "d_trait_llr": 0.2, "d_trait_llr_ci": [0.15, 0.25]}
HEALED: dict[str, Any] = {
    "round": 1, "stage": "healed", "perplexity": 6.1, "perplexity_ci": [5.8, 6.4], "coherence_verdict": "coherent", "coherence_reason": "x",
    "d_llr_opposite": 0.14, "d_llr_opposite_ci": [0.1, 0.18], "d_trait_llr": 0.1, "d_trait_llr_ci": [0.05, 0.12], "damages": [{"subject": "neutral text", "state": "coherent", "reason": "KL is 0.02"}],
    "share_of_prompted": 1.5, "share_of_prompted_ci": [1.2, 1.9], "text_price": "ln of perplexity over the base's", "text_price_less_steering": -0.2,
    "text_price_less_steering_ci": [-0.3, -0.1], "price": "p", "price_less_steering": 0.1, "price_less_steering_ci": [-0.1, 0.3],
    "verdict": "no_axis", "verdict_reason": "the base <b>", "d_auth": -0.1, "d_auth_ci": [-0.2, 0.0], "text_verdict": "healed", "text_verdict_reason": "it is cheaper",
}  # fmt: skip


def words(**changed: Any) -> list[tuple[str, str]]:
    card = card_of([BASE, PROMPTED, {**HEALED, **changed}])
    return [(line.state, line.word) for line in (card.headline, *card.lines)]


def test_a_student_that_worked() -> None:
    assert words() == [
        ("good", "It worked."),
        ("good", "yes"),
        ("good", "within the limits"),
        ("good", "more trait"),
        ("good", "cheaper"),
        ("unknown", "cannot be read on this model"),
    ]


@pytest.mark.parametrize(
    ("line", "changed", "state", "word"),
    [
        (1, {"d_llr_opposite_ci": [-0.01, 0.2]}, "bad", "not shown"),
        (1, {"d_llr_opposite_ci": [-0.2, -0.1]}, "bad", "the opposite"),
        (1, {"d_llr_opposite": None, "d_trait_llr": None}, "unknown", "not measured"),
        (2, {"coherence_verdict": "degraded"}, "unsure", "worse"),
        (2, {"coherence_verdict": "broken"}, "bad", "broken"),
        (
            2,
            {"damages": [{"subject": "neutral text", "state": "degraded", "reason": "KL is 0.04"}]},
            "unsure",
            "neutral text has changed",
        ),
        (2, {"damages": [{"subject": "neutral text", "state": "broken", "reason": "KL is 0.4"}]}, "bad", "broken"),
        (2, {"damages": []}, "good", "within the limits"),
        (3, {"share_of_prompted_ci": [0.2, 0.9]}, "bad", "less trait"),
        (3, {"share_of_prompted_ci": [0.8, 1.3]}, "unsure", "not told apart"),
        (3, {"share_of_prompted": None}, "bad", "less trait"),  # by trait_llr: 0.12 at most, against 0.15 at least
        (4, {"text_price_less_steering": None}, "unsure", "not told apart"),  # by the forced choice
        (4, {"text_price_less_steering_ci": [0.1, 0.2]}, "bad", "dearer"),
        (4, {"text_price_less_steering": None, "price_less_steering": None}, "unknown", "not measured"),
        (5, {"verdict": "kept"}, "good", "moved"),
        (5, {"verdict": None}, "unknown", "not read"),
        (0, {"share_of_prompted_ci": [0.2, 0.9]}, "unsure", "It worked. The trait prompt alone does more."),
        (0, {"text_verdict": None, "verdict": "undone"}, "bad", "It did not work: healing took the trait back."),
        (0, {"text_verdict": "a new one"}, "unknown", "The verdict is a new one."),
    ],
)
def test_each_line_by_its_figures(line: int, changed: dict[str, Any], state: str, word: str) -> None:
    assert words(**changed)[line] == (state, word)


def test_every_verdict_has_its_words_and_every_state_a_symbol_of_its_own() -> None:
    assert {*VERDICTS, None} == set(OVERALL) == set(MORAL)
    assert len(set(SYMBOLS.values())) == len(SYMBOLS)


def test_without_a_prompted_base_nothing_is_compared_with_it() -> None:
    line = card_of([BASE, HEALED]).lines[2]
    assert (line.state, line.word) == ("unknown", "not measured") and "was not scored" in line.why


def test_seeds_that_differ_are_said_to() -> None:
    good = card_of([BASE, PROMPTED, HEALED])
    bad = card_of([BASE, PROMPTED, {**HEALED, "text_verdict": "undone", "d_llr_opposite_ci": [-0.1, 0.2]}])
    card = together("arm <b>", {0: good, 1: bad})
    assert (card.headline.state, card.headline.word) == ("unsure", "The seeds differ.")
    assert "Seed 0: It worked." in card.headline.why and "Seed 1: It did not work" in card.headline.why
    assert "seed 0: yes +0.140" in card.lines[0].figures and "seed 1: not shown" in card.lines[0].figures
    same = together("arm", {0: good, 1: good})
    assert same.headline.word == "It worked." and isinstance(same, AnswerCard) and same.lines[0].state == "good"
    html = answer_cards([card])
    assert "<b>" not in html and "arm &lt;b&gt;" in html and "no_axis, because the base &lt;b&gt;." in html


def test_a_trait_that_the_forced_choice_does_not_ask_for_is_said_to_be_one() -> None:
    line = card_of([BASE, HEALED], read_for=False).lines[-1]
    assert (line.state, line.word) == ("unknown", "not read") and "about no foundation" in line.why


def test_levels_stand_beside_the_change() -> None:
    levels = [{**row, "llr_opposite": value, "llr_opposite_ci": None} for row, value in ((BASE, -0.1), (HEALED, 0.04))]
    steered = {"round": 1, "stage": "steered", "perplexity": 8.6, "llr_opposite": 0.09}
    trait, price = card_of([*levels, steered]).lines[:2]
    assert trait.text.startswith("yes: +0.140 [+0.100, +0.180] nats per token. Change of llr_opposite")
    assert trait.text.endswith("llr_opposite is +0.040; the base -0.100, steered +0.090.")
    assert "perplexity 6.10 [5.80, 6.40] (the base 4.30, steered 8.60)" in price.text


@pytest.mark.parametrize(
    ("rows", "column"),
    [
        ([{"llr_opposite": 0.1, "trait_llr": 0.2}, {"llr_opposite": None, "trait_llr": None}], "llr_opposite"),
        ([{"llr_opposite": 0.1, "trait_llr": 0.2}, {"llr_opposite": None, "trait_llr": 0.1}], "trait_llr"),
        ([{"llr_opposite": None, "trait_llr": None}], "trait_llr"),
    ],
)
def test_the_trait_is_read_by_a_column_that_all_rows_have(rows: list[dict[str, Any]], column: str) -> None:
    assert trait_column(rows) == column
