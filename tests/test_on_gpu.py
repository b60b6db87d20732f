"""Parity of engine and trainer on a GPU, in bfloat16 and under CUDA graphs: `make gpu` runs these.

Without a GPU `pytest -m gpu` runs the same code on the CPU in float32, with the bounds of float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gen.verify import TOLERANCE, gap
from shared.models import Model
from shared.vectors import Vector

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = "bfloat16" if DEVICE == "cuda" else "float32"
BOUND = TOLERANCE[DTYPE]
LAYERS = [14, 15]


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    text = (
        "The committee met on Tuesday to decide what should be done about the bridge, and nobody agreed with anybody. "
    )
    ids = tokenizer(text * 6)["input_ids"]
    return [[int(token) for token in ids[begin : begin + 60]] for begin in range(8)]


@pytest.fixture(scope="module")
def adapter(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter over the blocks that a run trains, large enough to matter."""
    from peft import LoraConfig, get_peft_model

    from shared.models import load_network

    torch.manual_seed(0)
    names = r".*layers\.(?:1\d|2[0-3])\.(?:self_attn\.(?:q|v|o)_proj|mlp\.down_proj)"
    network = get_peft_model(
        load_network(model.folder, torch.float32),
        LoraConfig(r=8, lora_alpha=8, target_modules=names, init_lora_weights=False),
    )
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(model: Model, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gen.students import served_student

    return served_student(model, adapter, tmp_path_factory.mktemp("students"), DTYPE, "adapter")


@pytest.fixture(scope="module")
def built(model: Model, vector: Vector, served: Any) -> Iterator[Any]:
    """As a run's engine on a GPU: graphs, room for adapters in the band alone, logits in float32."""
    from gen.engine.engine import engine
    from gen.students import room_of
    from shared.config import resolve_config

    config = resolve_config(None, "train.rank=8 train.layers=0.3-0.8")[0]
    small = {"max_num_seqs": 32} if DEVICE == "cpu" else {}
    room = room_of(config, model, [served])
    with engine(model.folder, layers=LAYERS, dtype=DTYPE, max_model_len=512, students=[served], room=room, gpu_memory=0.4, **small) as started:  # fmt: skip
        started.load("v", vector)
        yield started


def hooked(
    model: Model, vector: Vector, prompt: list[int], coefficient: float, adapter: Path | None = None
) -> np.ndarray:
    """Log-probabilities [tokens - 1] by a plain forward in fp32 with hooks."""
    from gen.baselines import Hooked
    from shared.folding import exact_network

    network = exact_network(model, adapter, DEVICE)
    plain = Hooked.of(network, vector, stop=0, pad=0)
    ids = torch.tensor([prompt], device=DEVICE)
    with plain.steered([coefficient]), torch.inference_mode():
        table = network(ids).logits[0, :-1].float().log_softmax(-1)
    found: np.ndarray = table.gather(1, ids[0, 1:, None])[:, 0].cpu().numpy()
    return found


def scores(built: Any, asks: list[tuple[list[int], float]]) -> list[np.ndarray]:
    from gen.engine.sampling import Request

    requests = [Request(ids, score=True, vector="v" if c else None, coefficient=c) for ids, c in asks]
    return [np.asarray(output.prompt_logprobs) for output in built.run(requests)]


def test_steering_is_what_hooks_do(built: Any, model: Model, vector: Vector, prompts: list[list[int]]) -> None:
    found = scores(built, [(prompts[0], 0.0), (prompts[0], 1.0), *((ids, 4.0) for ids in prompts[1:])])
    for c, of_engine in zip((0.0, 1.0), found, strict=False):
        assert gap(of_engine, hooked(model, vector, prompts[0], c)) <= BOUND
    assert gap(found[0], found[1]) > 10 * BOUND, "steering must matter, or this test proves nothing"


def test_an_adapter_counts_beside_steering(built: Any, model: Model, vector: Vector, prompts: list[list[int]], served: Any) -> None:  # fmt: skip
    """Modules outside the band have no room for it: all of the adapter's must be within."""
    from gen.students import ServedStudent

    built.serve(served)
    try:
        on = scores(built, [(prompts[0], 1.0)])[0]
    finally:
        built.serve(ServedStudent(model.folder))
    off = scores(built, [(prompts[0], 1.0)])[0]
    assert gap(on, hooked(model, vector, prompts[0], 1.0, served.adapter)) <= BOUND
    assert gap(off, hooked(model, vector, prompts[0], 1.0)) <= BOUND and gap(on, off) > 10 * BOUND


def test_room_is_made_in_the_blocks_that_adapters_change(built: Any) -> None:
    (names,) = {tuple(found) for found in built._llm.collective_rpc(_wrapped)}
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in names}
    assert layers and layers <= set(range(9, 24)) and len(layers) < 20


def _wrapped(worker: Any) -> list[str]:
    return [
        name for name, module in worker.model_runner.get_model().named_modules() if hasattr(module, "lora_a_stacked")
    ]


def test_a_thousand_coefficients_in_one_batch(built: Any, prompts: list[list[int]]) -> None:
    """More sequences than the largest graph of 512 that vLLM makes by itself."""
    from gen.engine.sampling import Request

    count = 1024 if DEVICE == "cuda" else 48
    asks = [Request(prompts[i % 8], 4, vector="v", coefficient=i / count, min_tokens=4) for i in range(count)]
    outputs = built.run(asks)
    assert [len(output.token_ids) for output in outputs] == [4] * count
    alone = built.run([asks[1], asks[-1]])
    agree = [one.token_ids[0] == outputs[place].token_ids[0] for one, place in zip(alone, (1, -1), strict=True)]
    assert sum(agree) >= 1, "a first greedy token may differ by rounding in one of two, not in both"


def test_logits_are_not_rounded_to_half_precision(built: Any, prompts: list[list[int]]) -> None:
    """Rounded to bfloat16, a hundred labels share some dozens of values."""
    from gen.engine.sampling import Request

    labels = list(range(100, 228))  # 128, which is what vLLM takes at most
    found = built.run([Request(prompts[0], label_ids=labels)])[0].label_logprobs
    assert len(set(found)) >= 126


def test_the_head_s_products_are_those_of_fp64() -> None:
    from train.objective import Head

    draws = torch.Generator().manual_seed(0)
    kind = getattr(torch, DTYPE)
    weight = (torch.randn(5000, 64, generator=draws) * 0.1).to(DEVICE, kind)
    hidden = torch.randn(33, 64, generator=draws).to(DEVICE, kind)
    slope = torch.randn(33, 5000, generator=draws).softmax(-1).to(DEVICE)
    head = Head(weight)
    exact, wanted = hidden.double() @ weight.double().T, slope.double() @ weight.double()
    assert (head.logits(hidden).double() - exact).norm() <= 1e-5 * exact.norm()
    assert (head.gradient(slope).double() - wanted).norm() <= 2**-14 * wanted.norm()
