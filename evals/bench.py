"""The scorer's benchmark: the engine's read against Hugging Face's generate on one machine, into docs/bench.json.

The published evaluator is no dependency of this package; its stand-in is evals/bridges/huggingface.py, the same two-phase read written as
that evaluator works, in batches of 8.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.bridges.huggingface import HuggingFace
from evals.commandline import bench_options
from evals.conditions import Condition
from evals.measures.forced_choice.ask import Read, forced_choice
from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument
from shared.chat import Chat
from shared.cli import entry
from shared.errors import SteerHealError
from shared.models import resolve_model
from shared.ratios import Side, all_cores, closing, file, interleave, ratio_of_times, refuse_foreign
from shared.records import Vignette
from shared.vignettes import load_vignettes

DTYPE, READ, BATCH = "float32", Read("reversal", 16), 8
SHARE = 0.4  # of a GPU's memory for the engine: the stand-in is on it too
PARTS = 6  # of the items, scored in turn: a machine that slows down for a minute then slows both sides
FEW, AGREEMENT = 2, 1e-3  # items checked beforehand, nats


def tokens(rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """A list as long as each thought that was made: its length is all that a Side reads of it."""
    return [[0] * length for row in rows for length in row["thought_tokens"]]


def speedup(source: str, instrument: str, rounds: int, items: int) -> dict[str, Any]:
    """One ratio, of the wall time of a base-only score, prompts built and rows made on both sides.

    Args:
        source: of the vignettes.
        instrument: name or file.
        rounds: of both sides in turn.
        items: vignettes of a round.
    """
    import torch

    from gen.engine.engine import engine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    origin = resolve_model("embedded")
    chat, vignettes = Chat.load(origin.folder), load_vignettes(source, items)
    renderer, tokenizer = InstrumentRenderer(chat, load_instrument(instrument)), chat.tokenizer
    reference = HuggingFace(origin.folder, DTYPE, tokenizer.convert_tokens_to_ids("<|endoftext|>"), device)
    with engine(origin.folder, layers=[0], dtype=DTYPE, max_model_len=1024, gpu_memory=SHARE) as model:

        def ours(some: Sequence[Vignette]) -> list[dict[str, Any]]:
            base = Condition("base", "base")
            return forced_choice(model, renderer, some, [base], READ, tokenizer, lambda: None)["base"]

        def theirs(some: Sequence[Vignette], batch: int = BATCH) -> list[dict[str, Any]]:
            return reference.forced_choice(renderer, some, READ, tokenizer, batch)

        check_same_logprobs(ours(vignettes[:FEW]), theirs(vignettes[:FEW], 1))
        theirs(vignettes[:BATCH])  # warm, as the check has left the engine
        parts = [vignettes[part::PARTS] for part in range(PARTS)]
        engine_parts, reference_parts = itertools.cycle(parts), itertools.cycle(parts)
        sides = {
            # without the reset a second pass would read its prompts from the first
            "engine": Side(lambda: tokens(ours(next(engine_parts))), model.reset_cache),
            "hf": Side(lambda: tokens(theirs(next(reference_parts)))),
        }
        interleave("scores", sides, rounds)
    description = (
        f"a base-only score against the same two-phase read under HF generate at batch {BATCH}, the stand-in for the published evaluator; "
        f"{len(vignettes)} items in {PARTS} parts{f', of {Path(source).name}' if source != 'embedded' else ''} x 2 orders x {READ.think} think tokens, {DTYPE}"
    )
    return {"score_speedup_vs_hf": ratio_of_times(sides["engine"], sides["hf"], description, bound=2.0, faster=True)}


def check_same_logprobs(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> None:
    """Prove that both sides do the same work: the same log-probabilities, where the reference is exact (batch 1)."""
    apart = max(float(np.abs(np.array(a["lp"]) - np.array(b["lp"])).max()) for a, b in zip(ours, theirs, strict=True))
    if apart > AGREEMENT:
        raise SteerHealError(
            "the sides to compare do not read the same",
            given=f"log-probabilities up to {apart:.4f} nats apart",
            expected=f"at most {AGREEMENT}",
            next="compare the versions of vllm and transformers with requirements/",
        )


def main() -> None:
    options = bench_options()
    arguments = options.parse_args()
    refuse_foreign(arguments.out)
    all_cores()
    begin = time.monotonic()
    rounds, items = (1, 7) if arguments.quick else (2 * PARTS, 10**9)
    ratios = speedup(arguments.vignettes, arguments.instrument, rounds, items)
    file(arguments.out, ratios)
    closing(arguments.out, begin)


if __name__ == "__main__":
    entry(main)
