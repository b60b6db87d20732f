"""A folded history served as adapters beside the base model, its newest round dialled to a few gates that are made ahead.

The installed vLLM has no scale per request for an adapter, so a gate is a model of the server: a request asks for `healed-0.5`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.models import Model

GATES = (0.0, 0.25, 0.5, 0.75, 1.0)


def model_of(gate: float) -> str:
    """The name of the student at a gate, for a request's `model`."""
    return f"healed-{gate:g}"


def gate_list(text: str) -> list[float]:
    """Gates such as 0,0.5,1, as argparse's type."""
    gates = sorted({float(part) for part in text.split(",")})
    if not all(abs(gate) <= 100 for gate in gates):  # and no NaN
        raise argparse.ArgumentTypeError(f"{text}: gates from -100 to 100")
    return gates


def adapter_options(history: Path, origin: Model, dtype: str, gates: Sequence[float]) -> list[str]:
    """Options of `vllm serve` for the adapters, which are folded under the cache.

    Args:
        history: a folded history, or an adapter alone.
        origin: the model that it is of.
        dtype: of the weights it is served over.
        gates: of its newest round; the rounds before it keep theirs.

    Raises:
        SteerHealError: a history that does not fit the model, is too wide for vLLM's kernels, or cannot be served as an adapter here.
    """
    from gen.engine.options import lora_options
    from gen.students import served_student
    from shared.folding import folded_at_gates, rounds_at_gates
    from shared.models import cache_folder

    newest = len(rounds_at_gates(history, {}))
    folders = [folded_at_gates(history, {newest: gate}, cache_folder() / "gated") for gate in gates]
    options = lora_options([served_student(origin, folder, cache_folder(), dtype, "adapter") for folder in folders])
    # one more than there are: on the CPU a request without an adapter beside one with it gets the last slot's
    return [
        *("--enable-lora", "--max-lora-rank", str(options["max_lora_rank"]), "--max-loras", str(len(gates) + 1)),
        *("--lora-target-modules", *options["lora_target_modules"]),
        *("--lora-modules", *(f"{model_of(gate)}={folder}" for gate, folder in zip(gates, folders, strict=True))),
    ]
