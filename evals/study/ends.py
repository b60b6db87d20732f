"""What every arm came to: its last round in levels, and the arms less one another and less the prompted base, paired over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evals.intervals import crossed
from evals.measures.free_text.texts import texts_of
from evals.routes import BASE, PRICE, SHIFT, TAIL, Axis, Point, by_unit, shift_and_price
from evals.statistics import Estimate, interval_text
from evals.study.collect import CellOutcome, trait_measure
from evals.table import Table
from shared.console import format_number

LEVELS = (("d_{trait}", 3), ("perplexity", 2), ("d_auth", 3), ("d_care", 3), ("coherence", 2), ("coh_cost", 2), ("retain", 2))  # fmt: skip


def summary_table(outcomes: Sequence[CellOutcome]) -> Table:
    """The healed row of every arm at the last round that all its seeds reached: mean, and each seed as a point."""
    levels = [(key.format(trait=trait_measure(outcomes)), digits) for key, digits in LEVELS]
    lines = []
    for arm in dict.fromkeys(outcome.cell.arm.name for outcome in outcomes):
        arm_outcomes = [outcome for outcome in outcomes if outcome.cell.arm.name == arm]
        common = min((len(member.rounds) for member in arm_outcomes if member.rounds), default=0)
        ends = [row for member in arm_outcomes if (row := member.at(common, "healed")) is not None and common]
        reached = ", ".join(f"{len(member.rounds)} of {member.cell.rounds}" for member in arm_outcomes)
        cells = [over_seeds([row[key] for row in ends], digits) for key, digits in levels]
        lines.append(
            [
                arm,
                ", ".join(format_number(row["verdict"]) for row in ends) or format_number(None),
                *cells[:2],
                arm_outcomes[0].cell.arm.role,
                reached,
                str(common) if common else format_number(None),
                *cells[2:],
                ", ".join(row["coherence_verdict"] for row in ends) or format_number(None),
            ]
        )
    names = [key for key, _ in levels]
    return Table(
        "The last round of every arm",
        ["arm", "verdict", *names[:2], "role", "reached", "round", *names[2:], "coherence as a whole"],
        lines,
        "Healed student of the last round that all seeds of the arm with a scored round reached (round): mean over these seeds, the seeds in "
        "parentheses. d_: against the same seed's base. Arms and controls may stand at different rounds here: the next tables compare them at one.",
    )


def over_seeds(values: Sequence[float | None], digits: int) -> str:
    """The mean over seeds as text, with the value of each seed in brackets; None for an undefined value."""
    defined = [value for value in values if value is not None]
    if not defined:
        return format_number(None)
    mean = format_number(float(np.mean(defined)), digits)
    return mean if len(values) == 1 else f"{mean} ({', '.join(format_number(value, digits) for value in values)})"


def arm_differences(outcomes: Sequence[CellOutcome], axis: Axis) -> list[Table]:
    """A table for each last round of some arm, of the arms that came as far."""
    arm_outcomes = [outcome for outcome in outcomes if outcome.cell.arm.role == "arm" and outcome.rounds]
    reached: dict[str, int] = {}
    for outcome in arm_outcomes:
        reached[outcome.cell.arm.name] = min(
            len(outcome.rounds), reached.get(outcome.cell.arm.name, len(outcome.rounds))
        )
    ends = sorted(set(reached.values()))
    return [
        _differences([outcome for outcome in arm_outcomes if reached[outcome.cell.arm.name] >= last], last, axis)
        for last in ends
        if sum(far >= last for far in reached.values()) > 1
    ]


def _differences(arm_outcomes: Sequence[CellOutcome], last: int, axis: Axis) -> Table:
    """Arms of one round less the first of them and less the prompted base; the mean over the seeds that all of them have."""
    names = list(dict.fromkeys(outcome.cell.arm.name for outcome in arm_outcomes))
    scored = {(outcome.cell.arm.name, outcome.cell.seed) for outcome in arm_outcomes}
    seeds = [
        seed
        for seed in dict.fromkeys(outcome.cell.seed for outcome in arm_outcomes)
        if all((name, seed) in scored for name in names)
    ]
    title, columns = f"Round {last} of every arm, less one another", ["arm", SHIFT[axis], PRICE[axis]]
    if not seeds:
        return Table(title, columns, [], "No seed is scored in all arms.")
    by_seed = [
        _figures([outcome for outcome in arm_outcomes if outcome.cell.seed == seed], names, last, axis)
        for seed in seeds
    ]
    points = [of_seed[2] for of_seed in by_seed]
    shift, price = (
        np.mean([of_seed[0] for of_seed in by_seed], axis=0),
        np.mean([of_seed[1] for of_seed in by_seed], axis=0),
    )
    shown = [*(["prompted"] if len(shift) > 1 + len(names) else []), *names]
    others = [name for name in ("prompted", names[0]) if name in shown]
    lines = []
    for index, name in enumerate(shown, start=1):
        cells = [name, _show(shift[index]), _show(price[index])]
        for other in others:
            place = 1 + shown.index(other)
            cells += ["", ""] if place == index else [_show(part[index] - part[place]) for part in (shift, price)]
        if len(seeds) > 1:
            cells += _for_a_new_seed(points, shown.index(name) + 1, axis) if name in names[1:] else ["", ""]
        lines.append(cells)
    same = [
        f"{name} and {names[later]}"
        for place, name in enumerate(names)
        for later in range(place + 1, len(names))
        if all(np.array_equal(part[place - len(names)], part[later - len(names)]) for part in (shift, price))
    ]
    columns += [f"{word} less {other}'s" for other in others for word in (SHIFT[axis], PRICE[axis])]
    if len(seeds) > 1:
        columns += [f"{word} less {names[0]}'s, for a new seed" for word in (SHIFT[axis], PRICE[axis])]
    return Table(
        title,
        columns,
        lines,
        f"Healed students against the base; {'seed' if len(seeds) == 1 else 'the mean of seeds'} {', '.join(map(str, seeds))}. Intervals over {'items' if axis == 'authority' else 'prompts'}, paired between arms and seeds: "
        "of these training runs, what other seeds would give is not in them. prompted: the original model under the trait's system prompt."
        + (
            f" For a new seed: seeds and {'items' if axis == 'authority' else 'prompts'} crossed, Student's t, n_seeds {len(seeds)}."
            if len(seeds) > 1
            else ""
        )
        + (f" The same in every figure, as where a barrier never acts: {'; '.join(same)}." if same else ""),
    )


def _for_a_new_seed(points: Sequence[Sequence[Point]], index: int, axis: Axis) -> list[str]:
    """Shift and price of the arm at this place less the first arm's, each with an interval that another seed's training is in.

    points: by seed, as `_figures` gives them.
    """
    first = 1 + sum(student == BASE for student, _, _ in points[0][1:])  # after the base, and the prompted base
    keep = np.logical_and.reduce([answers.scorable for of_seed in points for _, answers, _ in of_seed])
    cells = []
    for part in (0, 1):
        gaps = [
            by_unit(seed_points[index], axis, keep)[part] - by_unit(seed_points[first], axis, keep)[part]
            for seed_points in points
        ]
        interval = crossed(np.array(gaps)) if len({len(gap) for gap in gaps}) == 1 else None
        cells.append(format_number(None) if interval is None else interval_text(interval))
    return cells


def _figures(
    outcomes: Sequence[CellOutcome], names: Sequence[str], last: int, axis: Axis
) -> tuple[np.ndarray, np.ndarray, list[Point]]:
    """shift and price [base, the prompted base if it was scored, an arm each; 1 + draws] of one seed, and these points."""
    by_name = {outcome.cell.arm.name: outcome for outcome in outcomes}
    first = by_name[names[0]]
    begin, settings = first.rounds[0], first.cell.config.eval
    points: list[Point] = [
        (BASE, begin.answers[line.name], texts_of(begin.generations[line.name]))
        for stage in ("base", "prompted")
        for line in begin.scores.conditions
        if line.stage == stage
    ]
    for name in names:
        r = by_name[name].rounds[last - 1]
        points.append(((last, 1.0), r.answers[r.healed], texts_of(r.generations[r.healed])))
    keep = np.logical_and.reduce([answers.scorable for _, answers, _ in points])
    return *shift_and_price(points, axis, settings.bootstrap, 0, keep), points


def _show(values: np.ndarray) -> str:
    """The data's value with the interval of its resamples; no interval where some resample is undefined."""
    if not np.isfinite(values[0]):
        return format_number(None)
    low, high = np.quantile(values[1:], [TAIL, 1 - TAIL])
    return interval_text(
        Estimate(float(values[0]), (float(low), float(high)) if np.isfinite([low, high]).all() else None)
    )
