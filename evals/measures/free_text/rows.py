"""A row of the free text: one completion of one held-out prompt under one condition."""

from __future__ import annotations

import math
from typing import Self

from pydantic import model_validator

from evals.rows import NEAR
from shared.records import Count, Nats, Perplexity, Positive, Record, Share, Token
from shared.text import distinct_n, loop_share


class Generation(Record):
    """A free generation; nll is its total nats under the original model, own_nll under the condition that said it, null where one is not
    finite. own_nll, llr_opposite and relevance are null in rows of earlier versions."""

    known_by = ("name", "prompt_id", "sample")
    name: str
    prompt_id: str
    prompt: str
    kind: str | None = None  # of the prompt
    sample: Count
    text: str
    finish_reason: str
    nll: Positive | None
    tokens: Count
    perplexity: Perplexity | None
    trait_llr: Nats | None
    own_nll: Positive | None = None
    llr_opposite: Nats | None = None
    relevance: Nats | None = None
    distinct_1: Share | None
    distinct_2: Share | None
    distinct_3: Share | None
    loop_share: Share | None
    completion_ids: list[Token] | None = None  # None in rows from elsewhere

    @model_validator(mode="after")
    def _of_its_tokens(self) -> Self:
        """Check the fields that are derived from the tokens: present where there are tokens, and equal to their sums. nll is their total, in nats."""
        if not self.tokens and (self.nll, self.perplexity, self.trait_llr) not in (
            (0.0, None, None),
            (None, None, None),
        ):
            raise ValueError("a text without tokens has no perplexity and no trait_llr, and an nll of 0")
        if not self.tokens and (self.own_nll or 0.0, self.llr_opposite, self.relevance) != (0.0, None, None):
            raise ValueError("a text without tokens has no llr_opposite and no relevance, and an own_nll of 0")
        ids = self.completion_ids
        if ids is not None and len(ids) != self.tokens:
            raise ValueError(f"{self.tokens} tokens, and {len(ids)} completion_ids")
        if self.tokens and self.nll is not None and self.perplexity is not None:
            self._is("the logarithm of perplexity", math.log(self.perplexity), self.nll / self.tokens)
        if ids:
            for n, recorded in enumerate((self.distinct_1, self.distinct_2, self.distinct_3), start=1):
                self._is(f"distinct_{n}", recorded, distinct_n(ids, n))
            self._is("loop_share", self.loop_share, loop_share(ids))
        return self

    @staticmethod
    def _is(name: str, recorded: float | None, computed: float) -> None:
        if recorded is None or not math.isclose(recorded, computed, rel_tol=NEAR, abs_tol=NEAR):
            raise ValueError(f"{name} is {recorded}, but nll, tokens and completion_ids give {computed:g}")
