"""Rows and objects of a round's files, as the report reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from evals.instrument import orders
from evals.labels import answer_of
from shared.filter_record import SweepLine
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
    Token,
)
from shared.text import distinct_n, loop_share

Seven = Field(min_length=7, max_length=7)  # foundations, in canonical order
NEAR = 1e-5  # of what is computed again from what stands beside it: single precision
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
        if self.headline != (self.name == self.stage):
            raise ValueError(f"the headline of {self.stage} is named {self.stage}, and no other is")
        if self.headline:
            return self
        what = {"steered": "coefficient", "random": "draw", "healed": "gate"}.get(self.stage)
        value = None if what is None else getattr(self, what)
        if what is None or value is None or self.name != f"{self.stage}-{value:g}":
            raise ValueError(f"{self.name} is not {self.stage} at {what or 'something else'} {value}")
        if self.coefficient is None:
            raise ValueError(f"{self.name} has a coefficient")
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

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        """A line that is there twice counts twice."""
        listed: dict[str, Sequence[object]] = {
            "items": self.items,
            "conditions": [line.name for line in self.conditions],
            "coefficients of the sweep": [line.coefficient for line in self.sweep],
            "layers of the student": [line.layer for line in self.student],
        }
        for what, found in listed.items():
            if len(set(found)) < len(found):
                raise ValueError(f"two {what} of one name")
        return self


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
    template: str | None = None  # the chat template's arguments, JSON; None in rows from before they were written
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

    @model_validator(mode="after")
    def _of_its_lp(self) -> Self:
        """What lp comes to stands beside it, and is what the measures take: it may not say something else."""
        widths = {(len(order), len(sample)) for order in self.lp for sample in order}
        if self.p is None or len(self.lp) != len(orders(self.debias)) or widths != {(len(self.lp[0]), len(self.p))}:
            return self  # lp of another shape is refused with its file
        made = answer_of(np.array(self.lp, dtype=float))
        self._is("score", self.score, made.score)
        self._is("p", self.p, made.p)
        self._is("pmass_allowed", self.pmass_allowed, made.mass)
        return self

    @staticmethod
    def _is(name: str, given: list[float] | float | None, made: np.ndarray | float) -> None:
        if not np.allclose(np.array(given, dtype=float), made, rtol=NEAR, atol=NEAR):
            raise ValueError(f"{name} is not what lp comes to, {np.round(made, 6).tolist()}")


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
    completion_ids: list[Token] | None = None  # None in rows from elsewhere

    @model_validator(mode="after")
    def _of_its_tokens(self) -> Self:
        """What is computed of the tokens is what they come to, and is there where there are any; nll is their total, in nats."""
        if not self.tokens and (self.nll, self.perplexity, self.trait_llr) not in (
            (0.0, None, None),
            (None, None, None),
        ):
            raise ValueError("a text without tokens has no perplexity and no trait_llr, and an nll of 0")
        ids = self.completion_ids
        if ids is not None and len(ids) != self.tokens:
            raise ValueError(f"{self.tokens} tokens, and {len(ids)} completion_ids")
        if self.tokens and self.nll is not None and self.perplexity is not None:
            self._is("the logarithm of perplexity", math.log(self.perplexity), self.nll / self.tokens)
        if ids:
            for n, given in enumerate((self.distinct_1, self.distinct_2, self.distinct_3), start=1):
                self._is(f"distinct_{n}", given, distinct_n(ids, n))
            self._is("loop_share", self.loop_share, loop_share(ids))
        return self

    @staticmethod
    def _is(name: str, given: float | None, made: float) -> None:
        if given is None or not math.isclose(given, made, rel_tol=NEAR, abs_tol=NEAR):
            raise ValueError(f"{name} is {given}, where nll, tokens and completion_ids come to {made:g}")


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
