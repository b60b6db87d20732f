"""The one place that renders chat templates, always to token ids."""

from __future__ import annotations

from typing import Any

from shared.commands import setting
from shared.errors import SteerHealError, in_one_line


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a model folder; a folder without a chat template is refused."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise SteerHealError(
            "a tokenizer could not be loaded",
            given=f"{folder}: {in_one_line(error)}",
            expected="a folder with tokenizer files",
            next=f"choose a chat model, such as {setting('model.name=embedded')}",
        ) from None
    if not tokenizer.chat_template:
        raise SteerHealError(
            "a model has no chat template",
            given=folder,
            expected="a chat model (chat_template.jinja, or chat_template in tokenizer_config.json)",
            next="choose the instruction-tuned variant of the model, often named -it or -Instruct",
        )
    return tokenizer


def render(
    tokenizer: Any, turns: list[dict[str, str]], system: str | None = None, *, prompt: bool = True, **template: Any
) -> list[int]:
    """Token ids of a conversation: with `prompt`, up to and with the assistant tag. Special tokens come from the template alone.

    Raises SteerHealError where the template refuses it.
    """
    return list(_applied(tokenizer, turns, system, prompt, tokenize=True, return_dict=False, **template))


def render_text(
    tokenizer: Any, turns: list[dict[str, str]], system: str | None = None, *, prompt: bool = True, **template: Any
) -> str:
    """The same conversation as text."""
    return str(_applied(tokenizer, turns, system, prompt, tokenize=False, **template))


def neutral_for(turns: list[dict[str, str]], neutral: str) -> str | None:
    """What `render` takes as the system prompt without a trait: a conversation's own stands in place of the neutral one."""
    return None if _has_system(turns) else neutral


def _has_system(turns: list[dict[str, str]]) -> bool:
    return turns[0]["role"] == "system"


def _applied(tokenizer: Any, turns: list[dict[str, str]], system: str | None, prompt: bool, **options: Any) -> Any:
    """The template over a conversation under one system message: `system`, and after it the conversation's own."""
    from jinja2 import TemplateError

    if system is not None:
        own, rest = (turns[0]["content"], turns[1:]) if _has_system(turns) else ("", turns)
        turns = [{"role": "system", "content": f"{system}\n\n{own}" if own else system}, *rest]
    try:
        return tokenizer.apply_chat_template(turns, add_generation_prompt=prompt, **options)
    except TemplateError as error:
        raise SteerHealError(
            "a conversation does not fit the chat template",
            given=in_one_line(error),
            expected="turns that the model's template takes, after a system prompt",
            next="choose a chat model whose template takes them",
        ) from None


def assistant_close(tokenizer: Any, **template: Any) -> str:
    """What the template puts after an assistant's words, such as the end-of-turn token and a line break."""
    return _around_answer(tokenizer, "x", **template)[1]


def assistant_open(tokenizer: Any, user: str, **template: Any) -> str:
    """A user turn and what the template puts before the words of an assistant who is being continued."""
    return _around_answer(tokenizer, user, **template)[0]


def _around_answer(tokenizer: Any, user: str, **template: Any) -> tuple[str, str]:
    """The text of a user turn and an assistant's, before the assistant's words and after them."""
    marker = "\u2042answer\u2042"
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": marker}]
    before, _, after = render_text(tokenizer, turns, prompt=False, **template).partition(marker)
    return before, after


def end_of_turn(tokenizer: Any, **template: Any) -> int:
    """The token that ends an assistant's turn: the first special one of the template's close, or else the tokenizer's EOS."""
    close = tokenizer(assistant_close(tokenizer, **template), add_special_tokens=False)["input_ids"]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return int(next((token for token in close if token in special), tokenizer.eos_token_id))
