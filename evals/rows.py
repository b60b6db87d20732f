"""Rows and objects of a round's files, as the report reads them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from shared.records import LogProbability, Nats, Number, Perplexity, Record

Seven = Field(min_length=7, max_length=7)  # foundations, in canonical order
ONCE = ("base", "prompted")  # stages of the original model, rows of round 0


class ConditionLine(Record):
    stage: Literal["base", "prompted", "steered", "random", "healed"]
    name: str = Field(pattern=r"^[\w.+-]+$")
    coefficient: Number | None
    draw: int | None
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
    n: int
    kept: int
    perplexity: Perplexity | None
    distinct_3: Number | None
    trait_llr: Nats | None
    relative_dose: Number | None


class StudentLayer(Record):
    """A layer of the student's own shift; see evals.internalised."""

    layer: int
    norm_ratio: Number
    cos_teacher: Number | None
    cos_round_1: Number | None
    split_half: Number | None


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
    lp: list[list[list[LogProbability | None]]]
    p: Annotated[list[Number], Seven] | None
    score: Annotated[list[Nats], Seven] | None
    pmass_allowed: Number | None
    label: Annotated[list[Number], Seven] | None
    nll_prefill: Nats | None
    text: str
    debias: Literal["reversal", "cyclic"]
    think_tokens: int
    stop: bool
    temperature: Number
    instrument: str
    top_k: int | None = None
    model: str | None = None
    dtype: str | None = None
    free_valid: bool | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _scorable_or_not(self) -> Self:
        """One log-probability that is missing leaves the item without a score."""
        whole = all(value is not None for order in self.lp for sample in order for value in sample)
        if {self.p is not None, self.score is not None, self.pmass_allowed is not None} != {whole}:
            raise ValueError("p, score and pmass_allowed are there where every lp is, and only there")
        return self


class Generation(Record):
    """A free generation; nll is its total nats under the original model, null where one is not finite."""

    name: str
    prompt_id: str
    prompt: str
    sample: int
    text: str
    finish_reason: str
    nll: Nats | None
    tokens: int
    perplexity: Perplexity | None
    trait_llr: Nats | None
    distinct_1: Number | None
    distinct_2: Number | None
    distinct_3: Number | None
    loop_share: Number | None


class TrainingStep(Record):
    """A logging step of train.jsonl; KL to the original and to the previous round's student, nats."""

    step: int
    loss: Number
    ce: Number
    fired: Number
    gradient_ratio: Number
    kl_base_mean: Number
    kl_base_rmse: Number
    kl_base_p95: Number
    kl_base_max: Number
    kl_previous_mean: Number
    kl_previous_rmse: Number
    kl_previous_p95: Number
    kl_previous_max: Number


class Heldout(Record):
    """Held-out cross-entropy in train.jsonl, nats."""

    step: int
    epoch: Number
    heldout_ce: Number


class LogRow(Record):
    """Any row of train.jsonl."""

    step: int
    ce: Number | None = None
    heldout_ce: Number | None = None
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class TokenRow(Record):
    """kl_tokens.jsonl: a completion's tokens with their cross-entropy and KL to both references, nats."""

    key: str
    tokens: list[str]
    ce: list[Number]
    kl_base: list[Number]
    kl_previous: list[Number]

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if {len(self.ce), len(self.kl_base), len(self.kl_previous)} != {len(self.tokens)}:
            raise ValueError("tokens, ce, kl_base and kl_previous are of one length")
        return self
