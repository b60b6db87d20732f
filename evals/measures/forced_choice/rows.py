"""A row of the forced choice: one vignette under one condition."""

from __future__ import annotations

import math
from typing import Annotated, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from evals.measures.forced_choice.instrument import ORDERS
from evals.measures.forced_choice.labels import answer_of
from evals.rows import NEAR
from shared.records import ROUNDED, Count, LogProbability, Mass, Nats, Number, Positive, Record, Share
from shared.schema import Debias

Seven = Field(min_length=7, max_length=7)  # foundations, in canonical order
EXACT = 1e-6  # of a sum of shares: float64, and what a reader of single precision leaves of it


def _whole(shares: list[float]) -> list[float]:
    if abs(sum(shares) - 1) > EXACT:
        raise ValueError(f"seven shares of one whole, which sum to {sum(shares):g}")
    return shares


Distribution = Annotated[list[Share], Seven, AfterValidator(_whole)]


class ScoreRow(Record):
    """A row of evals.score; setting and numbers as evals.measures.forced_choice.ask.row gives them, model the fingerprint of the original."""

    known_by = ("name", "id")
    id: str
    foundation: str
    lp: list[list[list[LogProbability | None]]]
    p: Distribution | None
    score: Annotated[list[Nats], Seven] | None
    pmass_allowed: Mass | None
    label: Distribution | None
    nll_prefill: Positive | None
    text: str
    debias: Debias
    rotation: Annotated[Count, Field(lt=7)] | None = None
    think_tokens: Count
    stop: bool
    temperature: Annotated[Number, Field(ge=0)]
    instrument: str
    top_k: Count | None = None
    model: str | None = None
    dtype: str | None = None
    template: str | None = None  # the chat template's arguments, JSON; None in rows from before they were written
    free_valid: bool | None = None
    name: str | None = None
    coefficient: Number | None = None

    @model_validator(mode="after")
    def _masses(self) -> Self:
        """The labels are some of the tokens that come next: together at most all of them."""
        for sample in (sample for order in self.lp for sample in order):
            mass = sum(math.exp(value) for value in sample if value is not None)
            if mass > 1 + 2 * ROUNDED:
                raise ValueError(f"lp are log-probabilities of one next token, and their mass is {mass:g}")
        return self

    @model_validator(mode="after")
    def _rotated_or_not(self) -> Self:
        """Rows from elsewhere may leave the rotation out: it follows from their sequence."""
        if self.rotation is not None and self.debias != "rotating":
            raise ValueError(f"a rotation under {self.debias} orders")
        return self

    @model_validator(mode="after")
    def _scorable_or_not(self) -> Self:
        """One log-probability that is missing leaves the item without a score."""
        complete = all(value is not None for order in self.lp for sample in order for value in sample)
        if {self.p is not None, self.score is not None, self.pmass_allowed is not None} != {complete}:
            raise ValueError("p, score and pmass_allowed are there where every lp is, and only there")
        return self

    @model_validator(mode="after")
    def _of_its_lp(self) -> Self:
        """Check the fields that are derived from lp, which the measures read: they must agree with lp."""
        widths = {(len(order), len(sample)) for order in self.lp for sample in order}
        if self.p is None or len(self.lp) != ORDERS[self.debias] or widths != {(len(self.lp[0]), len(self.p))}:
            return self  # lp of another shape is refused with its file
        computed = answer_of(np.array(self.lp, dtype=float))
        self._is("score", self.score, computed.score)
        self._is("p", self.p, computed.p)
        self._is("pmass_allowed", self.pmass_allowed, computed.mass)
        return self

    @staticmethod
    def _is(name: str, recorded: list[float] | float | None, computed: np.ndarray | float) -> None:
        if not np.allclose(np.array(recorded, dtype=float), computed, rtol=NEAR, atol=NEAR):
            raise ValueError(f"{name} does not follow from lp, which gives {np.round(computed, 6).tolist()}")
