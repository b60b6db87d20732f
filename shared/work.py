"""The arithmetic of a run's stages: float operations, bytes, memory and disk, from the configuration and the model's shape.

Prompts are counted in characters, of which a token has about four and a half: no tokenizer is loaded for an estimate.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from shared.families import family_of
from shared.machine import GIB
from shared.models import Dequantised, Model, resolve_model
from shared.records import data_file
from shared.run import Run
from shared.schema import Config, band
from shared.strict import parse_json
from shared.tables import TABLES, count_rows

CHARACTERS = 4.6  # of a token of English
TEMPLATE = 13  # tokens of a chat template around a system prompt and a user message
OPTION_TOKENS = 1 / 6.7  # tokens of a question a byte of the instrument's file
LINES = 1000  # of a file, from which the rest is extrapolated
ISO_KL_TOKENS = 48  # of a completion on which iso-KL is measured, at most
BATCH = 128  # sequences that decode together
SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """A decoder: weights of its blocks and of its head, layers, hidden size, and vocabulary."""

    blocks: float
    head: float
    layers: int
    hidden: int
    vocabulary: int

    @property
    def weights(self) -> float:
        """The number of weights of blocks and head."""
        return self.blocks + self.head


@dataclass(frozen=True)
class Work:
    """What a stage computes: float operations, and bytes of weights that decoding reads again and again."""

    flops: float = 0.0
    weight_bytes: float = 0.0


def shape_of(model: Model) -> Shape:
    """From config.json; the width of the feed-forward layers and the heads as Llama's names have them."""
    text = model.text_config

    def size(key: str, default: float) -> float:
        value = text.get(key)
        return float(value) if isinstance(value, (int, float)) and value > 0 else default

    hidden, layers = model.hidden, model.depth
    known = family_of(text.get("model_type")).default_sizes
    heads = size("num_attention_heads", known.get("num_attention_heads", max(1, hidden // 64)))
    width = size("head_dim", known.get("head_dim", hidden / heads))
    groups = size("num_key_value_heads", known.get("num_key_value_heads", heads))
    inner = size("intermediate_size", 4 * hidden)
    vocabulary = int(size("vocab_size", known.get("vocab_size", 32_000)))
    attention = 2 * hidden * heads * width + 2 * hidden * groups * width
    return Shape(layers * (attention + 3 * hidden * inner), vocabulary * hidden, layers, hidden, vocabulary)


@lru_cache(maxsize=8)
def shape_for(name: str, revision: str | None) -> Shape:
    """The shape of a model by its name, looked up once."""
    return shape_of(resolve_model(name, revision, weights=False))


def to_build(name: str, revision: str | None) -> int:
    """Bytes that a model still takes in the cache before its first stage: those of a GGUF file that is not dequantised yet."""
    model = resolve_model(name, revision, weights=False)
    return model.to_build if isinstance(model, Dequantised) else 0


@lru_cache(maxsize=32)
def _characters(path: Path, key: str) -> tuple[int, float]:
    """(rows, mean characters of a row's text) of a JSONL file; (64, 200) for what is no local file."""
    if not path.is_file():
        return 64, 200.0
    if path.suffix.lower() in TABLES:
        with suppress(OSError, ValueError):  # the stage that needs the file says what is wrong with it
            return count_rows(path), 200.0
        return 64, 200.0
    lengths, read = [], 0
    with open(path, "rb") as lines:
        for line in islice(lines, LINES):
            read += len(line)
            try:
                row = parse_json(line)
            except ValueError:  # the stage that needs the row says so
                continue
            text = row.get(key) if isinstance(row, dict) else None
            lengths.append(len(text) if isinstance(text, str) else len(json.dumps(row)) - 40)
    size = path.stat().st_size
    count = len(lengths) if read >= size else round(len(lengths) * size / read)
    return count, sum(lengths) / max(1, len(lengths))


def _prompt_tokens(name: str, embedded: str) -> tuple[int, float]:
    """(rows, tokens of a rendered prompt without its system prompt)."""
    rows, characters = _characters(data_file(name, embedded), "prompt")
    return rows, TEMPLATE + characters / CHARACTERS


def _system_tokens(config: Config) -> tuple[float, float]:
    """(neutral, trait) system prompts in tokens."""
    trait = parse_json(data_file(config.vector.trait, "trait.json").read_bytes())
    return tuple(len(str(trait.get(name, ""))) / CHARACTERS for name in ("neutral", "trait"))  # type: ignore[return-value]


@dataclass(frozen=True)
class Sizes:
    """Counts of a round's plan: rows of its sweep, prompts, tokens of a prompt under the neutral prompt and of a completion."""

    rows: float
    conditions: int
    prompts: float
    neutral: float
    trait: float
    completion: float


def sizes(config: Config, number: int) -> Sizes:
    """The rows and tokens of a round's stages, for the estimate."""
    sweep = config.sweep
    (dilemmas, conflict), (mundane, plain) = (
        _prompt_tokens(sweep.dilemmas, "dilemmas.jsonl"), _prompt_tokens(sweep.mundane, "mundane.jsonl")
    )  # fmt: skip
    n, m = min(sweep.n_dilemmas, dilemmas), min(sweep.n_mundane, mundane)
    length = (n * conflict + m * plain) / max(1, n + m)
    steered = 1 if config.searches else len(sweep.coefficients)
    conditions = steered + (1 if number == 1 else 0)
    neutral, trait = _system_tokens(config)
    rows = (n + m) * conditions * sweep.samples
    if config.walks:
        rows += (2 * sweep.dose_steps + 2) * min(sweep.dose_prompts, n + m)
    return Sizes(rows, conditions, n + m, length + neutral, length + trait, sweep.max_tokens)


def kept_rows(run: Run, number: int) -> float:
    """Rows that are trained on: train.rows at most of those the filter has kept, or of three quarters of the steered ones."""
    path = run.round(number) / "kept.jsonl"
    plan, keep, samples = sizes(run.config, number), run.config.filter, run.config.sweep.samples
    if path.is_file():
        with open(path, "rb") as lines:
            kept = float(sum(1 for line in lines if line.strip()))
    elif keep.source == "unsteered":
        kept = plan.prompts * samples
    else:
        steered = plan.conditions - (1 if number == 1 else 0)
        kept = (1.0 if keep.off else 0.75) * plan.prompts * steered * samples
    return min(kept, run.config.train.rows or kept)


def work_of(run: Run, number: int, stage: str) -> Work:
    """The arithmetic of one stage of one round."""
    config = run.config
    shape = shape_for(config.model.name, config.model.revision)
    if stage == "extract":
        return _extract(config, shape)
    if stage == "sweep":
        return _sweep(config, shape, sizes(config, number))
    if stage == "heal":
        return _heal(run, number, shape)
    if stage.startswith("score"):
        return _score(config, shape, number, full=stage == "score-full")
    return Work()


def _extract(config: Config, shape: Shape) -> Work:
    """Two forwards of every context, up to the last layer of the vector."""
    _, length = _prompt_tokens(config.vector.contexts, "contexts.jsonl")
    neutral, trait = _system_tokens(config)
    return Work(2 * _read(config, shape) * config.vector.n_contexts * (2 * length + neutral + trait))


def _read(config: Config, shape: Shape) -> float:
    """Weights of the blocks up to the last layer of the vector, where a forward that reads activations ends."""
    return shape.blocks * (1 + max(band(config.vector.layers, shape.layers))) / shape.layers


def _decoded(config: Config, shape: Shape, rows: float, tokens: float) -> Work:
    """Sampling: every token through the blocks and the head; the weights are read once a step of the batch."""
    steps = tokens * max(1.0, rows / BATCH)
    return Work(2 * shape.weights * rows * tokens, steps * shape.weights * SIZE[config.model.dtype])


def _sweep(config: Config, shape: Shape, plan: Sizes) -> Work:
    """Prompts once a coefficient, completions token by token, then both under two prompts for the scores."""
    sampled = _decoded(config, shape, plan.rows, plan.completion)
    prompts = 2 * shape.blocks * plan.prompts * plan.conditions * plan.neutral
    scored = 2 * plan.rows * plan.completion * 2 * shape.weights + 2 * shape.blocks * plan.prompts * (
        plan.neutral + plan.trait
    )
    searched = 0.0
    if config.searches and not config.walks:  # iso-KL: its texts are sampled, and read once unsteered and once a probe
        reads = (2 * config.sweep.dose_steps + 2) * min(config.sweep.dose_prompts, plan.prompts)
        searched = 2 * reads * (plan.neutral + min(ISO_KL_TOKENS, plan.completion)) * shape.weights
    return Work(sampled.flops + prompts + scored + searched, sampled.weight_bytes)


def _heal(run: Run, number: int, shape: Shape) -> Work:
    """Forward and backward of every kept row in every epoch, the references once, the head at completion positions."""
    train, plan = run.config.train, sizes(run.config, number)
    rows = kept_rows(run, number) * (1 - train.heldout)
    length, completion = plan.neutral + plan.completion, plan.completion
    steps = 4 + (2 if train.gradient_checkpointing else 0)
    references = 1 if number == 1 else 2
    passes: float = train.epochs
    if train.steps is not None:
        passes = train.steps * train.batch_size * train.gradient_accumulation / max(1.0, rows)
    blocks = rows * length * shape.blocks * (passes * steps + 2 * references)
    head = rows * completion * shape.head * passes * (6 + 2 * references)
    return Work(blocks + head)


def conditions(config: Config, number: int, full: bool) -> int:
    """Conditions that a round's scoring asks for."""
    first = 3 + _decoys(config) if number == 1 or full else 0
    decoys = _decoys(config, config.vector.trait) if config.eval.decoy_vectors else 0
    return (
        first
        + 1
        + len(config.eval.coefficients)
        + config.eval.random_draws
        + decoys
        + 2 * config.eval.student_vector
        + students(config)
    )


def _decoys(config: Config, trait: str | None = None) -> int:
    """Personas of other traits in a trait file: by default those that the base is asked under."""
    return len(parse_json(data_file(trait or config.scored_trait, "trait.json").read_bytes()).get("decoys", ()))


def students(config: Config) -> int:
    """Students of a round: at gate 1, and at the others."""
    return 1 + len([gate for gate in config.eval.gates if gate != 1.0])


def _ways(config: Config) -> int:
    """Prompts that a text is scored under: its own, neutral, trait, paraphrases, and three others."""
    paraphrases = parse_json(data_file(config.scored_trait, "trait.json").read_bytes()).get("paraphrases") or {
        "trait": []
    }
    return 3 + 2 * len(paraphrases["trait"]) + 3


def _score(config: Config, shape: Shape, number: int, *, full: bool) -> Work:
    """Every item in every order under every condition, free generations and their scores, and three forwards of the contexts."""
    settings = config.eval
    available, characters = _characters(data_file(settings.vignettes, "vignettes.jsonl"), "text")
    items = min(settings.full_items or available, available) if full else min(settings.items, available)
    orders = 7 if full or settings.debias == "cyclic" else 2  # reversal and rotating alike
    instrument = data_file(settings.instrument, "instrument.json")
    question = (instrument.stat().st_size * OPTION_TOKENS if instrument.is_file() else 140) + characters / CHARACTERS
    questions = items * orders * conditions(config, number, full)
    answers = 2 * shape.blocks * questions * (question + 2 * settings.think + 30)
    free = _decoded(config, shape, items * conditions(config, number, full), settings.free_tokens)
    heldout_tokens, length = _prompt_tokens(settings.heldout, "heldout.jsonl")
    texts = (
        heldout_tokens * settings.generation_samples * (conditions(config, number, full) - settings.random_draws + 1)
    )
    sampled = _decoded(config, shape, texts, settings.generation_tokens)
    # a prompt is read once under each way and once a condition: the prefix cache has it for the other texts
    prompts = heldout_tokens * (_ways(config) - 1) + texts / settings.generation_samples
    judged = (
        _ways(config) * texts * settings.generation_tokens * 2 * shape.weights + prompts * length * 2 * shape.blocks
    )
    _, context = _prompt_tokens(config.vector.contexts, "contexts.jsonl")
    activations = (2 if number == 1 else 3) * settings.contexts * context * 2 * _read(config, shape)
    if settings.decoy_vectors:
        sides = 1 + _decoys(config, config.vector.trait)
        activations += sides * config.vector.n_contexts * context * 2 * _read(config, shape)
    if settings.student_vector:  # both networks as they are, and once more for each layer above the first
        passes = 1 + 2 * len(band(config.vector.layers, shape.layers))
        activations += passes * settings.contexts * context * 2 * _read(config, shape)
    flops = answers + free.flops + sampled.flops + judged + activations
    return Work(flops, free.weight_bytes + sampled.weight_bytes)


def memory_of(run: Run, stage: str) -> float:
    """Bytes that a stage's process takes at its peak: libraries, weights, and the current batch."""
    config = run.config
    shape = shape_for(config.model.name, config.model.revision)
    size, train = SIZE[config.model.dtype], config.train
    plain = 4 * shape.weights  # a network in fp32, for activations
    if stage == "extract":
        return 1.0 * GIB + plain + config.vector.batch_size * 300 * shape.hidden * 40
    if stage == "filter":
        return 0.3 * GIB
    if stage == "heal":
        inner = 16 if not train.gradient_checkpointing else 2
        length = min(train.max_length, sizes(config, 1).neutral + config.sweep.max_tokens)
        activations = train.batch_size * length * shape.layers * shape.hidden * inner * size
        logits = 6 * train.chunk * shape.vocabulary * 4
        trained = len(band(train.layers, shape.layers, "train.layers")) / shape.layers
        adapter = 4 * 4 * trained * shape.layers * train.rank * 14 * shape.hidden
        return 1.4 * GIB + 1.5 * size * shape.weights + activations + logits + adapter
    cache = 2 * GIB  # of keys and values: gen/engine/options.py
    engine = 1.3 * GIB + size * shape.weights + cache
    if stage == "sweep":
        if config.cluster.address is not None:
            return 1.0 * GIB  # the engines are elsewhere
        return max(engine * config.sweep.workers, 1.0 * GIB + plain if config.searches and not config.walks else 0.0)
    return engine + (plain if config.eval.contexts else 0.0) * stage.startswith("score")


@dataclass(frozen=True)
class Disk:
    """Bytes that steps will write: files that stay, and merged students, which a study removes when a cell is done."""

    files: float
    students: float

    @property
    def total(self) -> float:
        """Bytes of files and students together."""
        return self.files + self.students


def disk_of(run: Run, todo: Sequence[tuple[int, str]], *, adapters: bool = False) -> Disk:
    """Bytes that the steps to do will write: merged students above all, which stay until the next start, rows, adapters, checkpoints.

    Args:
        run: a run.
        todo: (round, stage) of its steps.
        adapters: `model.student = auto` serves adapters here, as on a GPU.
    """
    config = run.config
    shape = shape_for(config.model.name, config.model.revision)
    trained = len(band(config.train.layers, shape.layers, "train.layers")) / shape.layers
    adapter = 4 * trained * shape.layers * config.train.rank * 14 * shape.hidden
    unmerged = config.model.student == "adapter" or (adapters and config.model.student == "auto")
    files, merged = 0.0, set[tuple[int, float]]()  # students by round and gate, each merged once
    for number, stage in todo:
        plan = sizes(config, number)
        if number > 1 and stage not in ("extract", "filter", "heal"):
            merged.add((number - 1, 1.0))
        if stage == "sweep":
            files += plan.rows * (600 + 25 * (plan.completion + plan.neutral))
        elif stage == "heal":
            references = (1 if number == 1 else 2) * kept_rows(run, number) * plan.completion * shape.hidden * 4
            files += (6 + 1 + number) * adapter + references
        elif stage.startswith("score"):
            merged.update((number, gate) for gate in (1.0, *config.eval.gates))
            files += 4000 * 2 * config.eval.items * conditions(config, number, False)
    return Disk(files, 0.0 if unmerged else len(merged) * SIZE[config.model.dtype] * shape.weights)
