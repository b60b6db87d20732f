"""Arms compared with a reference arm at one and the same shift: what each paid by the time it had moved so far.

Each pair of an arm and the reference is read at its target, a fixed share of what the lesser of the two reached, so that a weak arm
lowers nobody else's; an arm that did not move sets no target. A target comes from the data and is not drawn again with the resamples:
which share is taken can decide the sign of a small difference, so that there are several, and the area between the two price curves
over all the shifts that both reach stands beside them as one number. Plain steering is a separate arm, dialled by its dose.
Routes and axes: evals.routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evals.routes import TAIL, Route, Student, area_between
from evals.statistics import Estimate

SHARES = (0.5, 0.75, 0.9)  # of the lesser reach of two arms: at the whole of it half of the resamples would not arrive


@dataclass(frozen=True)
class Matched:
    """An arm at its target with the reference arm.

    target: the shift at which prices are read, None where neither moved; set_by: the arm and seed whose reach it is a share of. seeds,
    gaps: its price and its price less the reference arm's by seed, None where it was never reached; places: the round and gate (of
    steering, the coefficient) at which it was.

    price, against, area: means over the seeds that both arms have; area of the price curves' difference over the shifts that both
    reach. Their intervals are over items or prompts for these training runs; what another training seed would give is not in them.
    arrived: share of the resamples that reach the target in all these seeds.
    """

    arm: str
    target: float | None
    set_by: tuple[str, int] | None
    seeds: dict[int, float | None]
    gaps: dict[int, float | None]
    places: dict[int, Student | None]
    price: Estimate | None
    against: Estimate | None
    area: Estimate | None
    arrived: float | None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The arms at one share of the lesser reach."""

    share: float
    arms: list[Matched] = field(default_factory=list)


def matched(paths: Mapping[str, Mapping[int, Route]], reference: str, part: float) -> Comparison:
    """Paths by arm and seed, each against the reference's at their common shift, arms in the order given; reference is one of them.

    Args:
        paths: arm -> seed -> route.
        reference: the arm that the others are compared with.
        part: share of the lesser reach at which they are compared.
    """
    return Comparison(part, [_matched(arm, seeds, reference, paths[reference], part) for arm, seeds in paths.items()])


def _matched(
    arm: str, routes: Mapping[int, Route], reference: str, reference_routes: Mapping[int, Route], part: float
) -> Matched:
    both = [seed for seed in routes if seed in reference_routes]
    reaches = {
        (name, seed): walks[seed].reach
        for name, walks in ((reference, reference_routes), (arm, routes))
        for seed in both
        if walks[seed].moved
    }
    set_by = min(reaches, key=lambda cell: reaches[cell], default=None)
    target = None if set_by is None else part * reaches[set_by]
    prices = {} if target is None else {seed: walk.at(target) for seed, walk in routes.items()}
    gaps = (
        {}
        if target is None or arm == reference
        else {seed: _less(prices[seed], reference_routes[seed].at(target)) for seed in both}
    )
    areas = [] if arm == reference else [area_between(routes[seed], reference_routes[seed]) for seed in both]
    defined = [area for area in areas if area is not None]
    ends = [
        f"seed {seed}{' ends before' if walk.students else ':'} {walk.ended}"
        for seed, walk in routes.items()
        if walk.ended
    ]
    unmoved = [
        f"seed {seed} did not move" for seed, walk in routes.items() if len(walk.students) > 1 and not walk.moved
    ]
    return Matched(
        arm,
        target,
        set_by,
        {seed: _finite(values[0]) for seed, values in prices.items()},
        {seed: _finite(values[0]) for seed, values in gaps.items()},
        {seed: walk.where(target) for seed, walk in routes.items()} if target is not None else {},
        _summary([prices[seed] for seed in both]) if target is not None else None,
        _summary(list(gaps.values())),
        _summary(defined) if defined and len(defined) == len(areas) else None,
        float(np.isfinite([prices[seed][1:] for seed in both]).all(axis=0).mean()) if both and prices else None,
        "; ".join([*unmoved, *ends]),
    )


def _less(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Infinite where one of both never arrives, NaN where neither does."""
    with np.errstate(invalid="ignore"):
        return values - reference


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _summary(values: Sequence[np.ndarray]) -> Estimate | None:
    """Mean over the seeds with its interval. A resample that never arrives lies beyond every price, and one of two arms that both do
    not beyond either end, so that an end may be missing."""
    if not values:
        return None
    with np.errstate(invalid="ignore"):
        total = np.mean(values, axis=0)
    if not np.isfinite(total[0]):
        return None
    neither = np.isnan(total[1:])
    low = np.quantile(np.where(neither, -np.inf, total[1:]), TAIL, method="lower")
    high = np.quantile(np.where(neither, np.inf, total[1:]), 1 - TAIL, method="higher")
    return Estimate(float(total[0]), (float(low), float(high)) if np.isfinite([low, high]).all() else None)
