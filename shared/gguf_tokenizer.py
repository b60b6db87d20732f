"""The tokenizer of a GGUF file as Transformers makes it, with what it gets wrong mended: special tokens, splitting, the end of a turn."""

from __future__ import annotations

from typing import Any

from shared.console import say
from shared.errors import SteerHealError, in_one_line
from shared.families import GGUF, GGUF_SPLITS
from shared.gguf_header import Header
from shared.gguf_model import ends_named

CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type: markup, and text that is always one token
MARK = "\u2042answer\u2042"


def tokenizer_of(header: Header) -> tuple[Any, list[int]]:
    """(the tokenizer, the tokens that end a turn, that of the chat template first).

    Raises:
        SteerHealError: there is no chat template, nothing ends a turn, or a token is not the one that the file says.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            header.path.parent, gguf_file=header.path.name, trust_remote_code=False
        )
    except (ValueError, KeyError, IndexError, TypeError, OSError, AttributeError) as error:
        raise _refusal(header, in_one_line(error), "a tokenizer that Transformers can make") from None
    if not tokenizer.chat_template:
        raise _refusal(header, "no tokenizer.chat_template", "a chat model")
    _mark(header, tokenizer)
    _split(header, tokenizer)
    ends = _ends(header, tokenizer)
    _name(header, tokenizer, ends)
    _begin(header, tokenizer)
    return tokenizer, ends


def _refusal(header: Header, given: str, expected: str) -> SteerHealError:
    return SteerHealError(
        "the tokenizer of a GGUF file could not be used",
        given=f"{header.path}: {given}",
        expected=expected,
        next="name the original model: a Hugging Face id, or a folder with config.json and *.safetensors",
    )


def _mark(header: Header, tokenizer: Any) -> None:
    """Make every control token of the file special, and every user-defined one a single token: Transformers knows only a few by name."""
    from transformers import AddedToken

    tokens, kinds = header.fields["tokenizer.ggml.tokens"], header.fields.get("tokenizer.ggml.token_type") or []
    added_tokens = tokenizer.added_tokens_decoder
    for kind in (CONTROL, USER_DEFINED):
        indices = [index for index, token_kind in enumerate(kinds) if token_kind == kind and index < len(tokens)]
        new = [
            AddedToken(tokens[index], normalized=False, special=kind == CONTROL)
            for index in indices
            if index not in added_tokens or added_tokens[index].special != (kind == CONTROL)
        ]
        if new:
            tokenizer.add_tokens(new, special_tokens=kind == CONTROL)
        for index in indices:
            if (token_id := tokenizer.convert_tokens_to_ids(tokens[index])) != index:
                raise _refusal(header, f"{tokens[index]!r} is token {token_id}", f"token {index}, as the file has it")


def _split(header: Header, tokenizer: Any) -> None:
    """Split text before the merges as the model was trained: Transformers does not read tokenizer.ggml.pre."""
    from tokenizers import Regex, pre_tokenizers

    pre = header.text("tokenizer.ggml.pre") or "default"
    if header.text("tokenizer.ggml.model") != "gpt2" or pre in GGUF[header.architecture].converted_splits:
        return
    if pre in GGUF_SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(GGUF_SPLITS[pre]), "isolated", False),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return
    say(
        f"{header.path.name} splits text by {pre!r}, which is not known here: it is split by Transformers' rule for {header.architecture}, "
        "and some words may become other tokens than in llama.cpp",
        "yellow",
    )


def _ends(header: Header, tokenizer: Any) -> list[int]:
    """The tokens that end an assistant's turn: what the template puts after one, then what the metadata names.

    The metadata of some files names the token that opens a turn: what the template puts before an answer does not end it.
    """
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": MARK}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except TemplateError as error:
        raise _refusal(header, in_one_line(error), "a chat template that renders a user's turn and an answer") from None
    before, marked, after = text.partition(MARK)
    if not marked:
        raise _refusal(header, "its chat template leaves the answer out", "a chat template that renders it")
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    opened, closed = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))
    close = next((token for token in closed if token in special), None)
    end_tokens = [token for token in ends_named(header) if token == close or token not in opened]
    ends = list(dict.fromkeys([*([] if close is None else [close]), *end_tokens]))
    if not ends:
        raise _refusal(header, "no token that ends a turn", "one in its chat template, or tokenizer.ggml.eot_token_id")
    return ends


def _name(header: Header, tokenizer: Any, ends: list[int]) -> None:
    """Name the special tokens as the metadata does, the end of a turn as end of sequence, and as padding one that ends no turn."""
    tokens = header.fields["tokenizer.ggml.tokens"]

    def named(key: str) -> int | None:
        token = header.whole(f"tokenizer.ggml.{key}_token_id")
        return token if token is not None and token < len(tokens) else None

    if (bos := named("bos")) is not None:
        tokenizer.bos_token = tokens[bos]
    if (unknown := named("unknown")) is not None:
        tokenizer.unk_token = tokens[unknown]
    tokenizer.eos_token = tokens[ends[0]]
    standard = [token for key in ("padding", "unknown", "bos") if (token := named(key)) is not None]
    padding = [token for token in standard if token not in ends] + [
        token for token in [*standard, *ends] if token != ends[0]
    ]
    tokenizer.pad_token = tokens[(padding or ends)[0]]


def _begin(header: Header, tokenizer: Any) -> None:
    """Put BOS in front of a text as the file says, which Transformers does not read.

    Without the key llama.cpp adds it to SentencePiece vocabularies and to Llama 3's.
    """
    from tokenizers import processors

    if (bos := tokenizer.bos_token_id) is None:
        return
    pieces, llama3 = header.text("tokenizer.ggml.model") == "llama", header.text("tokenizer.ggml.pre") in GGUF_SPLITS
    begins = header.fields.get("tokenizer.ggml.add_bos_token", pieces or llama3)
    if bool(begins) == (tokenizer("x")["input_ids"][:1] == [bos]):
        return
    front = f"{tokenizer.bos_token} " if begins else ""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{front}$A", pair=f"{front}$A $B", special_tokens=[(tokenizer.bos_token, bos)]
    )
