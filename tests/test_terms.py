"""Several vectors and windows in one batch of the engine, against HF hooks in fp32: chunked prefill, prefix hits, coefficient 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hooked import Windowed

from gen.engine.engine import Engine
from gen.engine.sampling import Request
from gen.engine.steering import END
from shared.models import Model
from shared.vectors import Vector

pytestmark = pytest.mark.slow

LAYERS = [14, 15]
PROMPTS = [[100 + (7 * index * (place + 1)) % 700 for index in range(size)] for place, size in enumerate((9, 280))]


@pytest.fixture(scope="module")
def vectors(engine: Engine, vector: Vector) -> dict[str, Vector]:
    """Three beside each other; `narrow` steers one of the engine's two layers alone."""
    draws = np.random.default_rng(1)
    others = {
        "other": Vector({layer: draws.standard_normal(576).astype(np.float32) * 0.3 for layer in LAYERS}),
        "narrow": Vector({15: draws.standard_normal(576).astype(np.float32) * 0.5}),
    }
    for name, each in others.items():
        engine.load(name, each)
    return {"v": vector, **others}


@pytest.fixture(scope="module")
def oracle(model: Model) -> Windowed:
    return Windowed(model.folder, LAYERS)


# terms as a request writes them, and the window of each in a prompt of n tokens
CASES: list[list[tuple[dict[str, Any], Any]]] = [
    [],
    [({"vector": "v", "coefficient": 1.0, "positions": "last"}, lambda n: (n - 1, n))],
    [({"vector": "v", "coefficient": 1.5, "positions": "generated"}, lambda n: (n - 1, END))],
    [({"vector": "v", "coefficient": 1.0, "from": 2, "until": 7}, lambda n: (2, 7))],
    [({"vector": "v", "coefficient": 2.0, "from": "end+1", "until": "end+4"}, lambda n: (n + 1, n + 4))],
    [
        ({"vector": "v", "coefficient": 1.0}, lambda n: (0, END)),
        ({"vector": "other", "coefficient": -1.0, "from": 3, "until": "end+2"}, lambda n: (3, n + 2)),
    ],
    [
        ({"vector": "v", "coefficient": 0.5, "until": "end-1"}, lambda n: (0, n - 1)),
        ({"vector": "other", "coefficient": 1.0, "positions": "last"}, lambda n: (n - 1, n)),
        ({"vector": "narrow", "coefficient": 1.0, "from": "end"}, lambda n: (n, END)),
        ({"vector": "v", "coefficient": -0.5, "from": "end+2"}, lambda n: (n + 2, END)),
    ],
]


def asked(ids: list[int], case: list[tuple[dict[str, Any], Any]], **options: Any) -> Request:
    return Request(ids, terms=[term for term, _ in case], **options)


def shifts(vectors: dict[str, Vector], ids: list[int], case: list[tuple[dict[str, Any], Any]]) -> list[Any]:
    return [(vectors[term["vector"]], term["coefficient"], *window(len(ids))) for term, window in case]


def test_terms_and_windows_equal_hooks_in_one_mixed_batch(
    engine: Engine, oracle: Windowed, vectors: dict[str, Vector]
) -> None:
    """The longest prompt is prefilled in chunks of 256 tokens; the second run meets the first one's cache."""
    pairs = [(ids, case) for ids in PROMPTS for case in CASES]
    engine.reset_cache()
    scored = engine.run([asked(ids, case, score=True, max_tokens=6) for ids, case in pairs])
    sampled = [asked(ids, case, max_tokens=6, min_tokens=6) for ids, case in pairs]
    outputs = engine.run(sampled)
    for (ids, case), output, score in zip(pairs, outputs, scored, strict=True):
        table = oracle.logprobs([*ids, *output.token_ids], shifts(vectors, ids, case)).clone()
        within = table[: len(ids) - 1][np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(score.prompt_logprobs, within, atol=1e-4)
        table[:, 2] = -np.inf  # min_tokens forbids the end of the turn
        assert table[len(ids) - 1 : -1].argmax(-1).tolist() == output.token_ids, (len(ids), case)
    again = engine.run(sampled)
    assert [output.token_ids for output in again] == [output.token_ids for output in outputs]
    first = {
        round(float(output.prompt_logprobs[-1]), 4)
        for (ids, _), output in zip(pairs, scored, strict=True)
        if len(ids) == 9
    }  # what stands before the last token of the prompt
    assert len(first) == 4, "the cases must differ, or this test proves nothing"


def test_coefficient_zero_of_all_terms_is_no_steering_bit_for_bit(engine: Engine, vectors: dict[str, Vector]) -> None:
    zero = [{"vector": name, "coefficient": 0.0} for name in ("v", "other", "narrow", "v")]
    own = engine.run([Request(ids, 4, min_tokens=4, score=True, terms=zero) for ids in PROMPTS])
    stock = engine.run([Request(ids, 4, min_tokens=4, score=True) for ids in PROMPTS])
    for a, b in zip(own, stock, strict=True):
        np.testing.assert_array_equal(a.prompt_logprobs, b.prompt_logprobs)
        assert a.token_ids == b.token_ids


def test_the_terms_of_batchmates_do_not_matter(engine: Engine, vectors: dict[str, Vector]) -> None:
    own = Request(PROMPTS[1], score=True, vector="v", coefficient=1.0)
    beside = [asked(PROMPTS[0], CASES[index], score=True, max_tokens=2) for index in (0, -1)]
    first, second = (engine.run([own, mate])[0] for mate in beside)
    np.testing.assert_array_equal(first.prompt_logprobs, second.prompt_logprobs)


def test_a_window_that_no_token_reaches_is_refused(engine: Engine, vectors: dict[str, Vector]) -> None:
    from vllm.exceptions import VLLMValidationError

    late = {"vector": "v", "coefficient": 1.0, "from": "end+3"}
    with pytest.raises(VLLMValidationError, match="no window is reached"):
        engine.run([Request(PROMPTS[0], 4, terms=[late])])
    assert len(engine.run([Request(PROMPTS[0], 5, min_tokens=5, terms=[late])])[0].token_ids) == 5
    assert not engine._engine.has_unfinished_requests()
