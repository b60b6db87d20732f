"""Rows and objects of a round's files, as the report reads them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from shared.records import Record

ONCE = ("base", "prompted")  # stages of the original model, rows of round 0


class ConditionLine(Record):
    stage: Literal["base", "prompted", "steered", "random", "healed"]
    name: str = Field(pattern=r"^[\w.+-]+$")
    coefficient: float | None
    draw: int | None
    headline: bool
    gate: float | None = None

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        """A condition beside its stage's headline is named by what it differs in."""
        if self.name != self.stage and (self.gate if self.stage == "healed" else self.coefficient) is None:
            raise ValueError(f"{self.name} has a {'gate' if self.stage == 'healed' else 'coefficient'}")
        return self


class SweepLine(Record):
    coefficient: float
    n: int
    kept: int
    perplexity: float | None
    distinct_3: float | None
    trait_llr: float | None
    relative_dose: float | None


class StudentLayer(Record):
    """A layer of the student's own shift; see evals.internalised."""

    layer: int
    norm_ratio: float
    cos_teacher: float | None
    cos_round_1: float | None
    split_half: float | None


class Scores(Record):
    """scores.json: how a round was scored, its conditions, its sweep by coefficient and its student's shift by layer."""

    round: int
    instrument: str
    vignettes: str
    debias: Literal["reversal", "cyclic"]
    think: int
    items: list[str]
    foundations: list[str]
    conditions: list[ConditionLine]
    sweep: list[SweepLine]
    student: list[StudentLayer]


class ScoreRow(Record):
    """A row of evals.score; setting and numbers as evals.forced_choice.row gives them, model the fingerprint of the original."""

    id: str
    foundation: str
    lp: list[list[list[float | None]]]
    p: list[float] | None
    score: list[float] | None
    pmass_allowed: float | None
    label: list[float] | None
    nll_prefill: float | None
    text: str
    debias: Literal["reversal", "cyclic"]
    think_tokens: int
    stop: bool
    temperature: float
    instrument: str
    top_k: int | None = None
    model: str | None = None
    dtype: str | None = None
    free_valid: bool | None = None
    name: str | None = None


class Generation(Record):
    """A free generation; nll is its total nats under the original model, null where one is not finite."""

    name: str
    prompt_id: str
    prompt: str
    sample: int
    text: str
    finish_reason: str
    nll: float | None
    tokens: int
    perplexity: float | None
    trait_llr: float | None
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    loop_share: float | None


class Step(Record):
    """A logging step of train.jsonl; KL to the original and to the previous round's student, nats."""

    step: int
    loss: float
    ce: float
    fired: float
    gradient_ratio: float
    kl_base_mean: float
    kl_base_rmse: float
    kl_base_p95: float
    kl_base_max: float
    kl_previous_mean: float
    kl_previous_rmse: float
    kl_previous_p95: float
    kl_previous_max: float


class Heldout(Record):
    """Held-out cross-entropy in train.jsonl, nats."""

    step: int
    epoch: float
    heldout_ce: float


class LogRow(Record):
    """Any row of train.jsonl."""

    step: int
    ce: float | None = None
    heldout_ce: float | None = None
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class TokenRow(Record):
    """kl_tokens.jsonl: a completion's tokens with their cross-entropy and KL to both references, nats."""

    key: str
    tokens: list[str]
    ce: list[float]
    kl_base: list[float]
    kl_previous: list[float]

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if {len(self.ce), len(self.kl_base), len(self.kl_previous)} != {len(self.tokens)}:
            raise ValueError("tokens, ce, kl_base and kl_previous are of one length")
        return self
