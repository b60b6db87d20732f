"""The two-phase read in the engine: against Hugging Face on other settings than the published rows', chains, true stops, the cache."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evals.alone import conditions_of
from evals.conditions import Condition
from evals.measures.forced_choice.ask import Free, Read, cut_thought, forced_choice, reads
from evals.measures.forced_choice.checks import (
    refuse_sampling_options,
    refuse_steering_options,
    refuse_too_long,
    refuse_unread_settings,
)
from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument, orders
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.models import Model
from shared.records import Vignette
from shared.schema import COLDEST
from shared.strata import stratified
from shared.vectors import Vector
from shared.vignettes import load_vignettes

pytestmark = pytest.mark.slow
BASE = Condition("base", "base")


@pytest.fixture(scope="module")
def vignettes() -> list[Vignette]:
    return stratified(load_vignettes("embedded"), 7, "foundation_coarse")


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> InstrumentRenderer:
    return InstrumentRenderer(tokenizer, load_instrument("embedded"), {})


@pytest.mark.parametrize("debias", [pytest.param("cyclic", marks=pytest.mark.long), "rotating"])
def test_it_equals_huggingface_at_another_budget_and_in_other_orders(
    debias: str, engine: Any, tokenizer: Any, renderer: InstrumentRenderer, vignettes: list[Vignette], model: Model
) -> None:
    from evals.bridges.huggingface import HuggingFace

    read, some, calls = Read(debias, 6), vignettes[:1], []
    ours = forced_choice(engine, renderer, some, [BASE], read, tokenizer, lambda: calls.append(1), Free(4))["base"]
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    theirs = HuggingFace(model.folder, "float32", pad).forced_choice(renderer, some, read, tokenizer, 1)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine["lp"], other["lp"], atol=1e-3)
        np.testing.assert_allclose(mine["p"], other["p"], atol=1e-4)
        assert mine["nll_prefill"] == pytest.approx(other["nll_prefill"], abs=1e-3)
        assert mine["gen_text"] == other["gen_text"] and isinstance(mine["free_valid"], bool)
        assert mine["rotation"] == other["rotation"]
    assert len(calls) == reads(1, 1, read, Free(4))


def test_the_published_question_about_oneself_equals_huggingface(
    engine: Any, tokenizer: Any, model: Model, tinymfv: Path
) -> None:
    from evals.bridges.huggingface import HuggingFace

    renderer = InstrumentRenderer(tokenizer, load_instrument(str(tinymfv / "instrument.json")), {})
    items = stratified(load_vignettes(str(tinymfv / "vignettes_classic_self_violate.jsonl")), 3, "foundation_coarse")
    read = Read("reversal", 5)
    ours = forced_choice(engine, renderer, items, [BASE], read, tokenizer, lambda: None)["base"]
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    theirs = HuggingFace(model.folder, "float32", pad).forced_choice(renderer, items, read, tokenizer, 1)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine["lp"], other["lp"], atol=1e-3)
        np.testing.assert_allclose(mine["p"], other["p"], atol=1e-4)
        assert mine["gen_text"] == other["gen_text"]


def test_sampled_thoughts_pool_to_the_mixture_over_all_thoughts(
    engine: Any, tokenizer: Any, renderer: InstrumentRenderer, vignettes: list[Vignette], model: Model, vector: Vector
) -> None:
    """Of two think tokens only the first is read, so that the mixture that N samples estimate can be summed up exactly."""
    import torch
    from hooked import Hooked

    from gen.engine.sampling import Request

    samples, top_k, temperature = 64, 20, 1.3
    read, item = Read("reversal", 2, samples, temperature, top_k), vignettes[0]
    found = forced_choice(engine, renderer, [item], [BASE], read, tokenizer, lambda: None)["base"][0]
    oracle = Hooked(model.folder, vector)
    for listing, lp in zip(orders("reversal"), np.array(found["lp"]), strict=True):
        question = renderer.question(item.text, listing)
        first = oracle.logprobs(question, 0.0)[-1] / temperature
        first[list(renderer.stop_ids)] = -torch.inf
        likeliest, ids = first.topk(top_k)
        share = likeliest.softmax(-1).numpy()
        requests = [
            Request(renderer.answer(question, [token, 0]), label_ids=renderer.label_ids) for token in ids.tolist()
        ]
        by_thought = np.array([output.label_logprobs for output in engine.run(requests)])[:, np.argsort(listing)]
        exact = share @ np.exp(by_thought)
        spread = np.sqrt(share @ (np.exp(by_thought) - exact) ** 2 / samples)
        assert (np.abs(np.exp(lp).mean(0) - exact) < 4 * spread).all()
        assert len({tuple(sample) for sample in lp.round(9).tolist()}) > 10


def test_conditions_of_one_batch_do_not_touch_each_other(
    engine: Any, tokenizer: Any, renderer: InstrumentRenderer, vignettes: list[Vignette]
) -> None:
    steered = Condition("steered", "steered", 1.5, "v")
    read, some = Read("reversal", 2), vignettes[:2]
    both = forced_choice(engine, renderer, some, [BASE, steered], read, tokenizer, lambda: None)
    for condition in (BASE, steered):
        engine.reset_cache()
        alone = forced_choice(engine, renderer, some, [condition], read, tokenizer, lambda: None)[condition.name]
        for one, other in zip(both[condition.name], alone, strict=True):
            np.testing.assert_allclose(one["lp"], other["lp"], atol=1e-4)
            assert one["nll_prefill"] == pytest.approx(other["nll_prefill"], abs=1e-4)
    assert np.abs(np.array(both["base"][0]["lp"]) - np.array(both["steered"][0]["lp"])).max() > 0.1


def test_a_condition_that_overflows_is_unscorable_and_no_other_is(
    engine: Any,
    tokenizer: Any,
    renderer: InstrumentRenderer,
    vignettes: list[Vignette],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = engine._registry.loaded
    monkeypatch.setitem(loaded, "v", replace(loaded["v"], largest=float("inf")))  # as if admission had not foreseen it
    broken = Condition("steered", "broken", 3.4e38, "v", positions="generated")
    rows = forced_choice(engine, renderer, vignettes[:1], [BASE, broken], Read("reversal", 2), tokenizer, lambda: None)
    assert rows["broken"][0]["p"] is None and rows["broken"][0]["nll_prefill"] is None
    assert all(value is None for order in rows["broken"][0]["lp"] for sample in order for value in sample)
    (alone,) = forced_choice(engine, renderer, vignettes[:1], [BASE], Read("reversal", 2), tokenizer, lambda: None)[
        "base"
    ]
    np.testing.assert_allclose(rows["base"][0]["lp"], alone["lp"], atol=1e-4)


def test_a_tail_is_scored_as_in_the_whole_prompt(engine: Any) -> None:
    from gen.engine.sampling import Request

    prompt = list(range(100, 220))
    engine.reset_cache()
    whole = engine.run([Request(prompt, score=True)])[0].prompt_logprobs
    for _ in range(2):  # the second time all of it is cached
        tail = engine.run([Request(prompt, tail=9)])[0].prompt_logprobs
        np.testing.assert_allclose(tail, whole[-9:], atol=1e-4)
    long = engine.run([Request(prompt, tail=60)])[0].prompt_logprobs
    np.testing.assert_allclose(long, whole[-60:], atol=1e-4)


def test_a_thought_ends_where_the_model_ends_it(tokenizer: Any, renderer: InstrumentRenderer) -> None:
    ids = list(tokenizer("so it is wrong", add_special_tokens=False)["input_ids"])
    stop = renderer.stop_ids[0]
    assert cut_thought([*ids, stop, *ids], renderer, tokenizer) == ids
    assert cut_thought(ids, renderer, tokenizer) == ids
    close = list(tokenizer("</think>", add_special_tokens=False)["input_ids"])
    assert cut_thought([*ids, *close, *ids], renderer, tokenizer) == ids


def test_samples_are_pooled_and_thoughts_may_stop(
    engine: Any, tokenizer: Any, renderer: InstrumentRenderer, vignettes: list[Vignette]
) -> None:
    read = Read("reversal", 3, samples=2, temperature=1.0, stop=True)
    made = forced_choice(engine, renderer, vignettes[:1], [BASE], read, tokenizer, lambda: None)["base"][0]
    assert np.array(made["lp"]).shape == (2, 2, 7) and len(made["gen_text"]) == 2
    assert len(made["thought_tokens"]) == 4 and max(made["thought_tokens"]) <= 3 and made["stop"] is True


def test_conditions_of_the_command_line() -> None:
    vectors = {
        "trait": Vector({3: np.ones(4, dtype=np.float32)}),
        "random-1": Vector({3: np.ones(4, dtype=np.float32)}),
    }
    asked = SimpleNamespace(base=True, prompted=True, adapter=None, coefficient=[0.5, 1.0])
    names = [condition.name for condition in conditions_of(asked, vectors, "embedded")]
    assert names == ["base", "prompted", "steered-0.5", "steered-1", "random-1-0.5", "random-1-1"]
    for adapter, name in ((None, "base"), (Path("adapter"), "healed")):
        alone = SimpleNamespace(base=False, prompted=False, adapter=adapter, coefficient=None)
        assert [condition.name for condition in conditions_of(alone, {}, "embedded")] == [name]
    with pytest.raises(SteerHealError, match="two conditions have one name"):
        conditions_of(SimpleNamespace(base=False, prompted=False, coefficient=[1.0, 1.0000001]), vectors, "embedded")


@pytest.mark.parametrize(
    "read",
    [
        Read("reversal", 4, samples=2),
        Read("reversal", 0, samples=2, temperature=1.0),
        Read("reversal", 4, temperature=float("nan")),
        Read("reversal", 4, temperature=-1.0),
        Read("reversal", 4, temperature=0.005),
        Read("reversal", 4, top_k=-5),
        Read("reversal", -1),
    ],
)
def test_reads_that_cannot_be_meant_are_refused(read: Read) -> None:
    with pytest.raises(SteerHealError, match="invalid sampling options"):
        refuse_sampling_options(read)


def test_no_temperature_is_taken_that_is_not_sampled_at() -> None:
    from vllm import SamplingParams

    with pytest.raises(SteerHealError, match=r"sweep\.temperature"):
        resolve_config(None, "sweep.temperature=0.0099")
    lowest = resolve_config(None, "sweep.temperature=0.01")[0].sweep.temperature
    refuse_sampling_options(Read("reversal", 4, temperature=lowest))
    assert SamplingParams(temperature=lowest).temperature == lowest == COLDEST
    assert SamplingParams(temperature=lowest / 2).temperature == lowest, "then lower ones need no refusal"


def arguments(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"coefficient": None, "random": 0, "vector": None, "eval": "round", "items": None, **given}
    )


@pytest.mark.parametrize(
    "options",
    [{"coefficient": [2.0]}, {"random": 3}, {"random": -1, "vector": "v"}, {"eval": "full"}],
)
def test_steering_that_would_not_steer_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SteerHealError, match="do not go together"):
        refuse_steering_options(arguments(**options))


def test_settings_that_nobody_reads_are_refused() -> None:
    with pytest.raises(SteerHealError, match="no items"):
        refuse_steering_options(arguments(items=0))
    sources = {"eval.items": "SET", "eval.bootstrap": "SET", "eval.think": "default", "model.dtype": "SET"}
    with pytest.raises(SteerHealError, match="do not reach") as refused:
        refuse_unread_settings(sources)
    assert str(refused.value.given) == "--set with eval.items"
    refuse_unread_settings({**sources, "eval.items": "a file"})


def test_a_system_prompt_that_the_template_drops_is_refused(
    renderer: InstrumentRenderer, vignettes: list[Vignette]
) -> None:
    """`prompted` would be the base under another name."""
    deaf = copy.deepcopy(renderer.chat.tokenizer)
    deaf.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"
    dropping = InstrumentRenderer(deaf, renderer.instrument)
    refuse_too_long(dropping, vignettes, Read("reversal", 16), None, 1024, [None])
    with pytest.raises(SteerHealError, match="does not reach the model"):
        refuse_too_long(dropping, vignettes, Read("reversal", 16), None, 1024, [None, "Be kind."])


def test_a_question_longer_than_the_context_is_refused(renderer: InstrumentRenderer, vignettes: list[Vignette]) -> None:
    refuse_too_long(renderer, vignettes, Read("reversal", 16), Free(24), 1024, [None])
    with pytest.raises(SteerHealError, match="does not fit"):
        refuse_too_long(renderer, vignettes, Read("reversal", 1000), None, 1024, [None])
