"""Arms compared at one and the same shift: what each paid by the time it had moved so far.

An arm's path runs from the base over its students, each dialled by the gate of its own round from the student before it. Along the path
shift and price are interpolated linearly between scored points, and the price is read where the shift first reaches the target, which
is a fixed share of what the least shifted arm reached. The axis is authority where the eval has one on this model, else trait_llr:

authority   shift -d_auth, nats; price the answer mass lost; units are items, drawn within foundations
trait_llr   shift d_trait_llr, nats per token; price ln of perplexity over the base's; units are prompts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from evals.scored import Round, texts_of
from evals.statistics import AUTHORITY, Answers, Estimate, Texts, by_prompt, mean, resample, same_setting

Axis = Literal["authority", "trait_llr"]
SHARE = 0.75  # of the smallest of the arms' largest shifts: at the whole of it half of the resamples would not arrive
ARRIVED = 0.95  # share of resamples that must reach the target before an interval is given


@dataclass(frozen=True)
class Walk:
    """Shift and price [points, 1 + draws] of one arm and seed, the base first; column 0 is the data, the others resamples."""

    shift: np.ndarray
    price: np.ndarray

    @property
    def reach(self) -> float:
        return float(self.shift[:, 0].max())

    def at(self, target: float) -> np.ndarray:
        """Price [1 + draws] where the shift first reaches the target, NaN where it never does."""
        found = np.full(self.shift.shape[1], np.nan)
        for (x0, x1), (y0, y1) in zip(pairwise(self.shift), pairwise(self.price), strict=True):
            crossing = np.isnan(found) & (x0 < target) & (x1 >= target)
            share = (target - x0[crossing]) / (x1[crossing] - x0[crossing])
            found[crossing] = y0[crossing] + share * (y1[crossing] - y0[crossing])
        return found


def points(rounds: Sequence[Round]) -> list[tuple[Answers, Texts]]:
    """The base and then, round by round, the dialled and the whole students by their gates; gate 0 is the student before."""
    first = rounds[0]
    found = [(first.answers["base"], texts_of(first.generations["base"]))]
    for r in rounds:
        lines = sorted(
            (line for line in r.scores.conditions if line.stage == "healed"), key=lambda line: line.gate or 1.0
        )
        for line in lines:
            if line.gate != 0.0:
                found.append((r.answers[line.name], texts_of(r.generations[line.name])))
    return found


def path(rounds: Sequence[Round], axis: Axis, count: int, seed: int) -> Walk:
    """The same seed and units give the same resamples, which pairs arms."""
    at = points(rounds)
    if axis == "trait_llr":
        names = sorted(set(at[0][1].prompt))
        weights = np.vstack([np.ones(len(names)), resample(np.zeros(len(names)), count, seed)])
        sums = [by_prompt(texts, names) for _, texts in at]
        with np.errstate(divide="ignore", invalid="ignore"):
            level = np.array([(weights @ llr) / (weights @ full) for _, _, llr, full in sums])
            nll = np.array([(weights @ total) / (weights @ tokens) for total, tokens, _, _ in sums])
        return Walk(level - level[0], nll - nll[0])
    base = at[0][0]
    for other, _ in at:
        same_setting(base.setting, other.setting)
    keep = np.logical_and.reduce([a.scorable for a, _ in at])
    weights = np.vstack([np.ones(int(keep.sum())), resample(base.truth[keep], count, seed)])
    level = np.array([np.log(mean(weights, a.p[keep][:, AUTHORITY])) for a, _ in at])
    mass = np.array([mean(weights, a.mass[keep]) for a, _ in at])
    return Walk(level[0] - level, mass[0] - mass)


@dataclass(frozen=True)
class Matched:
    """An arm at the target: its price by seed and their mean; against is mean minus the reference arm's, paired."""

    arm: str
    seeds: dict[int, float | None]
    price: Estimate | None
    against: Estimate | None


def matched(paths: Mapping[str, Mapping[int, Walk]], reference: str) -> tuple[float, list[Matched]]:
    """(target, arms in the order given) of paths by arm and seed; reference is one of the arms."""
    target = SHARE * min(path.reach for seeds in paths.values() for path in seeds.values())
    prices = {arm: {seed: path.at(target) for seed, path in seeds.items()} for arm, seeds in paths.items()}
    found = []
    for arm, seeds in prices.items():
        shared = [seed for seed in seeds if seed in prices[reference]]
        gaps = [seeds[seed] - prices[reference][seed] for seed in shared]
        found.append(
            Matched(
                arm,
                {seed: float(values[0]) if np.isfinite(values[0]) else None for seed, values in seeds.items()},
                _summary(list(seeds.values())),
                _summary(gaps) if gaps and arm != reference else None,
            )
        )
    return target, found


def _summary(values: Sequence[np.ndarray]) -> Estimate | None:
    total = np.mean(values, axis=0)
    value, draws = float(total[0]), total[1:][np.isfinite(total[1:])]
    if not np.isfinite(value):
        return None
    if len(draws) < ARRIVED * (len(total) - 1):
        return Estimate(value, None)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, (float(low), float(high)))
