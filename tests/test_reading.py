"""Projections of the residual stream on a loaded vector, against HF hooks in fp32: chunked prefill, prefix hits, preemption, HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hooked import Windowed
from serving import Server
from test_serve import preemptions

from gen.engine.engine import Engine
from gen.engine.requests import Registry
from gen.engine.sampling import Request, projections_by_position
from gen.engine.steering import END
from shared.errors import SteerHealError
from shared.models import Model
from shared.vectors import Vector

LAYERS = [14, 15]
PROMPTS = [[100 + (7 * index * (place + 1)) % 700 for index in range(size)] for place, size in enumerate((9, 280))]
CLOSE = {"atol": 1e-4, "rtol": 5e-6}  # the first token's values are in the hundreds: the last bits of fp32


@pytest.fixture(scope="module")
def vectors(engine: Engine, vector: Vector) -> dict[str, Vector]:
    narrow = Vector({15: np.random.default_rng(2).standard_normal(576).astype(np.float32) * 0.5})
    engine.load("narrow", narrow)
    return {"v": vector, "narrow": narrow}


@pytest.fixture(scope="module")
def oracle(model: Model) -> Windowed:
    return Windowed(model.folder, LAYERS)


def expected(oracle: Windowed, ids: list[int], terms: Any, on: Vector) -> np.ndarray:
    """[tokens, layers]; NaN in a layer without the vector."""
    streams = oracle.streams(ids, terms)
    columns = [
        streams[layer] @ on.layers[layer] / on.norm(layer) if layer in on.layers else np.full(len(ids), np.nan)
        for layer in LAYERS
    ]
    return np.stack(columns, 1)


def test_rows_are_put_by_their_positions_and_the_last_counts() -> None:
    rows = np.array([[2, 1.0], [3, 2.0], [2, 5.0], [9, 7.0]], dtype=np.float32)
    table = projections_by_position(rows, 4)
    assert table is not None and np.isnan(table[:2]).all() and table[2:, 0].tolist() == [5.0, 2.0]
    assert projections_by_position(None, 4) is None


def test_the_op_over_steps_of_a_mixed_batch() -> None:
    """Two steps: `a` in two chunks, `b` read on another slot, `c` not read; residual beside hidden, and padded rows."""
    import torch

    from gen.engine import reading, steering  # noqa: F401  reading defines the op
    from gen.engine.read_buffers import Readings

    draws = torch.Generator().manual_seed(0)
    buffers = steering.Buffers.allocate([3, 5], 2, 8, 4, torch.device("cpu"))
    buffers.readings = Readings.allocate(buffers.bank, len(buffers.slot))
    buffers.readings.alive = {"a", "b", "c"}
    for slot in (1, 2):
        buffers.put(slot, {layer: torch.randn(4, generator=draws).numpy() for layer in ([3, 5] if slot == 1 else [5])})
    streams = []
    for names, slots, scheduled, computed in (
        (["a", "b", "c"], [1, 2, 0], [3, 1, 2], [0, 7, 0]),
        (["c", "a"], [0, 1], [1, 2], [2, 3]),
    ):
        counts, behind = np.array(scheduled), np.array(computed)
        buffers.fill(names, [()] * len(names), counts, behind)
        buffers.readings.fill(names, slots, counts, behind)
        hidden, residual = torch.randn(2, 8, 4, generator=draws)
        before = hidden.clone()
        for row in (0, 1):
            torch.ops.steer_heal.read(hidden, residual if row else None, row)
        assert torch.equal(hidden, before)
        streams.append([hidden, hidden + residual])
    taken = buffers.readings.take(["a", "b", "c"])
    assert set(taken) == {"a", "b"} and buffers.readings.take(["a"]) == {}
    bank = buffers.bank
    a = np.concatenate(
        [
            np.stack([(streams[step][row][rows] @ bank[row, 1] / bank[row, 1].norm()).numpy() for row in (0, 1)], 1)
            for step, rows in ((0, slice(0, 3)), (1, slice(1, 3)))
        ]
    )
    table = projections_by_position(taken["a"], 5)
    np.testing.assert_allclose(table, a, atol=1e-6)
    assert taken["b"][0, 0] == 7 and np.isnan(taken["b"][0, 1]), "slot 2 has no vector in the first layer"
    assert taken["b"][0, 2] == pytest.approx(float(streams[0][1][3] @ bank[1, 2] / bank[1, 2].norm()), abs=1e-6)
    buffers.readings.fill(["a"], [1], np.array([1]), np.array([5]))
    buffers.readings.alive = set()  # aborted
    buffers.clear()
    assert buffers.readings.take(["a"]) == {} and not buffers.readings.slot.any()


def test_an_engine_that_does_not_read_refuses(vector: Vector) -> None:
    registry = Registry(2)
    registry.add("v", vector)
    with pytest.raises(SteerHealError, match="does not read"):
        registry.read({"steer_read": "v"}, 5)
    registry.reads = True
    assert registry.read({"steer_read": "v"}, 5) == ((), None) and registry.slot_read({"steer_read": "v"}) == 1
    for other in ("w", None, 1):
        with pytest.raises(SteerHealError, match="no such steering vector"):
            registry.read({"steer_read": other}, 5)
    steer, salt = registry.read({"steer_vector": "v", "steer_coefficient": 1.0}, 5)
    read = {"steer_vector": "v", "steer_coefficient": 1.0, "steer_read": "v"}
    assert registry.read(read, 5) == (steer, salt), "a reading changes neither the steering nor the cache"


@pytest.mark.slow
def test_projections_equal_hooks_in_one_mixed_batch(
    engine: Engine, oracle: Windowed, vectors: dict[str, Vector]
) -> None:
    """The longest prompt is prefilled in chunks of 256 tokens; the second run meets the first one's cache."""
    steerings: list[tuple[dict[str, Any], Any]] = [
        ({}, lambda n: []),
        ({"vector": "v", "coefficient": 1.5}, lambda n: [(vectors["v"], 1.5, 0, END)]),
        (
            {"vector": "narrow", "coefficient": 1.0, "positions": "generated"},
            lambda n: [(vectors["narrow"], 1.0, n - 1, END)],
        ),
    ]
    asks = [(ids, steering, read) for ids in PROMPTS for steering in steerings for read in ("v", "narrow", None)]
    requests = [Request(ids, 6, min_tokens=6, read=read, **fields) for ids, (fields, _), read in asks]
    engine.reset_cache()
    for again in (False, True):
        cached = 0
        for (ids, (_, terms), read), output in zip(asks, engine.run(requests), strict=True):
            if read is None:
                assert output.projections is None
                continue
            assert output.projections is not None and output.projections.shape == (len(ids) + 5, len(LAYERS))
            table = expected(oracle, [*ids, *output.token_ids[:-1]], terms(len(ids)), vectors[read])
            known = ~np.isnan(output.projections[:, 1])
            assert known[len(ids) - 1 :].all() and np.ptp(table[:, 1]) > 1
            np.testing.assert_allclose(output.projections[known], table[known], **CLOSE)
            cached += int((~known).sum())
        assert (cached > 0) or not again, "the second run must hit the cache, or this test proves nothing"


@pytest.mark.slow
def test_a_reading_changes_no_bit(engine: Engine, vectors: dict[str, Vector]) -> None:
    asks = [
        {"score": True, **steering}
        for steering in ({}, {"vector": "v", "coefficient": 0.0}, {"vector": "v", "coefficient": 1.0})
    ]
    for fields in asks:
        read, unread = (engine.run([Request(ids, read=name, **fields) for ids in PROMPTS]) for name in ("v", None))
        for one, other in zip(read, unread, strict=True):
            np.testing.assert_array_equal(one.prompt_logprobs, other.prompt_logprobs)
    stock = [Request(ids, score=True) for ids in PROMPTS]
    with_patch = engine.run(stock)
    engine.patch(False)
    try:
        without = engine.run(stock)
    finally:
        engine.patch(True)
    for one, other in zip(with_patch, without, strict=True):
        np.testing.assert_array_equal(one.prompt_logprobs, other.prompt_logprobs)


TRAIT = {"steer_vector": "trait", "steer_coefficient": 1.0}
SHORT = [1, 4093, 198] + [100 + 13 * index % 900 for index in range(40)]


def projections(choice: Any, first: int) -> np.ndarray:
    read = choice.steer_projections if hasattr(choice, "steer_projections") else choice["steer_projections"]
    assert (read["vector"], read["layers"], read["first"]) == ("trait", LAYERS, first)
    return np.array(read["values"], dtype=float)


@pytest.mark.slow
def test_every_way_of_asking_has_the_projections(server: Server, oracle: Windowed, vector: Vector) -> None:
    ask: dict[str, Any] = {
        "model": "embedded", "prompt": SHORT, "temperature": 0, "max_tokens": 8, "logprobs": 1,
        "extra_body": {"vllm_xargs": {**TRAIT, "steer_read": "trait"}, "return_tokens_as_token_ids": True},
    }  # fmt: skip
    answer = server.client.completions.create(**ask).choices[0]
    ids = [int(name.removeprefix("token_id:")) for name in answer.logprobs.tokens]
    table = expected(oracle, [*SHORT, *ids[:-1]], [(vector, 1.0, 0, END)], vector)
    at = len(SHORT) - 1
    np.testing.assert_allclose(projections(answer, at), table[at:], **CLOSE)
    assert "routed_experts" not in answer.model_dump(exclude_none=True)
    parts = list(server.client.completions.create(**ask, stream=True))
    assert [part.choices[0].finish_reason is not None for part in parts] == [
        hasattr(part.choices[0], "steer_projections") for part in parts
    ]
    np.testing.assert_allclose(projections(parts[-1].choices[0], at), table[at:], **CLOSE)
    whole = {**ask["extra_body"], "prompt_logprobs": 0}
    np.testing.assert_allclose(
        projections(server.client.completions.create(**{**ask, "extra_body": whole}).choices[0], 0), table, **CLOSE
    )
    several = server.client.completions.create(**{**ask, "prompt": [SHORT, SHORT[:20]], "temperature": 1e-6}, n=2)
    for place, choice in enumerate(several.choices):
        assert len(projections(choice, [at, 19][place // 2])) == len(choice.logprobs.tokens)
    stop = server.ask(SHORT, **TRAIT)[0][4:6]
    cut = server.client.completions.create(**ask, stop=stop).choices[0]
    assert cut.finish_reason == "stop" and len(projections(cut, at)) == len(cut.logprobs.tokens)


@pytest.mark.slow
def test_chat_has_the_projections(server: Server) -> None:
    ask: dict[str, Any] = {
        "model": "embedded", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 4, "logprobs": True,
        "extra_body": {"vllm_xargs": {"steer_read": "trait"}},
    }  # fmt: skip
    answer = server.client.chat.completions.create(**ask)
    values = projections(answer.choices[0], answer.usage.prompt_tokens - 1)
    assert values.shape == (len(answer.choices[0].logprobs.content), 2)
    parts = list(server.client.chat.completions.create(**ask, stream=True))
    np.testing.assert_allclose(projections(parts[-1].choices[0], answer.usage.prompt_tokens - 1), values, **CLOSE)
    plain = server.client.chat.completions.create(**{**ask, "extra_body": {}}).choices[0]
    assert plain.message.content == answer.choices[0].message.content and not hasattr(plain, "steer_projections")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("endpoint", "fields", "words"),
    [
        (
            "completions",
            {"prompt": "Hi", "logprobs": 0, "vllm_xargs": {"steer_read": "none"}},
            "no such steering vector",
        ),
        ("completions", {"prompt": "Hi", "vllm_xargs": {"steer_read": "trait"}}, "asks for none"),
        ("completions", {"prompt": "Hi", "logprobs": 0, "vllm_xargs": {"read": "trait"}}, "steer_read"),
        ("completions", {"prompt": "Hi", "logprobs": 0, "vllm_xargs": {"steer_slot": 1}}, "steer_read"),
        ("responses", {"input": "Hi", "vllm_xargs": {"steer_read": "trait"}}, "no place"),
    ],
)
def test_a_reading_that_has_no_answer_is_refused(
    server: Server, endpoint: str, fields: dict[str, Any], words: str
) -> None:
    answer = server.http.post(f"/v1/{endpoint}", json={"model": "embedded", **fields})
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text


@pytest.mark.long
def test_preempted_requests_are_read(server: Server, oracle: Windowed, vector: Vector) -> None:
    ask = {
        "model": "embedded", "prompt": SHORT, "temperature": 0, "max_tokens": 160, "logprobs": 0, "ignore_eos": True,
        "vllm_xargs": {**TRAIT, "steer_read": "trait"}, "return_tokens_as_token_ids": True,
    }  # fmt: skip

    def read(_: int) -> tuple[tuple[int, ...], np.ndarray]:
        choice = server.http.post("/v1/completions", json=ask).json()["choices"][0]
        ids = tuple(int(name.removeprefix("token_id:")) for name in choice["logprobs"]["tokens"])
        return ids, projections(choice, len(SHORT) - 1)

    before = preemptions(server)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(read, range(8)))
    assert preemptions(server) > before, "blocks must run out, or this test proves nothing"
    tables = {ids: expected(oracle, [*SHORT, *ids[:-1]], [(vector, 1.0, 0, END)], vector) for ids, _ in answers}
    for ids, values in answers:
        np.testing.assert_allclose(values, tables[ids][len(SHORT) - 1 :], **CLOSE)


def test_the_server_says_whether_it_reads(tmp_path: Path) -> None:
    from gen.commandline import serve_options

    parsed = serve_options().parse_args(["--vector", f"v={tmp_path}/v.safetensors", "--read"])
    assert parsed.read is True and serve_options().parse_args([]).read is False
