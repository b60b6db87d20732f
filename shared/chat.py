"""The one place that renders chat templates, always to token ids."""

from __future__ import annotations

from typing import Any

from shared.errors import SteerHealError


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a model folder; a folder without a chat template is refused."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise SteerHealError(
            "a tokenizer could not be loaded",
            given=f"{folder}: {str(error).splitlines()[0]}",
            expected="a folder with tokenizer files",
            next="set model.name to a chat model, e.g. SET=model.name=embedded",
        ) from None
    if not tokenizer.chat_template:
        raise SteerHealError(
            "a model has no chat template",
            given=folder,
            expected="a chat model (chat_template.jinja, or chat_template in tokenizer_config.json)",
            next="choose the instruction-tuned variant: SET=model.name=...-it",
        )
    return tokenizer


def render(
    tokenizer: Any, turns: list[dict[str, str]], system: str | None = None, *, prompt: bool = True, **template: Any
) -> list[int]:
    """Token ids of a conversation: with `prompt`, up to and with the assistant tag. Special tokens come from the template alone."""
    messages = [{"role": "system", "content": system}, *turns] if system is not None else turns
    return list(
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=prompt, tokenize=True, return_dict=False, **template
        )
    )


def render_text(
    tokenizer: Any, turns: list[dict[str, str]], system: str | None = None, *, prompt: bool = True, **template: Any
) -> str:
    """The same conversation as text."""
    messages = [{"role": "system", "content": system}, *turns] if system is not None else turns
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False, **template))
