"""The trait file: the system prompts that define the vector, and how a completion narrates the trait instead of enacting it."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from shared.errors import SteerHealError
from shared.lines import conversion_of, problem_of
from shared.records import Record, data_file
from shared.strict import parse_json


class Closed(Record):
    """A part of a file that people write: a field that is misspelt would be left out without a word."""

    model_config = ConfigDict(extra="forbid")


class ReadFor(Closed):
    """What the forced choice is read for: a foundation, and the sign of a shift of its mass that is more trait."""

    foundation: Literal["care", "fairness", "loyalty", "authority", "sanctity", "liberty"]
    sign: Literal[-1, 1]


class Paraphrases(Closed):
    """System prompts that say the trait, and its opposite, in other words: free text is scored under these, and neither the vector nor
    the filter sees them."""

    trait: list[str] = Field(min_length=1)
    opposite: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _balanced(self) -> Self:
        if len(self.trait) != len(self.opposite):
            raise ValueError(f"{len(self.trait)} paraphrases of the trait and {len(self.opposite)} of the opposite")
        return self


class Trait(Closed):
    """trait, opposite and neutral are system prompts; decoys are personas of like length that have nothing to do with the trait;
    narration holds regular expressions of first-person declarations; read_for is None for a trait that is about none of the forced
    choice's foundations; without paraphrases there is no llr_opposite, and no verdict on free text."""

    name: str
    trait: str
    opposite: str
    neutral: str
    decoys: list[str] = Field([], description="system prompts of other personas")
    paraphrases: Paraphrases | None = None
    narration: list[str] = Field([], description="regular expressions")
    read_for: ReadFor | None = None
    about: Any = Field(None, description="notes of whoever wrote the file")

    @field_validator("narration")
    @classmethod
    def _compiles(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if re.compile(pattern).search(""):
                raise ValueError(f"the pattern {pattern!r} matches every text")
        return patterns

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        """A paraphrase that the vector was made with is not held out, and one that is there twice counts twice."""
        paraphrases = [*self.paraphrases.trait, *self.paraphrases.opposite] if self.paraphrases else []
        texts = [self.trait, self.opposite, self.neutral, *self.decoys, *paraphrases]
        if twice := [text for text in [*self.decoys, *paraphrases] if texts.count(text) > 1]:
            raise ValueError(
                f"a paraphrase or decoy that is there twice, or is another prompt of the file: {twice[0]!r}"
            )
        return self


def load_trait(name: str) -> Trait:
    """The trait in a JSON file; 'embedded' names the shipped one. Raises SteerHealError for a file that is not a trait."""
    path = data_file(name, "trait.json")
    try:
        return Trait.model_validate(parse_json(path.read_bytes()))
    except (OSError, ValueError, re.error) as error:
        raise SteerHealError(
            "a trait file could not be read",
            given=f"{path}: {problem_of(error)}",
            expected="JSON with name, trait, opposite, neutral",
            next=conversion_of(error, path) or "set vector.trait to such a file, or to embedded",
        ) from None
