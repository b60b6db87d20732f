"""The token that ends a turn: told by what a chat template writes after an assistant's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.commands import setting
from shared.errors import SteerHealError


def end_of_turn(tokenizer: Any, close: str, ends: Sequence[int]) -> int:
    """The first token of `close` that is an added one or a known end; the end of sequence where `close` is blank.

    A template may close the turn, and after it the conversation (Phi-3: `<|end|>`, then `<|endoftext|>`): the first is the turn's.

    Args:
        tokenizer: of transformers.
        close: what the template writes after an assistant's last words.
        ends: the end-of-sequence ids of the model's generation_config.json.

    Raises:
        SteerHealError: `close` is words of several tokens, at none of which a sampler could stop, or nothing ends a turn.
    """
    added = {int(token) for token, token_text in tokenizer.added_tokens_decoder.items() if token_text.content.strip()}
    end_ids = {*added, *ends, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
    own = next((token for token in tokenizer(close, add_special_tokens=False)["input_ids"] if token in end_ids), None)
    if own is not None:
        return int(own)
    words = tokenizer(close.strip(), add_special_tokens=False)["input_ids"]
    if len(words) == 1:
        return int(words[0])
    if close.strip():
        raise SteerHealError(
            "a chat template ends a turn with words that are no single token",
            given=f"{close!r}, {len(words)} tokens",
            expected="one token that ends the assistant's turn, such as the tokenizer's end of sequence",
            next=f"choose a chat model whose template closes a turn with a token: {setting('model.name=embedded')}",
        )
    if tokenizer.eos_token_id is None:
        raise SteerHealError(
            "nothing ends a turn of this model",
            given=f"its template closes a turn with {close!r}, and its tokenizer has no end-of-sequence token",
            expected="a token that ends the assistant's turn",
            next=f"choose a chat model whose tokenizer_config.json names an eos_token: {setting('model.name=embedded')}",
        )
    return int(tokenizer.eos_token_id)
