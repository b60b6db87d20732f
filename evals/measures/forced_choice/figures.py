"""The columns of a row that the forced choice fills, of one condition against the base: in results.json and in evals.compare alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evals.costs import coherence_cost, surgical, surgical_care
from evals.measures.forced_choice.contrast import contrast, specific_shift
from evals.measures.forced_choice.levels import condition_levels, deltas
from evals.statistics import Answers, Estimate, pair
from evals.verdict import broken


@dataclass(frozen=True)
class Figures:
    """One condition against the base. count, seed: of the bootstrap of informedness."""

    base: Answers
    other: Answers
    count: int
    seed: int

    @cached_property
    def level(self) -> dict[str, Estimate | None]:
        """Levels of the condition itself, by name."""
        return condition_levels(self.other, self.count, self.seed)

    @cached_property
    def delta(self) -> dict[str, Estimate | None]:
        """Changes against the base, by name."""
        return deltas(self.base, self.other)

    @cached_property
    def specific(self) -> Estimate | None:
        """specific_shift, nats; None where it is undefined."""
        return specific_shift(self.base, self.other)

    @property
    def unscorable(self) -> int:
        """The number of items of the condition that cannot be scored."""
        return int((~self.other.scorable).sum())

    def broken(self, also: Sequence[str] = ()) -> str | None:
        """Why the condition is broken, or None; also: what else is undefined and must not be."""
        undefined = [name for name in ("auth_nats", "p_ans_any") if self.level[name] is None]
        return broken([*undefined, *also], self.unscorable, len(self.other.truth), self.delta["coherence"])

    @property
    def columns(self) -> dict[str, Any]:
        """Levels and shifts by name; of the base itself what compares with it is 0."""
        level, delta = self.level, self.delta
        not_wrong = level["p_not_wrong"]
        return {
            **pair("auth_nats", "auth_ci", level["auth_nats"]),
            **pair("care_nats", "care_ci", level["care_nats"]),
            **pair("p_ans_any", "p_ans_any_ci", level["p_ans_any"]),
            **pair("auth_moral", "auth_moral_ci", level["auth_moral"]),
            "p_not_wrong": not_wrong.value if not_wrong else None,
            **pair("authority_contrast", "authority_contrast_ci", contrast(self.other)),
            **pair("coherence", "coherence_ci", delta["coherence"]),
            "n_items": len(self.other.truth),
            "n_paired": int((self.base.scorable & self.other.scorable).sum()),
            "unscorable": self.unscorable,
            **pair("d_auth", "d_auth_ci", delta["d_auth"]),
            **pair("d_care", "d_care_ci", delta["d_care"]),
            **pair("d_auth_moral", "d_auth_moral_ci", delta["d_auth_moral"]),
            **pair("specific_shift", "specific_shift_ci", self.specific),
            **pair("d_coh", "d_coh_ci", delta["d_coh"]),
        }

    def costs(self, problem: str | None) -> dict[str, Any]:
        """The costs of the shift and its specificity. problem: the result of `broken`; where there is one, costs are blank."""
        delta = self.delta
        coh_cost, coh_slope = coherence_cost(delta["d_coh"], delta["d_auth"], problem is not None)
        is_surgical = surgical(delta["d_auth"], self.specific)
        return {
            "coh_cost": coh_cost,
            "coh_slope": coh_slope,
            "surgical": is_surgical,
            "surgical_care": surgical_care(is_surgical, delta["d_auth"], delta["d_care"]),
        }
