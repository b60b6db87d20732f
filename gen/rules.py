"""The rules a completion is kept by: what each measures, its limit, and the reasons of a rejection.

A rule is an entry of RULES: a `Bound` on a measure, or a `Ban` on something in the text. Its limit, its reason and the advice on what to
change are made from that entry, in the filter, the walk, the sweep's progress, filter.json and the report.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from shared.errors import SteerHealError
from shared.reasons import Reason
from shared.records import Completion
from shared.schema import FilterConfig
from shared.text import loop_share
from shared.traits import load_trait

REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable)|I (?:can(?:'t|not)|won't) (?:help|assist|provide|answer|comply|fulfil)|as an AI\b)",
    re.IGNORECASE,
)
NARRATION = re.compile(
    r"\b(?:as (?:someone|a person|somebody) who|I(?:'m| am) (?:someone|a person|somebody|the kind of person) who|my (?:personality|persona|role) is)\b",
    re.IGNORECASE,
)

APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc", "'"))  # typographic ones, as many models write


@dataclass(frozen=True)
class Bound:
    """A limit on a measure of a completion.

    Args:
        name: in reasons, filter.json and the report; the field's where the measure is a field of the row.
        measure: of a completion, None where it cannot be measured.
        limit: from the configuration and the measures [n] of the unsteered completions, which are empty unless `compares`.
        most: whether the limit is the largest value allowed, or the least.
        advice: what to change where the rule rejects too much, as 'lower filter.x'.
        compares: whether the limit comes from the unsteered completions. A row without such a measure is rejected as unscored.
    """

    name: str
    measure: Callable[[Completion], float | None]
    limit: Callable[[FilterConfig, np.ndarray], float]
    most: bool
    advice: str
    compares: bool = False

    def reason(self, row: Completion, limits: Mapping[str, float], context: Context) -> Reason | None:
        value, limit = self.measure(row), limits[self.name]
        if value is None or (value <= limit if self.most else value >= limit):
            return None
        return Reason(rule=self.name, value=value, limit=limit)


@dataclass(frozen=True)
class Context:
    """What a rule may depend on beside the row: the configuration, and the patterns by which the trait is narrated."""

    config: FilterConfig
    narration: tuple[re.Pattern[str], ...]


@dataclass(frozen=True)
class Ban:
    """A pattern that a completion must not contain. find: the passage that matches, or None; name and advice as in Bound."""

    name: str
    find: Callable[[Completion, Context], str | None]
    advice: str | None = None

    def reason(self, row: Completion, limits: Mapping[str, float], context: Context) -> Reason | None:
        text = self.find(row, context)
        return None if text is None else Reason(rule=self.name, text=text)


def truncation(row: Completion, context: Context) -> str | None:
    """How a completion ended that was to stop by itself and did not; None for another, or where truncated ones are kept."""
    return (
        f"finish_reason {row.finish_reason}" if context.config.drop_truncated and row.finish_reason != "stop" else None
    )


def refusal_reason(row: Completion, context: Context) -> str | None:
    """The words with which a completion refuses the prompt; None where it does not refuse."""
    return first_match((REFUSAL,), row.text)


def narration(row: Completion, context: Context) -> str | None:
    """The words by which a completion declares the trait in the first person; None where it does not."""
    return first_match((NARRATION, *context.narration), row.text)


def first_match(patterns: Iterable[re.Pattern[str]], text: str) -> str | None:
    """The words that the first matching pattern matches, with plain apostrophes or, as a trait's pattern may have them, as written."""
    texts = dict.fromkeys([text.translate(APOSTROPHES), text])
    match = next((hit for pattern in patterns for text in texts if (hit := pattern.search(text))), None)
    return match.group() if match else None


RULES: tuple[Bound | Ban, ...] = (
    Bound("short", lambda row: len(row.completion_ids), lambda config, _: config.min_tokens, False, "lower filter.min_tokens"),
    Ban("truncated", truncation, "raise sweep.max_tokens or set filter.drop_truncated=false"),
    Bound(
        "perplexity",
        lambda row: row.perplexity,
        lambda config, unsteered: config.perplexity_ratio * float(np.median(unsteered)),
        most=True,
        advice="raise filter.perplexity_ratio",
        compares=True,
    ),
    Bound(
        "perplexity_last_quarter",
        lambda row: row.perplexity_last_quarter,
        lambda config, unsteered: config.last_quarter_ratio * float(np.median(unsteered)),
        most=True,
        advice="raise filter.last_quarter_ratio",
        compares=True,
    ),
    Bound(
        "distinct_3",
        lambda row: row.distinct_3,
        lambda config, unsteered: float(np.quantile(unsteered, config.distinct_3_quantile)),
        most=False,
        advice="lower filter.distinct_3_quantile",
        compares=True,
    ),
    Bound("loop", lambda row: loop_share(row.completion_ids), lambda config, _: config.max_loop_share, True, "raise filter.max_loop_share"),
    Ban("refusal", refusal_reason),
    Ban("narrated", narration),
    Bound(
        "trait_llr",
        lambda row: row.trait_llr,
        lambda config, unsteered: float(np.quantile(unsteered, config.trait_llr_quantile)),
        most=False,
        advice="lower filter.trait_llr_quantile",
        compares=True,
    ),
)  # fmt: skip
UNSCORED = Reason(rule="unscored", text="no tokens, or a log-probability that is not finite")


def bounds() -> list[Bound]:
    """The rules of RULES that limit a measure."""
    return [rule for rule in RULES if isinstance(rule, Bound)]


def comparing() -> list[Bound]:
    """The rules whose limits come from the unsteered completions."""
    return [rule for rule in bounds() if rule.compares]


class Yardstick:
    """The measures of the original model's completions at coefficient 0: what limits are made from.

    Medians and quantiles need every value, so a few floats a row are kept, and no row.
    """

    def __init__(self, rows: Iterable[Completion] = ()):
        self.seen = 0
        self._values = {rule.name: array("d") for rule in comparing()}
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        """Completions that could be measured: those with tokens."""
        return min(map(len, self._values.values()))

    def add(self, row: Completion) -> None:
        """Take the measures of one unsteered completion; one without tokens is counted as seen and not measured."""
        self.seen += 1
        values = {rule.name: rule.measure(row) for rule in comparing()}
        if None not in values.values():
            for name, value in values.items():
                self._values[name].append(float(value or 0))

    def extend(self, rows: Iterable[Completion]) -> None:
        """Add the unsteered ones among rows of a sweep."""
        for row in rows:
            if row.source == "unsteered":
                self.add(row)

    def digest(self) -> str:
        """sha256 over the measures, in the order in which rows were added."""
        return hashlib.sha256(b"".join(values.tobytes() for values in self._values.values())).hexdigest()

    def limits(self, config: FilterConfig) -> dict[str, float]:
        """The limit of every bound, by its name. Raises SteerHealError when nothing was measured."""
        if not len(self):
            raise SteerHealError(
                "there are no unsteered completions to compare with",
                given=f"{self.seen} rows at coefficient 0",
                expected="rows of the original model at coefficient 0",
                next="sample with 0 among the coefficients, or name a file of such rows: --unsteered FILE",
            )
        return {rule.name: float(rule.limit(config, np.array(self._values.get(rule.name, ())))) for rule in bounds()}


def rules_of(limits: Mapping[str, float], config: FilterConfig, trait: str) -> Callable[[Completion], list[Reason]]:
    """The filter of a sweep: from a row to the reasons it is rejected for, none where it is kept.

    Args:
        limits: of every bound, by the rule's name.
        config: of the filter.
        trait: name or folder of the trait, whose patterns of narration count.
    """
    context = Context(config, tuple(re.compile(pattern, re.IGNORECASE) for pattern in load_trait(trait).narration))
    measured = comparing()

    def reasons(row: Completion) -> list[Reason]:
        if any(rule.measure(row) is None for rule in measured):
            return [UNSCORED]
        if config.off:
            return []
        return [reason for rule in RULES if (reason := rule.reason(row, limits, context))]

    return reasons
