"""The forced choice in Inspect and in lm-evaluation-harness: the numbers of evals.measures.forced_choice.ask where a route is exact."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from evals.conditions import Condition
from evals.measures.forced_choice.ask import Read, forced_choice
from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument, orders
from shared.errors import SteerHealError
from shared.models import Model
from shared.records import Vignette
from shared.strata import stratified
from shared.vignettes import load_vignettes

pytestmark = pytest.mark.slow
ITEMS, FEW = 7, 2
NUMBERS = ("lp", "lp_fwd", "lp_rev", "p", "score", "margin", "pmass_allowed")


def vignettes(items: int) -> list[Vignette]:
    return stratified(load_vignettes("embedded"), items, "foundation_coarse")


def wanted(engine: Any, tokenizer: Any, read: Read, condition: Condition, items: int = ITEMS) -> list[dict[str, Any]]:
    renderer = InstrumentRenderer(tokenizer, load_instrument("embedded"), {})
    return forced_choice(engine, renderer, vignettes(items), [condition], read, tokenizer, lambda: None)[condition.name]


def levels_of(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    p = np.array([row["p"] for row in rows])
    return (
        float(np.log(p[:, 3].mean())),
        float(np.log(p[:, 0].mean())),
        float(np.mean([r["pmass_allowed"] for r in rows])),
    )


def inspected(folder: Path, model: Any, **options: Any) -> Any:
    import inspect_ai

    from evals.bridges import inspect_task

    return inspect_ai.eval(
        inspect_task.forced_choice(**options), model=model, display="none", log_dir=str(folder), log_level="error"
    )[0]


def rows_of(log: Any) -> list[dict[str, Any]]:
    assert log.status == "success", log.error
    return sorted((sample.scores["foundations"].metadata for sample in log.samples), key=itemgetter("id"))


def same(rows: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Inspect's log has its samples by id."""
    expected = sorted(expected, key=itemgetter("id"))
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    difference = np.abs(np.array([row["lp"] for row in rows]) - np.array([row["lp"] for row in expected])).max()
    print(f"largest difference of an lp: {difference:.1e} nats")
    assert difference < 1e-3
    for row, other in zip(rows, expected, strict=True):
        assert {key: row[key] for key in other if key not in NUMBERS} == {
            key: value for key, value in other.items() if key not in NUMBERS
        }


def metrics_of(log: Any) -> dict[str, float]:
    return {name: found.value for name, found in log.results.scores[0].metrics.items()}


def test_the_harness_reads_the_same_slot(engine: Any, tokenizer: Any, model: Model) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    name, options = "steer_heal_forced_choice", {"pretrained": str(model.folder), "dtype": "float32"}
    manager = TaskManager(
        include_path=ROOT / "evals" / "bridges" / "harness",
        include_defaults=False,
        metadata={**options, "items": ITEMS, "debias": "reversal"},
    )
    found = lm_eval.simple_evaluate(
        model="hf", model_args=options, tasks=[name], task_manager=manager, batch_size=8, device="cpu", log_samples=True
    )
    results, samples = found["results"][name], found["samples"][name]
    expected = wanted(engine, tokenizer, Read("reversal", 0), Condition("base", "base"))
    lp = {(sample["doc"]["vignette"]["id"], sample["doc"]["order"]): sample["auth_nats"]["lp"] for sample in samples}
    difference = max(
        np.abs(np.array(lp[row["id"], order]) - np.array(row["lp"][order][0])).max()
        for row in expected
        for order in (0, 1)
    )
    print(f"largest difference of an lp: {difference:.1e} nats")
    assert difference < 1e-3 and len(lp) == 2 * ITEMS
    assert all(sample["arguments"][0][0] == sample["doc"]["context"] for sample in samples)
    names = ("auth_nats", "care_nats", "answer_mass")
    assert [results[f"{key},none"] for key in names] == pytest.approx(levels_of(expected), abs=1e-3)
    assert results["unscorable,none"] == 0 and results["retokenised,none"] == 0.0


@pytest.mark.long  # Inspect decodes every one of top_logprobs for each call: a minute and a half
def test_inspect_reads_the_same_slot(engine: Any, tokenizer: Any, model: Model, tmp_path: Path) -> None:
    import inspect_ai.model

    from evals.bridges.inspect_prompts import PASSED_THROUGH

    local = inspect_ai.model.get_model(f"hf/{model.folder}", device="cpu", dtype="float32", **PASSED_THROUGH)
    asked = {"items": FEW, "debias": "reversal", "tokenizer": "embedded"}
    log = inspected(tmp_path, local, **asked, think=2, top_logprobs=500)
    rows = rows_of(log)
    expected = wanted(engine, tokenizer, Read("reversal", 2, nll_prefill=False), Condition("base", "base"), FEW)
    assert sum(row["retokenised"] for row in rows) == 0
    same(rows, expected)
    names = ("auth_nats", "care_nats", "answer_mass")
    assert [metrics_of(log)[name] for name in names] == pytest.approx(levels_of(expected), abs=1e-3)
    narrow = inspected(tmp_path, local, **asked, think=0, top_logprobs=3)
    assert metrics_of(narrow)["unscorable"] == FEW and all(row["p"] is None for row in rows_of(narrow))


@pytest.mark.parametrize(
    ("condition", "steering"),
    [
        (Condition("base", "base"), {}),
        pytest.param(
            Condition("steered", "all", 1.0, "v"), {"vector": "trait", "coefficient": 1.0}, marks=pytest.mark.long
        ),
        pytest.param(
            Condition("steered", "generated", 1.0, "v", "generated"),
            {"vector": "trait", "coefficient": 1.0, "positions": "generated"},
            marks=pytest.mark.long,
        ),
        (
            Condition(
                "steered", "terms", 1.0, "v", "generated"
            ),  # the same sum out of three windows, two of which cancel out
            {
                "vector": "trait",
                "coefficient": 1.0,
                "steer_from": "end-1",
                "terms": [
                    {"vector": "minus", "coefficient": 0.5, "positions": "last"},
                    {"vector": "trait", "coefficient": 0.5, "from": "end-1", "until": "end"},
                ],
            },
        ),
    ],
)
def test_inspect_reads_a_steered_server_by_token_ids(
    engine: Any, tokenizer: Any, server: Any, tmp_path: Path, condition: Condition, steering: dict[str, Any]
) -> None:
    log = inspected(
        tmp_path, by_id(server), items=FEW, debias="reversal", think=4, tokenizer="embedded", top_logprobs=1, **steering
    )
    read = Read("reversal", 4, nll_prefill=False)
    expected = wanted(engine, tokenizer, read, condition, FEW)
    unsteered = wanted(engine, tokenizer, read, Condition("base", "base"), FEW)
    moved = max(
        np.abs(np.array(row["lp"]) - np.array(base["lp"])).max() for row, base in zip(expected, unsteered, strict=True)
    )
    assert (moved > 0.01) == bool(steering), "steering must move the answers, or this test proves nothing"
    same(rows_of(log), expected)
    assert [row["route"] for row in rows_of(log)] == ["token ids"] * FEW and metrics_of(log)["unscorable"] == 0
    names = ("auth_nats", "care_nats", "answer_mass")
    assert [metrics_of(log)[name] for name in names] == pytest.approx(levels_of(expected), abs=1e-3)


def by_id(server: Any) -> Any:
    from inspect_ai.model import get_model

    return get_model("openai-api-completions/steered/embedded", base_url=server.url, api_key="-")


@pytest.mark.long
def test_inspect_lets_a_thought_end(engine: Any, tokenizer: Any, server: Any, tmp_path: Path) -> None:
    read = Read("reversal", 64, stop=True, nll_prefill=False)
    log = inspected(
        tmp_path, by_id(server), items=ITEMS, debias="reversal", think=64, stop=True, tokenizer="embedded", top_logprobs=1
    )  # fmt: skip
    expected = wanted(engine, tokenizer, read, Condition("base", "base"))
    assert min(min(row["thought_tokens"]) for row in expected) < 64, "a thought must end, or this test proves nothing"
    same(rows_of(log), expected)


def test_turns_of_a_chat_are_continued_at_the_prefill(engine: Any, tokenizer: Any, server: Any, tmp_path: Path) -> None:
    """The slot of the template's own rendering, which is not the exact one: labels below the twentieth token are not seen."""
    from inspect_ai.model import get_model

    from gen.engine.sampling import Request

    chat = get_model("openai-api/steered/embedded", base_url=server.url, api_key="-")
    log = inspected(tmp_path, chat, items=1, debias="reversal", think=0)
    instrument, item = load_instrument("embedded"), vignettes(1)[0]
    found = rows_of(log)[0]
    assert (found["route"], found["retokenised"]) == ("chat turns", None)
    for listing, lp in zip(orders("reversal"), found["lp"], strict=True):
        turns = [
            {"role": "user", "content": instrument.question(item.text, listing)},
            {"role": "assistant", "content": instrument.think_open + instrument.think_close},
            {"role": "user", "content": instrument.nudge},
            {"role": "assistant", "content": instrument.prefill},
        ]
        ids = tokenizer.apply_chat_template(turns, continue_final_message=True, return_dict=False)
        labels = InstrumentRenderer(tokenizer, instrument, {}).label_ids
        slot = engine.run([Request(ids, label_ids=labels)])[0].label_logprobs[np.argsort(listing)]
        seen = [value is not None for value in lp[0]]
        print(f"{sum(seen)} of 7 labels seen")
        assert any(seen) and [value for value in lp[0] if value is not None] == pytest.approx(slot[seen], abs=1e-3)


def test_a_server_that_reads_no_steering_is_refused(server: Any, tmp_path: Path) -> None:
    """Under a provider that drops what it is not told of, every answer would be unsteered."""
    from inspect_ai.model import get_model

    unread = get_model("openai-api-completions/steered/embedded", base_url=server.url, api_key="-", memoize=False)
    create = unread.api.client.completions.create

    async def without_steering(**asked: Any) -> Any:
        asked["extra_body"].pop("vllm_xargs")
        return await create(**asked)

    unread.api.client.completions.create = without_steering
    log = inspected(tmp_path, unread, items=1, think=0, tokenizer="embedded", vector="trait", coefficient=1.0)
    assert log.status == "error" and "does not read steering" in log.error.message
    unknown = inspected(
        tmp_path, by_id(server), items=1, think=0, tokenizer="embedded", vector="nobody", coefficient=1.0
    )
    assert unknown.status == "error" and "no such steering vector" in unknown.error.message


def mocked(tokens: dict[str, float] | None) -> Any:
    """A model whose every answer has these tokens at the answer slot, or no log-probabilities."""
    from inspect_ai.model import Logprob, Logprobs, ModelOutput, ModelUsage, TopLogprob, get_model

    def answer(*_: Any) -> ModelOutput:
        output = ModelOutput.from_content("mockllm/model", "0")
        output.usage = ModelUsage()
        if tokens is not None:
            top = [TopLogprob(token=token, logprob=value) for token, value in tokens.items()]
            output.choices[0].logprobs = Logprobs(content=[Logprob(token="0", logprob=-1.0, top_logprobs=top)])
        return output

    return get_model("mockllm/model", custom_outputs=answer, memoize=False)


def test_a_model_without_log_probabilities_is_refused(tmp_path: Path) -> None:
    log = inspected(tmp_path, mocked(None), items=1, think=0)
    assert log.status == "error" and "gives no log-probabilities" in log.error.message
    assert "next:" in log.error.traceback


@pytest.mark.parametrize("missing", [None, float("-inf"), -9999.0])
def test_a_label_without_a_log_probability_makes_its_item_unscorable(tmp_path: Path, missing: float | None) -> None:
    labels = {label: -2.0 - 0.1 * place for place, label in enumerate("0123456")}
    whole = metrics_of(inspected(tmp_path, mocked(labels), items=FEW, think=0))
    assert whole["unscorable"] == 0 and whole["auth_nats"] == pytest.approx(np.log(1 / 7))
    assert whole["answer_mass"] == pytest.approx(np.exp(list(labels.values())).sum())
    tokens = {label: missing if label == "3" else value for label, value in labels.items()}
    log = inspected(tmp_path, mocked({k: v for k, v in tokens.items() if v is not None}), items=FEW, think=0)
    assert metrics_of(log)["unscorable"] == FEW and np.isnan(metrics_of(log)["auth_nats"])
    for found in rows_of(log):
        assert found["p"] is None and sum(value is None for value in found["lp"][0][0]) == 1


def test_what_would_read_another_question_is_refused(tmp_path: Path) -> None:
    from evals.bridges import inspect_task

    for wrong in ({"debias": "random"}, {"think": -1}, {"vector": "trait"}, {"coefficient": 1.0}, {"steer_from": 3}):
        with pytest.raises(SteerHealError, match="cannot be asked"):
            inspect_task.forced_choice(**wrong)
    term = {"vector": "trait", "coefficient": 1.0}
    for terms, part in (
        ([{**term, "from": "end+2"}], "after the question"),
        ([{**term, "scale": 2}], "unknown"),
        ([{"vector": "trait"}], "a vector and a coefficient"),
        ([term] * 5, "too many terms"),
    ):
        with pytest.raises(SteerHealError, match=part):
            inspect_task.forced_choice(terms=terms)
    for asked, part in (
        ({"tokenizer": "embedded"}, "do not go together"),
        ({"vector": "trait", "coefficient": 1.0}, "cannot be asked to steer"),
        ({"terms": [term]}, "cannot be asked to steer"),
        ({"think": 16}, "before the length asked for"),
    ):
        log = inspected(tmp_path, mocked({"0": -1.0}), items=1, **{"think": 0, **asked})
        assert log.status == "error" and part in log.error.message


def test_inspect_knows_the_task_by_its_name() -> None:
    from inspect_ai.util import registry_info

    from evals.bridges import inspect_task

    assert registry_info(inspect_task.forced_choice).name == "steer_heal/forced_choice"


def test_the_harness_refuses_an_item_without_all_its_orders(tokenizer: Any, model: Model) -> None:
    from evals.bridges.harness.functions import auth_nats, documents, process_results

    documented = documents(pretrained=str(model.folder), items=1)["test"]
    assert len(documented) == 7 and not any(documented["retokenised"])
    reads = [process_results(doc, [(-2.0, False)] * 7)["auth_nats"] for doc in documented]
    assert auth_nats(reads) == pytest.approx(np.log(1 / 7))
    with pytest.raises(SteerHealError, match="not asked in every order"):
        auth_nats(reads[:-1])
    two = documents(pretrained=str(model.folder), items=2)["test"]
    reads = [process_results(doc, [(-2.0, False)] * 7)["auth_nats"] for doc in two]
    with pytest.raises(SteerHealError, match="not all items"):
        auth_nats(reads[:7])  # as --limit 7 would leave it
    with pytest.raises(SteerHealError, match="cannot render"):
        documents(items=1)
