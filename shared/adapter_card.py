"""The card (README.md) of an adapter's folder: which weights it belongs to, which rounds it holds, and how to load the student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import jinja
from shared.adapters import Base
from shared.hub import public_name
from shared.publish import write_text

CARD = "README.md"
HUB = {"embedded": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # what the embedded model was quantised from


def write_round_card(folder: Path, base: Base) -> None:
    """The card of one round's adapter. base: with its round."""
    _write(folder, base, round=base.round or 1, gates=())


def write_history_card(folder: Path, base: Base | None, gates: Sequence[float]) -> None:
    """The card of folded rounds. base: of their last round, None where it is not known; gates: of the rounds, oldest first."""
    _write(folder, base, round=None, gates=gates)


def trained_on(base: Base) -> dict[str, Any]:
    """What the templates trained_on.md and finding_weights.md say of the weights that an adapter was trained on."""
    return {"base": base, "weights": public_name(base.model), "embedded_from": HUB["embedded"]}


def _write(folder: Path, base: Base | None, **values: Any) -> None:
    name = HUB.get(base.model, public_name(base.model)) if base else None
    loads = f"{base.model!r}, revision={base.revision!r}" if base and base.revision else '"BASE"'
    text = jinja.fill_card(
        jinja.SHARED,
        "adapter_card.md",
        base_model=name if name and name.count("/") == 1 else None,
        loads=loads,
        **(trained_on(base) if base else {"base": None}),
        **values,
    )
    write_text(folder / CARD, text)
