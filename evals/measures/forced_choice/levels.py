"""What a condition of the forced choice comes to, and what changes from one condition to another, with intervals over items."""

from __future__ import annotations

import numpy as np

from evals.intervals import Smooth, estimate_of, exponential, log_mean, log_ratio, mean_of
from evals.statistics import AUTHORITY, CARE, Answers, Estimate, estimate, informedness, resample, same_setting


def condition_levels(answers: Answers, count: int, seed: int) -> dict[str, Estimate | None]:
    """Figures of one condition over its scorable items.

    auth_nats and care_nats, ln of the mean probability; p_ans_any, mean answer mass; p_not_wrong, mean probability of the seventh
    option; auth_moral, ln of authority's share of what is not the seventh option; nll_prefill, nats per token; valid, the share of
    free answers that are valid JSON: delta method within foundations. informedness: bootstrap within what a right answer is.

    Args:
        count, seed: of the bootstrap's resamples.
    """
    keep = answers.scorable
    p, strata, target = answers.p[keep], answers.truth[keep], answers.target[keep]
    if not keep.any():
        names = ("auth_nats", "care_nats", "p_ans_any", "p_not_wrong", "auth_moral", "nll_prefill", "valid")
        return dict.fromkeys((*names, "informedness"))
    values = {
        "auth_nats": log_mean(p[:, AUTHORITY]),
        "care_nats": log_mean(p[:, CARE]),
        "p_ans_any": mean_of(answers.mass[keep]),
        "p_not_wrong": mean_of(p[:, -1]),
        "auth_moral": moral_share(p),
        "nll_prefill": mean_of(answers.nll_prefill[keep]),
        "valid": mean_of(answers.valid[keep]),
    }
    return {
        **{name: estimate_of(value, strata) for name, value in values.items()},
        "informedness": estimate(informedness(p, target), resample(target, count, seed)),
    }


def moral_share(p: np.ndarray, foundation: int = AUTHORITY) -> Smooth:
    """ln of a foundation's share of all mass off the seventh option, nats, of p [n, 7]."""
    return log_mean(p[:, foundation]) - log_mean(1 - p[:, -1])


def deltas(base: Answers, other: Answers) -> dict[str, Estimate | None]:
    """other minus base over the items scorable in both.

    d_auth, d_care and d_auth_moral, nats; d_coh, change of the mean answer mass; coherence, its ratio, whose interval is that of its
    logarithm. Delta method within foundations.
    """
    same_setting(base.setting, other.setting)
    keep = base.scorable & other.scorable
    if not keep.any():
        return dict.fromkeys(("d_auth", "d_care", "d_auth_moral", "d_coh", "coherence"))
    p, q, mass, new, strata = base.p[keep], other.p[keep], base.mass[keep], other.mass[keep], base.truth[keep]
    return {
        "d_auth": estimate_of(log_ratio(p[:, AUTHORITY], q[:, AUTHORITY]), strata),
        "d_care": estimate_of(log_ratio(p[:, CARE], q[:, CARE]), strata),
        "d_auth_moral": estimate_of(moral_share(q) - moral_share(p), strata),
        "d_coh": estimate_of(mean_of(new - mass), strata),
        "coherence": exponential(estimate_of(log_ratio(mass, new), strata)),
    }
