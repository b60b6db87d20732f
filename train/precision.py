"""How a GPU multiplies and compiles while a student is trained and checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def tensor_cores(device: str, dtype: str) -> Iterator[None]:
    """TF32 for fp32 products inside, where the weights are in half precision and so round more than that anyway.

    From round 2 on two adapters are active, whose factors are fp32: PEFT multiplies them in fp32, which a GPU does at a tenth of its
    speed. The head's products are not touched: Head takes them from half-precision factors with fp32 sums.

    Args:
        device: its type, "cuda" or "cpu", where nothing changes.
        dtype: model.dtype; float32 stays exact.
    """
    before = torch.get_float32_matmul_precision()
    if device == "cuda" and dtype != "float32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def blocks_uncompiled(device: str) -> Iterator[None]:
    """Without compiled blocks inside, on a GPU: for checks that compare bits or switch adapters.

    Unsloth compiles each block there. A check under other adapters would compile once more for each, and one after the training may
    be given another graph than the same check before it, whose sums are rounded otherwise.
    """
    if device != "cuda":
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
