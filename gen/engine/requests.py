"""What a request asks of the patch, read and checked before it enters the engine, and the cache salt that follows from it.

In SamplingParams.extra_args, or `vllm_xargs` over HTTP: steer_vector (a loaded name), steer_coefficient (a finite number),
and optionally steer_positions ('all' or 'generated') and steer_from (the first absolute position). Nothing that is not understood
runs unsteered: it is refused. Every road to an engine reads its requests here, so that this is where a coefficient is admitted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gen.engine.overflow import FLOAT32_MAX, largest_coefficient
from gen.engine.steering import UNSTEERED, Steer
from shared.errors import SteerHealError
from shared.vectors import Vector

KEYS = ("steer_vector", "steer_coefficient", "steer_positions", "steer_from")
RESOLVED = "steer"  # what a worker reads: slot, coefficient, start


def meant(name: str) -> bool:
    """Whether a field's name means to steer, in whatever letters: STEER_VECTOR, steer-vector, applySteering, vllm_xarg."""
    letters = re.sub("[^a-z]", "", name.lower())
    return "steer" in letters or letters.startswith("vllmxarg")


@dataclass(frozen=True)
class Loaded:
    """A vector in a slot of the bank. digest names its content; largest is the largest coefficient accepted for it."""

    slot: int
    digest: str
    largest: float
    positions: str


class Registry:
    """The vectors an engine has loaded: names to slots. Slots that are freed are used again.

    limit: largest finite number of the model's dtype; model_type: its architecture. Both bound the coefficients.
    """

    def __init__(self, slots: int, limit: float = FLOAT32_MAX, model_type: str = ""):
        self.slots, self.limit, self.model_type = slots, limit, model_type
        self.loaded: dict[str, Loaded] = {}

    def add(self, name: str, vector: Vector) -> Loaded:
        """Give a vector a slot under a name; the same name again keeps its slot."""
        taken = {entry.slot for other, entry in self.loaded.items() if other != name}
        free = (
            self.loaded[name].slot
            if name in self.loaded
            else next((slot for slot in range(1, self.slots + 1) if slot not in taken), None)
        )
        if free is None:
            raise SteerHealError(
                "more vectors than slots",
                given=f"{name} beside {', '.join(sorted(self.loaded))}",
                expected=f"at most {self.slots}",
                next="name fewer vectors, or give the engine more slots",
            )
        self.loaded[name] = Loaded(
            free,
            vector.digest()[:16],
            largest_coefficient(vector.layers, self.limit, self.model_type),
            vector.metadata.get("positions", "all"),
        )
        return self.loaded[name]

    def remove(self, name: str) -> None:
        del self.loaded[name]

    def read(self, extra: Mapping[str, Any] | None, prompt_tokens: int) -> tuple[Steer, str | None]:
        """The steering of a request and the salt of its cache blocks; (UNSTEERED, None) when it asks for none.

        Blocks are keyed by tokens alone: without a salt a prompt would read the keys and values of another coefficient. Raises
        SteerHealError for an unknown vector, a coefficient that is not finite or too large, and anything else not understood.
        """
        asked = {key: value for key, value in (extra or {}).items() if meant(key)}
        if not asked:
            return UNSTEERED, None
        if unknown := sorted(set(asked) - set(KEYS)):
            raise _refuse("a steering field is unknown", unknown[0], ", ".join(KEYS))
        if not {"steer_vector", "steer_coefficient"} <= set(asked):
            raise _refuse(
                "a steered request names a vector and a coefficient", asked, "steer_vector and steer_coefficient"
            )
        name, coefficient = asked["steer_vector"], asked["steer_coefficient"]
        if not isinstance(name, str) or name not in self.loaded:
            raise _refuse("no such steering vector", name, ", ".join(sorted(self.loaded)) or "none is loaded")
        vector = self.loaded[name]
        if isinstance(coefficient, bool) or not isinstance(coefficient, int | float) or coefficient != coefficient:
            raise _refuse("a coefficient is not a finite number", coefficient, "a finite number")
        if abs(coefficient) > vector.largest:
            raise _refuse(
                "the coefficient would overflow the model's numbers",
                coefficient,
                f"from {-vector.largest:g} to {vector.largest:g} for the vector {name!r}",
                next=f"lower it: |c| up to {vector.largest:g}",
            )
        if prompt_tokens < 1:
            raise _refuse("a steered prompt has no tokens", "embeddings, or nothing", "token ids or text")
        positions = asked.get("steer_positions", vector.positions)
        if positions not in ("all", "generated"):
            raise _refuse("steering positions are unknown", positions, "'all' or 'generated'")
        # The last token of the prompt yields the first sampled one: steering from prompt_tokens on would leave that unsteered.
        start = asked.get("steer_from", prompt_tokens - 1 if positions == "generated" else 0)
        if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < prompt_tokens:
            raise _refuse("steering starts outside the prompt", start, f"a position from 0 to {prompt_tokens - 1}")
        steer = Steer(vector.slot, float(coefficient), start)
        return steer, f"steer {vector.digest} {steer.coefficient!r} {start}"


def _refuse(what: str, given: object, expected: str, next: str = "mend the request") -> SteerHealError:
    return SteerHealError(what, given=repr(given), expected=expected, next=next)
