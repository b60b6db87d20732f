"""How fast an engine samples at 1, 64 and 1024 sequences, steered and by stock vLLM, and what 64 coefficients cost over one.

Ratios are of times taken in turn, as in gen.bench. With --shape the weights are random and of a model of that shape: nothing is
downloaded, and the speed is that of the model.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gen.commandline import throughput_options
from shared.cli import entry
from shared.console import console
from shared.gpu import on_gpu
from shared.models import Model, resolve_model
from shared.ratios import Side, all_cores, closing, file, interleave, ratio_of_times, refuse_foreign, warm
from shared.schema import band
from shared.shapes import SHAPES, of_shape
from shared.vectors import Vector

if TYPE_CHECKING:
    from gen.engine.engine import Engine
    from gen.engine.sampling import Request

SHARE = 0.4  # of a GPU's memory, where two engines are on it


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        sequences: in a batch, each a measurement.
        prompt, tokens: of a sequence.
        rounds: of the sides in turn.
    """

    sequences: tuple[int, ...] = (1, 64, 1024)
    prompt: int = 64
    tokens: int = 128
    rounds: int = 5


QUICK = Size((1, 8), 16, 8, 2)


def requests(size: Size, count: int, vocabulary: int, coefficients: Sequence[float]) -> list[Request]:
    """`count` requests of random prompts, each to its full length, with the coefficients in turn; 0 is unsteered.

    Args:
        size: tokens of a prompt and of a completion.
        count: of requests.
        vocabulary: from which prompts are drawn.
        coefficients: in turn; 0 is unsteered.
    """
    from gen.engine.sampling import Request

    draws = np.random.default_rng(0).integers(5, vocabulary - 5, (count, size.prompt))
    chosen = [coefficients[index % len(coefficients)] for index in range(count)]
    return [
        Request(
            [int(token) for token in prompt],
            size.tokens,
            0.9,
            seed=index,
            vector="v" if coefficient else None,
            coefficient=coefficient,
            min_tokens=size.tokens,
        )
        for index, (prompt, coefficient) in enumerate(zip(draws, chosen, strict=True))
    ]


def measure_throughput(
    model: Model, dtype: str, size: Size, name: str, *, compare: bool, **options: Any
) -> dict[str, Any]:
    """Records by name, as `shared.ratios.file` takes them.

    Args:
        model: the model.
        dtype: of its weights.
        size: how much is measured.
        name: of the model, in the records of its speed.
        compare: with stock vLLM as well; on the CPU with the patch taken off.
        options: of the engine.
    """
    from gen.engine.engine import engine

    layers = band("0.45-0.55", model.depth)
    draws = np.random.default_rng(0)
    vector = Vector({layer: draws.standard_normal(model.hidden).astype(np.float32) / 8 for layer in layers})
    vocabulary = int(model.text_config["vocab_size"])
    context = 8 * -(-(size.prompt + size.tokens + 1) // 8)
    shared = {"dtype": dtype, "max_model_len": context, "enable_prefix_caching": False, **options}
    records: dict[str, Any] = {}
    with engine(model.folder, layers=layers, gpu_memory=SHARE if compare else 0.9, **shared) as steered:
        steered.load("v", vector)
        for count in size.sequences:
            work = requests(size, count, vocabulary, [0.5])
            sides = {"steered": Side(lambda work=work: _tokens(steered, work))}  # type: ignore[misc]
            description = f"{count} sequences of {size.prompt} + {size.tokens} tokens, {dtype}"
            if not compare:
                records[f"sampling_{name}_{count}_sequences"] = _speed(sides["steered"], size, count, description)
                continue
            with _unsteered(steered, model.folder, work, shared) as plain:
                sides = {"steered": replace(sides["steered"], prepare=_patch(steered, True)), "stock": plain}
                warm(sides)
                interleave(description, sides, size.rounds)
            row = ratio_of_times(sides["steered"], sides["stock"], f"time of {description}, steered in {len(layers)} layers over stock vLLM", bound=1.02)  # fmt: skip
            speed = count * size.tokens / statistics.median(sides["steered"].seconds)
            records[f"steered_over_stock_{count}_sequences"] = {**row, "tokens_per_second": speed}
        count = max(size.sequences)
        single, many = (
            requests(size, count, vocabulary, coefficients)
            for coefficients in ([0.5], [(1 + index) / 64 for index in range(64)])
        )
        both = {"64": Side(lambda: _tokens(steered, many)), "1": Side(lambda: _tokens(steered, single))}
        warm(both)
        interleave("coefficients", both, size.rounds)
    key = "coefficients_64_over_1" if compare else f"sampling_{name}_coefficients_64_over_1"
    records[f"{key}_at_{count}_sequences"] = ratio_of_times(both["64"], both["1"], f"time with 64 coefficients over one; {count} sequences, {dtype}", bound=1.01)  # fmt: skip
    return records


def _tokens(steered: Engine, work: Sequence[Request]) -> list[list[int]]:
    return [output.token_ids for output in steered.run(work)]


def _patch(steered: Engine, on: bool) -> Any:
    """What prepares a side where the other is the same engine without its patch; on a GPU a graph keeps the op."""
    return (lambda: None) if on_gpu() else (lambda: steered.patch(on))


def _speed(side: Side, size: Size, count: int, what: str) -> dict[str, Any]:
    """A record of tokens a second: the median, and the range as its ends."""
    warm({"sampling": side})
    interleave(what, {"sampling": side}, max(3, size.rounds))
    speeds = [count * size.tokens / seconds for seconds in side.seconds]
    return {"median": statistics.median(speeds), "low": min(speeds), "high": max(speeds), "n": len(speeds), "what": f"tokens a second, {what}"}  # fmt: skip


@contextlib.contextmanager
def _unsteered(steered: Engine, folder: Path, work: Sequence[Request], shared: dict[str, Any]) -> Iterator[Side]:
    """The same requests without steering, in stock vLLM; on the CPU in the same engine with its patch taken off."""
    if not on_gpu():
        plain = [replace(request, vector=None, coefficient=0.0) for request in work]
        yield Side(lambda: _tokens(steered, plain), _patch(steered, False))
        steered.patch(True)
        return
    from gen.engine.options import platform_options, precision_options
    from gen.engine.stock import stock_sampler

    options = {**platform_options(), **precision_options(folder, shared["dtype"]), **shared}
    with stock_sampler(folder, work, gpu_memory_utilization=SHARE, **options) as run:
        yield Side(run)


def main() -> None:
    options = throughput_options()
    arguments = options.parse_args()
    refuse_foreign(arguments.out)
    all_cores()
    begin = time.monotonic()
    size = QUICK if arguments.quick else Size()
    dtype = "bfloat16" if on_gpu() else "float32"
    if arguments.shape:
        with of_shape(SHAPES[arguments.shape]) as model:
            name = arguments.shape.replace("-", "_")
            records = measure_throughput(model, dtype, size, name, compare=False, load_format="dummy")
    else:
        records = measure_throughput(resolve_model("embedded"), dtype, size, "embedded", compare=True)
    for name, row in records.items():
        console.print(f"{name}: {row['median']:.3f}")
    file(arguments.out, records)
    closing(arguments.out, begin)


if __name__ == "__main__":
    entry(main)
