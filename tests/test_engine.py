"""The steered engine against HF hooks in fp32, and what the scheduler must not change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hooked import Hooked

from gen.engine.engine import Engine
from gen.engine.requests import Registry
from gen.engine.sampling import Request
from gen.students import ServedStudent
from shared.chat import Chat
from shared.errors import SteerHealError
from shared.models import Model
from shared.vectors import Vector

pytestmark = pytest.mark.slow

QUESTIONS = [
    "My manager wants me to work through the night although I am ill. What should I do?",
    "Name three fruits.",
    "The coach benched a player who spoke up about an injury. " * 12 + "Was that right?",
]
COEFFICIENTS = [0.0, 0.5, 1.0, 2.0]


@pytest.fixture(scope="module")
def prompts(tokenizer: object) -> list[list[int]]:
    return [
        Chat(tokenizer).ids([{"role": "user", "content": text}], "You are a helpful assistant.") for text in QUESTIONS
    ]


@pytest.fixture(scope="module")
def oracle(model: Model, vector: Vector) -> Hooked:
    return Hooked(model.folder, vector)


def test_prompt_logprobs_equal_hooks_in_one_mixed_batch(
    engine: Engine, oracle: Hooked, prompts: list[list[int]]
) -> None:
    """The long prompt exceeds the token budget, so it is prefilled in chunks."""
    cases = [(ids, c) for ids in prompts for c in COEFFICIENTS]
    outputs = engine.run([Request(ids, score=True, vector="v", coefficient=c) for ids, c in cases])
    assert max(len(ids) for ids in prompts) < 256 < sum(map(len, prompts)) * len(COEFFICIENTS)
    for (ids, c), output in zip(cases, outputs, strict=True):
        np.testing.assert_allclose(output.prompt_logprobs, oracle.of_tokens(ids, c), atol=1e-4)


@pytest.mark.parametrize("positions", ["all", "generated"])
def test_greedy_tokens_equal_hooks(engine: Engine, oracle: Hooked, prompts: list[list[int]], positions: str) -> None:
    cases = [(ids, c) for ids in prompts[:2] for c in COEFFICIENTS]
    outputs = engine.run(
        [Request(ids, 12, vector="v", coefficient=c, positions=positions, min_tokens=12) for ids, c in cases]
    )
    for (ids, c), output in zip(cases, outputs, strict=True):
        start = 0 if positions == "all" else len(ids) - 1
        table = oracle.logprobs([*ids, *output.token_ids], c, start)[len(ids) - 1 : -1].clone()
        table[:, 2] = -np.inf  # min_tokens forbids the end of the turn
        assert table.argmax(-1).tolist() == output.token_ids


def test_generated_positions_steer_the_first_sampled_token(engine: Engine, prompts: list[list[int]]) -> None:
    labels = [504, 25, 198]
    plain, steered = engine.run(
        [
            Request(prompts[0], label_ids=labels),
            Request(prompts[0], label_ids=labels, vector="v", coefficient=2.0, positions="generated"),
        ]
    )
    assert not np.allclose(plain.label_logprobs, steered.label_logprobs, atol=1e-2)


def test_coefficient_zero_is_no_steering_bit_for_bit(engine: Engine, prompts: list[list[int]]) -> None:
    plain = engine.run([Request(ids, score=True) for ids in prompts])
    zero = engine.run([Request(ids, score=True, vector="v", coefficient=0.0) for ids in prompts])
    for a, b in zip(plain, zero, strict=True):
        np.testing.assert_array_equal(a.prompt_logprobs, b.prompt_logprobs)


def test_scaled_vector_is_a_coefficient(engine: Engine, vector: Vector, prompts: list[list[int]]) -> None:
    engine.load("twice", Vector({layer: 2 * values for layer, values in vector.layers.items()}))
    a, b = engine.run(
        [
            Request(prompts[0], score=True, vector="v", coefficient=2.0),
            Request(prompts[0], score=True, vector="twice", coefficient=1.0),
        ]
    )
    np.testing.assert_allclose(a.prompt_logprobs, b.prompt_logprobs, atol=2e-5)


def test_batchmates_do_not_matter(engine: Engine, prompts: list[list[int]]) -> None:
    own = Request(prompts[0], score=True, vector="v", coefficient=1.0)
    first = engine.run([own, *[Request(prompts[1], score=True, vector="v", coefficient=c) for c in (0.0, 0.0)]])[0]
    second = engine.run([own, *[Request(prompts[1], score=True, vector="v", coefficient=c) for c in (2.0, 8.0)]])[0]
    np.testing.assert_array_equal(first.prompt_logprobs, second.prompt_logprobs)


def _cached_read(engine: Engine, ids: list[int], label: int) -> tuple[float, float]:
    """The label's log-probability at coefficient 1: after coefficient 0 has filled the cache, and with the cache dropped."""
    ask = Request(ids, label_ids=[label], vector="v", coefficient=1.0)
    engine.reset_cache()
    engine.run([replace(ask, coefficient=0.0)])
    after = engine.run([ask])[0].label_logprobs
    engine.reset_cache()
    alone = engine.run([ask])[0].label_logprobs
    return float(after[0]), float(alone[0])


def test_prefix_cache_is_salted(engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    after, alone = _cached_read(engine, prompts[2], 504)
    assert after == pytest.approx(alone, abs=1e-4)
    read = Registry.read
    monkeypatch.setattr(Registry, "read", lambda *arguments: (read(*arguments)[0], "one salt for all"))
    after, alone = _cached_read(engine, prompts[2], 504)
    assert abs(after - alone) > 1e-2, "without the salt the wrong cache must be read, or this test proves nothing"


def test_a_steered_request_without_steered_tokens_is_an_error(engine: Engine, prompts: list[list[int]]) -> None:
    engine.patch(False)
    try:
        with pytest.raises(RuntimeError, match="without one steered token"):
            engine.run([Request(prompts[0], vector="v", coefficient=1.0)])
    finally:
        engine.patch(True)


def test_a_step_that_ran_without_the_op_is_an_error(engine: Engine, prompts: list[list[int]]) -> None:
    """The buffers are filled and the layers are not patched: what a stale compiled model would do."""
    worker = engine._engine.engine_core.engine_core.model_executor.driver_worker.worker
    worker.patch.take_off()
    try:
        with pytest.raises(RuntimeError, match="steps had steered tokens, and the op ran"):
            engine.run([Request(prompts[0], vector="v", coefficient=1.0)])
    finally:
        worker.patch.put_on()
        worker.steering.forget()


def test_an_interrupted_batch_leaves_nothing_behind(engine: Engine, prompts: list[list[int]]) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    ask = [Request(ids, 20, vector="v", coefficient=1.0) for ids in prompts]
    with pytest.raises(KeyboardInterrupt):
        engine.run([replace(ask[0], max_tokens=1), *ask], interrupt)
    engine.reset_cache()
    assert len(engine.run(ask)) == 3


def leave(engine: Engine, value: float) -> None:
    """Leave a number in every block of the cache but the null block: NaN, as requests that overflowed would."""
    engine.reset_cache()
    worker = engine._engine.engine_core.engine_core.model_executor.driver_worker.worker
    for cache in worker.model_runner.kv_caches:
        cache[1:] = value


def test_what_a_request_left_in_the_cache_reaches_no_other(
    engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM reads whole blocks and weighs what lies behind the end with 0, and 0 * NaN is NaN."""
    ask = [
        Request(ids, 6, min_tokens=6, label_ids=[504], vector="v", coefficient=c) for ids in prompts for c in (0.0, 1.0)
    ]

    def answers() -> list[Any]:
        leave(engine, np.nan)
        return [(output.token_ids, output.label_logprobs.tolist(), output.finish_reason) for output in engine.run(ask)]

    engine.reset_cache()
    expected = [(output.token_ids, output.label_logprobs.tolist(), output.finish_reason) for output in engine.run(ask)]
    assert answers() == expected
    worker = engine._engine.engine_core.engine_core.model_executor.driver_worker.worker
    monkeypatch.setattr(worker.model_runner, "_zero_block_ids", lambda ids: None)
    assert {end for _, _, end in answers()} == {"error"}, "without zeroing it must fail, or this test proves nothing"
    monkeypatch.undo()
    assert answers() == expected
    leave(engine, 0.0)  # for tests that take the patch, and the zeroing with it, off


def test_an_overflow_is_the_error_of_its_request_alone(
    engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = engine._registry.loaded
    monkeypatch.setitem(loaded, "v", replace(loaded["v"], largest=float("inf")))  # as if admission had not foreseen it
    good = Request(prompts[0], 5, min_tokens=5, score=True, label_ids=[504], vector="v", coefficient=1.0)
    (alone,) = engine.run([good])
    over = replace(good, coefficient=3.4e38, steer_from=len(prompts[0]) - 1)
    tail = replace(over, score=False, tail=2, max_tokens=1, min_tokens=0)
    first, bad, last, short = engine.run([good, over, good, tail])
    for output in (first, last):
        assert output.token_ids == alone.token_ids and output.finish_reason == "length"
        np.testing.assert_allclose(output.prompt_logprobs, alone.prompt_logprobs, atol=1e-4)
    for output, scored in ((bad, len(prompts[0]) - 1), (short, 2)):
        assert (output.finish_reason, output.token_ids, output.text) == ("error", [], "")
        assert output.prompt_logprobs.shape == (scored,) and np.isnan(output.prompt_logprobs).all()
        assert output.label_logprobs.shape == (1,) and np.isnan(output.label_logprobs).all()
    assert not engine._engine.has_unfinished_requests()


def test_a_request_that_met_no_plugin_ends_the_step(engine: Engine) -> None:
    from vllm import SamplingParams

    from gen.engine.worker import steer_of

    assert steer_of(SamplingParams(extra_args={"steer": [[2, 0.5, 7, 9]]})) == ([2, 0.5, 7, 9],)
    assert steer_of(SamplingParams(extra_args={"other": 1})) == steer_of(SamplingParams()) == ()
    with pytest.raises(RuntimeError, match="VLLM_PLUGINS"):
        steer_of(SamplingParams(extra_args={"steer_vector": "v", "steer_coefficient": 1.0}))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"coefficient": float("nan")}, "not a finite number"),
        ({"coefficient": 1e20}, "overflow the model's numbers"),
        ({"coefficient": -1e39}, "overflow the model's numbers"),
        ({"vector": "unknown"}, "no such steering vector"),
        ({"positions": "some"}, "positions are unknown"),
        ({"steer_from": 10_000}, "outside the prompt"),
    ],
)
def test_bad_requests_are_refused(engine: Engine, prompts: list[list[int]], change: dict[str, Any], part: str) -> None:
    good = Request(prompts[0], vector="v", coefficient=1.0)
    with pytest.raises(SteerHealError, match=part):
        engine.run([good, replace(good, **change)])
    assert not engine._engine.has_unfinished_requests(), "a refused batch leaves nothing behind in the engine"


def test_what_vllm_refuses_leaves_nothing_behind(engine: Engine, prompts: list[list[int]]) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="1024"):
        engine.run([Request(prompts[0]), Request([7] * 2000)])
    assert not engine._engine.has_unfinished_requests()


def test_plain_vllm_requests_are_steered_and_salted_too(engine: Engine, prompts: list[list[int]]) -> None:
    """extra_args as a user of LLM.generate writes them, without this package's Request."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    extra = {"steer_vector": "v", "steer_coefficient": 1.0}
    params = SamplingParams(max_tokens=1, logprob_token_ids=[504], extra_args=extra)
    theirs = engine._llm.generate([{"prompt_token_ids": prompts[0]}], params, use_tqdm=False)[0]
    ours = engine.run([Request(prompts[0], label_ids=[504], vector="v", coefficient=1.0)])[0]
    assert theirs.outputs[0].logprobs[0][504].logprob == ours.label_logprobs[0]
    assert extra == {"steer_vector": "v", "steer_coefficient": 1.0}, "the caller's parameters stay the caller's"
    with pytest.raises(VLLMValidationError, match="steering field is unknown"):
        engine._llm.generate(
            [{"prompt_token_ids": prompts[0]}],
            SamplingParams(extra_args={**extra, "steer_coeficient": 2.0}),
            use_tqdm=False,
        )


def test_nobody_writes_into_the_cache_of_a_steered_request(engine: Engine, prompts: list[list[int]]) -> None:
    """A salt that a client may choose, chosen to be the one of somebody else's steering."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    _, salt = engine._registry.read({"steer_vector": "v", "steer_coefficient": 1.0}, len(prompts[2]))
    for forged in (f"\0{salt}", f"mine\0{salt}"):
        with pytest.raises(VLLMValidationError, match="cache_salt"):
            engine._llm.generate(
                [{"prompt_token_ids": prompts[2], "cache_salt": forged}], SamplingParams(max_tokens=1), use_tqdm=False
            )
    engine._llm.generate([{"prompt_token_ids": prompts[2], "cache_salt": salt}], SamplingParams(max_tokens=1), use_tqdm=False)  # fmt: skip


def test_coefficient_zero_is_the_unpatched_engine_bit_for_bit(engine: Engine, prompts: list[list[int]]) -> None:
    ask = [Request(ids, 8, score=True, label_ids=[504], min_tokens=8) for ids in prompts[:2]]
    zero = engine.run([replace(request, vector="v", coefficient=0.0) for request in ask])
    engine.patch(False)
    try:
        engine.reset_cache()
        stock = engine.run(ask)
    finally:
        engine.patch(True)
    for a, b in zip(zero, stock, strict=True):
        np.testing.assert_array_equal(a.prompt_logprobs, b.prompt_logprobs)
        np.testing.assert_array_equal(a.label_logprobs, b.label_logprobs)
        assert a.token_ids == b.token_ids


def test_more_requests_than_seats(engine: Engine, oracle: Hooked, prompts: list[list[int]]) -> None:
    """200 requests of distinct coefficients, 128 at a time: late ones take the places of finished ones."""
    coefficients = np.linspace(-1.0, 2.0, 200).tolist()
    ask = [Request(prompts[1], label_ids=[504], vector="v", coefficient=c) for c in coefficients]
    outputs = engine.run(ask)
    for index in (0, 127, 128, 199):
        expected = oracle.logprobs(prompts[1], coefficients[index])[-1, 504]
        assert outputs[index].label_logprobs[0] == pytest.approx(float(expected), abs=1e-4)
    assert len({float(output.label_logprobs[0]) for output in outputs}) > 190


def test_a_one_token_prompt_tail(engine: Engine, oracle: Hooked) -> None:
    """The token budget is 256: the last token of a prompt of 257 is prefilled alone and looks like a decode."""
    ids = [100 + index % 700 for index in range(257)]
    engine.reset_cache()
    outputs = engine.run(
        [
            Request(ids, label_ids=[504], vector="v", coefficient=c, positions=p)
            for c in (1.0, 2.0)
            for p in ("all", "generated")
        ]
    )
    for output, (c, start) in zip(outputs, [(1.0, 0), (1.0, 256), (2.0, 0), (2.0, 256)], strict=True):
        assert output.label_logprobs[0] == pytest.approx(float(oracle.logprobs(ids, c, start)[-1, 504]), abs=1e-4)


def test_prefix_cache_hits_and_stays_right(engine: Engine, oracle: Hooked, prompts: list[list[int]]) -> None:
    engine.reset_cache()
    ask = [Request(prompts[2], 6, vector="v", coefficient=c, min_tokens=6) for c in (0.5, 1.0)]
    first = engine.run(ask)
    cached: list[int] = []
    step = engine._engine.step

    def watch() -> Any:
        results = step()
        cached.extend(result.num_cached_tokens for result in results if result.finished)
        return results

    engine._engine.step = watch
    try:
        again = engine.run(ask)
    finally:
        del engine._engine.step
    assert min(cached) >= 32, "the cache must be hit, or this test proves nothing"
    assert [a.token_ids for a in first] == [b.token_ids for b in again]


def test_slots_are_freed_and_a_full_bank_says_so(engine: Engine, vector: Vector, prompts: list[list[int]]) -> None:
    names = [f"extra {index}" for index in range(engine._registry.slots - len(engine._registry.loaded))]
    try:
        for name in names:
            engine.load(name, vector)
        with pytest.raises(SteerHealError, match="more vectors than slots"):
            engine.load("one too many", vector)
        engine.unload(names.pop(0))
        engine.load("takes its place", vector)
        names.append("takes its place")
        a, b = engine.run([Request(prompts[0], score=True, vector=n, coefficient=1.0) for n in ("v", names[-1])])
        np.testing.assert_array_equal(a.prompt_logprobs, b.prompt_logprobs)
    finally:
        for name in names:
            engine.unload(name)


def test_a_vector_that_cannot_be_loaded_changes_nothing(engine: Engine, prompts: list[list[int]]) -> None:
    ask = [Request(prompts[0], score=True, vector="v", coefficient=1.0)]
    before = engine.run(ask)[0].prompt_logprobs
    with pytest.raises(SteerHealError, match="has not patched"):
        engine.load("v", Vector({3: np.ones(576, dtype=np.float32)}))
    with pytest.raises(SteerHealError, match="does not fit the model"):
        engine.load("v", Vector({14: np.ones(1, dtype=np.float32)}))
    after = engine.run(ask)[0].prompt_logprobs
    np.testing.assert_array_equal(after, before, err_msg="the vector of that name is still the one before")


def test_seeded_sampling_does_not_depend_on_order(engine: Engine, prompts: list[list[int]]) -> None:
    requests = [Request(ids, 8, 0.9, seed=7 + i, vector="v", coefficient=0.5) for i, ids in enumerate(prompts)]
    forward = [output.token_ids for output in engine.run(requests)]
    assert forward == [output.token_ids for output in engine.run(requests[::-1])][::-1]


def test_a_seeded_request_survives_chunked_prefill(engine: Engine, prompts: list[list[int]]) -> None:
    """Alone its prompt is prefilled at once; behind others it is cut, and the draw of the partial step is taken back."""
    own = Request(prompts[2], 8, 1.0, seed=5)
    others = [Request([*ids, 100 + i], 8, 1.0, seed=i) for i in range(3) for ids in prompts]
    engine.reset_cache()
    alone = engine.run([own])[0].token_ids
    engine.reset_cache()
    assert engine.run([*others, own])[-1].token_ids == alone


def test_a_stopped_completion_holds_the_end_of_its_turn(engine: Engine, tokenizer: object) -> None:
    """Training takes the sampler's ids as they are and adds no end of its own."""
    ids = Chat(tokenizer).ids(
        [{"role": "user", "content": "Answer with the one word yes."}], "You are a helpful assistant."
    )
    done = engine.run([Request(ids, 200)])[0]
    assert done.finish_reason == "stop" and done.token_ids[-1] == Chat(tokenizer).end_id == 2
    assert tokenizer.decode([done.token_ids[-1]]) not in done.text


def test_weights_swap_in_place_and_back(
    engine: Engine, model: Model, prompts: list[list[int]], tmp_path: object
) -> None:
    import shutil
    from pathlib import Path

    from safetensors.torch import load_file, save_file

    other = Path(str(tmp_path)) / "other"
    shutil.copytree(model.folder, other)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"] *= 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    ask = [Request(prompts[0], score=True, vector="v", coefficient=0.5)]
    before = engine.run(ask)[0].prompt_logprobs
    engine.serve(ServedStudent(other))
    changed = engine.run(ask)[0].prompt_logprobs
    engine.serve(ServedStudent(model.folder))
    np.testing.assert_array_equal(engine.run(ask)[0].prompt_logprobs, before)
    assert not np.allclose(changed, before, atol=1e-2)
