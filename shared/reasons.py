"""Why the filter rejects a completion, as data."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Reason(BaseModel):
    """A rule that rejected a completion, and by how much.

    value and limit are numbers of the rule's measure, None for a rule that searches the text; text is the passage that such a rule found. Every
    field has one type, so that data sets have typed columns.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True, frozen=True)
    rule: str = Field(min_length=1)
    value: float | None = None
    limit: float | None = None
    text: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_sentence(cls, given: Any) -> Any:
        """Files of earlier versions have 'rule: figures' in its place. Their figures stay text."""
        if not isinstance(given, str):
            return given
        rule, _, figures = given.partition(":")
        return {"rule": rule, "text": figures.strip() or None}

    def __str__(self) -> str:
        if self.value is not None and self.limit is not None:
            side = "most" if self.value > self.limit else "least"  # it is rejected, so it lies beyond
            return f"{self.rule}: {self.value:.4g}, at {side} {self.limit:.4g}"
        return self.rule if self.text is None else f"{self.rule}: {self.text}"
