"""Cases that the filter decided by the least: kept or rejected by a hair, with the rule and its limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.records import Completion


def nearest_to_limits(
    kept: Sequence[Completion], rejected: Sequence[Completion], limits: Mapping[str, float], count: int
) -> list[tuple[Completion, bool, str]]:
    """(row, kept, why) of the count kept and the count rejected rows nearest to a limit, nearest first.

    A rejected row has one reason alone. A rule that rejected nothing is near nothing. Distances are in units of the spread of a measure
    over all rows.

    Args:
        kept, rejected: the rows of the filter.
        limits: of filter.json; those of measures that are no field of a row are passed over.
        count: of cases of each kind.
    """
    reasons = [reason for row in rejected for reason in row.reasons if reason.rule in Completion.model_fields]
    spread = {rule: _spread(rule, [*kept, *rejected]) for rule in {reason.rule for reason in reasons}}
    candidates: list[tuple[float, Completion, bool, str]] = []
    for row in rejected:
        if len(row.reasons) != 1:
            continue
        (reason,) = row.reasons
        if reason.rule in spread and reason.value is not None and reason.limit is not None:
            candidates.append((abs(reason.value - reason.limit) / spread[reason.rule], row, False, str(reason)))
    for row in kept:
        for rule in spread.keys() & limits.keys():
            value, limit = getattr(row, rule), limits[rule]
            if value is not None:
                candidates.append(
                    (abs(value - limit) / spread[rule], row, True, f"{rule}: {value:.3f}, the limit is {limit:.3f}")
                )
    candidates.sort(key=lambda case: (case[0], case[1].key, case[3]))
    chosen: list[tuple[Completion, bool, str]] = []
    for state in (False, True):
        seen: set[str] = set()
        for _, row, was_kept, why in candidates:
            if was_kept is state and row.key not in seen and len(seen) < count:
                seen.add(row.key)
                chosen.append((row, was_kept, why))
    return chosen


def _spread(rule: str, rows: Sequence[Completion]) -> float:
    values = sorted(value for row in rows if (value := getattr(row, rule)) is not None)
    return (values[3 * len(values) // 4] - values[len(values) // 4] or 1.0) if values else 1.0
