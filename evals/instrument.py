"""The forced choice as token ids: an instrument rendered for one tokenizer, and the orders of its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.chat import assistant_close, assistant_open, end_of_turn, render_text
from shared.errors import SteerHealError
from shared.instrument import FOUNDATIONS, Instrument, read_instrument
from shared.records import data_file


def load_instrument(name: str) -> Instrument:
    """'embedded', 'moralmaps' (the published one, of an installed moralmaps), or a JSON file."""
    if name == "moralmaps":
        from evals.moralmaps import published

        return published()
    return read_instrument(data_file(name, "instrument.json"))


def orders(debias: str) -> list[list[int]]:
    """Option orders: forward and reversed, or the seven rotations, in which each option stands once at each position."""
    size = len(FOUNDATIONS)
    if debias == "reversal":
        return [list(range(size)), list(reversed(range(size)))]
    return [[(start + k) % size for k in range(size)] for start in range(size)]


class Renderer:
    """Token ids of an instrument for one tokenizer.

    Every part is tokenised on its own. The chat template's begin-of-sequence token stands once, at the front.
    """

    def __init__(self, tokenizer: Any, instrument: Instrument, template: dict[str, Any]):
        self._tokenizer, self.instrument, self._template = tokenizer, instrument, template
        self.label_ids = self._labels()
        self.prefill = self._ids(instrument.prefill)
        nudge = self._without_bos(assistant_open(tokenizer, instrument.nudge, **template))
        self.suffix = self._ids(instrument.think_close + assistant_close(tokenizer, **template) + nudge)
        close = self._ids(instrument.think_close)
        # a turn may end with another token than a text does, and vLLM stops at both
        ends = (tokenizer.eos_token_id, end_of_turn(tokenizer, **template))
        self.stop_ids = [
            *dict.fromkeys(token for token in ends if token is not None),
            *(close if len(close) == 1 else []),
        ]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _labels(self) -> list[int]:
        ids = [self._ids(label) for label in self.instrument.labels]
        wrong = {label: found for label, found in zip(self.instrument.labels, ids, strict=True) if len(found) != 1}
        single = [found[0] for found in ids if len(found) == 1]
        if wrong or len(set(single)) != len(ids):
            raise SteerHealError(
                "the answer labels are not seven tokens that are single and distinct",
                given=", ".join(f"{label!r} is {found}" for label, found in wrong.items())
                or f"{self.instrument.labels} are {single}",
                expected="one token per label, each another one",
                next="give the instrument labels that are single tokens for this model: --instrument FILE",
            )
        return single

    def _without_bos(self, text: str) -> str:
        bos = self._tokenizer.bos_token
        return text.removeprefix(bos) if bos and self._adds_bos() else text

    def _adds_bos(self) -> bool:
        return bool(self._tokenizer("x")["input_ids"][:1] == [self._tokenizer.bos_token_id])

    def question(self, vignette: str, order: Sequence[int], system: str | None = None) -> list[int]:
        """Prompt of the first phase: the question up to and with the opened think block."""
        turns = [{"role": "user", "content": self.instrument.question(vignette, order)}]
        text = render_text(self._tokenizer, turns, system, **self._template)
        if not text.rstrip().endswith(self.instrument.think_open.rstrip()):
            text += self.instrument.think_open
        return list(self._tokenizer(self._without_bos(text))["input_ids"])

    def answer(self, question: Sequence[int], thought: Sequence[int], whole: bool = False) -> list[int]:
        """Prompt of the second phase, up to the answer slot. The reference never feeds the last think token to the model; nor do we, unless whole."""
        return [*self.free_answer(question, thought, whole), *self.prefill]

    def free_answer(self, question: Sequence[int], thought: Sequence[int], whole: bool = False) -> list[int]:
        """The same up to the assistant's turn, without the forced prefill: the model answers in its own words."""
        return [*question, *(thought if whole else thought[:-1]), *self.suffix]
