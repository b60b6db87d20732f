"""Behaviour items in the public question / answer_matching_behavior / answer_not_matching_behavior schema, in both letterings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from shared.errors import SteerHealError
from shared.records import Record
from shared.sources import open_rows

EMBEDDED = Path(__file__).with_name("items.jsonl")
MADE_BY = "write question, answer_matching_behavior and answer_not_matching_behavior in every row"
LETTERS = ("A", "B")
LETTER = re.compile(r"^\s*\(?([A-Z])\)?\.?\s*$")
CHOICE = re.compile(r"^\s*\(([A-Z])\)\s*(.+?)\s*$", re.MULTILINE)
CHOICES = re.compile(r"\n+\s*Choices:\s*(?=\n)")


class ProbeItem(Record):
    """A question with the answer that shows a behaviour and the one that does not.

    kind: of our own items, what should become of it: `target` is the behaviour that the trait moves, `keep` rules that should still be
    followed, `unrelated` neither. Rows of another source are targets unless they say otherwise.
    """

    known_by = ("id",)
    id: str = ""
    kind: Literal["target", "keep", "unrelated"] = "target"
    question: str = Field(min_length=1)
    answer_matching_behavior: str = Field(min_length=1)
    answer_not_matching_behavior: str = Field(min_length=1)

    @model_validator(mode="after")
    def _two_answers(self) -> ProbeItem:
        if self.answer_matching_behavior.strip() == self.answer_not_matching_behavior.strip():
            raise ValueError("the two answers are the same")
        return self


@dataclass(frozen=True)
class ProbePair:
    """An item ready to ask: its question without options, and both answers as text."""

    id: str
    kind: str
    question: str
    matching: str
    other: str

    def asked(self, matching_first: bool) -> str:
        """The question with its options, lettered in one of the two ways."""
        options = (self.matching, self.other) if matching_first else (self.other, self.matching)
        lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=True)]
        return "\n".join([self.question, "", "Choices:", *lines])


def probe_pair(item: ProbeItem, number: int) -> ProbePair:
    """An item as a pair of a question and its two answers. Where the answers are letters, the options are moved out of the question.

    Raises ValueError for letters that the question does not have, and for more than two options.
    """
    answers = (item.answer_matching_behavior, item.answer_not_matching_behavior)
    letters = [match[1] if (match := LETTER.match(answer)) else None for answer in answers]
    name = item.id or f"{number:05d}"
    if None in letters:
        return ProbePair(name, item.kind, item.question.strip(), answers[0].strip(), answers[1].strip())
    options = dict(CHOICE.findall(item.question))
    if set(options) != set(letters):
        raise ValueError(f"answers {letters} and options {sorted(options)}: two options are asked, by their letters")
    question = CHOICES.sub("\n", CHOICE.sub("", item.question)).strip()
    return ProbePair(name, item.kind, question, *(options[letter] for letter in letters if letter))


def load_pairs(source: str) -> list[ProbePair]:
    """The items of 'embedded', a file or a data set. Raises SteerHealError for one that is no two-way item, or two of one id."""
    name = str(EMBEDDED) if source == "embedded" else source
    pairs = []
    with open_rows(name, what="the items of the probe could not be loaded", made_by=MADE_BY) as rows:
        for number, item in rows.rows(ProbeItem):
            try:
                pairs.append(probe_pair(item, number))
            except ValueError as error:
                raise _refused(f"{rows.place(number)}: {error}") from None
    if len({pair.id for pair in pairs}) < len(pairs):
        raise _refused(f"{name}: two items of one id")
    return pairs


def kinds_of(kinds: Sequence[str]) -> list[str]:
    """The distinct kinds, in the order of the report."""
    return [kind for kind in ("target", "keep", "unrelated") if kind in kinds]


def _refused(given: str) -> SteerHealError:
    return SteerHealError("an item of the probe cannot be asked", given=given, expected="two answers to a question", next=MADE_BY)  # fmt: skip
