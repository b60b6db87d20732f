"""What a run would take on a GPU of 24 GB and on one of 80 GB, from its plan alone: rows, tokens, memory and minutes by stage.

The arithmetic is docs/gpu.md's. None of it was measured; `make gpu` measures it on a machine with a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.console import format_number, print_table, say
from shared.machine import GIB
from shared.run import Run
from shared.stages import Step
from shared.work import SIZE, Shape, conditions, kept_rows, shape_for, sizes, students, work_of

CONTEXT_BYTES = 1.5 * GIB  # of CUDA, its libraries and the activations of a small batch
LENGTH = 200  # tokens that a sequence of a sweep has on average while it is sampled
READ = 0.5  # share of bf16 products that reading prompts reaches
SEQUENCE_SECONDS = 25e-6  # of a step, for every sequence in it: scheduling, sampling, text
SAMPLER_READS = 15  # times that a step goes over its logits
REACHED = 0.75  # share of a step that is not lost between steps
LOADED = 0.6e9  # bytes of weights a second, from a disk through the host


@dataclass(frozen=True)
class GpuKind:
    """A kind of GPU, by its vendor's figures.

    Args:
        name: of the column in the table.
        memory: bytes.
        bandwidth: bytes of memory a second.
        flops, single: float operations a second in bf16 and in fp32.
        healed: share of flops that a training step reaches, its fp32 loss included.
        seats: sequences at a time, as gen.engine.options has them.
        compiled, started: seconds of an engine's start, the first and later ones; trained: of a training's.
    """

    name: str
    memory: float
    bandwidth: float
    flops: float
    single: float
    healed: float
    seats: int
    compiled: float = 120.0
    started: float = 60.0
    trained: float = 150.0


CARDS = (
    GpuKind("24 GB", 24e9, 1.0e12, 165e12, 82e12, 0.28, 256),
    GpuKind("80 GB", 80e9, 3.35e12, 990e12, 67e12, 0.11, 1024),
)


@dataclass(frozen=True)
class Cost:
    """Of one stage on a card: bytes of the GPU's memory at its peak, and seconds."""

    memory: float
    seconds: float


def rows_and_tokens(run: Run, number: int, stage: str) -> tuple[float, float]:
    """Rows that a stage makes or goes through, and tokens that it samples or trains on, at most."""
    config, plan = run.config, sizes(run.config, number)
    if stage == "extract":
        return 2.0 * config.vector.n_contexts, 2.0 * config.vector.n_contexts * plan.neutral
    if stage == "heal":
        rows = kept_rows(run, number) * (1 - config.train.heldout)
        return rows, rows * config.train.epochs * (plan.neutral + plan.completion)
    if stage.startswith("score"):
        condition_count = conditions(config, number, stage == "score-full")
        items, orders = config.eval.items, 7 if config.eval.debias == "cyclic" else 2
        texts = 64.0 * config.eval.generation_samples * (2 + students(config))
        return items * orders * condition_count + texts, items * orders * condition_count * config.eval.think + texts * config.eval.generation_tokens  # fmt: skip
    return plan.rows, plan.rows * plan.completion


def stage_cost(run: Run, number: int, stage: str, card: GpuKind, *, first: bool) -> Cost:
    """Estimated seconds and memory of a stage on a card. first: no engine of the run has been compiled before."""
    config = run.config
    shape = shape_for(config.model.name, config.model.revision)
    size, single = SIZE[config.model.dtype] * shape.weights, 4 * shape.weights
    work = work_of(run, number, stage)
    if stage == "filter":
        return Cost(0.0, 3.0)
    if stage == "extract":
        return Cost(single + CONTEXT_BYTES, single / LOADED + 10 + work.flops / (0.5 * card.single))
    if stage == "heal":
        train = config.train
        logits = 8 * train.chunk * shape.vocabulary * 4
        inner = 2 if train.gradient_checkpointing else 16
        length = sizes(config, number).neutral + sizes(config, number).completion
        kept = train.batch_size * length * shape.hidden * SIZE[config.model.dtype] * (shape.layers * inner + 60)
        adapter = 4 * 4 * shape.layers * train.rank * 14 * shape.hidden
        seconds = size / LOADED + card.trained + work.flops / (card.healed * card.flops)
        return Cost(size + CONTEXT_BYTES + logits + kept + adapter, seconds)
    _, sampled = rows_and_tokens(run, number, stage)
    read = max(0.0, work.flops - 2 * shape.weights * sampled) / (READ * card.flops)
    work_seconds = sampled / sampling_rate(shape, SIZE[config.model.dtype], card, config.model.gpu_memory) + read
    start = size / LOADED + (card.compiled if first else card.started)
    networks = 0.0
    if stage.startswith("score") and config.eval.contexts:
        networks = (2 if number == 1 else 3) * single / LOADED
    share = config.model.gpu_memory * card.memory
    return Cost(max(share, single + CONTEXT_BYTES if networks else 0.0), start + networks + work_seconds)


def cache_bytes(shape: Shape, size: int) -> float:
    """Bytes of keys and values of a token: of a quarter of the hidden size's heads, as models of this size group them."""
    return 2 * shape.layers * shape.hidden * 0.4 * size


def sampling_rate(shape: Shape, size: int, card: GpuKind, share: float) -> float:
    """Tokens a second of a full batch: weights and cache are read once a step, logits several times, and every sequence costs the host.

    Args:
        shape: of the model.
        size: bytes of a weight.
        card: the GPU.
        share: of the card's memory that the engine may take.
    """
    weights = size * shape.weights
    room = max(share * card.memory - weights - CONTEXT_BYTES - card.seats * shape.vocabulary * 24, LENGTH * cache_bytes(shape, size))  # fmt: skip
    batch = min(card.seats, room / (LENGTH * cache_bytes(shape, size)))
    moved = (weights + batch * LENGTH * cache_bytes(shape, size)) / card.bandwidth
    multiplied = 2 * shape.weights * batch / card.flops
    logits = SAMPLER_READS * 4 * batch * shape.vocabulary / card.bandwidth
    return REACHED * batch / (max(moved, multiplied) + logits + SEQUENCE_SECONDS * batch)


def show_cards(todo: Sequence[Step]) -> None:
    """The table of steps to do on both kinds of card, and a warning where a stage does not fit."""
    stages = list(dict.fromkeys(step.stage for step in todo))
    costs: dict[str, list[list[Cost]]] = {stage: [[] for _ in CARDS] for stage in stages}
    totals = {stage: (0.0, 0.0) for stage in stages}
    compiled = False
    for step in todo:
        rows, tokens = rows_and_tokens(step.run, step.number, step.stage)
        before = totals[step.stage]
        totals[step.stage] = before[0] + (0 if step.stage == "filter" else rows), before[1] + (0 if step.stage == "filter" else tokens)  # fmt: skip
        for place, card in enumerate(CARDS):
            costs[step.stage][place].append(stage_cost(step.run, step.number, step.stage, card, first=not compiled))
        compiled = compiled or step.stage == "sweep"
    lines: list[list[object]] = [
        [
            stage,
            *(f"{value:,.0f}" if value else "" for value in totals[stage]),
            *(cell for group in costs[stage] for cell in _cells(group)),
        ]
        for stage in stages
    ]
    total = [[estimate for stage in stages for estimate in costs[stage][place]] for place in range(len(CARDS))]
    lines.append(["in all", "", "", *(cell for group in total for cell in _cells(group))])
    heads = [head for card in CARDS for head in (f"{card.name}: GiB", "minutes")]
    print_table("on a GPU, from the plan: not measured", ["stage", "rows", "tokens, at most", *heads], lines)
    for place, card in enumerate(CARDS):
        for stage in stages:
            most = max(estimate.memory for estimate in costs[stage][place])
            if most > card.memory:
                say(f"{stage} does not fit a card of {card.name}: about {most / GIB:.0f} GiB", "yellow")


def _cells(group: Sequence[Cost]) -> list[str | None]:
    """Memory of the largest, and minutes of all."""
    return [
        format_number(max(cost.memory for cost in group) / GIB, 0),
        format_number(sum(cost.seconds for cost in group) / 60, 1),
    ]
