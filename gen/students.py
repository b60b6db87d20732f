"""How a student is served: merged into its weights, or as an adapter over the original ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.fitting import admitted
from shared.lora import widest
from shared.merging import merged
from shared.models import Model
from shared.publish import digest


@dataclass(frozen=True)
class Student:
    """Weights on disk, and an adapter over them or None.

    rank and modules (the last part of their names) are the adapter's; fingerprint names the contents of both.
    """

    folder: Path
    adapter: Path | None = None
    rank: int = 0
    modules: tuple[str, ...] = ()
    fingerprint: str = ""


def student(origin: Model, adapter: Path | None, cache: Path, dtype: str, serve: str) -> Student:
    """The student of a folded history (None: the original model). serve: 'merged', 'adapter', or 'auto', the adapter on a GPU.

    Merging costs the shifts below the dtype's step, an adapter costs none; vLLM's adapters are slow on the CPU. Raises SteerHealError
    for an adapter that does not fit the model, either way and before an engine starts.
    """
    if adapter is None:
        return Student(origin.folder, fingerprint=origin.fingerprint)
    if serve == "auto":
        import torch

        serve = "adapter" if torch.cuda.is_available() else "merged"
    if serve == "adapter":
        loaded = admitted(adapter, origin, by_engine=True)
        modules = tuple(sorted({name.rpartition(".")[2] for name in loaded.modules}))
        return Student(
            origin.folder, adapter, widest(loaded.config), modules, f"{origin.fingerprint} + {digest(adapter)}"
        )
    model = merged(origin, adapter, cache, dtype)
    return Student(model.folder, fingerprint=model.fingerprint)
