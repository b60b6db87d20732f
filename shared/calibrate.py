"""How fast this machine multiplies and copies, in about two seconds: what estimates of a run's time stand on.

    python -m shared.calibrate        one JSON object

A process of its own, since the runner that asks keeps no torch in its memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from shared.runtime import limit_spinning

SECONDS = 0.6  # per measurement
REPEATS = 20  # products in one
SHAPES = (
    (512, 576, 1536),
    (128, 2048, 2048),
)  # rows, inner, columns: a small model's layer under a full step, and a larger one's


def rate(work: Callable[[], Any], amount: float) -> float:
    """amount of work per second: the median over repetitions for SECONDS, after one that warms up."""
    work()
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(taken) < 3:
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return amount / sorted(taken)[len(taken) // 2]


def measure() -> dict[str, float | str]:
    """float operations and bytes a second in fp32, and in bf16 on a GPU, and the device they were measured on."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.bfloat16 if device == "cuda" else torch.float32

    def settled(work: Callable[[], Any]) -> Any:
        result = work()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    def multiplied(rows: int, inner: int, columns: int) -> float:
        a, b = (torch.randn(shape, device=device, dtype=kind) for shape in ((rows, inner), (inner, columns)))
        return rate(lambda: settled(lambda: [a @ b for _ in range(REPEATS)]), 2.0 * rows * inner * columns * REPEATS)

    rates = [multiplied(*shape) for shape in SHAPES]
    block = torch.zeros(64 << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    copied = rate(lambda: settled(lambda: target.copy_(block)), 2.0 * block.numel())
    return {"device": device, "flops": sum(rates) / len(rates), "bytes": copied}


if __name__ == "__main__":
    limit_spinning()  # as in every stage, before torch is imported
    print(json.dumps(measure()))
