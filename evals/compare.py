"""Conditions on plain files: what moved from one score file to another, with intervals and a verdict; several files a side are seeds."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from evals.commandline import compare_options
from evals.compare_runs import compare_two
from evals.costs import SMALLEST_SHIFT, retain
from evals.evidence import AUTHORITY_FALLS, forced_choice_evidence, rank_among, shift
from evals.intervals import crossed
from evals.ladder import Price, verdict_of
from evals.measures.forced_choice.answers import answers
from evals.measures.forced_choice.figures import Figures
from evals.measures.forced_choice.moved import LEVEL, detectable, foundation_shifts
from evals.measures.forced_choice.rows import ScoreRow
from evals.measures.registry import ALWAYS, MEASURES
from evals.routes import by_item, less_steering
from evals.statistics import Answers, interval_text, pair, same_setting
from shared.cli import entry
from shared.console import console, print_table
from shared.errors import SteerHealError
from shared.publish import write_json
from shared.records import read_jsonl
from shared.strict import repeated
from shared.tables import read_parquet

MADE_BY = "python -m evals.score --help"
# columns of results.json that answers alone do not fill
OTHER_COLUMNS = ("arm", "seed", "round", "stage", "coefficient", "perplexity", "perplexity_ci", "distinct_3", "trait_llr", "trait_llr_ci", "entropy", "kl_on_policy", "llr_opposite", "llr_opposite_ci", "share_of_prompted", "relevance", "text_verdict", *(column for measure in MEASURES if measure.name not in ALWAYS for column in measure.columns))  # fmt: skip


@dataclass(frozen=True)
class Sides:
    """The score files of one seed. doses: of plain steering, by coefficient; with a steered side alone there is a verdict."""

    base: Answers
    other: Answers
    steered: Answers | None = None
    draws: Sequence[Answers] = ()
    before: Answers | None = None
    doses: Sequence[tuple[float, Answers]] = ()

    @property
    def all(self) -> list[Answers]:
        """Every side that is present."""
        sides = [self.base, self.other, self.steered, self.before, *self.draws, *[dose for _, dose in self.doses]]
        return [side for side in sides if side is not None]


def file_and_name(argument: str) -> tuple[Path, str]:
    """Split FILE or FILE:NAME into the path and the name of a condition; the name is empty for FILE alone."""
    path = Path(argument)
    if not path.exists() and ":" in argument:
        return Path(argument.rpartition(":")[0]), argument.rpartition(":")[2]
    return path, ""


def condition_rows(argument: str) -> tuple[Path, list[ScoreRow]]:
    """The rows of one condition: FILE, or FILE:NAME where a file holds several. Raises SteerHealError unless it is one."""
    path, name = file_and_name(argument)
    rows = (read_parquet if path.suffix == ".parquet" else read_jsonl)(path, ScoreRow, made_by=MADE_BY)
    names = list(dict.fromkeys(row.name for row in rows if row.name is not None))
    unnamed = sum(row.name is None for row in rows)
    if name:
        rows = [row for row in rows if row.name == name]
    elif len(names) + bool(unnamed) > 1:
        raise SteerHealError(
            "a score file holds several conditions",
            given=f"{path}: {', '.join(names)}" + (f", and {unnamed} rows without a name" if unnamed else ""),
            expected=f"the name of one of them after the file, as {path}:{names[0]}",
            next=f"python -m evals.compare --base {path}:{names[0]} --other {path}:{names[-1]}",
        )
    if not rows:
        raise SteerHealError(
            "a score file does not hold a condition",
            given=argument,
            expected=f"one of {', '.join(names) or 'none, its rows have no names'}",
            next=f"--other {path}{f':{names[-1]}' if names else ''}",
        )
    if len(coefficients := sorted({row.coefficient for row in rows if row.coefficient is not None})) > 1:
        raise SteerHealError(
            "a score file holds several conditions",
            given=f"{argument}: coefficients {', '.join(f'{coefficient:g}' for coefficient in coefficients)}",
            expected="rows of one coefficient",
            next="write the rows of each coefficient into a separate file, or name the conditions",
        )
    if twice := sorted(repeated([row.id for row in rows])):
        raise SteerHealError(
            "a vignette is there twice in one condition",
            given=f"{argument}: {twice[0]}",
            expected="one row of each id",
            next="leave one of them out",
        )
    return path, rows


def named_answers(argument: str) -> Answers:
    """The answers of one condition, as `condition_rows` names it."""
    return answers_of(*condition_rows(argument))


def answers_of(path: Path, rows: list[ScoreRow]) -> Answers:
    """The answers in rows of a score file. Raises SteerHealError for rows of mixed settings, and where lp is not seven numbers."""
    return answers(rows, path, MADE_BY)


def given_dose(argument: str, path: Path, rows: list[ScoreRow]) -> tuple[float, Answers]:
    """A dose of plain steering: its coefficient, which its rows must have, and its answers."""
    coefficients = {row.coefficient for row in rows}
    coefficient = coefficients.pop() if len(coefficients) == 1 else None
    if coefficient is None or coefficient <= 0:
        raise SteerHealError(
            "a dose of plain steering has no coefficient above 0",
            given=argument,
            expected="rows of one coefficient, as evals.score --vector writes them",
            next="python -m evals.score --model MODEL --vector FILE --coefficient 0.5 0.75 1 --out doses.jsonl",
        )
    return coefficient, answers(rows, path, MADE_BY)


def refuse_draws(
    draws: Sequence[str],
    steered: Sequence[str],
    others: Sequence[str],
    read: Callable[[str], tuple[Path, list[ScoreRow]]],
) -> None:
    """Random directions as a null: each counts once, and is of the steered side's dose.

    Args:
        draws: their files, as `condition_rows` names them.
        steered, others: files of the steered side, and of the sides that are no draws.
        read: `condition_rows`.

    Raises:
        SteerHealError: a draw is there twice, is another side, or was scored at another coefficient than the steered side.
    """
    rows = {file: read(file)[1] for file in dict.fromkeys([*draws, *steered, *others])}
    answered = {file: [row.lp for row in rows[file]] for file in rows}
    for place, file in enumerate(draws):
        if same := next(
            (earlier for earlier in [*draws[:place], *steered, *others] if answered[earlier] == answered[file]),
            None,
        ):
            raise SteerHealError(
                "a random direction is there twice",
                given=f"--random {file}: the answers of {same}",
                expected="a different direction in every file: a repeated one would count twice in the rank",
                next="leave it out, or score another draw: python -m evals.score --help",
            )
        doses = {row.coefficient for name in (file, *steered) for row in rows[name] if row.coefficient is not None}
        if len(doses) > 1:
            raise SteerHealError(
                "a random direction has another dose than the steered side",
                given=f"--random {file}: coefficients {', '.join(f'{dose:g}' for dose in sorted(doses))}",
                expected="directions as long as the vector, at its coefficient",
                next="score the draw at the coefficient of --steered",
            )


def compare_sides(sides: Sides, count: int, seed: int) -> dict[str, Any]:
    """The columns of results.json that answers fill, of other against base; the verdict where there is a steered side."""
    base, other = sides.base, sides.other
    for side in sides.all:
        same_setting(base.setting, side.setting)
    figures = Figures(base, other, count, seed)
    problem = figures.broken()
    moved = foundation_shifts(base, other)
    kept = None
    if sides.steered is not None and (steered := shift(base, sides.steered)) and abs(steered.value) >= SMALLEST_SHIFT:
        kept = retain(base, sides.steered, other)
    price = _price(sides, count, seed)
    verdict: tuple[str | None, str | None] = (None, None)
    if sides.steered is not None:
        verdict = verdict_of(
            forced_choice_evidence(
                base, sides.steered, other, draws=sides.draws, before=sides.before, broken=problem,
                coherence=figures.delta["coherence"], price=price,
            )
        )  # fmt: skip
    deltas = {**figures.delta, "specific_shift": figures.specific}
    return {
        **figures.columns,
        **figures.costs(problem),
        **dict.fromkeys(OTHER_COLUMNS),
        "informedness": figures.level["informedness"].value if figures.level["informedness"] else None,
        "broken": problem,
        "random_rank_p": rank_among(base, sides.steered or other, sides.draws, AUTHORITY_FALLS),
        **pair("increment", "increment_ci", shift(sides.before, other) if sides.before else None),
        **pair("retain", "retain_ci", kept),
        **pair("price_less_steering", "price_less_steering_ci", price.less if price else None),
        "moved": None if moved is None else {line.foundation: [line.change.value, line.p_holm] for line in moved},
        "detectable": detectable(base, other),
        "verdict": verdict[0],
        "verdict_reason": verdict[1],
        "shown": {key: interval_text(value) if value else None for key, value in deltas.items()},
    }


def _price(sides: Sides, count: int, seed: int) -> Price | None:
    """The answer mass that other lost less what plain steering loses at the same shift."""
    if not sides.doses:
        return None
    doses = sorted(sides.doses, key=lambda dose: dose[0])
    points = [sides.base, *[dose for _, dose in doses], sides.other]
    keep = np.logical_and.reduce([point.scorable for point in points])
    moved, paid = by_item(points, count, seed, keep, AUTHORITY_FALLS)
    difference = less_steering([coefficient for coefficient, _ in doses], moved, paid)
    return None if difference is None else Price("answer mass lost", difference)


def sides_of(arguments: Any) -> list[Sides]:
    """The files of the command line, by seed. Raises SteerHealError where they do not go together."""
    one_each = {"other": arguments.other, "steered": arguments.steered, "before": arguments.before}
    for name, files in one_each.items():
        if files and len(files) != len(arguments.base):
            raise SteerHealError(
                "the two sides have different numbers of files",
                given=f"{len(arguments.base)} against {len(files)}: --base and --{name}",
                expected=f"a file of --{name} for each of --base",
                next="name the seeds of both sides in the same order",
            )
        places = [f"{os.path.realpath(path)}:{condition}" for path, condition in map(file_and_name, files or [])]
        if twice := [argument for argument, place in zip(files or [], places, strict=True) if places.count(place) > 1]:
            raise SteerHealError(
                "one condition stands for two seeds",
                given=f"--{name} {twice[0]} twice",
                expected="for every seed a different file, or a different condition in a file",
                next="leave it out on both sides",
            )
    if (arguments.doses or arguments.random) and len(arguments.base) > 1:
        raise SteerHealError(
            "random directions and doses belong to one seed",
            given=f"{len(arguments.base)} files of --base",
            expected="one, with its own --random and --doses",
            next="compare each seed by itself",
        )
    read = cache(condition_rows)  # a file may stand for several sides
    others = [*arguments.base, *arguments.other, *(arguments.before or [])]
    refuse_draws(arguments.random or [], arguments.steered or [], others, read)
    draws = [answers_of(*read(argument)) for argument in arguments.random or []]
    doses = [given_dose(argument, *read(argument)) for argument in arguments.doses or []]
    if len({coefficient for coefficient, _ in doses}) < len(doses):
        raise SteerHealError("a dose is there twice", given=", ".join(arguments.doses), expected="each coefficient once", next="leave one of them out")  # fmt: skip
    nothing = [None] * len(arguments.base)
    lists = (arguments.base, arguments.other, arguments.steered or nothing, arguments.before or nothing)

    def side(argument: str | None) -> Answers | None:
        return answers_of(*read(argument)) if argument else None

    return [
        Sides(answers_of(*read(base)), answers_of(*read(other)), side(steered), draws, side(before), doses)
        for base, other, steered, before in zip(*lists, strict=True)
    ]


def main() -> None:
    options = compare_options()
    arguments = options.parse_args()
    if arguments.runs:
        compare_two(options, arguments)
        return
    if missing := [f"--{name}" for name in ("base", "other") if not getattr(arguments, name)]:
        raise SteerHealError(
            "options are missing",
            given=shlex.join(sys.argv[1:]) or "none",
            expected=f"two runs, or score files: {' '.join(missing)}",
            next=f"{options.prog} --help",
        )
    if arguments.bootstrap < 100:
        raise SteerHealError(
            "too few resamples for an interval",
            given=arguments.bootstrap,
            expected="at least 100",
            next="--bootstrap 2000",
        )
    by_seed = sides_of(arguments)
    for sides in by_seed[1:]:
        same_setting(by_seed[0].base.setting, sides.base.setting)  # seeds are points of one thing
    if any(
        (sides.setting.template is None) != (side.base.setting.template is None)
        for side in by_seed
        for sides in side.all
    ):
        console.print(
            "[yellow]one side's rows are from before the chat template's arguments were written into them: taken as the other side's[/]"
        )
    seeds = [compare_sides(sides, arguments.bootstrap, arguments.seed) for sides in by_seed]
    names = [
        Path(argument).stem if Path(argument).exists() else argument.rpartition(":")[2] for argument in arguments.other
    ]
    _show(seeds, names)
    if len(seeds) > 1:
        _over_seeds(by_seed, seeds)
    if any(seed["d_auth"] is not None and seed["d_auth_ci"] is None for seed in seeds):
        console.print("no intervals: no foundation has two items scorable in both; score more, as with --items 28")
    if arguments.out:
        write_json(
            arguments.out, {"version": 1, "seeds": [{k: v for k, v in seed.items() if k != "shown"} for seed in seeds]}
        )


def _show(seeds: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    lines: list[list[Any]] = [[key, *[seed["shown"][key] for seed in seeds]] for key in seeds[0]["shown"]]
    keys = ["p_not_wrong", "authority_contrast", "unscorable", "broken", "coh_cost", "coh_slope", "surgical", "surgical_care", "detectable"]  # fmt: skip
    if any(seed["verdict"] for seed in seeds):
        keys += ["random_rank_p", "retain", "verdict"]
    lines += [[key, *[seed[key] for seed in seeds]] for key in keys]
    lines.append(
        [
            "moved (Holm)",
            *[
                None
                if seed["moved"] is None
                else ", ".join(name for name, (_, p) in seed["moved"].items() if p < LEVEL) or "none"
                for seed in seeds
            ],
        ]
    )
    print_table("against base, paired over the items, nats", ["", *names], lines)
    for name, seed in zip(names, seeds, strict=True):
        if seed["verdict"]:
            console.print(f"{name}: {seed['verdict']}: {seed['verdict_reason']}", markup=False)


def _over_seeds(by_seed: Sequence[Sides], seeds: Sequence[dict[str, Any]]) -> None:
    """Each seed is a point; the interval is for a new seed and new items."""
    points = [seed["d_auth"] for seed in seeds if seed["d_auth"] is not None]
    if not points:
        return
    console.print(
        f"d_auth over {len(points)} seeds: mean {np.mean(points):+.3f}, from {min(points):+.3f} to {max(points):+.3f}"
    )
    keep = np.logical_and.reduce([sides.base.scorable & sides.other.scorable for sides in by_seed])
    if keep.any():
        shifts_ = [by_influence(sides, keep) for sides in by_seed]
        if over := crossed(np.array(shifts_)):
            console.print(f"for a new seed and new items: {interval_text(over)}, n_seeds {len(by_seed)}")


def by_influence(sides: Sides, keep: np.ndarray) -> np.ndarray:
    """The influence [items] of each item on d_auth, nats; its mean is the shift."""
    p, q = (side.p[keep, AUTHORITY_FALLS.foundation] for side in (sides.base, sides.other))
    value = float(np.log(q.mean() / p.mean()))
    return np.asarray(value + q / q.mean() - p / p.mean())


if __name__ == "__main__":
    entry(main)
