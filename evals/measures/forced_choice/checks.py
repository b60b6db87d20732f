"""What is refused before a model is loaded: invalid sampling options, steering that would not steer, questions that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evals.measures.forced_choice.ask import Free, Read
from evals.measures.forced_choice.instrument import InstrumentRenderer, orders
from shared.commands import setting
from shared.errors import SteerHealError
from shared.records import Vignette
from shared.schema import COLDEST


def refuse_sampling_options(read: Read, free_tokens: int = 0) -> None:
    """Raise SteerHealError for invalid sampling options."""
    fine = (
        read.think >= 0
        and read.samples >= 1
        and (read.temperature == 0 or COLDEST <= read.temperature <= 2)
        and read.top_k >= 0
        and free_tokens >= 0
        and (read.samples == 1 or (read.temperature > 0 and read.think > 0))
    )
    if not fine:
        raise SteerHealError(
            "invalid sampling options",
            given=f"--think {read.think} --samples {read.samples} --temperature {read.temperature} --top-k {read.top_k} --free-tokens {free_tokens}",
            expected="think, top-k and free tokens from 0, temperature 0 or from 0.01 to 2, samples from 1; more than one needs a temperature above 0 and a thought",
            next="--samples 8 --temperature 1 --think 16",
        )


def refuse_steering_options(arguments: Any) -> None:
    """Raise SteerHealError for options of steering that would leave the model unsteered."""
    alone = [name for name in ("coefficient", "random") if getattr(arguments, name) and not arguments.vector]
    if (items := arguments.items) is not None and items < 1:
        raise SteerHealError("no items to score", given=f"--items {items}", expected="1 or more", next="--items 28")
    if alone or arguments.random < 0 or arguments.eval != "round":
        problem = (
            f"--{alone[0]} without --vector"
            if alone
            else f"--random {arguments.random}"
            if arguments.random < 0
            else f"--eval {arguments.eval} without --run"
        )
        raise SteerHealError(
            "options do not go together",
            given=problem,
            expected="--vector with --coefficient; --random from 0; --eval with --run",
            next="--vector FILE --coefficient 1 --random 3",
        )


def refuse_unread_settings(sources: dict[str, str]) -> None:
    """Raise SteerHealError for a setting of a run's evaluation that would be read by nobody here."""
    unread = [key for key, source in sources.items() if source == "SET" and key.startswith("eval.") and key != "eval.bootstrap"]  # fmt: skip
    if unread:
        raise SteerHealError(
            "a run's settings do not reach a score on plain files",
            given=f"--set with {', '.join(unread)}",
            expected="the options of this command, as --items 28 for eval.items",
            next="python -m evals.score --help",
        )


def refuse_too_long(
    renderer: InstrumentRenderer,
    vignettes: Sequence[Vignette],
    read: Read,
    free: Free | None,
    longest: int,
    systems: Sequence[str | None],
) -> None:
    """Raise SteerHealError where a question with its thought and answer is longer than the model is allowed to read, or where the chat
    template drops a system prompt that a condition has: it would be the base under another name.

    Args:
        renderer: of the questions.
        vignettes: to ask.
        read: how a question is asked.
        free: settings of free answers; None for none.
        longest: sequence that the engine reads, tokens.
        systems: system prompts of the conditions; None is a question without one.
    """
    if any(system is not None for system in systems):
        renderer.chat.hears()
    listing = orders("cyclic")[0]  # whatever the order, the options are the same
    question = max(
        len(renderer.question(vignette.text, listing, system)) for vignette in vignettes for system in systems
    )
    needed = question + read.think + len(renderer.suffix) + max(len(renderer.prefill) + 1, free.tokens if free else 0)
    if needed > longest:
        raise SteerHealError(
            "a question does not fit into the model's context",
            given=f"{needed} tokens: {question} of the longest question, {read.think} of thought, and the answer",
            expected=f"at most model.max_model_len = {longest}",
            next=f"{setting(f'model.max_model_len={needed}')}, or fewer think tokens (eval.think, --think)",
        )
