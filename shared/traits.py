"""The trait file: the system prompts that define the vector, and how a completion narrates the trait instead of enacting it."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from shared.errors import SteerHealError
from shared.lines import conversion_of, problem_of
from shared.records import Record, data_file
from shared.strict import parse


class ReadFor(Record):
    """What the forced choice is read for: a foundation, and the sign of a shift of its mass that is more trait."""

    foundation: Literal["care", "fairness", "loyalty", "authority", "sanctity", "liberty"]
    sign: Literal[-1, 1]


class Trait(Record):
    """trait, opposite and neutral are system prompts; narration holds regular expressions of first-person declarations; read_for is
    None for a trait that is about none of the forced choice's foundations."""

    name: str
    trait: str
    opposite: str
    neutral: str
    narration: list[str] = Field([], description="regular expressions")
    read_for: ReadFor | None = None

    @field_validator("narration")
    @classmethod
    def _compiles(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            re.compile(pattern)
        return patterns


def load_trait(name: str) -> Trait:
    """The trait file a configuration names ('embedded' for the shipped one)."""
    path = data_file(name, "trait.json")
    try:
        return Trait.model_validate(parse(path.read_bytes()))
    except (OSError, ValueError, re.error) as error:
        raise SteerHealError(
            "a trait file could not be read",
            given=f"{path}: {problem_of(error)}",
            expected="JSON with name, trait, opposite, neutral",
            next=conversion_of(error, path) or "set vector.trait to such a file, or to embedded",
        ) from None
