"""The generator's benchmark: ratios of times taken in turn on one machine, into docs/bench.json.

A: what steering costs in the engine itself. B: what one mixed sweep saves, in float32 and (B16) in bfloat16. C: the same at ten times
the work and natural length. On a GPU every part is in bfloat16, and A is taken over compiled engines with graphs, the steered one
against a second one of stock vLLM; two engines then share the memory.
Each part runs in a separate process, so that no engine inherits the memory of another, and writes its ratios when it ends.
What a ratio and its interval are, and when a bound is met: shared/ratios.py.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gen import baselines
from gen.commandline import PARTS, bench_options
from shared.chat import Chat
from shared.cli import entry
from shared.console import console
from shared.errors import SteerHealError
from shared.gpu import on_gpu
from shared.models import Model, resolve_model
from shared.ratios import Side, all_cores, closing, file, interleave, ratio_of_times, refuse_foreign, warm
from shared.records import Prompt, data_file, read_jsonl
from shared.traits import load_trait
from shared.vectors import Vector

if TYPE_CHECKING:
    from gen.engine.sampling import Request

# What configs/smollm2.toml samples with: its dtype, temperature, layers and coefficients, and the unsteered ones of round 1.
DTYPE, TEMPERATURE, LAYERS, COEFFICIENTS = "float32", 0.9, range(14, 16), (0.0, 0.75, 1.0, 1.5, 2.0)
PROMPTS, TOKENS = 8, 24
MANY_PROMPTS, MANY_TOKENS = 64, 96
SINGLE_PART = 8  # of the large sweep, one at a time makes every eighth completion: all of them take half an hour
LENGTH = 1024  # of an engine's context
SHARE = 0.4  # of a GPU's memory, where two models are on it
AGREEMENT = 0.9  # in fp32 a near-tie may fall either way and change the rest of a greedy completion


class SteeringBench:
    """What every part needs: the model, prompts under the neutral system prompt as gen.sweep renders them, a direction."""

    def __init__(self, layers: Sequence[int], dtype: str = DTYPE):
        self.dtype = dtype
        self.model: Model = resolve_model("embedded")
        chat = Chat.load(self.model.folder)
        rows = read_jsonl(data_file("embedded", "dilemmas.jsonl"), Prompt, made_by="git checkout shared/data")
        neutral = load_trait("embedded").neutral
        self.prompts = [chat.ids(row.turns, neutral) for row in rows[:MANY_PROMPTS]]
        self.stop, self.pad = chat.end_id, chat.tokenizer.pad_token_id
        draws = np.random.default_rng(0)  # any direction costs the same
        self.vector = Vector(
            {layer: draws.standard_normal(self.model.hidden).astype(np.float32) / 4 for layer in layers}
        )

    def engine(self, **options: Any) -> Any:
        """An engine over the model that can be steered at the layers of the vector; options are those of `engine`."""
        from gen.engine.engine import engine

        return engine(
            self.model.folder, layers=sorted(self.vector.layers), dtype=self.dtype, max_model_len=LENGTH, **options
        )

    def sweep(self, prompts: int, coefficients: Sequence[float], sampling: baselines.Sampling) -> list[Request]:
        """Every prompt at every coefficient, each request with a different seed; coefficient 0 is unsteered, as in gen.sweep."""
        from gen.engine.sampling import Request

        return [
            Request(
                ids,
                sampling.max_tokens,
                sampling.temperature,
                seed=index * len(coefficients) + place,
                vector="v" if coefficient else None,
                coefficient=coefficient,
                min_tokens=sampling.min_tokens,
            )
            for index, ids in enumerate(self.prompts[:prompts])
            for place, coefficient in enumerate(coefficients)
        ]


def dtype_here() -> str:
    """float32, in which the configuration of the embedded model samples; on a GPU bfloat16, as everybody does there."""
    return "bfloat16" if on_gpu() else DTYPE


def sampled_tokens(engine: Any, requests: Sequence[Request]) -> list[list[int]]:
    """The token ids that an engine answers to requests, in their order."""
    return [output.token_ids for output in engine.run(requests)]


EQUAL = baselines.Sampling(TOKENS, TOKENS, TEMPERATURE)


def engine_overhead(layers: int, pairs: int) -> dict[str, Any]:
    """Part A: the steered engine against itself with its patch taken off, and many coefficients against one.

    The prefix cache is off: requests of different coefficients share no blocks, unsteered ones would.
    """
    bench = SteeringBench(range(10, 10 + layers) if layers > len(LAYERS) else LAYERS, dtype_here())
    prompts, tokens = (MANY_PROMPTS, MANY_TOKENS) if on_gpu() else (PROMPTS, TOKENS)
    size = f"{prompts} prompts x {len(COEFFICIENTS)} coefficients x {tokens} tokens, no prefix cache, {bench.dtype}"
    ratios = {}
    with bench.engine(enable_prefix_caching=False, gpu_memory=SHARE) as engine:
        engine.load("v", bench.vector)
        if layers == len(LAYERS):
            single = bench.sweep(MANY_PROMPTS, [1.0], EQUAL)
            many = [replace(request, coefficient=(1 + index) / 64) for index, request in enumerate(single)]
            for name in "abc":
                engine.load(name, bench.vector.random_like(ord(name)))
            others = [{"vector": name, "coefficient": 0.25} for name in "abc"]
            four = [replace(request, coefficient=0.25, terms=others) for request in single]
            sides = {
                "64 coefficients": Side(lambda: sampled_tokens(engine, many)),
                "4 terms": Side(lambda: sampled_tokens(engine, four)),
                "1 coefficient": Side(lambda: sampled_tokens(engine, single)),
            }
            warm(sides)
            interleave("coefficients", sides, pairs)
            ratios["coefficients_64_over_1"] = ratio_of_times(
                sides["64 coefficients"],
                sides["1 coefficient"],
                f"time of 64 requests with 64 coefficients over the same with one; {TOKENS} tokens, no prefix cache",
                bound=1.02,
            )
            ratios["terms_4_over_1"] = ratio_of_times(
                sides["4 terms"],
                sides["1 coefficient"],
                f"time of 64 requests with four vectors each over the same with one; {TOKENS} tokens, no prefix cache",
                bound=1.05,
            )
        work = bench.sweep(prompts, [c or 0.5 for c in COEFFICIENTS], baselines.Sampling(tokens, tokens, TEMPERATURE))
        with (stock_vllm if on_gpu() else patch_off)(bench, engine, work) as unpatched:
            sides = {
                "steered": Side(lambda: sampled_tokens(engine, work), lambda: engine.patch(True)),
                "unpatched": unpatched,
            }
            warm(sides)
            interleave(f"{layers} layers steered", sides, pairs)
        other = "in stock vLLM" if on_gpu() else "with the patch taken off"
        ratios[f"steered_over_unpatched_{layers}_layers"] = ratio_of_times(
            sides["steered"],
            sides["unpatched"],
            f"time of a sweep steered in {layers} layers over the same requests {other}; {size}",
            bound=1.03 if layers == len(LAYERS) else 1.06,
        )
    return ratios


@contextlib.contextmanager
def patch_off(bench: SteeringBench, engine: Any, work: Sequence[Request]) -> Iterator[Side]:
    """The same requests unsteered, in the same engine with its patch taken off."""
    plain = [replace(request, vector=None, coefficient=0.0) for request in work]
    yield Side(lambda: sampled_tokens(engine, plain), lambda: engine.patch(False))
    engine.patch(True)


@contextlib.contextmanager
def stock_vllm(bench: SteeringBench, engine: Any, work: Sequence[Request]) -> Iterator[Side]:
    """The same requests unsteered, in vLLM as it comes: a graph keeps the op that it was captured with, whatever the patch."""
    from gen.engine.options import platform_options, precision_options
    from gen.engine.stock import stock_sampler

    options = {"dtype": bench.dtype, "max_model_len": LENGTH, "enable_prefix_caching": False}
    # logits in float32 and graphs for the same batches: what is compared is steering
    options |= {**platform_options(), **precision_options(bench.model.folder, bench.dtype)}
    with stock_sampler(bench.model.folder, work, gpu_memory_utilization=SHARE, **options) as run:
        yield Side(run)


def speedups(large: bool, dtype: str, rounds: int, single: int) -> dict[str, Any]:
    """Parts B and C: one mixed sweep against passes of one coefficient in the same engine, and against Hugging Face generate.

    Args:
        large: many prompts with natural ends, in place of few of equal length.
        dtype: of the weights.
        rounds: of the sides in turn.
        single: rounds in which one completion at a time is measured.
    """
    bench = SteeringBench(LAYERS, dtype)
    model = baselines.Hooked(
        bench.model.folder,
        bench.vector,
        dtype=dtype,
        stop=bench.stop,
        pad=bench.pad,
        device="cuda" if on_gpu() else "cpu",
    )
    with bench.engine(gpu_memory=SHARE) as engine:
        engine.load("v", bench.vector)
        if dtype == "float32":  # the same code serves both; in half precision near-ties are too many to compare tokens
            check_greedy_tokens(bench, engine, model)
        warm(_speed_sides(bench, engine, model, PROMPTS, EQUAL))
        prompts, sampling = (MANY_PROMPTS, baselines.Sampling(MANY_TOKENS)) if large else (PROMPTS, EQUAL)
        sides = _speed_sides(bench, engine, model, prompts, sampling, SINGLE_PART if large else 1)
        sides["hf_single"].first = single
        interleave("large sweeps" if large else "sweeps", sides, rounds)
    length = f"up to {MANY_TOKENS} tokens, natural ends" if large else f"{TOKENS} tokens"
    size = f"{prompts} prompts x {len(COEFFICIENTS)} coefficients x {length}, {dtype}"
    whats = {
        "passes": (f"one mixed sweep against a pass per coefficient in the same engine; {size}", 1.5),
        "hf_per_coefficient": (f"against HF generate with hooks, a batch per coefficient; {size}", 3.0),
        "hf_batch": (f"against HF generate with hooks, one batch with a coefficient per row; {size}", 1.8),
        "hf_single": (
            f"against HF generate under steering-vectors, one completion at a time{f', of every {SINGLE_PART}th scaled up' if large else ''}; {size}",
            8.0,
        ),
    }
    return {
        f"sweep_speedup_vs_{name}{'_large' if large else ''}{'' if dtype == DTYPE else f'_{dtype}'}": ratio_of_times(
            sides["ours"], sides[name], what, bound=None if large else bound, faster=True
        )
        for name, (what, bound) in whats.items()
    }


def _speed_sides(
    bench: SteeringBench,
    engine: Any,
    model: baselines.Hooked,
    prompts: int,
    sampling: baselines.Sampling,
    part: int = 1,
) -> dict[str, Side]:
    """The sides of parts B and C; one at a time, of which every completion costs the same wherever it stands, makes every part-th."""
    requests = bench.sweep(prompts, COEFFICIENTS, sampling)
    work = [(request.prompt_ids, request.coefficient) for request in requests]
    passes = [[request for request in requests if request.coefficient == c] for c in COEFFICIENTS]
    # Without the reset a repetition would read its prompts from the repetition before.
    reset = engine.reset_cache
    return {
        "ours": Side(lambda: sampled_tokens(engine, requests), reset),
        "passes": Side(lambda: [ids for each in passes for ids in sampled_tokens(engine, each)], reset),
        "hf_per_coefficient": Side(functools.partial(baselines.per_coefficient, model, work, sampling)),
        "hf_batch": Side(functools.partial(baselines.per_row, model, work, sampling)),
        "hf_single": Side(
            functools.partial(baselines.one_at_a_time, model, work[::part], sampling),
            share=len(work[::part]) / len(work),
        ),
    }


def check_greedy_tokens(bench: SteeringBench, engine: Any, model: baselines.Hooked) -> None:
    """Prove that all sides do the same work: their greedy tokens agree, and steering changes them."""
    requests = bench.sweep(2, COEFFICIENTS, replace(EQUAL, temperature=0.0))
    work = [(request.prompt_ids, request.coefficient) for request in requests]
    ours = np.array(sampled_tokens(engine, requests))
    for way in (baselines.per_coefficient, baselines.per_row, baselines.one_at_a_time):
        theirs = np.array(way(model, work, replace(EQUAL, temperature=0.0)))
        steered = theirs[:: len(COEFFICIENTS)] != theirs[len(COEFFICIENTS) - 1 :: len(COEFFICIENTS)]
        if (agreeing := float((ours == theirs).mean())) < AGREEMENT or not steered.any():
            raise SteerHealError(
                f"the sides to compare do not do the same work ({way.__name__})",
                given=f"{agreeing:.0%} of greedy tokens agree, {steered.mean():.0%} are moved by the largest coefficient",
                expected=f"at least {AGREEMENT:.0%} agree and some are moved",
                next="compare the versions of vllm, transformers and steering-vectors with requirements/",
            )


def part(name: str, out: Path, quick: bool) -> None:
    """Measure one part in this process and file its ratios."""
    all_cores()
    if name.startswith("A"):
        ratios = engine_overhead(int(name[1:]), 3 if quick else 15)
    else:
        rounds, single = (3 if on_gpu() else 1, 1) if name == "C" else (2, 1) if quick else (9, 5)
        ratios = speedups(name == "C", "bfloat16" if name == "B16" else dtype_here(), rounds, single)
    for ratio_name, row in ratios.items():  # a part takes minutes: what it found is seen before the table of all
        console.print(f"{ratio_name}: {row['median']:.3f}")
    file(out, ratios, **baselines.version())


def main() -> None:
    options = bench_options()
    arguments = options.parse_args()
    refuse_foreign(arguments.out)
    if arguments.part:
        part(arguments.part, arguments.out, arguments.quick)
        return
    left_out = {*(["C"] if arguments.quick else []), *(["B16"] if on_gpu() else [])}  # there B is in bfloat16
    parts = [name for name in PARTS if name.startswith(arguments.only or "") and name not in left_out]
    if not parts:
        raise SteerHealError(
            "nothing to measure", given="--only C --quick", expected="one of them", next="leave out --quick"
        )
    begin = time.monotonic()
    for name in parts:
        command = [sys.executable, "-m", "gen.bench", "--part", name, "--out", str(arguments.out)]
        done = subprocess.run([*command, *(["--quick"] if arguments.quick else [])])
        if done.returncode:
            sys.exit(done.returncode)
    closing(arguments.out, begin)


if __name__ == "__main__":
    entry(main)
