"""Rows and objects of a round's files, as the report reads them."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from shared.records import (
    ROUNDED,
    Cosine,
    Count,
    LogProbability,
    Mass,
    Nats,
    Number,
    Perplexity,
    Positive,
    Record,
    Share,
)

Seven = Field(min_length=7, max_length=7)  # foundations, in canonical order
EXACT = 1e-6  # of a sum of shares: float64, and what a reader of single precision leaves of it


def _whole(shares: list[float]) -> list[float]:
    if abs(sum(shares) - 1) > EXACT:
        raise ValueError(f"seven shares of one whole, which sum to {sum(shares):g}")
    return shares


Distribution = Annotated[list[Share], Seven, AfterValidator(_whole)]
ONCE = ("base", "prompted")  # stages of the original model, rows of round 0


class ConditionLine(Record):
    stage: Literal["base", "prompted", "steered", "random", "healed"]
    name: str = Field(pattern=r"^[\w.+-]+$")
    coefficient: Number | None
    draw: Count | None
    headline: bool
    gate: Number | None = None

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        """A condition beside its stage's headline is named by what it differs in."""
        if self.name != self.stage and (self.gate if self.stage == "healed" else self.coefficient) is None:
            raise ValueError(f"{self.name} has a {'gate' if self.stage == 'healed' else 'coefficient'}")
        return self


class SweepLine(Record):
    coefficient: Number
    n: Count
    kept: Count
    perplexity: Perplexity | None
    distinct_3: Share | None
    trait_llr: Nats | None
    relative_dose: Annotated[Number, Field(ge=0)] | None

    @model_validator(mode="after")
    def _kept_of_n(self) -> Self:
        if self.kept > self.n:
            raise ValueError(f"{self.kept} kept of {self.n}")
        return self


class StudentLayer(Record):
    """A layer of the student's own shift; see evals.internalised."""

    layer: Count
    norm_ratio: Annotated[Number, Field(ge=0)]
    cos_teacher: Cosine | None
    cos_round_1: Cosine | None
    split_half: Cosine | None


class Scores(Record):
    """scores.json: how a round was scored, its conditions, its sweep by coefficient and its student's shift by layer."""

    round: Annotated[Count, Field(ge=1)]
    instrument: str
    vignettes: str
    debias: Literal["reversal", "cyclic"]
    think: Count
    items: list[str]
    foundations: list[str]
    conditions: list[ConditionLine]
    sweep: list[SweepLine]
    student: list[StudentLayer]


class ScoreRow(Record):
    """A row of evals.score; setting and numbers as evals.forced_choice.row gives them, model the fingerprint of the original."""

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
    debias: Literal["reversal", "cyclic"]
    think_tokens: Count
    stop: bool
    temperature: Annotated[Number, Field(ge=0)]
    instrument: str
    top_k: Count | None = None
    model: str | None = None
    dtype: str | None = None
    free_valid: bool | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _masses(self) -> Self:
        """The labels are some of the tokens that come next: together at most all of them."""
        for sample in (sample for order in self.lp for sample in order):
            mass = sum(math.exp(value) for value in sample if value is not None)
            if mass > 1 + 2 * ROUNDED:
                raise ValueError(f"lp are log-probabilities of one next token, and their mass is {mass:g}")
        return self

    @model_validator(mode="after")
    def _scorable_or_not(self) -> Self:
        """One log-probability that is missing leaves the item without a score."""
        whole = all(value is not None for order in self.lp for sample in order for value in sample)
        if {self.p is not None, self.score is not None, self.pmass_allowed is not None} != {whole}:
            raise ValueError("p, score and pmass_allowed are there where every lp is, and only there")
        return self


class Generation(Record):
    """A free generation; nll is its total nats under the original model, null where one is not finite."""

    known_by = ("name", "prompt_id", "sample")
    name: str
    prompt_id: str
    prompt: str
    sample: Count
    text: str
    finish_reason: str
    nll: Positive | None
    tokens: Count
    perplexity: Perplexity | None
    trait_llr: Nats | None
    distinct_1: Share | None
    distinct_2: Share | None
    distinct_3: Share | None
    loop_share: Share | None


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
