"""The walk to a dose: the largest coefficient whose survival through the filter reaches a target, by bisection from above.

Survival is not monotone: about half of the unsteered completions fail the trait's rule and incoherence fails the strongly
steered ones, so that a search from below would stop at the wrong edge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter

from gen.crews import Crew
from gen.plan import Job, Planned, planned_rows, spread_prompts
from gen.rules import Yardstick, rules_of
from gen.windows import Windows
from shared.commands import removal, setting
from shared.console import console, print_table
from shared.errors import SteerHealError
from shared.lines import problem_of
from shared.records import Completion, Prompt
from shared.schema import Config
from shared.tally import Tally

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class DoseProbe:
    """What the filter kept of n completions at a coefficient, their perplexity and mean trait_llr (nats per token)."""

    coefficient: float
    n: int
    kept: int
    perplexity: float | None = None
    trait_llr: float | None = None

    @property
    def survival(self) -> float:
        """Share of the completions that the filter kept."""
        return self.kept / self.n


@dataclass(frozen=True)
class Walk:
    """The coefficient found, and every probe in the order it was made."""

    coefficient: float
    probes: list[DoseProbe]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Walk:
        """Raises ValueError for what `as_dict` does not write."""
        return TypeAdapter(cls).validate_python(value)


def find_dose_by_survival(probe: Callable[[float], DoseProbe], *, target: float, ceiling: float, steps: int) -> Walk:
    """The ceiling if its survival reaches the target, else the upper edge of what does below it.

    The ceiling is halved, at most `steps` times, until the target is reached, and that pair bisected `steps` times: the
    answer is within 2**-steps of the edge. Raises SteerHealError with the survivals when the target is never reached.
    """
    probes: list[DoseProbe] = []

    def reaches(coefficient: float) -> bool:
        probes.append(probe(coefficient))
        return probes[-1].survival >= target

    largest_coefficient = largest(reaches, ceiling=ceiling, steps=steps)
    if largest_coefficient is None:
        raise SteerHealError(
            "the walk found no dose: too few completions survive the filter at every coefficient",
            given=", ".join(f"{one.kept}/{one.n} at {one.coefficient:g}" for one in probes),
            expected=f"a share of {target:g} (sweep.survival) at some coefficient from {probes[-1].coefficient:g} to {ceiling:g}",
            next="lower sweep.survival, loosen the filter (filter.trait_llr_quantile, filter.perplexity_ratio, "
            f"filter.drop_truncated), or sample a grid to see why: {setting('sweep.dose=grid')}",
        )
    return Walk(largest_coefficient, probes)


def largest(reaches: Callable[[float], bool], *, ceiling: float, steps: int) -> float | None:
    """The largest coefficient found to reach something that higher ones do not; None where none of those tried does.

    The ceiling, if it does. Else it is halved, at most `steps` times, until one does, and that pair is bisected `steps` times.
    """
    if reaches(ceiling):
        return ceiling
    low, high = ceiling / 2, ceiling
    for _ in range(steps):
        if reaches(low):
            break
        low, high = low / 2, low
    else:
        return None
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return low


def walk(
    measure: Callable[[Sequence[Planned]], list[Completion]],
    prompts: Sequence[tuple[int, Prompt]],
    seed: str,
    frozen: Yardstick | None,
    config: Config,
) -> Walk:
    """Walk with probes of one completion per prompt; measure makes the rows of planned completions.

    frozen are round 1's unsteered completions; without them the prompts are sampled unsteered first.
    """
    yardstick = Yardstick() if frozen is None else frozen

    def rows(coefficient: float) -> list[Completion]:
        with console.status(f"walk: coefficient {coefficient:g}"):
            return measure(
                [row for index, prompt in prompts for row in planned_rows(index, prompt, [coefficient], 1, seed)]
            )

    def judged(completions: Sequence[Completion]) -> DoseProbe:
        why = rules_of(yardstick.limits(config.filter), config.filter, config.vector.trait)
        tally = Tally()
        for row in completions:
            tally.add(row, not why(row))
        (line,) = tally.lines()
        probe = DoseProbe(**{name: line[name] for name in ("coefficient", "n", "kept", "perplexity", "trait_llr")})
        console.print(f"walk: {probe.kept} of {probe.n} survive at {probe.coefficient:g}")
        return probe

    before = []
    if frozen is None:
        unsteered = rows(0.0)
        for row in unsteered:
            yardstick.add(row)
        before = [judged(unsteered)]
    sweep = config.sweep
    result = find_dose_by_survival(
        lambda coefficient: judged(rows(coefficient)),
        target=sweep.survival,
        ceiling=sweep.dose_ceiling,
        steps=sweep.dose_steps,
    )
    return Walk(result.coefficient, before + result.probes)


def walked_dose(job: Job, windows: Windows, crew: Crew, prompts: int, yardstick: Yardstick) -> Walk:
    """The walk of a sweep: the answer that an interrupted one noted, or a walk, whose answer is noted.

    Args:
        job: the sweep; windows: its folder, which keeps the note.
        crew: makes the rows of probes.
        prompts: how many the job has.
        yardstick: of round 1's unsteered rows, where the job has these.
    """
    if (noted := noted_answer(windows, "walk", Walk.from_dict, "walk", "walks")) is not None:
        console.print(f"walk: the interrupted sweep found {noted.coefficient:g}")
        return noted
    answer = walk(
        crew.rows,
        spread_prompts((prompt for _, prompt in job.prompts), prompts, job.config.sweep.dose_prompts),
        job.seed,
        yardstick if job.frozen else None,
        job.config,
    )
    windows.note("walk", answer.as_dict())
    return answer


def noted_answer(
    windows: Windows, note: str, read: Callable[[dict[str, Any]], Answer], what: str, again: str
) -> Answer | None:
    """The answer of a search that an interrupted sweep noted; None where it noted none. Raises SteerHealError where it cannot be read.

    Args:
        windows: the sweep's folder.
        note: name of the answer in it.
        read: raises ValueError for what is no answer.
        what, again: the answer, and what the same command does once the folder is gone, as the error words them.
    """
    if note not in windows.notes:
        return None
    try:
        return read(windows.notes[note])
    except ValueError as error:
        raise SteerHealError(
            f"the {what} of an interrupted sweep could not be read",
            given=f"{windows.plan}: {problem_of(error)}",
            expected=f"what the {'walk' if note == 'walk' else 'search'} noted",
            next=f"{removal(windows.folder, folder=True)}, then the same command {again} again",
        ) from None


def print_walk(walked: Walk, target: float, ceiling: float) -> None:
    """The probes at the terminal, by coefficient, and the answer.

    Args:
        walked: the probes and the dose that they led to.
        target: share of completions that must survive.
        ceiling: the largest coefficient that was allowed.
    """
    print_table(
        f"walk to the largest coefficient with a survival of {target:g} (0 is a control)",
        ["coefficient", "n", "kept", "survival", "perplexity", "trait_llr"],
        [
            [f"{probe.coefficient:g}", probe.n, probe.kept, probe.survival, probe.perplexity, probe.trait_llr]
            for probe in sorted(walked.probes, key=lambda probe: probe.coefficient)
        ],
    )
    console.print(
        f"sampling at {walked.coefficient:g}"
        + (", the ceiling: sweep.dose_ceiling may be raised" if walked.coefficient == ceiling else "")
    )
