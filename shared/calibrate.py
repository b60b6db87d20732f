"""How fast this machine multiplies and copies, in about two seconds: what estimates of a run's time stand on.

    python -m shared.calibrate        one JSON object

A separate process, since the runner that asks keeps no torch in its memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

from shared.errors import SteerHealError
from shared.gpu import on_gpu
from shared.runtime import limit_spinning

SECONDS = 0.4  # per measurement
REPEATS = 20  # products in one
SHAPES = (
    (512, 576, 1536),
    (128, 2048, 2048),
)  # rows, inner, columns: a small model's layer under a full step, and a larger one's


def rate(work: Callable[[], Any], amount: float) -> float:
    """amount of work per second: the median over repetitions for SECONDS, after one that warms up."""
    work()
    seconds: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(seconds) < 3:
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return amount / sorted(seconds)[len(seconds) // 2]


def measure_machine() -> dict[str, float | str]:
    """Rates of this machine, each a count per second.

    Returns:
        device: "cpu" or "cuda", with fp32 products on the first and bf16 on the second.
        flops: float operations of torch's own matrix product, which extraction and training use.
        engine_flops: those of oneDNN, which vLLM's CPU engine uses: twice as many on a CPU with AVX-512 whose maker is not that of MKL.
        bytes: read and written by a copy.

    Raises SteerHealError where torch is a CUDA build that sees no GPU.
    """
    import torch
    from torch.utils import mkldnn

    device = "cuda" if on_gpu() else "cpu"
    kind = torch.bfloat16 if device == "cuda" else torch.float32

    def settled(work: Callable[[], Any]) -> Any:
        result = work()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    def multiplied(rows: int, inner: int, columns: int) -> float:
        a, b = (torch.randn(shape, device=device, dtype=kind) for shape in ((rows, inner), (inner, columns)))
        return rate(lambda: settled(lambda: [a @ b for _ in range(REPEATS)]), 2.0 * rows * inner * columns * REPEATS)

    def by_onednn(rows: int, inner: int, columns: int) -> float:
        layer = mkldnn.to_mkldnn(torch.nn.Linear(inner, columns, bias=False))
        a = torch.randn(rows, inner).to_mkldnn()
        return rate(lambda: [layer(a) for _ in range(REPEATS)], 2.0 * rows * inner * columns * REPEATS)

    flops = fmean(multiplied(*shape) for shape in SHAPES)
    with torch.no_grad():
        onednn = device == "cpu" and torch.backends.mkldnn.is_available()
        engine = fmean(by_onednn(*shape) for shape in SHAPES) if onednn else flops
    block = torch.zeros(64 << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    copied = rate(lambda: settled(lambda: target.copy_(block)), 2.0 * block.numel())
    return {"device": device, "flops": flops, "engine_flops": engine, "bytes": copied}


if __name__ == "__main__":
    limit_spinning()  # as in every stage, before torch is imported
    try:
        print(json.dumps(measure_machine()))
    except SteerHealError as error:
        print(json.dumps({"error": error.as_dict()}))
