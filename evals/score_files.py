"""The sides of a comparison on plain files: what a command line names, read and refused where it does not go together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from evals.measures.forced_choice.answers import answers
from evals.measures.forced_choice.rows import ScoreRow
from evals.statistics import Answers
from shared.errors import SteerHealError
from shared.records import read_jsonl
from shared.strict import repeated
from shared.tables import read_parquet

MADE_BY = "python -m evals.score --help"


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
