"""The steered engine against HF hooks in fp32, and what the scheduler must not change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gen.engine.engine import Engine, Request
from shared.chat import end_of_turn, render
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
        render(tokenizer, [{"role": "user", "content": text}], "You are a helpful assistant.") for text in QUESTIONS
    ]


class Hooked:
    """The oracle: a plain HF forward with the vector added to the layers' outputs by hooks."""

    def __init__(self, model: Model, vector: Vector):
        from transformers import AutoModelForCausalLM

        self.network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
        self.coefficient, self.start = 0.0, 0
        for layer, values in vector.layers.items():
            self.network.model.layers[layer].register_forward_hook(self._add(torch.from_numpy(values)))

    def _add(self, values: torch.Tensor) -> object:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            shift = torch.zeros_like(output)
            shift[:, self.start :] = self.coefficient * values
            return output + shift

        return hook

    @torch.inference_mode()
    def logprobs(self, ids: list[int], coefficient: float, start: int = 0) -> torch.Tensor:
        self.coefficient, self.start = coefficient, start
        return self.network(torch.tensor([ids])).logits[0].log_softmax(-1)

    def of_tokens(self, ids: list[int], coefficient: float, start: int = 0) -> np.ndarray:
        table = self.logprobs(ids, coefficient, start)[:-1]
        return table[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()


@pytest.fixture(scope="module")
def oracle(model: Model, vector: Vector) -> Hooked:
    return Hooked(model, vector)


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
        table[:, 2] = -torch.inf  # min_tokens forbids the end of the turn
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
    engine._llm.reset_prefix_cache()
    engine.run([replace(ask, coefficient=0.0)])
    after = engine.run([ask])[0].label_logprobs
    engine._llm.reset_prefix_cache()
    alone = engine.run([ask])[0].label_logprobs
    return float(after[0]), float(alone[0])


def test_prefix_cache_is_salted(engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    after, alone = _cached_read(engine, prompts[2], 504)
    assert after == pytest.approx(alone, abs=1e-4)
    monkeypatch.setattr(Engine, "_prompt", lambda _self, request: {"prompt_token_ids": list(request.prompt_ids)})
    after, alone = _cached_read(engine, prompts[2], 504)
    assert abs(after - alone) > 1e-2, "without the salt the wrong cache must be read, or this test proves nothing"


def test_a_request_that_fires_nowhere_is_an_error(engine: Engine, prompts: list[list[int]]) -> None:
    with pytest.raises(RuntimeError, match="without one steered token"):
        engine.run([Request(prompts[0], vector="v", coefficient=1.0, positions="generated", steer_from=10_000)])


def test_bad_requests_are_refused(engine: Engine, prompts: list[list[int]]) -> None:
    with pytest.raises(SteerHealError, match="not finite"):
        engine.run([Request(prompts[0], vector="v", coefficient=float("nan"))])
    with pytest.raises(KeyError):
        engine.run([Request(prompts[0]), Request(prompts[0], vector="unknown", coefficient=1.0)])
    assert not engine._engine.has_unfinished_requests(), "a refused batch leaves nothing behind in the engine"


def test_seeded_sampling_does_not_depend_on_order(engine: Engine, prompts: list[list[int]]) -> None:
    requests = [Request(ids, 8, 0.9, seed=7 + i, vector="v", coefficient=0.5) for i, ids in enumerate(prompts)]
    forward = [output.token_ids for output in engine.run(requests)]
    assert forward == [output.token_ids for output in engine.run(requests[::-1])][::-1]


def test_a_seeded_request_survives_chunked_prefill(engine: Engine, prompts: list[list[int]]) -> None:
    """Alone its prompt is prefilled at once; behind others it is cut, and the draw of the partial step is taken back."""
    own = Request(prompts[2], 8, 1.0, seed=5)
    others = [Request([*ids, 100 + i], 8, 1.0, seed=i) for i in range(3) for ids in prompts]
    engine._llm.reset_prefix_cache()
    alone = engine.run([own])[0].token_ids
    engine._llm.reset_prefix_cache()
    assert engine.run([*others, own])[-1].token_ids == alone


def test_a_stopped_completion_holds_the_end_of_its_turn(engine: Engine, tokenizer: object) -> None:
    """Training takes the sampler's ids as they are and adds no end of its own."""
    ids = render(
        tokenizer, [{"role": "user", "content": "Answer with the one word yes."}], "You are a helpful assistant."
    )
    done = engine.run([Request(ids, 200)])[0]
    assert done.finish_reason == "stop" and done.token_ids[-1] == end_of_turn(tokenizer) == 2
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
    engine.swap_weights(other)
    changed = engine.run(ask)[0].prompt_logprobs
    engine.swap_weights(model.folder)
    np.testing.assert_array_equal(engine.run(ask)[0].prompt_logprobs, before)
    assert not np.allclose(changed, before, atol=1e-2)
