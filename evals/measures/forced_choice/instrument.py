"""The forced choice as token ids: an instrument rendered for one tokenizer, and the orders of its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.chat import Chat
from shared.instrument import FOUNDATIONS, Instrument, foundation_of, read_instrument
from shared.records import Vignette, data_file


def load_instrument(name: str) -> Instrument:
    """The instrument by its name: 'embedded', 'moralmaps' (the published one, from an installed moralmaps), or a JSON file.

    Raises SteerHealError for a file that is not an instrument, and where moralmaps is not installed.
    """
    if name == "moralmaps":
        from evals.measures.forced_choice.moralmaps import published_instrument

        return published_instrument()
    return read_instrument(data_file(name, "instrument.json"))


ORDERS = {"reversal": 2, "rotating": 2, "cyclic": 7}  # how often an item is asked


def orders(debias: str, rotation: int | None = None) -> list[list[int]]:
    """Option orders of an item.

    Args:
        debias: `reversal`, forward and reversed; `rotating`, the rotation that starts with option `rotation` and its reverse; `cyclic`,
            the seven rotations, in which each option stands once at each position.
        rotation: of the item, 0 to 6, under `rotating` alone; see `rotations`.
    """
    size = len(FOUNDATIONS)
    assert (rotation is not None) == (debias == "rotating"), "a rotation belongs to an item under rotating orders"
    cyclic = [[(start + k) % size for k in range(size)] for start in range(size)]
    if debias == "cyclic":
        return cyclic
    return [cyclic[rotation or 0], cyclic[rotation or 0][::-1]]


def rotations(debias: str, foundations: Sequence[int]) -> list[int | None]:
    """The rotation of each item, None unless under `rotating`.

    The item of rank k among those of foundation f has rotation (k + f) mod 7: over seven items of a foundation each option stands
    at each position equally often, so that a mean over items keeps little of a position effect at the price of two orders an item.

    Args:
        foundations: canonical index of each item's foundation, in the order of the items.
    """
    if debias != "rotating":
        return [None] * len(foundations)
    counts = [0] * len(FOUNDATIONS)
    chosen: list[int | None] = []
    for f in foundations:
        chosen.append((counts[f] + f) % len(FOUNDATIONS))
        counts[f] += 1
    return chosen


def rotations_of(debias: str, vignettes: Sequence[Vignette]) -> list[int | None]:
    """`rotations` of vignettes in the order in which they are asked."""
    foundations = [foundation_of(vignette.foundation_coarse) for vignette in vignettes]
    assert None not in foundations, "shared.vignettes lets none but the seven through"
    return rotations(debias, [f for f in foundations if f is not None])


class InstrumentRenderer:
    """Token ids of an instrument for one chat.

    Every part is tokenised on its own, as the published evaluator does. BOS stands once, at the front.

    Args:
        chat: of the model; or its tokenizer alone, with the template's arguments.
        instrument: the wording.
        template: arguments of the template, where there is no chat yet.
    """

    def __init__(self, chat: Any, instrument: Instrument, template: dict[str, Any] | None = None):
        self.chat, self.instrument = Chat.of(chat, template), instrument
        self.prefill = self.chat.plain(instrument.prefill)
        self.close = self.chat.closing(instrument.think_close)
        self.suffix = self.chat.next_turn(self.close, instrument.nudge)
        self.label_ids = (
            self.chat.label_ids(instrument.labels, instrument.prefill)
            if instrument.prefill
            else self.chat.first_label_ids(instrument.labels, self.close, instrument.nudge)
        )
        opens_in_prompt = self.chat.thinking.prompt == "opens"
        close = list(self.chat.thinking.close_ids) if opens_in_prompt else self.chat.plain(self.close)
        # a turn may end with another token than a text does, and vLLM stops at both
        self.stop_ids = [*dict.fromkeys((*self.chat.stop_ids, *(close if len(close) == 1 else [])))]

    def question(self, vignette: str, order: Sequence[int], system: str | None = None) -> list[int]:
        """Prompt of the first phase: the question up to and with the opened think block, which is one whatever the template's
        arguments close."""
        instrument = self.instrument
        turns = [{"role": "user", "content": instrument.question(vignette, order)}]
        return self.chat.opened(turns, system, instrument.think_open)

    def answer(self, question: Sequence[int], thought: Sequence[int], whole: bool = False) -> list[int]:
        """Prompt of the second phase, up to the answer slot. The reference never feeds the last think token to the model; nor do we, unless whole."""
        return [*self.free_answer(question, thought, whole), *self.prefill]

    def free_answer(self, question: Sequence[int], thought: Sequence[int], whole: bool = False) -> list[int]:
        """The same up to the assistant's turn, without the forced prefill: the model answers in its own words."""
        return [*question, *(thought if whole else thought[:-1]), *self.suffix]
