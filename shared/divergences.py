"""The divergences that the healing objective knows, as the configuration, the training's log and the report name them.

Their functions are in train/divergences.py, because shared imports no torch. A new divergence is an entry here and a function there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class Divergence:
    """What is known of a divergence without computing it.

    Args:
        meaning: in a few words, for the configuration's help.
        symbol: what figures call the logged D.
        barrier: whether the objective has a barrier, which needs a reference; D is logged either way.
        weight_decay: whether AdamW decays this round's A and B by train.weight_decay.
    """

    meaning: str
    symbol: str = "KL"
    barrier: bool = True
    weight_decay: bool = False


DIVERGENCES = {
    "nll": Divergence("0", barrier=False),
    "kl_fwd": Divergence("KL(ref||theta)"),
    "kl_rev": Divergence("KL(theta||ref)"),
    "js": Divergence("Jensen-Shannon, at most ln 2", symbol="JS"),
    "wd": Divergence("0, AdamW decay", barrier=False, weight_decay=True),
}

if TYPE_CHECKING:
    DivergenceName = str
else:
    DivergenceName = Literal[tuple(DIVERGENCES)]


def has_barrier(name: str) -> bool:
    """Whether the objective has a barrier under the divergence of this name."""
    return DIVERGENCES[name].barrier
