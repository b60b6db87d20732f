"""What a request asks of the patch, read and checked before it enters the engine, and the cache salt that follows from it.

In SamplingParams.extra_args, or `vllm_xargs` over HTTP, by the fields of gen/engine/terms.py. Nothing that is not understood
runs unsteered: it is refused. Every road to an engine reads its requests here, so that this is where coefficients are admitted.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from gen.engine.overflow import FLOAT32_MAX, largest_coefficient
from gen.engine.steering import UNSTEERED, Steer, Term
from gen.engine.terms import KEYS, READ, RequestedTerm, read_terms, refuse_term
from shared.errors import SteerHealError
from shared.vectors import Vector

RESOLVED = "steer"  # what a worker reads: a list of [slot, coefficient, start, end]


def meant(name: str) -> bool:
    """Whether a field's name means to steer, in whatever letters: STEER_VECTOR, steer-vector, applySteering, vllm_xarg."""
    letters = re.sub("[^a-z]", "", name.lower())
    return "steer" in letters or letters.startswith("vllmxarg")


@dataclass(frozen=True)
class LoadedVector:
    """A vector in a slot of the bank.

    Args:
        slot: from 1 on.
        digest: names its content.
        largest: the largest coefficient accepted for it.
        positions: of a term that names none.
        norms: 2-norm by layer.
        dose: at coefficient 1, the norm over the mean norm of the residual stream, by layer; without those that nobody has measured.
    """

    slot: int
    digest: str
    largest: float
    positions: str
    norms: Mapping[int, float]
    dose: Mapping[int, float]


class BankFull(SteerHealError):
    """Every slot holds a vector that is offered or that a running request still uses."""


def vector_key(name: str, owner: str) -> str:
    """Under what a registry holds a vector: the operator's by its name, a client's after the name of its API key."""
    return f"{owner}/{name}" if owner else name


class Registry:
    """The vectors an engine has loaded: names to slots. A slot is used again when no name and no running request uses it.

    Args:
        slots: of the bank.
        limit: largest finite number of the model's dtype; bounds the coefficients, as does
        model_type: its architecture.
    """

    def __init__(self, slots: int, limit: float = FLOAT32_MAX, model_type: str = ""):
        self.slots, self.limit, self.model_type = slots, limit, model_type
        self.layers: list[int] = []  # that the engine has patched, in their order
        self.reads = False  # whether it reads the residual stream
        self.loaded: dict[str, LoadedVector] = {}
        self.running: Container[str] = ()  # ids of the requests in the engine
        self._users: dict[str, Steer] = {}
        self._residual: dict[
            str, float
        ] = {}  # mean norm of the residual stream by layer, as the operator's vectors say

    def add(self, key: str, vector: Vector) -> LoadedVector:
        """Give a vector a slot under a key; the same key again keeps its slot unless a running request uses that."""
        self.loaded[key] = self.placed(key, vector)
        if "/" not in key:
            self._residual.update(vector.metadata.get("hidden_norm", {}))
        return self.loaded[key]

    def placed(self, key: str, vector: Vector, *, elsewhere: bool = False) -> LoadedVector:
        """The vector in a slot that is free, not yet offered to requests: that of its key, or, elsewhere, another as long as there is one.

        Raises BankFull.
        """
        used_slots = {entry.slot for other, entry in self.loaded.items() if other != key} | self._used()
        same_slot = [self.loaded[key].slot] if key in self.loaded else []
        others = [slot for slot in range(1, self.slots + 1) if slot not in same_slot]
        order = others + same_slot if elsewhere else same_slot + others
        free = next((slot for slot in order if slot not in used_slots), None)
        if free is None:
            raise BankFull(
                "more vectors than slots",
                given=f"{key} beside {', '.join(sorted(self.loaded))}",
                expected=f"at most {self.slots}",
                next=f"name fewer vectors, or start the server with --slots {2 * self.slots}",
            )
        norms = {layer: vector.norm(layer) for layer in sorted(vector.layers)}
        residual = {**self._residual, **vector.metadata.get("hidden_norm", {})}
        return LoadedVector(
            free,
            vector.digest()[:16],
            largest_coefficient(vector.layers, self.limit, self.model_type),
            vector.metadata.get("positions", "all"),
            norms,
            {layer: norm / residual[str(layer)] for layer, norm in norms.items() if str(layer) in residual},
        )

    def remove(self, key: str) -> None:
        """Offer a vector no longer. Running requests that use it go on with it."""
        del self.loaded[key]

    def visible(self, owner: str) -> dict[str, LoadedVector]:
        """The vectors that requests under an API key may name, by name: the operator's and the client's."""
        prefix = vector_key("", owner)
        theirs = {
            key.removeprefix(prefix): entry for key, entry in self.loaded.items() if owner and key.startswith(prefix)
        }
        return {**theirs, **{key: entry for key, entry in self.loaded.items() if "/" not in key}}

    def begin(self, request_id: str, steer: Steer) -> None:
        """Note that a request has entered the engine. Its slots stay as they are until it leaves."""
        self._users[request_id] = steer

    def end(self, request_id: str) -> Steer:
        """Note that it has left; what it asked for."""
        return self._users.pop(request_id, UNSTEERED)

    @property
    def free(self) -> int:
        """Slots that a new vector may take."""
        return self.slots - len({entry.slot for entry in self.loaded.values()} | self._used())

    def _used(self) -> set[int]:
        """Slots of the running requests."""
        self._users = {name: steer for name, steer in self._users.items() if name in self.running}
        return {int(slot) for steer in self._users.values() for slot, *_ in steer}

    def read(self, extra: Mapping[str, Any] | None, prompt_tokens: int, owner: str = "") -> tuple[Steer, str | None]:
        """The steering of a request and the salt of its cache blocks; (UNSTEERED, None) when it asks for none.

        Blocks are keyed by tokens alone: without a salt a prompt would read the keys and values of another coefficient. Raises
        SteerHealError for an unknown vector, coefficients that are not finite or too large, and anything else not understood.
        """
        arguments = {key: value for key, value in (extra or {}).items() if meant(key)}
        if not arguments:
            return UNSTEERED, None
        if unknown := sorted(set(arguments) - set(KEYS)):
            raise refuse_term("a steering field is unknown", unknown[0], ", ".join(KEYS))
        self.slot_read(arguments, owner)
        if not (arguments := {key: value for key, value in arguments.items() if key != READ}):
            return UNSTEERED, None
        terms = read_terms(arguments)
        visible = self.visible(owner)
        vectors = [_named(term.vector, visible) for term in terms]
        self._admit(terms, vectors)
        if prompt_tokens < 1:
            raise refuse_term("a steered prompt has no tokens", "embeddings, or nothing", "token ids or text")
        resolved = sorted(
            (vector.digest, *term.window(prompt_tokens, vector.positions), float(term.coefficient), vector.slot)
            for term, vector in zip(terms, vectors, strict=True)
        )  # one order for one sum, in whatever order a request names its terms
        steer = tuple(Term(slot, coefficient, start, end) for _, start, end, coefficient, slot in resolved)
        salt = "; ".join(f"{digest} {coefficient!r} {start} {end}" for digest, start, end, coefficient, _ in resolved)
        return steer, f"steer {salt}"

    def slot_read(self, extra: Mapping[str, Any] | None, owner: str = "") -> int:
        """The slot of the vector that a request's residual stream is projected on; 0 when it asks for none.

        Raises SteerHealError for an unknown vector, and in an engine that does not read.
        """
        if READ not in (extra or {}):
            return 0
        name = (extra or {})[READ]
        if not self.reads:
            raise refuse_term("this engine does not read the residual stream", f"{READ}: {name!r}", "one that is started to read", next="steer-heal serve --read ...")  # fmt: skip
        return _named(name, self.visible(owner)).slot

    @staticmethod
    def _admit(terms: list[RequestedTerm], vectors: list[LoadedVector]) -> None:
        """Refuse terms whose sum could overflow. A shift within a share of its own bound in every term is within the sum of the
        shares of the bound: both bounds of gen/engine/overflow.py are norms, whatever the signs and windows."""
        for term, vector in zip(terms, vectors, strict=True):
            if abs(term.coefficient) > vector.largest:
                raise refuse_term(
                    "the coefficient would overflow the model's numbers",
                    term.coefficient,
                    f"from {-vector.largest:g} to {vector.largest:g} for the vector {term.vector!r}",
                    next=f"lower it: |c| up to {vector.largest:g}",
                )
        share = sum(abs(term.coefficient) / vector.largest for term, vector in zip(terms, vectors, strict=True))
        if len(terms) > 1 and share > 1:
            raise refuse_term(
                "the sum of the terms would overflow the model's numbers",
                [term.coefficient for term in terms],
                "coefficients whose shares of the largest add up to 1 at most: "
                + ", ".join(
                    f"{vector.largest:g} for {term.vector!r}" for term, vector in zip(terms, vectors, strict=True)
                ),
                next=f"divide all of them by {share:.3g}",
            )


def _named(name: object, visible: Mapping[str, LoadedVector]) -> LoadedVector:
    if not isinstance(name, str) or name not in visible:
        raise refuse_term("no such steering vector", name, ", ".join(sorted(visible)) or "none is loaded")
    return visible[name]
