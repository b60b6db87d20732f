"""The conditions of a round, by the weights they share; those of one set of weights are one continuous batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from evals.cache import Cache
from evals.measures.forced_choice.ask import Condition, Free, Read, forced_choice, reads
from evals.measures.forced_choice.instrument import Renderer
from evals.rows import ONCE
from gen.students import Student
from shared.console import console, counting
from shared.errors import SteerHealError
from shared.folding import gated
from shared.schema import EvalConfig
from shared.strict import repeated
from shared.vectors import Vector


@dataclass(frozen=True)
class Weights:
    """A student and what is asked of it."""

    label: str
    student: Student
    conditions: list[Condition]


def before_training(first: bool, dose: float, positions: str, trait: str, config: EvalConfig) -> list[Condition]:
    """Conditions of the student before the round: steered at the dose and at others, and random draws; with first, the base and the
    prompted base before them, which are the original model's alone.

    dose is the mean coefficient of the kept rows; the row at it and the first draw are the headline.
    """
    found = [Condition("base", "base"), Condition("prompted", "prompted", system=trait)] if first else []
    found.append(Condition("steered", "steered", dose, "trait", positions))
    found += [
        Condition("steered", f"steered-{other:g}", other, "trait", positions, headline=False)
        for other in config.coefficients
        if f"{other:g}" != f"{dose:g}"
    ]
    return found + [
        Condition("random", "random" if draw == 1 else f"random-{draw}", dose, f"random-{draw}", positions, draw=draw, headline=draw == 1)
        for draw in range(1, config.random_draws + 1)
    ]  # fmt: skip


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


def by_weights(asked: Sequence[Condition], original: Student, start: Student) -> list[Weights]:
    """What `before_training` asks, by whose it is: the base and the prompted base are the original model's, whatever the round; the rest
    is the student's before it. One batch where these are the same."""
    if start.fingerprint == original.fingerprint:
        return [Weights("teacher", start, list(asked))]
    of_original = [condition for condition in asked if condition.stage in ONCE]
    rest = [condition for condition in asked if condition.stage not in ONCE]
    return [*([Weights("original", original, of_original)] if of_original else []), Weights("teacher", start, rest)]


def randoms(vector: Vector, draws: int, seed: int) -> dict[str, Vector]:
    """Random directions of the vector's band and norms, by the names that conditions know them under."""
    return {f"random-{draw}": vector.random_like(seed + 1000 * draw) for draw in range(1, draws + 1)}


def after_training(
    number: int, history: Path, gates: Sequence[float], folder: Path, student: Callable[[Path], Student]
) -> list[Weights]:
    """Student number, and the same with its own round's gate at each of gates; the earlier rounds keep theirs.

    folder takes the folded histories at those gates, which can be made again and are safe to remove.
    """
    found = [Weights("student", student(history), [Condition("healed", "healed", gate=1.0)])]
    for gate in gates:
        if f"{gate:g}" == "1":
            continue
        out = gated(history, {number: gate}, folder)
        name = f"healed-{gate:g}"
        found.append(Weights(f"gate {gate:g}", student(out), [Condition("healed", name, headline=False, gate=gate)]))
    return found


def described(condition: Condition) -> dict[str, Any]:
    """A condition as a line of scores.json."""
    fields = asdict(condition)
    return {key: fields[key] for key in ("stage", "name", "coefficient", "draw", "headline", "gate")}


def free_of(tokens: int) -> Free | None:
    return Free(tokens) if tokens else None


def answered(
    model: Any,
    renderer: Renderer,
    vignettes: Sequence[Any],
    group: Weights,
    read: Read,
    tokenizer: Any,
    free: Free | None,
    cache: Cache | None,
) -> dict[str, list[dict[str, Any]]]:
    """Rows by condition of one set of weights, in the order asked: what the cache has, and the rest in one batch."""
    known = {c.name: rows for c in group.conditions if cache is not None and (rows := cache.get(c)) is not None}
    missing: list[Condition] = [c for c in group.conditions if c.name not in known]
    if cache is not None and known:
        console.print(
            f"forced choice, {group.label}: {', '.join(known)} from the cache [dim]({escape(str(cache.folder))})[/]"
        )
    if missing:
        with counting(f"forced choice, {group.label}", reads(len(vignettes), len(missing), read, free)) as advance:
            found = forced_choice(model, renderer, vignettes, missing, read, tokenizer, advance, free)
        if cache is not None:
            for condition in missing:
                cache.put(condition, found[condition.name])
        known.update(found)
    return {condition.name: known[condition.name] for condition in group.conditions}
