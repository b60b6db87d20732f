"""The cache of scored rows: what names an entry, what is given back, and what is made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evals.cache import Cache
from evals.conditions import Condition
from evals.measures.forced_choice.ask import Free, Read, row
from evals.measures.forced_choice.cached import answers_key
from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument, orders
from evals.measures.free_text.generations import of_generations
from gen.prompts import PromptRenderer
from shared.chat import Chat
from shared.config import resolve_config
from shared.records import Prompt, Vignette
from shared.schema import Config
from shared.strata import stratified
from shared.text import distinct_n
from shared.traits import load_trait
from shared.vectors import Vector
from shared.vignettes import load_vignettes

pytestmark = pytest.mark.slow
BASE = Condition("base", "base")
STEERED = Condition("steered", "steered", 0.5, "v")
VECTORS = {"v": Vector({3: np.ones(4, dtype=np.float32)})}
READ = Read("reversal", 2)
ITEMS = stratified(load_vignettes("embedded"), 7, "foundation_coarse")
PROMPTS = [Prompt(id=name, prompt=f"What about {name}?") for name in ("a", "b")]
CONFIG = resolve_config(None, "eval.generation_samples=2")[0]


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> InstrumentRenderer:
    return InstrumentRenderer(tokenizer, load_instrument("embedded"), {})


@pytest.fixture(scope="module")
def prompted(tokenizer: Any) -> PromptRenderer:
    return PromptRenderer(Chat(tokenizer), load_trait("embedded"))


def scored(
    renderer: InstrumentRenderer, items: list[Vignette] = ITEMS, read: Read = READ, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows as a scoring makes them, of invented log-probabilities."""
    draws = np.random.default_rng(seed)
    rows = []
    for item in items:
        lp = np.log(draws.dirichlet(np.ones(8), (len(orders(read.debias)), read.samples)))[..., :7]
        texts = ["a thought\u2028\r over lines\n"] * len(orders(read.debias)) * read.samples
        asked = {"instrument": renderer.instrument.identity, "template": renderer.chat.arguments}
        rows.append({**row(item, lp, read, 1.0, texts), **asked})
    return rows


def written(seed: int = 0) -> list[dict[str, Any]]:
    """Judged generations of two prompts, twice each; the last one is empty."""
    draws = np.random.default_rng(seed)
    rows = []
    for prompt in PROMPTS:
        for sample in range(2):
            ids = [] if (prompt.id, sample) == ("b", 1) else draws.integers(0, 99, 9).tolist()
            values = [float(draws.uniform(1, 3)), 0.1] if ids else [None, None]
            made = {
                "version": 1,
                "name": "base",
                "prompt_id": prompt.id,
                "prompt": prompt.prompt,
                "sample": sample,
                "text": "t",
            }
            made |= {
                "completion_ids": ids,
                "finish_reason": "stop",
                "nll": 9 * float(np.log(values[0])) if ids else 0.0,
                "tokens": len(ids),
            }
            made |= {"perplexity": values[0], "trait_llr": values[1], "loop_share": 0.0 if ids else None}
            rows.append(made | {f"distinct_{n}": distinct_n(ids, n) if ids else None for n in (1, 2, 3)})
    return rows


Make = Callable[..., Cache]


@pytest.fixture
def answers(tmp_path: Path, renderer: InstrumentRenderer) -> Make:
    def make(weights: str = "w", **changed: Any) -> Cache:
        given_ = {"renderer": renderer, "items": ITEMS, "read": READ, "free": None, "vectors": VECTORS, **changed}
        return answers_key((weights, "float32"), folder=tmp_path, **given_)

    return make


@pytest.fixture
def generations(tmp_path: Path, prompted: PromptRenderer) -> Make:
    def make(weights: str = "w", judge: str = "w", **changed: Any) -> Cache:
        given_ = {"renderer": prompted, "prompts": PROMPTS, "config": CONFIG, "vectors": VECTORS, **changed}
        return of_generations((weights, "float32"), (judge, "float32"), folder=tmp_path, **given_)

    return make


def test_rows_come_back_as_they_were_put(answers: Make, generations: Make, renderer: InstrumentRenderer) -> None:
    for condition in (BASE, STEERED):
        answers().put(condition, rows := scored(renderer, seed=len(condition.name)))
        again = answers()
        assert again.get(condition) == rows and again.taken == 1
    generations().put(BASE, written())
    assert generations().get(BASE) == written() and generations().get(STEERED) is None


def test_an_entry_is_named_by_all_that_its_rows_depend_on(
    answers: Make, renderer: InstrumentRenderer, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers().put(BASE, scored(renderer))
    answers().put(STEERED, scored(renderer))
    other = InstrumentRenderer(tokenizer, renderer.instrument.model_copy(update={"nudge": "Now answer."}), {})
    shorter = InstrumentRenderer(tokenizer, renderer.instrument.model_copy(update={"prefill": '{"choice": '}), {})
    texts = [item.model_copy(update={"text": f"{item.text} "}) for item in ITEMS]
    rated = [ITEMS[0].model_copy(update={"human_Care": 50.0}), *ITEMS[1:]]
    for changed in (
        {"weights": "x"}, {"read": Read("cyclic", 2)}, {"read": Read("reversal", 3)}, {"read": replace(READ, seed=1)},
        {"free": Free(4)}, {"items": texts}, {"items": rated}, {"items": ITEMS[::-1]}, {"items": ITEMS[:5]}, {"renderer": other}, {"renderer": shorter},
    ):  # fmt: skip
        assert answers(**changed).get(BASE) is None, changed
    for condition in (
        replace(STEERED, coefficient=0.25),
        replace(STEERED, positions="generated"),
        replace(BASE, system="Be kind."),
    ):
        assert answers().get(condition) is None, condition
    assert answers(vectors={"v": Vector({3: np.full(4, 2, dtype=np.float32)})}).get(STEERED) is None
    assert answers().get(replace(STEERED, name="steered-0.5", headline=False)) is not None, "a name is no part of it"
    monkeypatch.setattr("evals.cache.code_of", lambda module: "after a pull")
    assert answers().get(BASE) is None


def test_an_entry_is_named_by_the_rendered_tokens(
    answers: Make, generations: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, renderer: InstrumentRenderer
) -> None:
    """A template that renders the day's date, or code that renders it otherwise: the same messages are another question."""
    answers().put(BASE, scored(renderer))
    generations().put(BASE, written())
    assert answers().get(BASE) is not None and generations().get(BASE) is not None
    template = tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", "{{ '<|im_start|>system\nIt is Friday.<|im_end|>\n' }}" + template)
    assert answers().get(BASE) is None and generations().get(BASE) is None
    monkeypatch.setattr(tokenizer, "chat_template", template)
    assert answers().get(BASE) is not None and generations().get(BASE) is not None


def test_generations_are_named_by_what_they_depend_on(generations: Make, prompted: PromptRenderer) -> None:
    generations().put(BASE, written())
    trait = replace(prompted, trait=prompted.trait.model_copy(update={"trait": "You are somebody else."}))
    longer = [*PROMPTS[:1], PROMPTS[1].model_copy(update={"prompt": "And now?"})]

    def config(overrides: str) -> Config:
        return resolve_config(None, f"eval.generation_samples=2 {overrides}")[0]

    for changed in (
        {"weights": "x"}, {"judge": "x"}, {"renderer": trait}, {"prompts": longer}, {"prompts": PROMPTS[::-1]}, {"config": config("seed=1")},
        {"config": config("sweep.temperature=0.7")}, {"config": config("sweep.top_p=0.5")}, {"config": config("eval.generation_tokens=3")},
    ):  # fmt: skip
        assert generations(**changed).get(BASE) is None, changed
    assert generations().get(replace(BASE, system="Be kind.")) is None


def wrong_rows() -> dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]]:
    """What another run may have put under a name, or a tool may have made of it: rows that answer something else."""
    return {
        "every row twice": lambda rows: [one for one in rows for _ in range(2)],
        "all rows twice": lambda rows: [*rows, *rows],
        "one row twice": lambda rows: [*rows, rows[0]],
        "one row missing": lambda rows: rows[:-1],
        "no rows": lambda rows: [],
        "another order": lambda rows: rows[::-1],
        "a row instead of another": lambda rows: [rows[1], *rows[1:]],
        "a field missing": lambda rows: [{k: v for k, v in rows[0].items() if k not in ("lp", "nll")}, *rows[1:]],
        "a text for a number": lambda rows: [{**rows[0], "nll_prefill": "x", "perplexity": "x"}, *rows[1:]],
        "another version": lambda rows: [{**rows[0], "version": 2}, *rows[1:]],
    }


@pytest.mark.parametrize("what", wrong_rows())
@pytest.mark.parametrize("kind", ["answers", "generations"])
def test_what_is_no_answer_to_what_was_asked_is_made_again(
    kind: str,
    what: str,
    request: pytest.FixtureRequest,
    renderer: InstrumentRenderer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make: Make = request.getfixturevalue(kind)
    right = scored(renderer) if kind == "answers" else written()
    make().put(BASE, wrong_rows()[what](right))
    found = make()
    assert found.get(BASE) is None and found.taken == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "made again" in said and "kept rows of base" in said
    make().put(BASE, right)
    assert make().get(BASE) == right


@pytest.mark.parametrize(
    "changed",
    [
        {"text": "0" * 12}, {"id": "another"}, {"think_tokens": 16}, {"debias": "cyclic"}, {"stop": True}, {"temperature": 1.0, "top_k": 50},
        {"instrument": "another@0"}, {"free_valid": True}, {"foundation": "Beauty"}, {"lp": [[[-1.0] * 7]]}, {"p": None}, {"score": [0.0] * 6},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_rows_that_were_scored_in_another_way_are_made_again(
    answers: Make, renderer: InstrumentRenderer, changed: dict[str, Any]
) -> None:
    for rows in (
        [{**one, **changed} for one in scored(renderer)],
        [*scored(renderer)[:-1], {**scored(renderer)[-1], **changed}],
    ):
        answers().put(BASE, rows)
        assert answers().get(BASE) is None


@pytest.mark.parametrize(
    "changed", [{"prompt": "Another?"}, {"sample": 5}, {"prompt_id": "c"}, {"completion_ids": [1]}, {"tokens": 4}]
)
def test_generations_of_another_kind_are_made_again(generations: Make, changed: dict[str, Any]) -> None:
    generations().put(BASE, [{**written()[0], **changed}, *written()[1:]])
    assert generations().get(BASE) is None


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_edited_entry_is_never_given_back(answers: Make, renderer: InstrumentRenderer, data: st.DataObject) -> None:
    """One byte, a cut, or other bytes in its place: a figure that was edited by hand fits every schema."""
    answers().put(BASE, right := scored(renderer))
    path = answers()._path(BASE)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    how = data.draw(st.sampled_from(["byte", "cut", "other", "more"]))
    edited = {
        "byte": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        "cut": whole[:at],
        "other": data.draw(st.binary(max_size=40)),
        "more": whole + whole[at:],
    }[how]
    path.write_bytes(edited)
    found = answers().get(BASE)
    assert found is None or found == right, "white space in its first line says nothing"


def test_rows_without_their_first_line_are_no_entry(answers: Make, renderer: InstrumentRenderer) -> None:
    """As a version before left them."""
    answers().put(BASE, scored(renderer))
    path = answers()._path(BASE)
    path.write_text("".join(json.dumps(one) + "\n" for one in scored(renderer)))
    assert answers().get(BASE) is None


def test_a_cache_that_cannot_be_written_loses_no_scoring(
    answers: Make, renderer: InstrumentRenderer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = answers()
    cache.folder = tmp_path / "a file"
    cache.folder.touch()
    cache.put(BASE, scored(renderer))
    assert "Not a directory" in " ".join(capsys.readouterr().out.split()) and cache.get(BASE) is None


def test_rebuild_takes_nothing_and_leaves_what_it_made(
    answers: Make, generations: Make, renderer: InstrumentRenderer
) -> None:
    for make, old, new in (
        (answers, scored(renderer), scored(renderer, seed=1)),
        (generations, written(), written(1)),
    ):
        make().put(BASE, old)
        fresh = make(fresh=True)
        assert fresh.get(BASE) is None and fresh.taken == 0 and make().get(BASE) == old
        fresh.put(BASE, new)
        assert make().get(BASE) == new


def test_what_is_scored_again_is_what_was_kept(
    answers: Make, renderer: InstrumentRenderer, tokenizer: Any, engine: Any
) -> None:
    """Through the scorer: from the cache, past an entry that another run poisoned, and around it."""
    from evals.conditions import Weights
    from evals.measures.forced_choice.cached import cached_or_asked

    group = Weights("student", SimpleNamespace(), [BASE, replace(BASE, name="prompted", system="Be kind.")])  # type: ignore[arg-type]

    def score(cache: Cache | None) -> dict[str, list[dict[str, Any]]]:
        return cached_or_asked(engine, renderer, ITEMS[:2], group, READ, tokenizer, None, cache)

    def cache(**options: Any) -> Cache:
        return answers(items=ITEMS[:2], **options)

    first = score(cache())
    again = cache()
    assert score(again) == first and again.taken == 2
    cache().put(BASE, [*first["base"], *first["base"]])
    poisoned = cache()
    found = score(poisoned)
    assert [len(rows) for rows in found.values()] == [2, 2] and poisoned.taken == 1
    np.testing.assert_allclose(found["base"][0]["lp"], first["base"][0]["lp"], atol=1e-4)
    assert cache().get(BASE) == found["base"]
    around = cache(fresh=True)
    assert score(around).keys() == first.keys() and around.taken == 0
