"""Log-probabilities that a sweep leaves in a sample of its rows, and what the trainer found when it compared its own with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# As LogProbability and Count of shared/records.py, which imports this file.
LogProbability = Annotated[float, Field(ge=-1e6, le=1e-3)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Distance = Annotated[float, Field(ge=0, le=1e6)]
DIGITS = 7  # decimals kept: below the rounding of float32 at the size of a log-probability


class _Plain(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, strict=True)


class Logprobs(_Plain):
    """Of every completion token, in nats, after the neutral prompt, unsteered, under the weights that the sampler served.

    student: the student that was steered; original: the original model. ids: `digest_of` the token ids they are of.
    """

    ids: str
    student: list[LogProbability]
    original: list[LogProbability]


class Difference(_Plain):
    """Of two series of log-probabilities, in nats: the mean and the largest absolute difference, and the token of the largest.

    key: its row; position: from 0 in the completion; token: its text.
    """

    mean: Distance
    largest: Distance
    key: str
    position: Count
    token: str


class Agreement(_Plain):
    """Sampler against trainer before the first step, over `tokens` of the `rows` whose log-probabilities the sweep recorded.

    student: the network that is trained; original: all its gates off; both None where nothing was compared. effect: mean absolute
    difference of the trainer's student to its original, nats, 0 in round 1. mean_bound and largest_bound: None where none is set. note:
    why nothing was compared, or no bound is set.
    """

    rows: Count
    tokens: Count
    student: Difference | None = None
    original: Difference | None = None
    effect: Distance | None = None
    mean_bound: Distance | None = None
    largest_bound: Distance | None = None
    note: str | None = None

    def sentence(self) -> str:
        """The differences in a sentence, for the terminal, the report and the card."""
        if self.student is None:
            return f"nothing was compared: {self.note}"
        parts = [f"student: mean {self.student.mean:.2g}, largest {self.student.largest:.2g}"]
        if self.original is not None and self.original != self.student:
            parts.append(f"original: mean {self.original.mean:.2g}, largest {self.original.largest:.2g}")
        if self.effect:
            parts.append(f"the history moves a token by {self.effect:.2g} on average")
        limit = self.note or "no bound"
        if self.mean_bound is not None and self.largest_bound is not None:
            limit = f"bounds: mean {self.mean_bound:g}, largest {self.largest_bound:g}"
        return f"over {self.tokens} tokens of {self.rows} rows, in nats: {'; '.join(parts)} ({limit})"


def digest_of(prompt: Sequence[int], completion: Sequence[int]) -> str:
    """64 bits of the sha256 of token ids, which tell whether a row still has those that were scored."""
    return hashlib.sha256(json.dumps([list(prompt), list(completion)]).encode()).hexdigest()[:16]
