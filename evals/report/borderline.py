"""Cases that the filter decided by the least: kept or rejected by a hair, with the rule and its limit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from shared.records import Completion

RULES = ("perplexity", "perplexity_last_quarter", "distinct_3", "trait_llr")
REASON = re.compile(rf"^({'|'.join(RULES)}): ([+-]?[\d.]+), at (?:most|least) ([+-]?[\d.]+)$")


def hairs(kept: Sequence[Completion], rejected: Sequence[Completion], count: int) -> list[tuple[Completion, bool, str]]:
    """(row, kept, why) of the count kept and the count rejected rows nearest to a limit, nearest first.

    A rejected row has one reason alone. Limits are read out of the reasons of the rejected, so that a rule that rejected nothing is
    near nothing. Distances are in units of the spread of a measure over all rows.
    """
    limits: dict[str, float] = {}
    near: list[tuple[float, Completion, bool, str]] = []
    spread = {rule: _spread(rule, [*kept, *rejected]) for rule in RULES}
    for row in rejected:
        for reason in row.reasons:
            if match := REASON.match(reason):
                rule, value, limit = match.group(1), float(match.group(2)), float(match.group(3))
                limits[rule] = limit
                if len(row.reasons) == 1:
                    near.append((abs(value - limit) / spread[rule], row, False, reason))
    for row in kept:
        for rule, limit in limits.items():
            value = getattr(row, rule)
            if value is not None:
                near.append(
                    (abs(value - limit) / spread[rule], row, True, f"{rule}: {value:.3f}, the limit is {limit:.3f}")
                )
    near.sort(key=lambda case: (case[0], case[1].key))
    chosen: list[tuple[Completion, bool, str]] = []
    for state in (False, True):
        seen: set[str] = set()
        for _, row, was_kept, why in near:
            if was_kept is state and row.key not in seen and len(seen) < count:
                seen.add(row.key)
                chosen.append((row, was_kept, why))
    return chosen


def _spread(rule: str, rows: Sequence[Completion]) -> float:
    values = sorted(value for row in rows if (value := getattr(row, rule)) is not None)
    return (values[3 * len(values) // 4] - values[len(values) // 4] or 1.0) if values else 1.0
