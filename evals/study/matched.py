"""Arms compared at one and the same shift: what each paid by the time it had moved so far.

An arm's path runs from the base over its students, each dialled by the gate of its own round from the student before it. Within a
round shift and price are monotone cubics of the gate through the scored points (Fritsch and Carlson 1980), since both bend along a
dial and a chord would favour arms that move little. The path ends where a student is broken, or a figure undefined. The price is
read where the shift first reaches a target, a fixed share of what the least shifted of the arms that moved reached; an arm that did
not move sets no target. A target comes from the data and is not drawn again with the resamples: which share is taken can decide the
sign of a small difference, so that there are several. The axis is authority where the eval has one on this model, else trait_llr:

authority   shift -d_auth, nats; price the answer mass lost; units are items, drawn within foundations
trait_llr   shift d_trait_llr, nats per token; price ln of perplexity over the base's; units are prompts
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from evals.measures.free_text.texts import Texts, by_prompt, texts_of
from evals.round import Round
from evals.statistics import AUTHORITY, Answers, Estimate, mean, resample, same_setting

Axis = Literal["authority", "trait_llr"]
SHIFT = {"authority": "-d_auth", "trait_llr": "d_trait_llr"}
PRICE = {"authority": "answer mass lost", "trait_llr": "ln of perplexity / base's"}
Student = tuple[int, float]  # a round and the gate of its adapter over the student before
BASE: Student = (0, 1.0)
SHARES = (
    0.5,
    0.75,
    0.9,
)  # of the smallest of the arms' largest shifts: at the whole of it half of the resamples would not arrive
TAIL = 0.025  # share of resamples beyond either end of an interval
STEPS = 64  # of a dial, between which shift and price are taken as straight


@dataclass(frozen=True)
class Route:
    """Shift and price [points, 1 + draws] of one arm and seed, the base first; column 0 is the data, the others resamples.

    students: of each point; none, not even the base, where the base's own figures are undefined. ended: why the path ends before the
    arm's last student, empty where it does not.
    """

    students: Sequence[Student]
    shift: np.ndarray
    price: np.ndarray
    ended: str = ""

    @property
    def reach(self) -> float:
        return float(self.shift[:, 0].max(initial=0.0))

    @property
    def moved(self) -> bool:
        """Whether some student's shift is above 0 by its interval."""
        return bool((np.quantile(self.shift[1:, 1:], TAIL, axis=1) > 0).any()) if len(self.shift) > 1 else False

    def at(self, target: float) -> np.ndarray:
        """Price [1 + draws] where the shift first reaches the target; infinite where it never does."""
        found = np.full(self.shift.shape[1], np.inf)
        for _, _, shift, price in self._dials():
            for low in range(len(shift) - 1):
                here = np.isinf(found) & (shift[low] < target) & (shift[low + 1] >= target)
                share = _share(shift[low][here], shift[low + 1][here], target)
                found[here] = price[low][here] + share * (price[low + 1][here] - price[low][here])
        return found

    def where(self, target: float) -> Student | None:
        """The round and the gate at which the data's own shift first reaches the target, None where it never does."""
        for number, gates, shift, _ in self._dials():
            for low in range(len(gates) - 1):
                x0, x1 = shift[low : low + 2, 0]
                if x0 < target <= x1:
                    return number, float(gates[low] + _share(x0, x1, target) * (gates[low + 1] - gates[low]))
        return None

    def _dials(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """(round, gates [STEPS + 1], shift and price [STEPS + 1, 1 + draws]) along the gate of each round."""
        from scipy.interpolate import PchipInterpolator

        before = 0
        for number in sorted({number for number, _ in self.students} - {0}):
            mine = [index for index, (its, _) in enumerate(self.students) if its == number]
            points, gates = [before, *mine], [0.0, *(self.students[index][1] for index in mine)]
            along = np.linspace(0.0, gates[-1], STEPS + 1)
            shift, price = (PchipInterpolator(gates, values[points])(along) for values in (self.shift, self.price))
            yield number, along, shift, price
            before = mine[-1]


def _share(low: Any, high: Any, target: float) -> Any:
    return (target - low) / (high - low)


Point = tuple[Student, Answers, Texts]


def points(rounds: Sequence[Round]) -> list[Point]:
    """The base and then, round by round, the dialled and the whole students by their gates.

    Gate 0 is the student before; what lies outside 0 to 1 is on no way from a student to the next.
    """
    first = rounds[0]
    found = [(BASE, first.answers["base"], texts_of(first.generations["base"]))]
    for r in rounds:
        lines = [
            (1.0 if line.gate is None else line.gate, line) for line in r.scores.conditions if line.stage == "healed"
        ]
        for gate, line in sorted(lines, key=lambda pair: pair[0]):
            if 0.0 < gate <= 1.0:
                found.append(((r.number, gate), r.answers[line.name], texts_of(r.generations[line.name])))
    return found


def scorable(rounds: Sequence[Round], broken: Mapping[Student, str]) -> np.ndarray:
    """Items [items] that the base and every student of a path answered, up to where it ends: what a dead student did not answer is
    taken from nobody."""
    found = points(rounds)
    dead = (i for i, (student, answers, _) in enumerate(found) if student in broken or not answers.scorable.any())
    return np.logical_and.reduce([answers.scorable for _, answers, _ in found[: max(next(dead, len(found)), 1)]])


def shift_and_price(
    at: Sequence[Point], axis: Axis, count: int, seed: int, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[points, 1 + count] each, against the first point, of the same resamples; column 0 is the data, NaN where undefined.

    keep: items [items] counted on the axis of authority.
    """
    if axis == "trait_llr":
        return _by_prompt([texts for _, _, texts in at], count, seed)
    return _by_item([answers for _, answers, _ in at], count, seed, keep)


def path(
    rounds: Sequence[Round],
    axis: Axis,
    count: int,
    seed: int,
    *,
    broken: Mapping[Student, str] = {},
    keep: np.ndarray | None = None,
) -> Route:
    """The same seed and units give the same resamples, which pairs arms. broken: students at which the path ends, and why.

    keep: items counted on the axis of authority, those scorable in every arm that is compared.
    """
    at = points(rounds)
    shift, price = shift_and_price(at, axis, count, seed, scorable(rounds, broken) if keep is None else keep)
    students = [student for student, _, _ in at]
    defined = np.isfinite(shift).all(1) & np.isfinite(price).all(1)
    for index, student in enumerate(students):
        why = broken.get(student) or ("" if defined[index] else "its figures are undefined")
        if why:
            said = f"round {student[0]}{'' if student[1] == 1 else f' at gate {student[1]:g}'}: {why}"
            return Route(students[:index], shift[:index], price[:index], said if index else "the base is undefined")
    return Route(students, shift, price)


def _by_prompt(texts: Sequence[Texts], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    names = sorted(set(texts[0].prompt))
    weights = np.vstack([np.ones(len(names)), resample(np.zeros(len(names)), count, seed)])
    sums = [by_prompt(one, names) for one in texts]
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.array([(weights @ llr) / (weights @ full) for _, _, llr, full in sums])
        nll = np.array([(weights @ total) / (weights @ tokens) for total, tokens, _, _ in sums])
    return level - level[0], nll - nll[0]


def _by_item(answers: Sequence[Answers], count: int, seed: int, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    base = answers[0]
    for other in answers:
        same_setting(base.setting, other.setting)
    if not keep.any():
        nothing = np.full((len(answers), 1 + count), np.nan)
        return nothing, nothing
    weights = np.vstack([np.ones(int(keep.sum())), resample(base.truth[keep], count, seed)])
    level = np.array([np.log(mean(weights, a.p[keep][:, AUTHORITY])) for a in answers])
    mass = np.array([mean(weights, a.mass[keep]) for a in answers])
    return level[0] - level, mass[0] - mass


@dataclass(frozen=True)
class Matched:
    """An arm at the target. seeds, gaps: its price and its price less the reference arm's by seed, None where it was never reached;
    places: the round and gate at which it was.

    price, against: the means over the seeds that all arms have. Their intervals are over items or prompts for these training runs;
    what another training seed would give is not in them. arrived: share of the resamples that reach the target in all these seeds.
    """

    arm: str
    seeds: dict[int, float | None]
    gaps: dict[int, float | None]
    places: dict[int, Student | None]
    price: Estimate | None
    against: Estimate | None
    arrived: float | None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """target: the shift at which prices are read, None where no arm moved; set_by: the arm and seed whose reach it is a share of."""

    share: float
    target: float | None
    set_by: tuple[str, int] | None
    arms: list[Matched] = field(default_factory=list)


def matched(paths: Mapping[str, Mapping[int, Route]], reference: str, part: float) -> Comparison:
    """Paths by arm and seed at one shift, arms in the order given; reference is one of the arms."""
    reaches = {(arm, seed): walk.reach for arm, seeds in paths.items() for seed, walk in seeds.items() if walk.moved}
    set_by = min(reaches, key=lambda cell: reaches[cell], default=None)
    target = None if set_by is None else part * reaches[set_by]
    common = set.intersection(*(set(seeds) for seeds in paths.values()))
    prices = {
        arm: {} if target is None else {seed: walk.at(target) for seed, walk in seeds.items()}
        for arm, seeds in paths.items()
    }
    found = []
    for arm, seeds in prices.items():
        gaps = {
            seed: _less(values, prices[reference][seed]) for seed, values in seeds.items() if seed in prices[reference]
        }
        both = [seed for seed in seeds if seed in common]
        ends = [
            f"seed {seed}{' ends before' if walk.students else ':'} {walk.ended}"
            for seed, walk in paths[arm].items()
            if walk.ended
        ]
        still = [
            f"seed {seed} did not move"
            for seed, walk in paths[arm].items()
            if len(walk.students) > 1 and not walk.moved
        ]
        found.append(
            Matched(
                arm,
                {seed: _finite(values[0]) for seed, values in seeds.items()},
                {} if arm == reference else {seed: _finite(values[0]) for seed, values in gaps.items()},
                {seed: paths[arm][seed].where(target) for seed in seeds} if target is not None else {},
                _summary([seeds[seed] for seed in both]),
                None if arm == reference else _summary([gaps[seed] for seed in both if seed in gaps]),
                float(np.isfinite([seeds[seed][1:] for seed in both]).all(axis=0).mean()) if both else None,
                "; ".join([*still, *ends]),
            )
        )
    return Comparison(part, target, set_by, found)


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
