"""Control tokens that are written inside a text: they stay text, and only a chat template's own become tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from shared.errors import SteerHealError

PRIVATE = range(0xE000, 0xF8FF)  # code points that no text of a model's vocabulary uses


class ControlTokens:
    """The added tokens of a tokenizer that a chat template is made of, and text in which they are not tokens.

    Args:
        tokenizer: of transformers.
        names: the tokens, as text.
    """

    def __init__(self, tokenizer: Any, names: Iterable[str]):
        self._tokenizer = tokenizer
        self.names = tuple(sorted(set(names), key=lambda name: (-len(name), name)))
        self.ids = frozenset(int(tokenizer.convert_tokens_to_ids(name)) for name in self.names)
        self._pattern = re.compile("|".join(map(re.escape, self.names)) or r"(?!)")
        self.written = lru_cache(1024)(self._written)
        self._copy = lru_cache(2)(self._renamed)

    def _written(self, text: str) -> bool:
        """Whether the tokenizer makes a control token of a part of a text."""
        return not self.ids.isdisjoint(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @staticmethod
    def mark(texts: Iterable[str]) -> str:
        """A character that occurs in none of the texts."""
        used = set().union(*texts)
        return next(chr(point) for point in PRIVATE if chr(point) not in used)

    def broken(self, text: str, mark: str) -> str:
        """The text with a mark inside every control token, so that a template that renders it sees the words and no token."""
        return self._pattern.sub(lambda match: f"{match[0][:1]}{mark}{match[0][1:]}", text)

    def encode(self, text: str, mark: str) -> list[int]:
        """Token ids of a text, no BOS added: control tokens without a mark inside are tokens, those with one are text; marks are left out.

        Tokens that are to be tokens get another name in a copy of the tokenizer, which therefore knows none under its usual name. All
        else, such as how blanks beside a token are treated and where words are cut, is the tokenizer's own.
        """
        backend, renamed, ids = self._copy(self.mark([text, mark]))
        marked = self._pattern.sub(lambda match: renamed[match[0]], text)
        return [
            ids.get(token, token) for token in backend.encode(marked.replace(mark, ""), add_special_tokens=False).ids
        ]

    def _renamed(self, sign: str) -> tuple[Any, dict[str, str], dict[int, int]]:
        """The tokenizer with control tokens renamed; their new names, between two signs; and, by its ids of added tokens, the
        tokenizer's own."""
        from tokenizers import Tokenizer

        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise SteerHealError(
                "control tokens inside a text cannot be read as text by this tokenizer",
                given=type(self._tokenizer).__name__,
                expected="a tokenizer with tokenizer.json, or texts without its special tokens",
                next="take the special tokens out of the prompts, such as " + ", ".join(self.names[-2:]),
            )
        document = json.loads(backend.to_str())
        renamed = {name: f"{sign}{place}{sign}" for place, name in enumerate(self.names)}
        for token in document["added_tokens"]:
            token["content"] = renamed.get(token["content"], token["content"])
        model = document["model"]
        vocab = model["vocab"]
        # a vocabulary that lists them would make them of text
        if isinstance(vocab, dict):
            model["vocab"] = {renamed.get(piece, piece): number for piece, number in vocab.items()}
        else:
            model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in vocab]
        if model.get("unk_token") in renamed:
            model["unk_token"] = renamed[model["unk_token"]]
        document["post_processor"] = None
        copy = Tokenizer.from_str(json.dumps(document))
        ids = {
            int(copy.token_to_id(renamed.get(added.content, added.content)) or 0): number
            for number, added in backend.get_added_tokens_decoder().items()
        }
        return copy, renamed, ids


def control_names(tokenizer: Any, shown: str, ends: Iterable[int], thoughts: Iterable[int]) -> set[str]:
    """The special tokens of a tokenizer, and other tokens that mark turns. Blanks and marks of a thought are left out.

    Args:
        shown: turns as a chat template renders them.
        ends: tokens that end a turn.
        thoughts: tokens that open and close a thought, which models and people write.
    """
    added = {int(token): added_token for token, added_token in tokenizer.added_tokens_decoder.items()}
    template_tokens = {*tokenizer(shown, add_special_tokens=False)["input_ids"]} - {*thoughts}
    turns = {token for token in template_tokens if token in added and added[token].content.strip()}
    special = {token for token, added_token in added.items() if added_token.special}
    return {added[token].content for token in special | turns | {token for token in ends if token in added}}
