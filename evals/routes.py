"""Routes: how far a condition has moved and what it has paid, from the base on, over the students of an arm or the doses of a vector.

A student's route is dialled by the gate of its own round from the student before it; plain steering's by its coefficient. Within a round
shift and price are monotone cubics of the dial through the scored points (Fritsch and Carlson 1980), since both bend along a dial and a
chord would favour what moves little. The route ends where a condition is broken, or a figure undefined.

authority   shift -d_auth, nats; price the answer mass lost, at least 0; units are items, drawn within foundations
trait_llr   shift d_trait_llr, nats per token; price ln of perplexity over the base's; units are prompts
llr_opposite  shift d_llr_opposite, likewise
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from evals.evidence import AUTHORITY_FALLS, Target
from evals.intervals import Smooth, log_mean
from evals.measures.free_text.texts import Llr, Texts, by_prompt, per_text, texts_of
from evals.round import Round
from evals.statistics import Answers, Estimate, mean, resample, same_setting

Axis = Literal["authority", "trait_llr", "llr_opposite"]
SHIFT = {"authority": "-d_auth", "trait_llr": "d_trait_llr", "llr_opposite": "d_llr_opposite"}
PRICE = {
    "authority": "answer mass lost",
    "trait_llr": "ln of perplexity / base's",
    "llr_opposite": "ln of perplexity / base's",
}
Student = tuple[int, float]  # a round and the gate of its adapter over the student before
BASE: Student = (0, 1.0)
TAIL = 0.025  # share of resamples beyond either end of an interval
AREA = 16  # shifts at which two price curves are compared for the area between them
STEPS = 64  # of a dial, between which shift and price are taken as straight


class _Dial(NamedTuple):
    """A round's part of a route. gates: [STEPS + 1]; shift, price: [STEPS + 1, 1 + draws], at these gates."""

    round: int
    gates: np.ndarray
    shift: np.ndarray
    price: np.ndarray


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
        """The largest shift of the data along the route, at least 0."""
        return float(self.shift[:, 0].max(initial=0.0))

    @property
    def moved(self) -> bool:
        """Whether some student's shift is above 0 by its interval."""
        return bool((np.quantile(self.shift[1:, 1:], TAIL, axis=1) > 0).any()) if len(self.shift) > 1 else False

    def at(self, target: float | np.ndarray) -> np.ndarray:
        """Price [1 + draws] where the shift first reaches the target, one or [1 + draws]; infinite where it never does."""
        prices = np.full(self.shift.shape[1], np.inf)
        targets = np.broadcast_to(target, prices.shape)
        for dial in self._dials():
            shift, price = dial.shift, dial.price
            for low in range(len(shift) - 1):
                reached = np.isinf(prices) & (shift[low] < targets) & (shift[low + 1] >= targets)
                share = _share(shift[low][reached], shift[low + 1][reached], targets[reached])
                prices[reached] = price[low][reached] + share * (price[low + 1][reached] - price[low][reached])
        return prices

    def where(self, target: float) -> Student | None:
        """The round and the gate at which the data's own shift first reaches the target, None where it never does."""
        for dial in self._dials():
            gates = dial.gates
            for low in range(len(gates) - 1):
                x0, x1 = dial.shift[low : low + 2, 0]
                if x0 < target <= x1:
                    return dial.round, float(gates[low] + _share(x0, x1, target) * (gates[low + 1] - gates[low]))
        return None

    def _dials(self) -> Iterator[_Dial]:
        """The route in parts, one a round."""
        from scipy.interpolate import PchipInterpolator

        before = 0
        for number in sorted({number for number, _ in self.students} - {0}):
            members = [index for index, (its, _) in enumerate(self.students) if its == number]
            points, gates = [before, *members], [0.0, *(self.students[index][1] for index in members)]
            along = np.linspace(0.0, gates[-1], STEPS + 1)
            shift, price = (PchipInterpolator(gates, values[points])(along) for values in (self.shift, self.price))
            yield _Dial(number, along, shift, price)
            before = members[-1]


def _share(low: Any, high: Any, target: Any) -> Any:
    return (target - low) / (high - low)


Point = tuple[Student, Answers, Texts]


def route_points(rounds: Sequence[Round]) -> list[Point]:
    """The base and then, round by round, the dialled and the whole students by their gates.

    Gate 0 is the student before; what lies outside 0 to 1 is on no way from a student to the next.
    """
    first = rounds[0]
    path_points = [(BASE, first.answers["base"], texts_of(first.generations["base"]))]
    for r in rounds:
        lines = [
            (1.0 if line.gate is None else line.gate, line) for line in r.scores.conditions if line.stage == "healed"
        ]
        for gate, line in sorted(lines, key=lambda pair: pair[0]):
            if 0.0 < gate <= 1.0:
                path_points.append(((r.number, gate), r.answers[line.name], texts_of(r.generations[line.name])))
    return path_points


def dose_points(first: Round) -> list[Point]:
    """The base and round 1's steered conditions by their coefficient, each of which was sampled and scored."""
    path_points = [(BASE, first.answers["base"], texts_of(first.generations["base"]))]
    lines = [line for line in first.scores.conditions if line.stage == "steered" and (line.coefficient or 0) > 0]
    for line in sorted(lines, key=lambda line: line.coefficient or 0):
        student = (first.number, float(line.coefficient or 0))
        if student != path_points[-1][0]:  # the mean of the kept rows may be one of the doses
            path_points.append((student, first.answers[line.name], texts_of(first.generations[line.name])))
    return path_points


def scorable(rounds: Sequence[Round], broken: Mapping[Student, str]) -> np.ndarray:
    """Items [items] that the base and every student of a path answered, up to where it ends: what a dead student did not answer is
    taken from nobody."""
    path_points = route_points(rounds)
    dead = (i for i, (student, answers, _) in enumerate(path_points) if student in broken or not answers.scorable.any())
    return np.logical_and.reduce(
        [answers.scorable for _, answers, _ in path_points[: max(next(dead, len(path_points)), 1)]]
    )


def shift_and_price(
    path_points: Sequence[Point], axis: Axis, count: int, seed: int, keep: np.ndarray, target: Target = AUTHORITY_FALLS
) -> tuple[np.ndarray, np.ndarray]:
    """[points, 1 + count] each, against the first point, of the same resamples; column 0 is the data, NaN where undefined.

    keep: items [items] counted on the axis of authority; target: what that is read for, the trait's way up.
    """
    if axis != "authority":
        return _by_prompt([texts for _, _, texts in path_points], axis, count, seed)
    return by_item([answers for _, answers, _ in path_points], count, seed, keep, target)


def path(
    rounds: Sequence[Round],
    axis: Axis,
    count: int,
    seed: int,
    *,
    broken: Mapping[Student, str] = {},
    keep: np.ndarray | None = None,
) -> Route:
    """The route of the healed students over the rounds; equal seeds and units give equal resamples, which pairs arms.

    keep: items counted on the axis of authority; by default those scorable in every round. The others: as of `along`.
    """
    return along(route_points(rounds), axis, count, seed, broken, scorable(rounds, broken) if keep is None else keep)


def along(
    path_points: Sequence[Point], axis: Axis, count: int, seed: int, broken: Mapping[Student, str], keep: np.ndarray
) -> Route:
    """The route through points in their order, the base first.

    Args:
        path_points: student, answers and texts of each point.
        axis: along which the shift is measured.
        count, seed: of the resamples.
        broken: students at which the route ends, and why.
        keep: items [items] that count on the axis of authority.
    """
    shift, price = shift_and_price(path_points, axis, count, seed, keep)
    students = [student for student, _, _ in path_points]
    defined = np.isfinite(shift).all(1) & np.isfinite(price).all(1)
    for index, student in enumerate(students):
        why = broken.get(student) or ("" if defined[index] else "its figures are undefined")
        if why:
            ending = f"round {student[0]}{'' if student[1] == 1 else f' at {student[1]:g}'}: {why}"
            return Route(students[:index], shift[:index], price[:index], ending if index else "the base is undefined")
    return Route(students, shift, price)


def _by_prompt(texts: Sequence[Texts], measure: Llr, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    names = sorted(set(texts[0].prompt))
    weights = np.vstack([np.ones(len(names)), resample(np.zeros(len(names)), count, seed)])
    sums = [by_prompt(condition_texts, names, measure) for condition_texts in texts]
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.array([(weights @ llr) / (weights @ full) for _, _, llr, full in sums])
        nll = np.array([(weights @ total) / (weights @ tokens) for total, tokens, _, _ in sums])
    return level - level[0], nll - nll[0]


def by_item(
    answers: Sequence[Answers], count: int, seed: int, keep: np.ndarray, target: Target
) -> tuple[np.ndarray, np.ndarray]:
    """Shift and price [conditions, 1 + count] of answers against the first, as `shift_and_price` gives them.

    Args:
        answers: of the conditions, the base first.
        count, seed: of the resamples.
        keep: items [items] that count.
        target: the foundation, and the sign that is more of the trait.
    """
    base = answers[0]
    for other in answers:
        same_setting(base.setting, other.setting)
    if not keep.any():
        nothing = np.full((len(answers), 1 + count), np.nan)
        return nothing, nothing
    weights = np.vstack([np.ones(int(keep.sum())), resample(base.truth[keep], count, seed)])
    level = np.array([np.log(mean(weights, a.p[keep][:, target.foundation])) for a in answers])
    mass = np.array([mean(weights, a.mass[keep]) for a in answers])
    # more answer mass than the base has is no gain in coherence
    return target.sign * (level - level[0]), np.maximum(mass[0] - mass, 0.0)


def less_steering(doses: Sequence[float], shift: np.ndarray, price: np.ndarray) -> Estimate | None:
    """A student's price minus that of plain steering at the student's own shift, paired over the resamples. None with fewer than two doses
    (a straight line from the base overstates a price that bends), where a figure is undefined, and where no dose reaches the shift.

    A resample whose route of steering ends before the shift uses the price of its last dose, which is somewhat too low.

    Args:
        doses: coefficients, ascending, above 0.
        shift, price: [base, doses..., the student; 1 + draws], column 0 the data.
    """
    if len(doses) < 2 or not np.isfinite(shift).all() or not np.isfinite(price).all():
        return None
    route = Route([BASE, *((1, dose) for dose in doses)], shift[:-1], price[:-1])
    if not 0.0 < shift[-1, 0] <= route.reach:
        return None
    steering = route.at(shift[-1])
    steering = np.where(np.isinf(steering), np.where(shift[-1] > 0, price[-2], 0.0), steering)
    gap = price[-1] - steering
    low, high = np.quantile(gap[1:], [TAIL, 1 - TAIL])
    return Estimate(float(gap[0]), (float(low), float(high)))


def area_between(first: Route, second: Route) -> np.ndarray | None:
    """Mean [1 + draws] of first's price less second's over the shifts that both reach, from 0 to the lesser reach.

    The lesser reach is the data's; a resample of a route that does not get so far ends at its own last price. None where one did not
    move.
    """
    if not first.moved or not second.moved:
        return None
    targets = np.linspace(0.0, min(first.reach, second.reach), AREA + 1)[1:]
    return np.asarray(np.mean([_held(first, target) - _held(second, target) for target in targets], axis=0))


def _held(route: Route, target: float) -> np.ndarray:
    prices = route.at(target)
    return np.where(np.isinf(prices), route.price[-1], prices)


def by_unit(
    point: Point, axis: Axis, keep: np.ndarray, target: Target = AUTHORITY_FALLS
) -> tuple[np.ndarray, np.ndarray]:
    """Shift and price of one condition by unit, [units] each, whose means are its levels: a difference of two conditions' means is theirs.

    Units are items, or prompts: what an item or prompt adds to a level, to first order, about it.

    Args:
        point: student, answers and texts.
        axis: along which the shift is measured.
        keep: items [items] that count on the axis of authority.
        target: the foundation, and the sign that is more of the trait.
    """
    _, answers, texts = point
    if axis == "authority":
        level = log_mean(answers.p[keep, target.foundation])
        return target.sign * _spread_out(level), -answers.mass[keep]
    nll, tokens, llr, full = by_prompt(texts, sorted(set(texts.prompt)), axis)
    return _spread_out(per_text(llr, full)), _spread_out(per_text(nll, tokens))


def _spread_out(level: Smooth) -> np.ndarray:
    return np.asarray(level.value + len(level.influence) * (level.influence - level.influence.mean()))
