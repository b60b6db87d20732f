"""Both verdicts on a run: what texts, doses, draws and the round before say of a healed student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import build

from evals.answer import card_of
from evals.measures.free_text.rows import Generation
from evals.measures.retention.measure import Retention, RetentionRow, damage_of
from evals.results import results_of
from evals.round import Round
from evals.scored import scored_rounds
from evals.statistics import Estimate
from shared.run import Run

Rows = dict[tuple[int, str], dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build(tmp_path_factory.mktemp("run"))


def rows(run: Run, rounds: list[Round]) -> Rows:
    return {(row["round"], row["stage"]): row for row in results_of(run, rounds)["rows"]}


def with_texts(rounds: list[Round], name: str, change: Callable[[Generation], Generation]) -> list[Round]:
    """Rounds whose texts of a condition are changed."""
    changed = []
    for r in rounds:
        texts = {**r.data["free_text"], name: [change(one) for one in r.data["free_text"][name]]}
        changed.append(replace(r, data={**r.data, "free_text": texts}))
    return changed


def without(rounds: list[Round], name: str) -> list[Round]:
    """Rounds without a condition."""
    kept = []
    for r in rounds:
        lines = [line for line in r.scores.conditions if line.name != name]
        kept.append(replace(r, scores=r.scores.model_copy(update={"conditions": lines})))
    return kept


def test_a_student_that_is_cheaper_than_a_lower_dose_is_healed(run: Run) -> None:
    """Shift -0.8 at perplexity 6.1; steering pays 8.6 at -1.0 and the like at three quarters of it."""
    found = rows(run, scored_rounds(run, "round"))
    for number in (1, 2):
        healed = found[number, "healed"]
        assert healed["retain_ci"][0] <= healed["retain"] <= healed["retain_ci"][1]
    first = found[1, "healed"]
    assert first["price"] == "ln of perplexity over the base's"
    assert found[2, "healed"]["verdict"] == "kept", "no dose of round 1 moves as far as the second student"
    assert first["verdict"] == "healed" and first["price_less_steering_ci"][1] < 0, first["verdict_reason"]
    assert "cheaper than a lower dose" in first["verdict_reason"] and first["text_verdict"] in ("kept", "healed")
    less = first["text_price_less_steering_ci"]
    assert (first["text_verdict"] == "healed") == (less is not None and less[1] < 0)
    assert (first["text_price"] is None) == (less is None)


def test_without_doses_it_is_kept(run: Run) -> None:
    first = rows(run, without(scored_rounds(run, "round"), "steered-0.75"))[1, "healed"]
    assert first["verdict"] == "kept" and "no doses of plain steering" in first["verdict_reason"]
    assert first["price"] is first["price_less_steering"] is None


def test_text_that_loops_breaks_both_verdicts(run: Run) -> None:
    """Ten times the perplexity and nine in ten texts loop, while the forced prefill holds the answer mass."""

    def spoiled(one: Generation) -> Generation:
        looping = one.sample == 0 or one.prompt_id != "h0"
        return one.model_copy(update={"nll": (one.nll or 0) + np.log(10) * one.tokens, "loop_share": 0.9 * looping})

    found = rows(run, with_texts(scored_rounds(run, "round"), "healed", spoiled))[1, "healed"]
    assert found["coherence"] > 0.95
    assert found["verdict"] == found["text_verdict"] == "broken"
    assert "perplexity" in found["verdict_reason"] and "looping" in found["verdict_reason"]


def test_degraded_text_degrades_both_verdicts(run: Run) -> None:
    def dull(one: Generation) -> Generation:
        return one.model_copy(update={"distinct_3": 0.8})

    found = rows(run, with_texts(scored_rounds(run, "round"), "healed", dull))[1, "healed"]
    assert found["verdict"] == found["text_verdict"] == "degraded" and "distinct-3" in found["verdict_reason"]


def test_the_text_verdict_needs_text_that_moved(run: Run) -> None:
    def still(one: Generation) -> Generation:
        return one.model_copy(update={"llr_opposite": -0.07})

    rounds = scored_rounds(run, "round")
    assert rows(run, with_texts(rounds, "healed", still))[1, "healed"]["text_verdict"] == "not_shown"
    assert rows(run, with_texts(rounds, "steered", still))[1, "healed"]["text_verdict"] == "no_shift"
    blind = rows(run, with_texts(rounds[:1], "prompted", still))[1, "healed"]
    assert blind["text_verdict"] == "no_axis" and "the trait prompt itself" in blind["text_verdict_reason"]


def test_a_trait_of_no_foundation_has_a_verdict_on_text_alone(run: Run) -> None:
    rounds = [replace(r, scores=r.scores.model_copy(update={"read_for": None})) for r in scored_rounds(run, "round")]
    found = rows(run, rounds)
    assert found[1, "healed"]["verdict"] is None and "names no foundation" in found[1, "healed"]["verdict_reason"]
    assert found[1, "healed"]["text_verdict"] in ("kept", "healed") and found[0, "base"]["verdict"] is None


def test_ranks_and_increments_stand_where_they_are_defined(run: Run) -> None:
    found = rows(run, scored_rounds(run, "round"))
    assert found[1, "steered"]["random_rank_p"] == pytest.approx(1 / 3) and found[1, "healed"]["random_rank_p"] is None
    assert found[1, "healed"]["increment"] is None and found[2, "random"]["increment"] is None
    second = found[2, "healed"]
    assert second["increment"] == pytest.approx(second["d_auth"] - found[1, "healed"]["d_auth"])
    gap = found[2, "steered"]["d_auth"] - found[1, "healed"]["d_auth"]
    assert found[2, "steered"]["increment"] == pytest.approx(gap)


def test_a_round_that_adds_nothing_is_no_shift(run: Run) -> None:
    """Round 2 is round 1 once more."""
    first, second = scored_rounds(run, "round")
    names = ("steered", "healed")
    answers = {**second.data["forced_choice"], **{name: first.data["forced_choice"]["healed"] for name in names}}
    same = replace(second, data={**second.data, "forced_choice": answers})
    found = rows(run, [first, same])[2, "healed"]
    assert found["verdict"] == "no_shift" and "over the student before" in found["verdict_reason"]


@pytest.mark.parametrize(
    ("low", "high", "state"),
    [(0.31, 0.5, "broken"), (0.2, 0.5, "degraded"), (0.01, 0.06, "degraded"), (0.01, 0.04, "coherent")],
)
def test_distance_on_neutral_text_counts_by_its_interval(low: float, high: float, state: str) -> None:
    assert damage_of(Estimate((low + high) / 2, (low, high))).state == state


def with_retention(rounds: list[Round], healed: list[float | None]) -> list[Round]:
    """Rounds with a retention of every condition that has no system prompt: nothing lost but by the healed student, which has these KLs."""
    measured = []
    for r in rounds:
        rows = {}
        for line in r.scores.conditions:
            if Retention().takes(line):
                lost = healed if line.stage == "healed" else [0.0] * len(healed)
                rows[line.name] = [
                    RetentionRow(name=line.name, id=str(k), kind="prose", tokens=100, nll=100, nll_base=100, kl=kl)
                    for k, kl in enumerate(lost)
                ]
        measured.append(replace(r, measures=[*r.measures, Retention()], data={**r.data, "retention": rows}))
    return measured


@pytest.mark.parametrize(
    ("lost", "state", "words"),
    [
        ([1.0, 2.0, 1.5, 1.0], "coherent", "at most 0.05"),
        ([40.0, 45.0, 50.0, 42.0], "broken", "above 0.3"),
        ([1.0, 2.0, None, 1.0], "broken", "not finite"),
    ],
)
def test_every_place_says_the_same_of_neutral_text(run: Run, lost: list[float | None], state: str, words: str) -> None:
    """The verdict, the answer on the page and the sentence of the report; logits that are not finite are no acquittal."""
    result = rows(run, with_retention(scored_rounds(run, "round"), lost))
    row = result[1, "healed"]
    (damage,) = row["damages"]
    assert (damage["state"], row["ret_state"]) == (state, state) and words in damage["reason"]
    assert (row["verdict"] == "broken") == (state == "broken")
    price = next(
        line for line in card_of([one for one in result.values() if one["round"] < 2]).lines if line.name == "price"
    )
    assert words in price.figures and (price.state == "bad") == (state == "broken") and "not measured" not in price.why
    (sentence,) = Retention().sentences(result[0, "base"], {"healed": row}, [])
    assert f": {'kept' if state == 'coherent' else state} (" in sentence


def test_the_report_puts_both_verdicts_first(run: Run, tmp_path: Path) -> None:
    from evals.report.reading import run_reading
    from evals.report.verdicts import verdicts_table

    rounds = scored_rounds(run, "round")
    found = results_of(run, rounds)
    table = verdicts_table(found["rows"])
    assert [line[:2] for line in table.rows] == [[f"round {n}", by] for n in (1, 2) for by in ("forced choice", "free text")]  # fmt: skip
    said = " ".join(run_reading(found["rows"], found["extra"], rounds))
    assert "the verdict on its free text is" in said and "too few to count (needs 9)" in said
    assert "The base's contrast on authority is" in said
