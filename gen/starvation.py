"""What to do where the filter leaves too few completions to train on."""

from __future__ import annotations

from collections.abc import Mapping

from gen.rules import RULES
from shared.commands import command_of, setting
from shared.errors import SteerHealError
from shared.schema import FilterConfig


class Starved(SteerHealError):
    """Too few rows are kept to train on."""


def refuse_starvation(
    sampled: Mapping[float, int], kept: Mapping[float, int], causes: Mapping[str, int], config: FilterConfig
) -> None:
    """Raise Starved when too few rows are left to train on, with the counts and what to change.

    Args:
        sampled, kept: candidates by coefficient.
        causes: candidates that each rule rejected.
        config: of the filter.
    """
    left, total = sum(kept.values()), sum(sampled.values())
    if left >= config.min_kept:
        return
    if not total:
        steered = config.source == "steered"
        raise Starved(
            "the filter starved: there are no candidates",
            given=f"rows at {'coefficient 0 alone' if steered else 'coefficients other than 0 alone'}, filter.source = {config.source}",
            expected="rows at other coefficients, which are the candidates; those at 0 are what they are compared with"
            if steered
            else "rows at coefficient 0, which are the candidates",
            next=f"sample some, as with --coefficients 0 1: {command_of('gen.sweep', '--help')}"
            if steered
            else setting("filter.source=steered"),
        )
    ordered = sorted(causes.items(), key=lambda item: -item[1])
    advice_of = {rule.name: rule.advice for rule in RULES}
    advice = [text for name, _ in ordered if (text := advice_of.get(name))][:2]
    few = total < config.min_kept  # even keeping all of them would not do
    more = "sample more (more prompts, sweep.samples) or lower filter.min_kept; " if few else ""
    raise Starved(
        "the filter starved: too few completions are left to train on",
        given=f"{left} kept; "
        + ", ".join(f"{kept.get(c, 0)}/{sampled[c]} at coefficient {c:g}" for c in sorted(sampled))
        + f"; rejected for {', '.join(f'{name} ({count})' for name, count in ordered)}",
        expected=f"at least {config.min_kept} (filter.min_kept)",
        next=f"{more}lower the doses in sweep.coefficients (sweep.dose=walk finds one), or {' or '.join(advice) or 'lower filter.min_kept'}; in a run by SET with a new RUN or REBUILD=1, on plain files by --set",
    )
