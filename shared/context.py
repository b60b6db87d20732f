"""The longest sequence of a model, and settings of lengths that do not fit into it or into each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shared.commands import setting
from shared.errors import SteerHealError
from shared.families import family_of
from shared.schema import Config

KEY = "model.max_model_len"
SOURCE = "the model's context"  # the source of an unset KEY, where the default is longer than the model's context
SCALED = ("linear", "dynamic")  # RoPE types whose factor is not in max_position_embeddings yet, as vLLM reads them


def context_of(text_config: Mapping[str, Any]) -> int | None:
    """The longest sequence that an engine accepts for a model, tokens; None where its configuration does not say.

    As vLLM derives it: max_position_embeddings, or Cohere's model_max_length, times the factor of a linear or dynamic RoPE scaling.

    Args:
        text_config: config.json of a decoder, or its text_config.
    """
    length = text_config.get("model_max_length") or text_config.get("max_position_embeddings")
    if not isinstance(length, int) or isinstance(length, bool):
        return None
    if family_of(text_config.get("model_type")).scaled_context:
        return length
    return int(length * max(_factors(text_config.get("rope_parameters") or text_config.get("rope_scaling")), default=1))


def _factors(rope: Any) -> Iterator[float]:
    """The factors of RoPE scalings that lengthen a context; newer configurations hold one scaling a kind of layer."""
    if not isinstance(rope, Mapping):
        return
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if kind in SCALED and isinstance(factor, int | float):
        yield float(factor)
    for inner in rope.values():
        yield from _factors(inner)


def fitted(config: Config, context: int | None) -> Config:
    """A configuration whose model.max_model_len a model can take: where nobody set it, at most the model's context.

    Args:
        context: the model's, tokens; None where it is not known, and nothing is compared.

    Raises:
        SteerHealError: model.max_model_len was set, and is beyond the context.
    """
    if context is None or config.model.max_model_len <= context:
        return config
    if "max_model_len" in config.model.model_fields_set:
        raise SteerHealError(
            f"{KEY} is beyond the model's context",
            given=f"{KEY} = {config.model.max_model_len}",
            expected=f"at most {context}",
            next=setting(f"{KEY}={context}"),
        )
    return with_length(config, context)


def with_length(config: Config, length: int) -> Config:
    """A configuration with another model.max_model_len."""
    return config.model_copy(update={"model": config.model.model_copy(update={"max_model_len": length})})


def refuse_lengths(config: Config) -> None:
    """Raise SteerHealError where completions, thoughts or answers leave no room for a prompt in model.max_model_len."""
    longest, judged = config.model.max_model_len, config.eval
    prompts = [
        ("sweep.max_tokens", config.sweep.max_tokens),
        ("eval.generation_tokens", judged.generation_tokens),
        ("eval.think", judged.think),
        ("eval.free_tokens", judged.free_tokens),
    ]
    for key, tokens in prompts:
        if tokens >= longest:
            raise SteerHealError(
                f"{key} leaves no room for a prompt",
                given=f"{key} = {tokens}",
                expected=f"less than {KEY} = {longest}, which holds the prompt as well",
                next=setting(f"{key}={longest // 2}"),
            )
    if judged.think + judged.free_tokens >= longest:
        raise SteerHealError(
            "a thought and an answer leave no room for a question",
            given=f"eval.think = {judged.think}, eval.free_tokens = {judged.free_tokens}",
            expected=f"together less than {KEY} = {longest}, which holds the question as well",
            next=setting(f"eval.think={longest // 2 - min(judged.free_tokens, longest // 4)} eval.free_tokens={min(judged.free_tokens, longest // 4)}"),
        )  # fmt: skip
