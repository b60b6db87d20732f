"""filter.json: what the filter decided by and what came of it. Score, card and report read it and judge nothing again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from shared.errors import SteerHealError
from shared.records import Count, Nats, Number, Perplexity, Record, Share, Source, read_record, source_of

FILTER_RECORD = "filter.json"


class SweepLine(Record):
    """The completions of one coefficient, or those under the trait prompt: how many, how many of them are kept, and means over all of them.

    perplexity is exp of the token-weighted mean nll; relative_dose is a mean over the vector's layers, None without the vector.
    """

    coefficient: Number
    n: Count
    kept: Count
    perplexity: Perplexity | None
    distinct_3: Share | None
    trait_llr: Nats | None
    relative_dose: Annotated[Number, Field(ge=0)] | None
    prompted: bool = False

    @property
    def source(self) -> Source:
        """steered, unsteered or prompted, as filter.source names it."""
        return source_of(self.coefficient, self.prompted)

    @model_validator(mode="after")
    def _kept_of_n(self) -> Self:
        if self.kept > self.n:
            raise ValueError(f"{self.kept} kept of {self.n}")
        return self


class FilterRecord(Record):
    """What filter.json holds.

    Args:
        limits: of every rule that measures, by its name.
        lines: the sweep by coefficient, ascending; 0 is a control, or the source, and so are completions under the trait prompt.
        causes: how many candidates each rule rejected, most first; a completion can be rejected by several.
        kept, rejected: candidates in the two files.
    """

    limits: dict[str, float]
    lines: list[SweepLine]
    causes: dict[str, Count]
    kept: Count
    rejected: Count

    @model_validator(mode="after")
    def _each_coefficient_once(self) -> Self:
        lines = [(line.coefficient, line.prompted) for line in self.lines]
        if len(set(lines)) < len(lines):
            raise ValueError("two lines of one coefficient")
        if self.lines and self.kept > sum(line.kept for line in self.lines):
            raise ValueError(f"{self.kept} kept, and {sum(line.kept for line in self.lines)} in all lines together")
        return self

    @property
    def by_coefficient(self) -> list[dict[str, Any]]:
        """The lines as scores.json has them."""
        return [
            line.model_dump(exclude={"version"} if line.prompted else {"version", "prompted"}) for line in self.lines
        ]


def read_filter_record(path: Path, again: str) -> FilterRecord:
    """The record of a filter. Raises SteerHealError where the file is missing, as in runs of earlier versions.

    Args:
        path: of filter.json.
        again: the command that makes it.
    """
    if not path.is_file():
        raise SteerHealError(
            "the filter's record is missing",
            given=path,
            expected="the filter.json that the filter writes beside the kept rows (earlier versions did not write it)",
            next=again,
        )
    return read_record(path, FilterRecord, what="the filter's record could not be read", next=again)
