"""Rows and objects of a round's files, as the report reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from shared.filter_record import SweepLine
from shared.records import (
    ROUNDED,
    Cosine,
    Count,
    Number,
    Positive,
    Record,
    Share,
)
from shared.schema import Debias
from shared.traits import ReadFor

NEAR = 1e-5  # tolerance of a field computed again from other fields of its row: single precision
AUTHORITY_FALLS = ReadFor(foundation="authority", sign=-1)  # what scores from before this was written are read for
OF_THE_STUDENT = {
    "student_vector": 1.0,
    "student_without_vector": -1.0,
}  # stages with the student's own vector, by coefficient
ONCE = ("base", "prompted", "prompted_opposite", "prompted_decoy")  # stages of the original model, rows of round 0


class ConditionLine(Record):
    stage: Literal[
        "base",
        "prompted",
        "prompted_opposite",
        "prompted_decoy",
        "steered",
        "random",
        "decoy",
        "student_vector",
        "student_without_vector",
        "healed",
    ]
    name: str = Field(pattern=r"^[\w.+-]+$")
    coefficient: Number | None
    draw: Count | None
    headline: bool
    gate: Number | None = None

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        """A condition beside its stage's headline is named by what it differs in."""
        if self.headline != (self.name == self.stage and self.stage not in OF_THE_STUDENT):
            raise ValueError(f"the headline of {self.stage} is named {self.stage}, and no other is")
        if self.headline:
            return self
        if self.stage in OF_THE_STUDENT:
            if self.coefficient != OF_THE_STUDENT[self.stage]:
                raise ValueError(f"{self.stage} is at coefficient {OF_THE_STUDENT[self.stage]:g}")
            return self
        identity = {
            "steered": "coefficient",
            "random": "draw",
            "decoy": "draw",
            "healed": "gate",
            "prompted_decoy": "draw",
        }.get(self.stage)
        value = None if identity is None else getattr(self, identity)
        if identity is None or value is None or self.name != f"{self.stage}-{value:g}":
            raise ValueError(f"{self.name} is not {self.stage} at {identity or 'something else'} {value}")
        if self.coefficient is None:
            raise ValueError(f"{self.name} has a coefficient")
        return self


class StudentLayer(Record):
    """A layer of the student's own shift; see evals.measures.activations."""

    layer: Count
    norm_ratio: Annotated[Number, Field(ge=0)]
    cos_teacher: Cosine | None
    cos_round_1: Cosine | None
    split_half: Cosine | None


class Scores(Record):
    """scores.json: how a round was scored, its conditions, its sweep by coefficient and its student's shift by layer.

    measures: what other measures noted for their own reading, by their names.
    """

    round: Annotated[Count, Field(ge=1)]
    instrument: str
    vignettes: str
    debias: Debias
    think: Count
    items: list[str]
    foundations: list[str]
    conditions: list[ConditionLine]
    sweep: list[SweepLine]
    student: list[StudentLayer]
    read_for: ReadFor | None = AUTHORITY_FALLS
    measures: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        """A line that is there twice counts twice."""
        listed: dict[str, Sequence[object]] = {
            "items": self.items,
            "conditions": [line.name for line in self.conditions],
            "coefficients of the sweep": [(line.coefficient, line.prompted) for line in self.sweep],
            "layers of the student": [line.layer for line in self.student],
        }
        for name, keys in listed.items():
            if len(set(keys)) < len(keys):
                raise ValueError(f"two {name} of one name")
        return self


class TrainingStep(Record):
    """A logging step of train.jsonl; KL to the original and to the previous round's student, nats."""

    step: Count
    loss: Number
    ce: Positive
    fired: Share
    gradient_ratio: Annotated[Number, Field(ge=0)]
    kl_base_mean: Positive
    kl_base_rmse: Positive
    kl_base_p95: Positive
    kl_base_max: Positive
    kl_previous_mean: Positive
    kl_previous_rmse: Positive
    kl_previous_p95: Positive
    kl_previous_max: Positive

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        """Of the same positions, a mean is at most their root mean square, and that and a percentile at most the largest."""
        for name in ("base", "previous"):
            mean, rmse, p95, most = (getattr(self, f"kl_{name}_{kind}") for kind in ("mean", "rmse", "p95", "max"))
            if mean > rmse + ROUNDED or max(rmse, p95) > most + ROUNDED:
                raise ValueError(f"kl_{name}: the mean is at most the rmse, and rmse and p95 at most the max")
        return self


class Heldout(Record):
    """Held-out cross-entropy in train.jsonl, nats."""

    step: Count
    epoch: Annotated[Number, Field(ge=0)]
    heldout_ce: Positive


class LogRow(Record):
    """Any row of train.jsonl."""

    step: Count
    ce: Positive | None = None
    heldout_ce: Positive | None = None
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.ce is None) == (self.heldout_ce is None):
            raise ValueError("a row has either ce, of a step, or heldout_ce")
        return self


class TokenRow(Record):
    """kl_tokens.jsonl: a completion's tokens with their cross-entropy and KL to both references, nats."""

    known_by = ("key",)
    key: str
    tokens: list[str]
    ce: list[Positive]
    kl_base: list[Positive]
    kl_previous: list[Positive]

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if {len(self.ce), len(self.kl_base), len(self.kl_previous)} != {len(self.tokens)}:
            raise ValueError("tokens, ce, kl_base and kl_previous are of one length")
        return self
