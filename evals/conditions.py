"""The conditions of a round, by the weights they share; those of one set of weights are one continuous batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evals.rows import ONCE
from gen.students import ServedStudent
from shared.errors import SteerHealError
from shared.folding import folded_at_gates
from shared.schema import EvalConfig
from shared.strict import repeated
from shared.traits import Trait
from shared.vectors import Vector

ADDED, REMOVED = "student_vector", "student_without_vector"  # stages: evals/student_vector.py


@dataclass(frozen=True)
class Condition:
    """What is done to the model while it answers.

    stage, name and gate (of the round that its weights were dialled to) as in scores.json; vector names one that the engine has loaded, None for unsteered; system is a system
    prompt for the question. headline conditions are rows of the results, the others go to its extra.
    """

    stage: str
    name: str
    coefficient: float = 0.0
    vector: str | None = None
    positions: str = "all"
    system: str | None = None
    draw: int | None = None
    headline: bool = True
    gate: float | None = None

    def steering(self, start: int) -> dict[str, Any]:
        """Arguments of an engine's Request. start: the position from which `positions = generated` steers."""
        return {
            "vector": self.vector,
            "coefficient": self.coefficient,
            "positions": self.positions,
            "steer_from": start if self.positions == "generated" else None,
        }


@dataclass(frozen=True)
class Weights:
    """A student and what is asked of it.

    history: the folded rounds that make the student of the original model; None for the original itself.
    """

    label: str
    student: ServedStudent
    conditions: list[Condition]
    history: Path | None = None


def before_training(
    first: bool, dose: float, positions: str, trait: Trait, config: EvalConfig, decoys: int = 0
) -> list[Condition]:
    """Conditions of the student before the round: steered at the dose and at others, random draws, and decoys; with first, the base and the
    prompted base before them, under the trait, its opposite and decoys, which are the original model's alone. With eval.student_vector the
    original model with the student's vector, whatever the round.

    dose is the mean coefficient of the kept rows; the row at it and the first draw are the headline.
    """
    conditions = [Condition("base", "base"), *prompted(trait)] if first else []
    conditions.append(Condition("steered", "steered", dose, "trait", positions))
    conditions += [
        Condition("steered", f"steered-{other:g}", other, "trait", positions, headline=False)
        for other in config.coefficients
        if f"{other:g}" != f"{dose:g}"
    ]
    return conditions + [
        Condition("random", "random" if draw == 1 else f"random-{draw}", dose, f"random-{draw}", positions, draw=draw, headline=draw == 1)
        for draw in range(1, config.random_draws + 1)
    ] + [
        Condition("decoy", f"decoy-{draw}", dose, f"decoy-{draw}", positions, draw=draw, headline=False)
        for draw in range(1, decoys + 1)
    ] + [
        Condition(ADDED, ADDED, 1.0, ADDED, positions, headline=False) for _ in range(config.student_vector)
    ]  # fmt: skip


def prompted(trait: Trait) -> list[Condition]:
    """The original model under the trait prompt, and the controls: under its opposite, and under personas of other traits."""
    decoy = "prompted_decoy"
    return [
        Condition("prompted", "prompted", system=trait.trait),
        Condition("prompted_opposite", "prompted_opposite", system=trait.opposite),
        *[
            Condition(decoy, decoy if draw == 1 else f"{decoy}-{draw}", system=persona, draw=draw, headline=draw == 1)
            for draw, persona in enumerate(trait.decoys, start=1)
        ],
    ]


def refuse_duplicate_conditions(conditions: Iterable[Condition]) -> None:
    """Raise SteerHealError where two conditions have one name: rows are collected, kept and reported by it."""
    names = [condition.name for condition in conditions]
    if twice := sorted(repeated(names)):
        raise SteerHealError(
            "two conditions have one name",
            given=f"{twice[0]} twice, among {', '.join(dict.fromkeys(names))}",
            expected="coefficients and gates that differ within six digits, each once",
            next="leave one of them out",
        )


def by_weights(
    conditions: Sequence[Condition], original: ServedStudent, start: ServedStudent, before: Path | None = None
) -> list[Weights]:
    """The conditions of `before_training` by their weights: the base, the prompted base and the student's vector are the original model's,
    whatever the round; the rest is the student's before it, start, made by the rounds of the history before. One batch where these are the same."""
    if start.fingerprint == original.fingerprint:
        return [Weights("teacher", start, list(conditions), before)]
    whose = (*ONCE, ADDED)
    of_original = [condition for condition in conditions if condition.stage in whose]
    rest = [condition for condition in conditions if condition.stage not in whose]
    return [
        *([Weights("original", original, of_original)] if of_original else []),
        Weights("teacher", start, rest, before),
    ]


def randoms(vector: Vector, draws: int, seed: int) -> dict[str, Vector]:
    """Random directions of the vector's band and norms, by the names that conditions know them under."""
    return {f"random-{draw}": vector.random_like(seed + 1000 * draw) for draw in range(1, draws + 1)}


def after_training(
    number: int,
    history: Path,
    gates: Sequence[float],
    folder: Path,
    student: Callable[[Path], ServedStudent],
    without: str | None = None,
) -> list[Weights]:
    """Student number, and the same with its own round's gate at each of gates; the earlier rounds keep theirs.

    without: the positions at which its own vector is taken out of it as well; None leaves that condition away.

    folder takes the folded histories at those gates, which can be made again and are safe to remove.
    """
    conditions = [Condition("healed", "healed", gate=1.0)]
    if without is not None:
        conditions.append(Condition(REMOVED, REMOVED, -1.0, REMOVED, without, headline=False))
    groups = [Weights("student", student(history), conditions, history)]
    for gate in gates:
        if f"{gate:g}" == "1":
            continue
        out = folded_at_gates(history, {number: gate}, folder)
        name = f"healed-{gate:g}"
        condition = Condition("healed", name, headline=False, gate=gate)
        groups.append(Weights(f"gate {gate:g}", student(out), [condition], out))
    return groups


def condition_line(condition: Condition) -> dict[str, Any]:
    """A condition as a line of scores.json."""
    fields = asdict(condition)
    return {key: fields[key] for key in ("stage", "name", "coefficient", "draw", "headline", "gate")}
