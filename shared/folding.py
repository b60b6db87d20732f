"""Finished rounds folded into one adapter, each with its gate.

y = W x + sum_i g_i s_i B_i A_i x. The per-round adapters on disk are the truth; the folded one is rebuilt when a gate changes.
All gates at 0 is the original model, bit for bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from shared.adapter_card import write_history_card
from shared.adapters import PREFIX, VERSION, Adapter, load_adapter, note_base
from shared.cached_weights import cached_weights
from shared.commands import command_of, round_command
from shared.errors import SteerHealError
from shared.fitting import admitted
from shared.models import Model, load_network
from shared.publish import atomic_folder, digest, write_json
from shared.records import Count, Number, Record, read_record
from shared.strict import parse_number

if TYPE_CHECKING:
    import torch


class GatedRound(Record):
    """A round of a history. adapter: its folder, from the history's; gate: 1 is the round as trained, 0 is off."""

    round: Annotated[Count, Field(ge=1)]
    gate: Number
    adapter: str
    sha256: str
    rank: Annotated[Count, Field(ge=1)]
    scale: Number


class Gates(Record):
    """gates.json, oldest round first."""

    rounds: list[GatedRound] = Field(min_length=1)


def fold(adapters: Sequence[tuple[Path, float]], out: Path) -> None:
    """Concatenate rounds 1.. with their gates into one adapter folder of scale 1, with gates.json beside it.

    The scale and gate of a round go into its B, so that a module's rank is the sum over rounds; where a round has no such
    module its share is zero. Raises SteerHealError for adapters of different models and a gate that is not finite.
    """
    with atomic_folder(out) as temporary:
        _fold(adapters, temporary, out)


def _fold(adapters: Sequence[tuple[Path, float]], folder: Path, out: Path) -> None:
    """Fill a folder that will be `out`."""
    from safetensors.torch import save_file

    loaded = [(load_adapter(adapter), _finite(gate)) for adapter, gate in adapters]
    tensors = _concatenated(loaded)
    rank = sum(adapter.rank for adapter, _ in loaded)
    last = loaded[-1][0]
    config = {
        **last.config,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name for adapter, _ in loaded for name in adapter.modules}),
        **{name: None for name in ("exclude_modules", "layers_to_transform", "layers_pattern")},
        **{name: {} for name in ("rank_pattern", "alpha_pattern")},
        "use_rslora": False,  # the scale of each round is in its B
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", config)
    if last.note is not None:
        note_base(folder, last.note)
    write_history_card(folder, last.note, [gate for _, gate in loaded])
    rows = [
        {
            "round": index,
            "gate": gate,
            "adapter": os.path.relpath(adapter.folder, out),
            "sha256": digest(adapter.folder),
            "rank": adapter.rank,
            "scale": adapter.scale,
        }
        for index, (adapter, gate) in enumerate(loaded, start=1)
    ]
    write_json(folder / "gates.json", {"version": VERSION, "rounds": rows})


def _concatenated(loaded: Sequence[tuple[Adapter, float]]) -> dict[str, torch.Tensor]:
    import torch

    bases = {adapter.base for adapter, _ in loaded} - {None}
    shapes = {name: (a.shape[1], b.shape[0]) for adapter, _ in loaded for name, (a, b) in adapter.modules.items()}
    tensors = {}
    for name, (width, height) in sorted(shapes.items()):
        pairs = [
            (adapter.modules[name][0], gate * adapter.scale * adapter.modules[name][1])
            if name in adapter.modules
            else (torch.zeros(adapter.rank, width), torch.zeros(height, adapter.rank))
            for adapter, gate in loaded
        ]
        if len(bases) > 1 or any(a.shape[1] != width or b.shape[0] != height for a, b in pairs):
            raise SteerHealError(
                "the rounds to fold are of different models",
                given=f"{name} has several shapes" if len(bases) < 2 else f"{len(bases)} different base models",
                expected="adapters of one model",
                next="use one model.name per run",
            )
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.cat([a for a, _ in pairs]).contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.cat([b for _, b in pairs], dim=1).contiguous()
    return tensors


def rounds_of(history: Path) -> list[tuple[Path, float]]:
    """The adapters and gates of a folded history, oldest first; an adapter that has changed since is refused."""
    if not (history / "gates.json").exists() and (history / "adapter_config.json").exists():
        raise SteerHealError(
            "this is one adapter, not a history",
            given=history,
            expected="a folded history, with its gates.json",
            next=f"fold it: {command_of('train.export', '--model', 'MODEL', '--adapter', history, '--as', 'history', '--out', f'{history}-history')}",
        )
    gates = read_record(history / "gates.json", Gates, what="a history could not be read", next=_again(history))
    rounds = []
    for row in gates.rounds:
        if (folder := _adapter_at(history, row.adapter)) is None or digest(folder) != row.sha256:
            raise SteerHealError(
                "a round's adapter is not the one that was folded",
                given=folder or f"{history}/{row.adapter[:200]}",
                expected=f"digest {row.sha256}",
                next=f"restore it, or make it again: {_again(history)}",
            )
        rounds.append((folder, row.gate))
    return rounds


def _again(history: Path) -> str:
    """The command that makes a history again: its round where it is a run's, or else the export of the run that it is from."""
    number, run = history.parent.name, history.parent.parent.parent
    if history.parent.parent.name == "rounds" and number.isdigit() and (run / "config.toml").is_file():
        return round_command(run, int(number), rebuild=True)
    return command_of("train.export", "--run", "DIR", "--round", "K", "--as", "history", "--out", f"{history}-again")


def _adapter_at(history: Path, place: str) -> Path | None:
    """The folder of an adapter; None where it holds no adapter: a path from another machine may lead anywhere, and must not be hashed."""
    try:
        folder = (history / place).resolve()
        return folder if (folder / "adapter_config.json").is_file() else None
    except (OSError, ValueError):  # too long, or with a NUL
        return None


def verify(history: Path) -> Adapter:
    """The folded adapter. Raises SteerHealError unless its factors are, bit for bit, those of the rounds at their gates."""
    import torch

    expected = _concatenated([(load_adapter(folder), gate) for folder, gate in rounds_of(history)])
    folded = load_adapter(history)
    digests = {
        f"{PREFIX}{name}.lora_{kind}.weight": value
        for name, factors in folded.modules.items()
        for kind, value in zip("AB", factors, strict=True)
    }
    model = folded.note.model if folded.note else folded.config.get("base_model_name_or_path")
    same = folded.scale == 1 and digests.keys() == expected.keys()
    if not same or any(not torch.equal(digests[name], expected[name]) for name in expected):
        raise SteerHealError(
            "a folded history is not what its gates say",
            given=history,
            expected="the rounds of gates.json at their gates",
            next=f"fold it again: {command_of('train.export', '--model', model, '--history', history, '--out', f'{history}-folded')}",
        )
    return folded


def exact_network(model: Model, adapter: Path | None, device: str = "cpu") -> Any:
    """The network of a student in fp32, for inference: a model under an adapter folder (None: as it is), which no checkpoint has rounded.

    device: as for `load_network`. Raises SteerHealError for an adapter that does not fit the model.
    """
    import torch

    network = load_network(model.folder, torch.float32, device)
    if adapter is not None:
        add(network, admitted(adapter, model))
    return network


def add(network: torch.nn.Module, adapter: Adapter) -> None:
    """Add scale * B A to the weights of a network, in place. Raises SteerHealError where it has no such module."""
    weights = {_plain(name): module.weight for name, module in network.named_modules() if hasattr(module, "weight")}
    for name, (a, b) in adapter.modules.items():
        weight = weights.get(_plain(name))
        if weight is None or weight.shape != (len(b), a.shape[1]):
            raise SteerHealError(
                "an adapter does not fit a model",
                given=f"{adapter.folder}: {name} {[len(b), a.shape[1]]}",
                expected="a module of the model by that name and shape" if weight is None else f"{list(weight.shape)}",
                next="use the adapter with the model it was trained on",
            )
        weight.data += adapter.scale * (b.to(weight.device) @ a.to(weight.device))


def _plain(name: str) -> str:
    """A module's name without the level at which multimodal models nest the language model, each in its own place."""
    return name.replace("language_model.", "", 1)


def gates_of(given: Sequence[str]) -> dict[int, float]:
    """`2=0.5` of a command line as round -> gate."""
    gates: dict[int, float] = {}
    for item in given:
        index, _, gate = item.partition("=")
        try:
            value = parse_number(gate)
            if not (index.isascii() and index.isdigit() and len(index) < 6):
                raise ValueError(index)
        except ValueError:
            raise SteerHealError(
                "a gate could not be read", given=item, expected="ROUND=GATE, such as 2=0.5", next="--gate 2=0.5"
            ) from None
        if int(index) in gates:
            raise SteerHealError(
                "a gate is there twice", given=item, expected="one gate a round", next=f"--gate {item}, once"
            )
        gates[int(index)] = value
    return gates


def rounds_at_gates(source: Path, gates: Mapping[int, float]) -> list[tuple[Path, float]]:
    """The adapters of the rounds of a history, with their gates.

    Args:
        source: a folded history, or an adapter alone, which counts as round 1 at gate 1.
        gates: round -> gate, for rounds whose gate is to change.
    """
    folded = (source / "gates.json").exists()
    rounds = rounds_of(source) if folded else [(source, 1.0)]
    if unknown := sorted(set(gates) - set(range(1, len(rounds) + 1))):
        raise SteerHealError(
            "a gate names no round",
            given=unknown[0],
            expected=f"1 to {len(rounds)}" if folded else "1, the adapter itself",
            next="--gate 1=0.5",
        )
    return [(folder, gates.get(index, gate)) for index, (folder, gate) in enumerate(rounds, start=1)]


def refold(source: Path, gates: Mapping[int, float], out: Path) -> None:
    """Fold a history, or an adapter alone, with other gates.

    Args:
        source: the history, or the adapter alone.
        gates: round -> gate; the others keep theirs.
        out: folder to write the folded history into.
    """
    fold(rounds_at_gates(source, gates), out)


def folded_at_gates(source: Path, gates: Mapping[int, float], cache: Path) -> Path:
    """A history, or an adapter alone, folded with other gates under `cache`, where another process may be reading it already."""
    rounds = [(Path(os.path.realpath(folder)), gate) for folder, gate in rounds_at_gates(source, gates)]
    determinants = [
        "gated",
        *(f"{folder} {digest(folder)} {gate!r}" for folder, gate in rounds),
        os.path.realpath(cache),
    ]
    return cached_weights(str(source), determinants, cache, lambda folder, out: _fold(rounds, folder, out)).folder


def _finite(gate: float) -> float:
    if not math.isfinite(gate):
        raise SteerHealError(
            "a gate is not finite",
            given=gate,
            expected="a number; 1 is the round as trained, 0 is off",
            next="--gate 1=0.5, or eval.gates=[0.5] in a run",
        )
    return gate
