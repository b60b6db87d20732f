"""What a request may ask for, how it is salted, and what an engine refuses at start; no engine is started."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen.engine.metrics import steered_tokens
from gen.engine.requests import BankFull, Registry, vector_key
from gen.engine.sampling import Request
from gen.engine.settings import Settings, VectorFile, settings_of
from gen.engine.steering import END, UNSTEERED, VERSION, Term
from shared.errors import SteerHealError
from shared.models import Model
from shared.publish import digest
from shared.vectors import Vector


def vector(value: float, layer: int = 3) -> Vector:
    return Vector({layer: np.full(4, value, dtype=np.float32)})


@pytest.fixture
def registry() -> Registry:
    found = Registry(slots=3, limit=65504.0)
    found.add("a", vector(1.0))
    found.add("b", vector(2.0))
    return found


def ask(**fields: Any) -> dict[str, Any]:
    return {f"steer_{name}": value for name, value in fields.items()}


def test_a_request_without_steering_is_unsteered_and_unsalted(registry: Registry) -> None:
    for extra in (None, {}, {"kv_transfer_params": {}}):
        assert registry.read(extra, 5) == (UNSTEERED, None)


def test_positions(registry: Registry) -> None:
    registry.add("c", Vector({0: np.ones(4, dtype=np.float32)}, {"positions": "generated"}))
    for fields, window in (
        ({}, (0, END)),
        ({"positions": "generated"}, (6, END)),
        ({"positions": "last"}, (6, 7)),
        ({"vector": "c"}, (6, END)),  # the vector's own positions are its default
        ({"vector": "c", "positions": "all"}, (0, END)),
        ({"from": 3}, (3, END)),
        ({"positions": "generated", "from": 3}, (3, END)),
        ({"from": 2, "until": 5}, (2, 5)),
        ({"until": 70}, (0, 70)),
        ({"until": "end"}, (0, 7)),
        ({"positions": "generated", "until": "end+3"}, (6, 10)),
        ({"from": "end-2", "until": "end+0"}, (5, 7)),
        ({"from": "end+4"}, (11, END)),
        ({"from": "end"}, (7, END)),
    ):
        steer, salt = registry.read(ask(**{"vector": "a", "coefficient": 2, **fields}), 7)
        assert [(term.start, term.end) for term in steer] == [window], fields
        assert salt and salt.endswith(f"{window[0]} {window[1]}")


def terms(*entries: dict[str, Any], text: bool = False) -> dict[str, Any]:
    listed = [{"coefficient": 1.0, **entry} for entry in entries]
    return {"steer_terms": json.dumps(listed) if text else listed}


def test_several_terms_are_summed_in_one_order(registry: Registry) -> None:
    one, other = {"vector": "a", "coefficient": 2, "until": 3}, {"vector": "b", "positions": "last"}
    steer, salt = registry.read(terms(one, other), 5)
    assert set(steer) == {Term(1, 2.0, 0, 3), Term(2, 1.0, 4, 5)}
    assert registry.read(terms(other, one), 5) == (steer, salt)
    assert registry.read(terms(one, other, text=True), 5) == (steer, salt)
    assert registry.read({**ask(**one), **terms(other)}, 5) == (steer, salt)
    assert registry.read(ask(vector="a", coefficient=2.0), 5) == registry.read(
        terms({"vector": "a", "coefficient": 2}), 5
    )
    assert len(registry.read(terms(*[{"vector": "a"}] * 4), 5)[0]) == 4, "the same vector may come again"


@pytest.mark.parametrize(
    "asked",
    [
        terms(),
        terms(*[{"vector": "a"}] * 5),
        {**ask(vector="a", coefficient=1), **terms(*[{"vector": "a"}] * 4)},
        {**ask(vector="a"), **terms({"vector": "b"})},
        terms({"vector": "a"}, {"vector": "z"}),
        terms({"vector": "a", "coefficient": True}),
        terms({"vector": "a", "coefficient": "1"}),
        terms({"vector": "a", "steer_from": 1}),
        terms({"vector": "a", "position": "all"}),
        {"steer_terms": [["a", 1.0]]},
        {"steer_terms": {"vector": "a", "coefficient": 1.0}},
        {"steer_terms": None},
        {"steer_terms": "a=1"},
        {"steer_terms": "[" * 100_000},
        {"steer_terms": '[{"vector": "a", "coefficient": NaN}]'},
        {"steer_terms": '[{"vector": "a", "coefficient": 1, "coefficient": 2}]'},
        ask(vector="a", coefficient=1.0, positions="last", until=3),
        *(ask(vector="a", coefficient=1.0, until=until) for until in (0, -1, True, 2.0, "end-5", "end+", "END", "5", None)),
        ask(vector="a", coefficient=1.0, **{"from": 3}, until=3),
        ask(vector="a", coefficient=1.0, **{"from": "end-6"}),
        ask(vector="a", coefficient=1.0, **{"from": None}),
    ],
)  # fmt: skip
def test_terms_that_are_not_understood_are_refused(registry: Registry, asked: dict[str, Any]) -> None:
    with pytest.raises(SteerHealError):
        registry.read(asked, 5)


def test_the_sum_of_the_terms_is_bounded(registry: Registry) -> None:
    """Half of float16's range is the model's own; `b` is twice `a`."""
    registry.read(terms({"vector": "a", "coefficient": 16000}, {"vector": "b", "coefficient": -8000}), 5)
    for second in (
        {"vector": "b", "coefficient": 9000.0},
        {"vector": "b", "coefficient": -9000.0, "positions": "last"},
    ):
        with pytest.raises(SteerHealError, match="sum of the terms would overflow"):
            registry.read(terms({"vector": "a", "coefficient": 16000}, second), 5)


@pytest.mark.parametrize(
    "fields",
    [
        {"vector": "a"},
        {"coefficient": 1.0},
        {"vector": "z", "coefficient": 1.0},
        {"vector": 1, "coefficient": 1.0},
        {"vector": ["a"], "coefficient": 1.0},
        *(
            {"vector": "a", "coefficient": c}
            for c in (float("nan"), float("inf"), -float("inf"), "1", None, True, [1.0])
        ),
        {"vector": "a", "coefficient": 32753.0},  # half of the dtype's range is the model's own
        {"vector": "b", "coefficient": -16377.0},
        {"vector": "a", "coefficient": 10**400},
        {"vector": "a", "coefficient": 1.0, "positions": "some"},
        *({"vector": "a", "coefficient": 1.0, "from": f} for f in (-1, 5, 2.0, True, "0")),
        {"vector": "a", "coefficient": 1.0, "coeficient": 2.0},
        {"vector": "a", "coefficient": 1.0, "term": []},
    ],
)
def test_what_is_not_understood_is_refused(registry: Registry, fields: dict[str, Any]) -> None:
    with pytest.raises(SteerHealError):
        registry.read(ask(**fields), 5)


@pytest.mark.parametrize("name", ["STEER_VECTOR", "Steer-Coefficient", "steering", "apply_steering_vectors"])
def test_steering_in_other_letters_is_refused(registry: Registry, name: str) -> None:
    for extra in ({name: "a"}, {**ask(vector="a", coefficient=1.0), name: 1}):
        with pytest.raises(SteerHealError, match="field is unknown"):
            registry.read(extra, 5)


def test_a_prompt_of_embeddings_is_refused(registry: Registry) -> None:
    with pytest.raises(SteerHealError, match="no tokens"):
        registry.read(ask(vector="a", coefficient=1.0), 0)


def test_the_resolved_form_cannot_be_asked_for(registry: Registry) -> None:
    with pytest.raises(SteerHealError, match="field is unknown"):
        registry.read({"steer": [1, 1.0, 0]}, 5)


asks = st.lists(
    st.builds(
        lambda name, coefficient, start, length: {"vector": name, "coefficient": coefficient, "from": start, "until": start + length},
        st.sampled_from(["a", "b"]), st.floats(-100, 100), st.integers(0, 9), st.integers(1, 3),
    ),
    min_size=1, max_size=3,
)  # fmt: skip


@given(asks, asks)
def test_salts_are_equal_only_where_the_steering_is(one: list, other: list) -> None:
    registry = Registry(slots=3)
    registry.add("a", vector(1.0))
    registry.add("b", vector(2.0))
    (first, salt), (second, salt_too) = (registry.read(terms(*each), 10) for each in (one, other))
    assert (salt == salt_too) == (first == second and repr(first) == repr(second))


def test_a_salt_names_the_content_not_the_name(registry: Registry) -> None:
    _, before = registry.read(ask(vector="a", coefficient=1.0), 5)
    registry.add("a", vector(3.0))
    assert registry.read(ask(vector="a", coefficient=1.0), 5)[1] != before
    registry.add("same", vector(3.0))
    assert (
        registry.read(ask(vector="a", coefficient=1.0), 5)[1]
        == registry.read(ask(vector="same", coefficient=1.0), 5)[1]
    )
    registry.add("a", vector(3.0, layer=4))
    assert (
        registry.read(ask(vector="a", coefficient=1.0), 5)[1]
        != registry.read(ask(vector="same", coefficient=1.0), 5)[1]
    )


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcde")), max_size=30))
def test_slots_are_never_shared_and_always_used_again(steps: list[tuple[bool, str]]) -> None:
    registry = Registry(slots=3)
    for add, name in steps:
        if not add:
            if name in registry.loaded:
                registry.remove(name)
        elif name in registry.loaded or len(registry.loaded) < 3:
            registry.add(name, vector(1.0))
        else:
            with pytest.raises(SteerHealError, match="more vectors than slots"):
                registry.add(name, vector(1.0))
        taken = [entry.slot for entry in registry.loaded.values()]
        assert len(set(taken)) == len(taken) and set(taken) <= {1, 2, 3}


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove", "begin", "end"]), st.sampled_from("abc"), st.integers(0, 5)),
        max_size=40,
    )
)
def test_a_slot_keeps_its_vector_while_a_request_runs(steps: list[tuple[str, str, int]]) -> None:
    """Against a table of what every running request began with, and of what every slot holds."""
    registry, running = Registry(slots=3), dict[str, tuple[Term, ...]]()
    registry.running = running
    bank: dict[int, float] = {}
    began: dict[str, float] = {}
    for number, (step, name, which) in enumerate(steps):
        if step == "add":
            try:
                bank[registry.add(name, vector(1.0 + number)).slot] = 1.0 + number
            except BankFull:
                assert registry.free == 0
        elif step == "remove" and name in registry.loaded:
            registry.remove(name)
        elif step == "begin" and name in registry.loaded and str(which) not in running:
            steer, _ = registry.read(ask(vector=name, coefficient=1.0), 5)
            running[str(which)], began[str(which)] = steer, bank[steer[0].slot]
            registry.begin(str(which), steer)
        elif step == "end" and running.pop(str(which), None):
            registry.end(str(which))
        for request, steer in running.items():
            assert bank[steer[0].slot] == began[request]
    running.clear()
    assert registry.free == 3 - len(registry.loaded)


def test_a_clients_vectors_are_its_own(registry: Registry) -> None:
    registry.add(vector_key("mine", "one"), vector(5.0))
    assert registry.read(ask(vector="mine", coefficient=1.0), 5, "one")[0][0].slot == 3
    assert set(registry.visible("one")) == {"a", "b", "mine"} and set(registry.visible("two")) == {"a", "b"}
    for owner in ("", "two", "on"):
        with pytest.raises(SteerHealError, match="no such steering vector"):
            registry.read(ask(vector="mine", coefficient=1.0), 5, owner)
    with pytest.raises(SteerHealError, match="no such steering vector"):
        registry.read(ask(vector="one/mine", coefficient=1.0), 5, "two")


def test_a_relative_dose_is_that_of_the_file_or_of_the_operators(registry: Registry) -> None:
    registry.add("c", Vector({3: np.ones(4, dtype=np.float32)}, {"hidden_norm": {"3": 8.0}}))
    assert registry.loaded["c"].dose == {3: 0.25} and registry.loaded["a"].dose == {}
    registry.remove("b")
    assert registry.add(
        vector_key("d", "one"), Vector({3: np.ones(4, dtype=np.float32), 4: np.ones(4, dtype=np.float32)})
    ).dose == {3: 0.25}


def test_steered_tokens_are_counted_once_under_overlapping_windows() -> None:
    for windows, read, expected in (
        ([(0, END)], 10, 10),
        ([(9, END)], 10, 1),
        ([(2, 5), (4, 8), (20, 30)], 10, 6),
        ([(4, 8), (2, 5)], 6, 4),
        ([(3, 4)], 3, 0),
    ):
        assert steered_tokens(tuple(Term(1, 1.0, *window) for window in windows), read) == expected


@pytest.fixture(scope="module")
def vllm_config(model: Model) -> Any:
    """vLLM's own configuration of a steered engine."""
    from vllm.engine.arg_utils import EngineArgs

    from gen.engine.plugin import WORKER

    steering = Settings(layers=[3]).model_dump()
    options = {"model": str(model.folder), "enforce_eager": True, "max_model_len": 256}
    return EngineArgs(**options, worker_cls=WORKER, additional_config={"steering": steering}).create_engine_config()


def test_the_compile_cache_is_keyed_by_the_op(vllm_config: Any) -> None:
    key = vllm_config.compute_hash()
    steering = vllm_config.additional_config["steering"]
    assert steering["version"] == VERSION
    for change in ({"version": VERSION + 1}, {"layers": [3, 4]}):
        vllm_config.additional_config = {"steering": {**steering, **change}}
        assert vllm_config.compute_hash() != key
    vllm_config.additional_config = {}
    assert vllm_config.compute_hash() != key
    vllm_config.additional_config = {"steering": steering}
    assert vllm_config.compute_hash() == key


@pytest.mark.parametrize(
    ("section", "field", "value", "part"),
    [
        ("parallel_config", "pipeline_parallel_size", 2, "--pipeline-parallel-size 1"),
        ("parallel_config", "prefill_context_parallel_size", 2, "--prefill-context-parallel-size 1"),
        ("parallel_config", "decode_context_parallel_size", 2, "--decode-context-parallel-size 1"),
        ("parallel_config", "enable_dbo", True, "--enable-dbo"),
        ("parallel_config", "ubatch_size", 4, "--ubatch-size 0"),
        (None, "speculative_config", object(), "no speculative decoding"),
        (None, "kv_transfer_config", object(), "no --kv-transfer-config"),
        ("cache_config", "kv_sharing_fast_prefill", True, "no --kv-sharing-fast-prefill"),
    ],
)
def test_engines_that_cannot_be_steered_are_refused(
    vllm_config: Any, monkeypatch: pytest.MonkeyPatch, section: str | None, field: str, value: Any, part: str
) -> None:
    assert settings_of(vllm_config).layers == [3]
    monkeypatch.setattr(getattr(vllm_config, section) if section else vllm_config, field, value)
    with pytest.raises(SteerHealError, match="cannot be steered") as refused:
        settings_of(vllm_config)
    assert part in str(refused.value)


def test_an_engine_with_another_worker_is_refused(vllm_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    from gen.engine import plugin

    plugin.register()
    monkeypatch.setattr(vllm_config.parallel_config, "worker_cls", "vllm.v1.worker.cpu_worker.CPUWorker")
    with pytest.raises(ValueError, match="worker is not ours"):
        InputProcessor(vllm_config)


def test_an_engine_with_another_scheduler_is_refused(vllm_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    from gen.engine import plugin

    plugin.register()
    monkeypatch.setattr(vllm_config.scheduler_config, "scheduler_cls", "vllm.v1.core.sched.scheduler.Scheduler")
    with pytest.raises(ValueError, match="scheduler is not ours"):
        InputProcessor(vllm_config)


def test_a_vector_that_changed_since_it_was_chosen_is_refused(tmp_path: Path) -> None:
    vector(1.0).save(tmp_path / "v.safetensors")
    chosen = VectorFile(path=str(tmp_path / "v.safetensors"), sha256=digest(tmp_path / "v.safetensors"))
    settings = Settings(layers=[3], vectors={"v": chosen})
    assert [name for name, _ in settings.load()] == ["v"]
    vector(2.0).save(tmp_path / "v.safetensors")
    with pytest.raises(SteerHealError, match="changed while the engine started"):
        list(settings.load())


@pytest.mark.parametrize("coefficient", [2.0, -1e-9, float("nan")])
def test_a_coefficient_without_a_vector_is_refused(coefficient: float) -> None:
    """It would run unsteered in silence."""
    with pytest.raises(SteerHealError, match="a coefficient and no vector"):
        Request([5, 6], coefficient=coefficient)
    with pytest.raises(SteerHealError, match="a coefficient and no vector"):
        replace(Request([5, 6], vector="v", coefficient=coefficient), vector=None)
    assert Request([5, 6], positions="generated", steer_from=1).coefficient == 0.0
