"""What a running engine would refuse, refused before one is started: doses that overflow, held-out prompts that do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

from gen.engine.overflow import largest_coefficient
from gen.prompts import PromptRenderer
from shared.chat import Chat
from shared.commands import setting
from shared.context import fitted
from shared.errors import SteerHealError
from shared.models import Model
from shared.prompts import load_heldout
from shared.records import Prompt
from shared.schema import Config
from shared.traits import load_trait
from shared.vectors import Vector

# torch.finfo(dtype).max, without torch
DTYPE_MAX = {"float32": (2 - 2**-23) * 2.0**127, "bfloat16": (2 - 2**-7) * 2.0**127, "float16": 65504.0}


def refuse_overflow(vectors: Iterable[Vector], doses: Iterable[tuple[str, float]], model: Model, dtype: str) -> None:
    """Raise SteerHealError for the first dose that would overflow the model's numbers under one of the vectors.

    Args:
        vectors: those that are steered with.
        doses: coefficients, each after the option or the key that it was given by.
        model: the original one.
        dtype: of its weights.
    """
    kind = str(model.text_config.get("model_type", ""))
    largest = min((largest_coefficient(vector.layers, DTYPE_MAX[dtype], kind) for vector in vectors), default=None)
    for name, dose in doses:
        if largest is not None and abs(dose) > largest:
            raise SteerHealError(
                "the coefficient would overflow the model's numbers",
                given=f"{name} {dose:g}",
                expected=f"from {-largest:g} to {largest:g} for this vector and {dtype}",
                next=f"lower it: |c| up to {largest:g}",
            )


def doses_of(config: Config, coefficients: Sequence[float], name: str) -> list[tuple[str, float]]:
    """The doses of a sweep: a grid's coefficients, after the name that they were given by, or the largest that a search may take. None of one
    that samples under the trait prompt."""
    if config.filter.source == "prompted":
        return []
    if config.searches:
        return [("sweep.dose_ceiling", config.sweep.dose_ceiling)]
    return [(name, dose) for dose in coefficients]


def check_settings(config: Config, model: Model, vector: Vector, path: Path, coefficients: Sequence[float]) -> Config:
    """The configuration of a sweep on plain files, as `shared.context.fitted` has it.

    Args:
        model: to sample.
        vector: to steer with, read from path.
        coefficients: those of a grid.

    Raises:
        SteerHealError: a vector of another model, a length beyond the model's context, a dose that overflows.
    """
    vector.check(path, hidden=model.hidden, depth=model.depth, model=model.name)
    refuse_overflow([vector], doses_of(config, coefficients, "--coefficients"), model, config.model.dtype)
    return fitted(config, model.context)


def fit_heldout(prompts: Sequence[Prompt], renderer: PromptRenderer, config: Config) -> None:
    """Raise SteerHealError for held-out prompts that leave less than eval.generation_tokens of model.max_model_len.

    The engine refuses a longer prompt, and cuts the completion of a shorter one. A completion is scored under all system prompts of the trait file.
    """
    tokens, longest = config.eval.generation_tokens, config.model.max_model_len
    trait = renderer.trait
    others = [trait.opposite, *trait.decoys, *([*trait.paraphrases.trait, *trait.paraphrases.opposite] if trait.paraphrases else [])]  # fmt: skip
    needed = {
        prompt.id: max(map(len, [*renderer(prompt), *(renderer.under(prompt, system) for system in others)])) + tokens
        for prompt in prompts
    }
    if over := [name for name, size in needed.items() if size > longest]:
        most = max(needed.values())
        raise SteerHealError(
            "a held-out prompt is too long",
            given=f"{over[0]}: {needed[over[0]]} tokens with its completion of {tokens}; {len(over)} of {len(needed)} are too long, the longest takes {most}",
            expected=f"at most model.max_model_len = {longest}",
            next=f"{setting(f'model.max_model_len={most}')}, lower eval.generation_tokens, or shorten the prompts of eval.heldout",
        )


def look_ahead(config: Config, origin: Model, vector: Vector, path: Path, day: date | None) -> None:
    """Refuse, before a round samples, what its sweep and its evaluation would refuse after hours of work.

    Args:
        config: of the run.
        origin: the original model.
        vector: of the round, read from path.
        day: that a chat template with a clock writes.
    """
    vector.check(path, hidden=origin.hidden, depth=origin.depth)
    doses = doses_of(config, config.sweep.coefficients, "sweep.coefficients")
    doses += [("eval.coefficients", dose) for dose in config.eval.coefficients]
    refuse_overflow([vector], doses, origin, config.model.dtype)
    chat = Chat.load(origin.folder, config.model.chat_template_kwargs, day)
    fit_heldout(load_heldout(config.eval.heldout), PromptRenderer(chat, load_trait(config.scored_trait)), config)
