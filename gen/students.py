"""How a student is served: merged into its weights, or as an adapter over the original ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.folding import load_adapter, merged
from shared.models import Model


@dataclass(frozen=True)
class Student:
    """Weights on disk, and an adapter over them or None. rank is the adapter's."""

    folder: Path
    adapter: Path | None = None
    rank: int = 0


def student(origin: Model, adapter: Path | None, cache: Path, dtype: str, serve: str) -> Student:
    """The student of a folded history (None: the original model). serve: 'merged', 'adapter', or 'auto', the adapter on a GPU.

    Merging costs the shifts below the dtype's step, an adapter costs none; vLLM's adapters are slow on the CPU.
    """
    if adapter is None:
        return Student(origin.folder)
    if serve == "auto":
        import torch

        serve = "adapter" if torch.cuda.is_available() else "merged"
    if serve == "adapter":
        return Student(origin.folder, adapter, load_adapter(adapter).rank)
    return Student(merged(origin, adapter, cache, dtype).folder)
