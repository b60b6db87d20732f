"""How fast a model of a published shape is healed: random weights, the shipped settings of a 4B model, steps of the healing objective."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from train.measures import TrainingBench  # isort: skip (Unsloth comes before transformers)

import numpy as np
import torch

from shared.console import progress
from shared.models import Model
from shared.ratios import settle
from shared.shapes import SHAPES, of_shape
from train.data import Example

# What configs/qwen3-4b.toml trains with; tau 0 keeps the barrier on, which is what costs.
SETTINGS = "train.rank=32 train.alpha=64 train.layers=0.2-0.8 train.batch_size=8 train.lam=0.1 train.tau=0 train.heldout=0 train.gradient_checkpointing=true"
ROWS, PROMPT, COMPLETION = 8, 74, 256  # of a batch; tokens of a row


def with_random_weights(model: Model) -> None:
    """Write random weights into a model's folder, of the shape and dtype that its config.json gives."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model.folder, trust_remote_code=False)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(model.folder)


def examples_of(vocabulary: int) -> list[Example]:
    """A batch of random rows of equal length."""
    ids = np.random.default_rng(0).integers(5, vocabulary - 5, (ROWS, PROMPT + COMPLETION)).tolist()
    return [Example(row[:PROMPT], row[PROMPT:], str(index)) for index, row in enumerate(ids)]


def healing_speed(config: dict[str, Any], name: str, dtype: str, rounds: int) -> dict[str, Any]:
    """Tokens a second of optimiser steps, a record by name as `shared.ratios.file` takes it; the memory of a GPU at its peak beside it.

    Args:
        config: a config.json.
        name: of the shape, in the record's name.
        dtype: that the student is trained in.
        rounds: timed steps, after two that are not.
    """
    with TemporaryDirectory(prefix="steer-heal-speed-") as scratch, of_shape(config) as model:
        with_random_weights(model)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        bench = TrainingBench(
            Path(scratch),
            model=model,
            settings=f"model.dtype={dtype} {SETTINGS}",
            examples=examples_of(int(model.text_config["vocab_size"])),
        )
        tokens, speeds = sum(map(len, bench.examples)), []
        with progress() as bar:
            task = bar.add_task("optimiser steps", total=rounds + 2)
            for turn in range(rounds + 2):
                settle()
                begin = time.perf_counter()
                bench.ours()
                settle()
                if turn >= 2:
                    speeds.append(tokens / (time.perf_counter() - begin))
                bar.advance(task)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    description = f"tokens a second of optimiser steps with the barrier and gradient checkpointing; {ROWS} rows of {PROMPT} + {COMPLETION} tokens, random weights, {dtype}"
    record = {
        "median": statistics.median(speeds),
        "low": min(speeds),
        "high": max(speeds),
        "n": rounds,
        "what": description,
    }
    return {f"healing_{name}": {**record, **({"peak_gib": peak} if peak else {})}}


def of_name(shape: str, quick: bool) -> dict[str, Any]:
    """`healing_speed` of a shape by its name."""
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    return healing_speed(SHAPES[shape], shape.replace("-", "_"), dtype, 3 if quick else 10)
