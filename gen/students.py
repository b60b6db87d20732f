"""How a student is served: merged into its weights, or as an adapter over the original ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.families import EXPERTS, TOWERS
from shared.fitting import DECODER, admitted
from shared.gpu import on_gpu
from shared.lora import widest
from shared.merging import merged
from shared.models import Model
from shared.publish import digest
from shared.quantised import headers
from shared.schema import Config, band

ROUNDS = 4  # of a run, for whose adapters room is made at first
WIDEST = 512  # the largest rank that vLLM has kernels for


@dataclass(frozen=True)
class ServedStudent:
    """Weights on disk, and an adapter over them or None.

    rank, modules (the last part of their names) and layers are the adapter's; fingerprint names the contents of both.
    """

    folder: Path
    adapter: Path | None = None
    rank: int = 0
    modules: tuple[str, ...] = ()
    fingerprint: str = ""
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class AdapterRoom:
    """What every engine of a run makes room for, whichever stage and round starts it, so that they share one compiled model.

    rank: of the widest adapter; modules: last parts of names; layers: the blocks that adapters change.
    """

    rank: int
    modules: tuple[str, ...]
    layers: tuple[int, ...]


def adapter_room(config: Config, origin: Model, students: Sequence[ServedStudent]) -> AdapterRoom | None:
    """The room of a run's adapters on a GPU; None where its students are merged, where nothing is compiled, as on the CPU, and for a
    mixture of experts, whose modules have other names in vLLM. Arguments as of `room_of`."""
    if not on_gpu() or config.model.student == "merged" or any(origin.text_config.get(key) for key in EXPERTS):
        return None
    return room_of(config, origin, students)


def room_of(config: Config, origin: Model, students: Sequence[ServedStudent]) -> AdapterRoom:
    """The room of a run's adapters.

    The history of r rounds has r times train.rank: the room is of ROUNDS rounds, and of twice as many whenever a history outgrows
    it, which compiles once more.

    Args:
        config: of the run.
        origin: its model; headers of its files are read, no tensors.
        students: those that an engine is to serve.
    """
    rank, needed = config.train.rank * ROUNDS, max((student.rank for student in students), default=0)
    while rank < needed:
        rank *= 2
    modules = {
        name.removesuffix(".weight").rpartition(".")[2]
        for _, header in headers(origin.folder)
        for name, tensor in header.items()
        if name.endswith(".weight") and len(tensor["shape"]) == 2 and DECODER.fullmatch(name) and not TOWERS & set(re.split(r"[._]", name))
    }  # fmt: skip
    layers = set(band(config.train.layers, origin.depth, "train.layers")).union(
        *(student.layers for student in students)
    )
    return AdapterRoom(min(rank, WIDEST), tuple(sorted(modules)), tuple(sorted(layers)))


def serves_adapters(serve: str) -> bool:
    """Whether model.student means adapters here: `auto` does on a GPU."""
    return serve == "adapter" or (serve == "auto" and on_gpu())


def served_student(origin: Model, adapter: Path | None, cache: Path, dtype: str, serve: str) -> ServedStudent:
    """The student of a folded history, ready to serve; the original model where adapter is None.

    Merging loses changes smaller than a step of the dtype. An adapter loses none, but vLLM's adapters are slow on a CPU.

    Args:
        origin: the original model.
        adapter: the folded history.
        cache: folder for merged weights.
        dtype: of the served weights.
        serve: 'merged', 'adapter', or 'auto', which is the adapter on a GPU.

    Raises:
        SteerHealError: the adapter does not fit the model.
    """
    if adapter is None:
        return ServedStudent(origin.folder, fingerprint=origin.fingerprint)
    if serves_adapters(serve):
        loaded = admitted(adapter, origin, by_engine=True)
        modules = tuple(sorted({name.rpartition(".")[2] for name in loaded.modules}))
        layers = {int(match[1]) for name in loaded.modules if (match := DECODER.fullmatch(name))}
        return ServedStudent(
            origin.folder,
            adapter,
            widest(loaded.config),
            modules,
            f"{origin.fingerprint} + {digest(adapter)}",
            tuple(sorted(layers)),
        )
    model = merged(origin, adapter, cache, dtype)
    return ServedStudent(model.folder, fingerprint=model.fingerprint)
