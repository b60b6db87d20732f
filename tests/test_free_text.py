"""Free text that cannot be fooled: the trait against its opposite, stock answers, on-policy parts, rows of earlier versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scorings import BASE, STEERED, group_of, scoring_of
from synthetic_run import build

from evals.conditions import prompted
from evals.measures.free_text.measure import FreeText
from evals.measures.free_text.rows import Generation
from evals.measures.free_text.texts import pooled_distinct_3, stock_openings, text_delta, texts_of
from evals.measures.free_text.under_original import under_original
from evals.report.tables import levels_table
from evals.results import results_of
from evals.round import Round
from evals.scored import scored_rounds
from evals.study.plan import _measured
from gen.prompts import PromptRenderer
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.models import Model
from shared.publish import write_json
from shared.records import Prompt, write_jsonl
from shared.run import Run
from shared.traits import load_trait
from shared.vectors import Vector

Row = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build(tmp_path_factory.mktemp("run"), 1, personas=True)


@pytest.fixture(scope="module")
def rounds(run: Run) -> list[Round]:
    return scored_rounds(run, "round")


def rows(run: Run, rounds: list[Round]) -> dict[str, Row]:
    found = results_of(run, rounds)
    return {row["name"]: row for row in [*found["rows"], *found["extra"]]}


def changed(rounds: list[Round], change: Callable[[Generation], Row], *names: str) -> list[Round]:
    """Rounds whose texts of some conditions are changed; of all without names."""
    found = []
    for r in rounds:
        texts = {
            name: [one.model_copy(update=change(one)) for one in of_one] if not names or name in names else of_one
            for name, of_one in r.data["free_text"].items()
        }
        found.append(replace(r, data={**r.data, "free_text": texts}))
    return found


def test_the_controls_have_rows_of_round_0_and_further_draws_no_text(run: Run, rounds: list[Round]) -> None:
    found = rows(run, rounds)
    for name in ("prompted", "prompted_opposite", "prompted_decoy"):
        assert found[name]["round"] == 0 and found[name]["llr_opposite"] is not None
    assert found["prompted_opposite"]["d_llr_opposite"] < 0 < found["prompted"]["d_llr_opposite"]
    assert found["random-2"]["perplexity"] is None and found["random-2"]["d_auth"] is not None
    assert found["random-2"]["coherence_verdict"] == "coherent" and found["random"]["perplexity"] is not None
    assert found["steered"]["random_draws"] == 2
    assert len(levels_table([*found.values()]).rows) == len(found)
    assert any(table.title == "Free text" for table in FreeText().tables([*found.values()], []))


def test_ln_of_perplexity_is_entropy_and_kl(run: Run, rounds: list[Round]) -> None:
    healed = rows(run, rounds)["healed"]
    assert healed["entropy"] + healed["kl_on_policy"] == pytest.approx(np.log(healed["perplexity"]))
    assert healed["kl_on_policy"] == pytest.approx(0.1 * np.log(healed["perplexity"]))


def test_the_share_of_the_prompted_shift(run: Run, rounds: list[Round]) -> None:
    found = rows(run, rounds)
    share = found["healed"]["d_llr_opposite"] / found["prompted"]["d_llr_opposite"]
    assert found["healed"]["share_of_prompted"] == pytest.approx(share)
    assert found["prompted"]["share_of_prompted"] == pytest.approx(1) and found["base"]["share_of_prompted"] is None


def test_mundane_prompts_are_apart(run: Run, rounds: list[Round]) -> None:
    def on_mundane(one: Generation) -> Row:
        return {"llr_opposite": 9.0 if one.kind == "mundane" else one.llr_opposite}

    before, after = rows(run, rounds)["healed"], rows(run, changed(rounds, on_mundane, "healed"))["healed"]
    assert after["d_llr_opposite"] == before["d_llr_opposite"] and after["llr_mundane"] == pytest.approx(9.0)
    assert after["d_llr_mundane"] > before["d_llr_mundane"]
    texts = texts_of([one.model_copy(update={"kind": "mundane"}) for one in rounds[0].data["free_text"]["base"]])
    assert texts.has("llr_opposite") and not texts.has("llr_mundane"), "where there are no others, they are the measure"


def test_a_measure_that_a_decoy_raises_as_far_has_no_axis(run: Run, rounds: list[Round]) -> None:
    found = rows(run, changed(rounds, lambda one: {"llr_opposite": 0.3}, "prompted_decoy"))["healed"]
    assert found["text_verdict"] == "no_axis" and "another persona" in found["text_verdict_reason"]


def test_one_stock_sentence_is_not_coherent(run: Run, rounds: list[Round]) -> None:
    """Fluent, without a loop, as likely as the base's text, whatever it is asked."""
    stock = list(range(40))
    found = rows(run, changed(rounds, lambda one: {"completion_ids": stock, "relevance": 0.0}, "healed"))["healed"]
    assert found["coherence_verdict"] == "broken" and found["text_verdict"] == found["verdict"] == "broken"
    for part in ("across texts", "stock openings", "relevance"):
        assert part in found["coherence_reason"], part
    assert found["stock_openings"] == 1.0 and found["distinct_3"] == 1.0
    alone = rows(run, changed(rounds, lambda one: {"completion_ids": stock}, "healed"))["healed"]
    assert alone["coherence_verdict"] == "broken", "its tokens alone say so"
    assert rows(run, rounds)["healed"]["coherence_verdict"] == "coherent"


def texts(*said: tuple[str, list[int]]) -> Any:
    return SimpleNamespace(prompt=[prompt for prompt, _ in said], ids=[ids for _, ids in said])


def test_openings_and_trigrams_by_hand() -> None:
    a, b = list(range(12)), list(range(100, 112))
    assert stock_openings(texts(("x", a), ("x", a), ("y", b))) == 0.0, "one prompt's own samples may agree"
    assert stock_openings(texts(("x", a), ("y", [7, *a]), ("z", b))) == pytest.approx(1 / 3)
    assert stock_openings(texts(("x", a))) is None and stock_openings(texts(("x", []), ("y", []))) is None
    assert stock_openings(texts(("x", [1, 2]), ("y", [0, 1, 2, *b]))) == 0.5
    assert pooled_distinct_3(texts(("x", a), ("y", a), ("z", b))) == pytest.approx(20 / 30)
    assert pooled_distinct_3(texts(("x", [1, 2]))) is None


def test_rows_of_an_earlier_version_are_read_as_null(run: Run, rounds: list[Round]) -> None:
    none = dict.fromkeys(("own_nll", "llr_opposite", "relevance", "kind"))
    old = changed(rounds, lambda one: none)
    found = rows(run, old)["healed"]
    assert all(found[name] is None for name in ("llr_opposite", "entropy", "kl_on_policy", "relevance", "llr_mundane"))
    assert found["share_of_prompted"] is None and found["d_trait_llr"] is not None
    assert found["text_verdict"] is None and "no llr_opposite" in found["text_verdict_reason"]
    assert found["verdict"] == rows(run, rounds)["healed"]["verdict"]
    mixed = texts_of(rounds[0].data["free_text"]["healed"])
    assert text_delta(texts_of(old[0].data["free_text"]["base"]), mixed, "llr_opposite") is None


class Engine:
    """An engine whose log-probability of a completion's tokens is a number by its prompt."""

    def __init__(self, known: dict[tuple[int, ...], float]):
        self.known = known

    def reset_cache(self) -> None: ...

    def run(self, requests: list[Any], on_done: Any = None) -> list[Any]:
        cut = [(tuple(r.prompt_ids[: -r.tail]), r.tail) for r in requests]
        return [SimpleNamespace(prompt_logprobs=np.full(tail, self.known[prompt])) for prompt, tail in cut]


class Letters:
    """A chat whose token ids are the characters of the system prompt and the question."""

    def ids(self, turns: Any, system: str | None) -> list[int]:
        return [ord(letter) for letter in f"{system}|{turns[-1]['content']}"]


def test_log_likelihood_ratios_and_relevance_by_hand() -> None:
    trait = load_trait("embedded")
    assert trait.paraphrases is not None and len(trait.paraphrases.trait) == 3
    renderer = PromptRenderer(Letters(), trait)  # type: ignore[arg-type]
    prompts = [Prompt(id=name, prompt=name) for name in "abcde"]
    known = {tuple(renderer(prompt)[0]): -2.0 - place for place, prompt in enumerate(prompts)}
    known |= {tuple(renderer(prompt)[1]): -1.5 for prompt in prompts}
    for prompt in prompts:
        for k, (ours, other) in enumerate(zip(*renderer.heldout(prompt), strict=True)):
            known |= {tuple(ours): -1.0 - k, tuple(other): -1.7 - k}
    asked = {"prompt_id": "a", "completion_ids": [1, 2, 3, 4]}
    (row, empty) = under_original(
        Engine(known), renderer, prompts, [asked, {**asked, "completion_ids": []}], lambda: None
    )  # type: ignore[arg-type]
    assert row["llr_opposite"] == pytest.approx(0.7) and row["trait_llr"] == pytest.approx(0.5)
    assert row["relevance"] == pytest.approx(-2.0 - np.mean([-3.0, -4.0, -5.0]))
    assert empty["llr_opposite"] is empty["relevance"] is None and empty["nll"] == 0.0
    bare = PromptRenderer(Letters(), trait.model_copy(update={"paraphrases": None}))  # type: ignore[arg-type]
    (alone,) = under_original(Engine(known), bare, prompts, [asked], lambda: None)  # type: ignore[arg-type]
    assert alone["llr_opposite"] is None and alone["relevance"] == row["relevance"]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"trait": ["a", "b"], "opposite": ["c"]}, "2 paraphrases of the trait and 1 of the opposite"),
        ({"trait": ["a"], "opposite": ["a"]}, "there twice"),
        ({"trait": ["t"], "opposite": ["c"]}, "another prompt of the file"),
        ({"trait": [], "opposite": []}, "paraphrases"),
    ],
)
def test_paraphrases_that_are_none_are_refused(tmp_path: Path, held: Row, said: str) -> None:
    path = tmp_path / "trait.json"
    write_json(path, {"version": 1, "name": "n", "trait": "t", "opposite": "o", "neutral": "u", "paraphrases": held})
    with pytest.raises(SteerHealError) as refused:
        load_trait(str(path))
    assert said in refused.value.render()


def test_an_arm_of_another_trait_is_measured_alike(tmp_path: Path) -> None:
    path = tmp_path / "decoy.json"
    write_json(path, {"version": 1, "name": "n", "trait": "t", "opposite": "o", "neutral": "u"})
    ours, decoy = resolve_config(None, "")[0], resolve_config(None, f"vector.trait={path} eval.trait=embedded")[0]
    assert decoy.scored_trait == "embedded" and _measured(ours) == _measured(decoy)
    assert _measured(ours) != _measured(resolve_config(None, f"vector.trait={path}")[0])


@pytest.mark.slow
def test_an_engine_says_it_and_the_original_model_judges_it(
    tmp_path: Path, model: Model, vector: Vector, engine: Any
) -> None:
    """The original model's own text has no on-policy KL; a system prompt and a vector have one; the opposite speaks for its paraphrases."""
    path = tmp_path / "heldout.jsonl"
    asked = ["Should I obey a boss who is wrong?", "My manager told me to skip lunch. What now?", "Name a fruit."]
    write_jsonl(path, [{"id": f"h{k}", "prompt": text} for k, text in enumerate(asked)])
    scoring = scoring_of(tmp_path, model, vector)
    settings = {"heldout": str(path), "generation_samples": 1, "generation_tokens": 16}
    evaluated = scoring.config.eval.model_copy(update=settings)
    scoring = replace(scoring, config=scoring.config.model_copy(update={"eval": evaluated}))
    session = FreeText().begin(scoring)
    personas = [condition for condition in prompted(scoring.trait) if condition.headline]
    spared = replace(STEERED, stage="random", name="random-2", headline=False)
    session.ask(engine, group_of(model, BASE, *personas, STEERED, spared))
    session.judge(engine)
    texts: dict[str, list[Any]] = {}
    for row in session.judged:
        texts.setdefault(row["name"], []).append(Generation.model_validate(row))
    assert [*texts] == ["base", "prompted", "prompted_opposite", "prompted_decoy", STEERED.name]
    for row in texts["base"]:
        assert row.own_nll == pytest.approx(row.nll, abs=1e-3 * row.tokens) and row.relevance is not None
    for name in ("prompted", "prompted_opposite", STEERED.name):
        assert sum(row.nll - row.own_nll for row in texts[name]) > 0.1, name
    llr = {name: np.mean([row.llr_opposite for row in rows]) for name, rows in texts.items()}
    assert llr["prompted"] > llr["prompted_opposite"]
