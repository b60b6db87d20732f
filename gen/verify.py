"""Does steering work on this machine and with this model? `python -m gen.verify` prints a report to paste into an issue.

It asserts what the sweep relies on: the layers that are patched, coefficient 0 against the stock engine, the effect against a
plain HF forward with hooks, batchmates that do not matter, prefix-cache blocks that are not shared between coefficients, and the
price of the patch.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gen.commandline import verify_options
from gen.extract import activations
from shared.chat import Chat
from shared.cli import configured, entry
from shared.console import console
from shared.context import fitted
from shared.errors import SteerHealError
from shared.gpu import on_gpu
from shared.machine import hardware
from shared.models import Model, load_network, resolve_model
from shared.outputs import guard
from shared.provenance import versions
from shared.records import Prompt, data_file, read_jsonl
from shared.schema import ModelConfig, band
from shared.traits import load_trait
from shared.vectors import Vector, load_vector

if TYPE_CHECKING:
    from gen.engine.engine import Engine

TOLERANCE = {
    "float32": 2e-5,
    "bfloat16": 0.05,
    "float16": 0.01,
}  # nats, mean over tokens; half precisions differ by their own rounding
DOSE = 0.25  # norm of the random direction in a layer, as a share of the mean norm of its residual stream
PAIRS = 7
Result = TypeVar("Result")


@dataclass(frozen=True)
class VerifyCheck:
    """One line of the report. passed None: a figure without a bound."""

    name: str
    passed: bool | None
    measured: str


def noise(norms: Mapping[int, float], hidden: int) -> Vector:
    """A direction of a fixed draw: what it does is of no interest, only that the engine does it.

    Args:
        norms: mean norm of the residual stream by layer; models differ in it by a factor of a thousand, and so must what moves them.
        hidden: size of the model.
    """
    draws = np.random.default_rng(0)
    drawn = {layer: draws.standard_normal(hidden) for layer in norms}
    return Vector({layer: (values * DOSE * norms[layer] / np.linalg.norm(values)).astype(np.float32) for layer, values in drawn.items()})  # fmt: skip


def gap(one: Any, other: Any) -> float:
    """Mean absolute difference, nats. Not the largest, which grows with the length of the prompt and the noise of one token."""
    return float(np.abs(np.asarray(one) - np.asarray(other)).mean())


class Reference:
    """A plain Hugging Face network with hooks on the CPU, which the engine is compared with."""

    def __init__(self, model: Model, dtype: str):
        import torch

        self._model, self._network = model, load_network(model.folder, getattr(torch, dtype))

    def norms(self, layers: Sequence[int], prompts: Sequence[Sequence[int]]) -> dict[int, float]:
        """Mean norm of the residual stream after each layer, at the prompts' last tokens."""
        states_of = activations(self._network, self._model.depth, layers, prompts, 1, "a plain forward")
        return {layer: float(np.linalg.norm(states, axis=1).mean()) for layer, states in states_of.items()}

    def logprobs(self, vector: Vector, prompt: Sequence[int]) -> np.ndarray:
        """Log-probabilities [tokens - 1] of the prompt's tokens 1.., steered at coefficient 1, nats."""
        import torch

        from gen.baselines import Hooked

        plain = Hooked.of(self._network, vector, stop=0, pad=0)
        with plain.steered([1.0]), torch.inference_mode():
            ids = torch.tensor([list(prompt)])
            table = plain.network(ids).logits[0, :-1].float().log_softmax(-1)
        logprobs: np.ndarray = table.gather(1, ids[0, 1:, None])[:, 0].numpy()
        return logprobs


def scored(engine: Engine, *asks: tuple[Sequence[int], float | None]) -> list[Any]:
    """Prompt log-probabilities of (prompt, coefficient) in one batch; None is unsteered."""
    from gen.engine.sampling import Request

    requests = [Request(ids, score=True, vector=None if c is None else "v", coefficient=c or 0.0) for ids, c in asks]
    return [output.prompt_logprobs for output in engine.run(requests)]


def effects(engine: Engine, reference: np.ndarray, dtype: str, prompts: Sequence[list[int]]) -> list[VerifyCheck]:
    """Checks of the effect of steering in an engine as the sweep runs it. reference: the first prompt under hooks at coefficient 1."""
    from gen.engine.sampling import Request

    tolerance, prompt = TOLERANCE[dtype], prompts[0]
    plain, steered = scored(engine, (prompt, None))[0], scored(engine, (prompt, 1.0))[0]
    moved, against = gap(steered, plain), gap(steered, reference)
    crowd = scored(engine, (prompt, 1.0), *((ids, 4.0) for ids in prompts[1:]))[0]
    ask = Request(prompt, label_ids=[int(prompt[-1])], vector="v", coefficient=1.0)
    engine.reset_cache()
    engine.run([replace(ask, coefficient=4.0)])
    after = engine.run([ask])[0].label_logprobs
    engine.reset_cache()
    alone = engine.run([ask])[0].label_logprobs
    return [
        VerifyCheck("coefficient 1 moves log-probabilities", moved > 3 * against, f"by up to {moved:.3g} nats"),
        VerifyCheck(
            "and as HF hooks do", against <= tolerance, f"{against:.2g} nats apart, at most {tolerance:g} in {dtype}"
        ),
        VerifyCheck(
            "batchmates do not matter", gap(crowd, steered) <= tolerance, f"{gap(crowd, steered):.2g} nats apart"
        ),
        VerifyCheck(
            "cached prefixes are not shared", gap(after, alone) <= tolerance, f"{gap(after, alone):.2g} nats apart"
        ),
    ]


def against_stock(engine: Engine, prompt: Sequence[int]) -> VerifyCheck:
    """Coefficient 0 against the engine with its patch taken off; eager engines only: a captured graph keeps its op."""
    engine.patch(False)
    try:
        unpatched = scored(engine, (prompt, None))[0]
    finally:
        engine.patch(True)
    plain, zero = scored(engine, (prompt, None))[0], scored(engine, (prompt, 0.0))[0]
    same = bool((unpatched == zero).all() and (unpatched == plain).all())
    return VerifyCheck(
        "coefficient 0 is the stock engine", same, "bit for bit" if same else f"{gap(unpatched, zero):.2g} nats apart"
    )


def steering_overhead(engine: Engine, prompts: Sequence[list[int]]) -> VerifyCheck:
    """Steered over stock, in pairs in turn; eager engines only. Each prompt once: of equal ones the stock engine would cache."""
    from gen.engine.sampling import Request

    def seconds(patched: bool) -> float:
        engine.patch(patched)
        engine.reset_cache()
        steering: list[dict[str, Any]] = [
            {"vector": "v", "coefficient": index / len(prompts)} if patched else {} for index in range(len(prompts))
        ]
        ask = [Request(ids, 24, min_tokens=24, **options) for ids, options in zip(prompts, steering, strict=True)]
        begin = time.perf_counter()
        engine.run(ask)
        return time.perf_counter() - begin

    try:
        seconds(True)
        ratios = [seconds(True) / seconds(False) for _ in range(PAIRS)]
    finally:
        engine.patch(True)
    low, high = np.quantile(ratios, [0.25, 0.75])
    return VerifyCheck(
        "time, steered over stock", None, f"{np.median(ratios):.3f} ({low:.3f} to {high:.3f}, {PAIRS} pairs)"
    )


def examine(
    folder: Path,
    settings: ModelConfig,
    vector: Vector,
    reference: np.ndarray,
    prompts: Sequence[list[int]],
    graphs: bool,
) -> tuple[list[str], list[VerifyCheck]]:
    """Start an engine and look at it: the names of the layers that it has patched, and its checks.

    Args:
        folder, settings: the model and how it is run.
        vector: what steers.
        reference: log-probabilities of the first prompt under hooks at coefficient 1.
        prompts: of tokens.
        graphs: as the sweep runs it on a GPU; else eager, whose patch can be taken off, which is what the price is taken against.
    """
    from gen.engine.engine import engine

    eager = {} if graphs or not on_gpu() else {"enforce_eager": True}
    with engine(
        folder,
        layers=sorted(vector.layers),
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        gpu_memory=settings.gpu_memory,
        tensor_parallel=settings.tensor_parallel,
        **eager,
    ) as patched_engine:
        patched_engine.load("v", vector)
        with console.status("checking"):
            checks = [] if eager else effects(patched_engine, reference, settings.dtype, prompts)
            if not graphs:
                checks += [against_stock(patched_engine, prompts[0]), steering_overhead(patched_engine, prompts)]
        return patched_engine.patched, checks


def in_own_process(work: Callable[[bool], Result], graphs: bool) -> Result:
    """A call in a separate process, which gives all its memory back when it ends: a GPU of 24 GB has no room for a 4B model twice."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, graphs).result()


def report(model: Model, dtype: str, patched: Sequence[str], checks: Sequence[VerifyCheck]) -> str:
    """The report, Markdown.

    Args:
        model: that was examined.
        dtype: of its weights.
        patched: names of the patched layers.
        checks: with their results.
    """
    machine = hardware()
    place = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores, no GPU"
    lines = [
        "### gen.verify",
        "",
        f"- model: {model.name}{f' at {model.revision}' if model.revision else ''}, {dtype}, {model.depth} layers",
        f"- patched: {', '.join(patched)}",
        f"- machine: {place}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in versions().items())}",
        "",
        "| check | | found |",
        "| --- | --- | --- |",
        *(
            f"| {check.name} | {'–' if check.passed is None else 'ok' if check.passed else 'FAILED'} | {check.measured} |"
            for check in checks
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    options = verify_options()
    arguments = options.parse_args()
    config = configured(arguments)
    model = resolve_model(arguments.model or config.model.name, config.model.revision)
    config = fitted(config, model.context)
    guard(arguments.outputs, [model.place])
    layers = band(config.vector.layers, model.depth)
    vector = None
    if arguments.vector:
        vector = load_vector(arguments.vector, model.name)
        vector.check(arguments.vector, hidden=model.hidden, depth=model.depth)
    chat = Chat.load(model.folder, config.model.chat_template_kwargs, config.model.day)
    trait = load_trait("embedded")
    rows = read_jsonl(data_file("embedded", "dilemmas.jsonl"), Prompt, made_by="make setup")[:16]
    prompts = [chat.ids(row.turns, trait.neutral) for row in rows]
    graphs = on_gpu()
    plain = Reference(model, config.model.dtype)
    if vector is None:
        vector = noise(plain.norms(layers, prompts[:2]), model.hidden)
    with console.status("a plain forward with hooks"):
        reference = plain.logprobs(vector, prompts[0])
    del plain
    ask = functools.partial(examine, model.folder, config.model, vector, reference, prompts)
    patched, checks = in_own_process(ask, True) if graphs else ask(False)
    if graphs:
        checks += in_own_process(ask, False)[1]
    text = report(model, config.model.dtype, patched, checks)
    console.print(text, markup=False)
    if arguments.out:
        from shared.publish import write_text

        write_text(arguments.out, text + "\n")
    if failed := [check.name for check in checks if check.passed is False]:
        raise SteerHealError(
            "steering does not work here",
            given="; ".join(failed),
            expected="every check ok",
            next="open an issue with the report above",
        )


if __name__ == "__main__":
    entry(main)
