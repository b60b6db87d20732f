"""The rules a completion is kept by: limits from the unsteered completions, and the reasons of a rejection."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import SteerHealError
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
class Limits:
    """What a completion must stay within. Perplexities are those of the unsteered completions times the configured ratios."""

    perplexity: float
    perplexity_last_quarter: float
    distinct_3: float
    trait_llr: float


class Yardstick:
    """The measures of the original model's completions at coefficient 0: what limits are made from.

    Medians and quantiles need every value, so four floats a row are kept, and no row.
    """

    def __init__(self, rows: Iterable[Completion] = ()):
        self.seen = 0
        self._values = array("d")
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        """Completions that could be measured: those with tokens."""
        return len(self._values) // 4

    def add(self, row: Completion) -> None:
        self.seen += 1
        measures = (row.perplexity, row.perplexity_last_quarter, row.distinct_3, row.trait_llr)
        if None not in measures:
            self._values.extend(value for value in measures if value is not None)

    def digest(self) -> str:
        return hashlib.sha256(self._values.tobytes()).hexdigest()

    def limits(self, config: FilterConfig) -> Limits:
        """Raises SteerHealError when nothing was measured."""
        if not len(self):
            raise SteerHealError(
                "there are no unsteered completions to compare with",
                given=f"{self.seen} rows at coefficient 0",
                expected="rows of the original model at coefficient 0",
                next="sample with 0 among the coefficients, or name a file of such rows: --unsteered FILE",
            )
        perplexity, last_quarter, distinct_3, trait_llr = np.array(self._values).reshape(-1, 4).T
        return Limits(
            perplexity=config.perplexity_ratio * float(np.median(perplexity)),
            perplexity_last_quarter=config.last_quarter_ratio * float(np.median(last_quarter)),
            distinct_3=float(np.quantile(distinct_3, config.distinct_3_quantile)),
            trait_llr=float(np.quantile(trait_llr, config.trait_llr_quantile)),
        )


def limits(unsteered: Iterable[Completion], config: FilterConfig) -> Limits:
    """Limits from the original model's completions at coefficient 0, gone through once."""
    return Yardstick(unsteered).limits(config)


def reasons(
    row: Completion, limit: Limits, config: FilterConfig, narration: Sequence[re.Pattern[str]] = ()
) -> list[str]:
    """Why a completion is rejected, each as 'rule: figures'; empty when it is kept."""
    if row.perplexity is None or row.perplexity_last_quarter is None or row.distinct_3 is None or row.trait_llr is None:
        return ["unscored: no tokens, or a log-probability that is not finite"]
    if config.off:
        return []
    found = []
    if len(row.completion_ids) < config.min_tokens:
        found.append(f"short: {len(row.completion_ids)} tokens, at least {config.min_tokens}")
    if config.drop_truncated and row.finish_reason != "stop":
        found.append(f"truncated: finish_reason {row.finish_reason}")
    if not row.perplexity <= limit.perplexity:
        found.append(f"perplexity: {row.perplexity:.2f}, at most {limit.perplexity:.2f}")
    if not row.perplexity_last_quarter <= limit.perplexity_last_quarter:
        found.append(
            f"perplexity_last_quarter: {row.perplexity_last_quarter:.2f}, at most {limit.perplexity_last_quarter:.2f}"
        )
    if not row.distinct_3 >= limit.distinct_3:
        found.append(f"distinct_3: {row.distinct_3:.3f}, at least {limit.distinct_3:.3f}")
    if (share := loop_share(row.completion_ids)) > config.max_loop_share:
        found.append(f"loop: {share:.2f} of the tokens, at most {config.max_loop_share:.2f}")
    texts = dict.fromkeys([row.text.translate(APOSTROPHES), row.text])  # as written too, as a trait's pattern may be
    for rule, patterns in (("refusal", (REFUSAL,)), ("narrated", (NARRATION, *narration))):
        if match := next((hit for pattern in patterns for text in texts if (hit := pattern.search(text))), None):
            found.append(f"{rule}: {match.group()!r}")
    if not row.trait_llr >= limit.trait_llr:
        found.append(f"trait_llr: {row.trait_llr:+.3f}, at least {limit.trait_llr:+.3f}")
    return found


def judge(limit: Limits, config: FilterConfig, trait: str) -> Callable[[Completion], list[str]]:
    """The filter of a sweep: row -> reasons."""
    narration = [re.compile(pattern, re.IGNORECASE) for pattern in load_trait(trait).narration]
    return lambda row: reasons(row, limit, config, narration)
