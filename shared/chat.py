"""Everything that is known of a chat: how its template opens, thinks, ends and labels a turn. The one place that reads a template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shared.control import ControlTokens, control_names
from shared.errors import SteerHealError
from shared.template import Template, Turns, ends_of, load_tokenizer
from shared.thinking import Thinking, parted, read_thinking
from shared.turn_end import end_of_turn


class _Rendered(NamedTuple):
    """A conversation as text. mark is inside every control token of its contents; None where they hold none."""

    text: str
    mark: str | None = None

    @property
    def plain(self) -> str:
        return self.text if self.mark is None else self.text.replace(self.mark, "")


class Chat:
    """One model's chat.

    Args:
        tokenizer: of transformers, with a chat template.
        template: arguments of the template, such as enable_thinking.
        ends: the end-of-sequence ids of the model's generation_config.json.
        day: the day that a template with a clock writes; today's unless given.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: dict[str, Any] | None = None,
        ends: Sequence[int] = (),
        day: date | None = None,
    ):
        self.tokenizer, self.template, self._ends = tokenizer, dict(template or {}), tuple(ends)
        self._template = Template(tokenizer, template, day)
        self.day = self._template.day

    @classmethod
    def load(cls, folder: str | Path, template: dict[str, Any] | None = None, day: date | None = None) -> Chat:
        """The chat of a model folder. Raises SteerHealError without a tokenizer, or a chat template that renders what is asked."""
        chat = cls(load_tokenizer(str(folder)), template, ends_of(Path(folder)), day)
        chat._template.check()
        return chat

    @classmethod
    def of(cls, chat: Any, template: dict[str, Any] | None = None) -> Chat:
        """The Chat of a tokenizer of Transformers, with arguments for its chat template; a Chat is returned unchanged."""
        return chat if isinstance(chat, Chat) else cls(chat, template)

    def ids(self, turns: Turns, system: str | None = None, *, prompt: bool = True) -> list[int]:
        """Token ids of a conversation; special tokens are the template's alone, and those written in its contents stay text.

        Args:
            turns: role and content of each; a system turn of their own comes after `system`, in one turn with it.
            system: the system prompt. It goes before the first user turn where the template refuses a system turn.
            prompt: up to and with what opens the assistant's turn.

        Raises:
            SteerHealError: the template refuses the conversation.
        """
        return self._encoded(self._rendered(turns, system, prompt))

    def text(self, turns: Turns, system: str | None = None, *, prompt: bool = True) -> str:
        """The same conversation as text."""
        return self._rendered(turns, system, prompt).plain

    def plain(self, text: str) -> list[int]:
        """Token ids of ordinary text, without BOS: a special token that is written in it stays text."""
        (text,), mark = self._broken([text])
        return self._tokens(_Rendered(text, mark))

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text: special tokens in it are tokens, and BOS stands once in front where the model has one."""
        return self._encoded(_Rendered(text))

    def opened(self, turns: Turns, system: str | None, opening: str) -> list[int]:
        """Token ids of a prompt that ends within one opened thought: one that the template closed is taken away first.

        Args:
            turns, system: as in `ids`.
            opening: what opens a thought, as text; it is added where the template opens none itself.
        """
        text, mark = self._rendered(turns, system, True)
        if self.thinking.prompt != "opens":
            text = text.removesuffix(self.thinking.closed) + opening
        return self._encoded(_Rendered(text, mark))

    def closing(self, closing: str) -> str:
        """What ends the thought that `opened` opens: the template's own mark where the template opens it, else `closing`."""
        return self.thinking.close if self.thinking.prompt == "opens" else closing

    def next_turn(self, assistant_text: str, user: str) -> list[int]:
        """Token ids after an assistant's words: `assistant_text`, the end of the turn, a user turn, and what opens the assistant's next turn.

        The user turn is rendered as the published evaluator does it: as that of a separate conversation, without its BOS.
        """
        return self._tokens(self._next_turn(assistant_text, user))

    def _next_turn(self, assistant_text: str, user: str) -> _Rendered:
        (user,), mark = self._broken([user])
        before, _ = self._template.around(user)
        while self.bos_id is not None and before.startswith(bos := str(self.tokenizer.bos_token)):
            before = before.removeprefix(bos)
        return _Rendered(assistant_text + self._template.between + before, mark)

    def completed(self, turns: Turns, system: str | None, completion: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt, and those of what the assistant says, which end with the end of the turn, once.

        An end of turn that is written at the completion's end, as many data sets have it, is that one. Without words the second
        list is empty. Where the prompt opens a thought and the completion ends none, the thought is closed at the prompt's end: the
        completion is what the assistant says, not what it thinks.
        """
        words, thinking, thought = self._without_end(completion), self.thinking, ""
        if thinking.prompt == "opens" and words.strip():
            if thinking.close in words:  # a thought was written, perhaps with the mark that the prompt ends with
                words = words.removeprefix(thinking.open).lstrip() if words.startswith(thinking.open) else words
            else:
                thought = f"{thinking.close}\n\n"
        prompt = self._encoded(self._rendered(turns, system, True, opened=thought))
        if not words.strip():
            return prompt, []
        whole = self._encoded(self._rendered(turns, system, True, words, thought))
        joined = whole[: len(prompt)] != prompt  # a token across the edge, which no sampler would continue with
        return prompt, [*(self.plain(words) if joined else whole[len(prompt) :]), self.end_id]

    def label_ids(self, labels: Sequence[str], after: str) -> list[int]:
        """The token that each label becomes after a text. Raises SteerHealError unless each is one, and another one."""
        return self._label_ids(labels, after, self.plain)

    def first_label_ids(self, labels: Sequence[str], assistant_text: str, user: str) -> list[int]:
        """The token that each label becomes where it is the first word after `next_turn(assistant_text, user)`.

        Raises SteerHealError as `label_ids`.
        """
        slot, mark = self._next_turn(assistant_text, user)
        return self._label_ids(labels, slot, lambda text: self._tokens(_Rendered(text, mark)))

    def _label_ids(self, labels: Sequence[str], after: str, tokens: Callable[[str], list[int]]) -> list[int]:
        before = tokens(after)
        tokenized = [tokens(after + label) for label in labels]
        size = len(before)
        wrong = {
            label: ids
            for label, ids in zip(labels, tokenized, strict=True)
            if ids[:size] != before or len(ids) != size + 1
        }
        single = [ids[-1] for ids in tokenized]
        if wrong or len(set(single)) != len(labels):
            raise SteerHealError(
                "every answer label must be one token, and no two the same",
                given=", ".join(
                    f"{label!r} after {after[-20:]!r} is {ids[size:] if ids[:size] == before else 'joined with it'}"
                    for label, ids in wrong.items()
                )
                or f"{list(labels)} are {single}",
                expected="after that text, one token per label, and a different token for each",
                next="give the instrument labels, or a prefill, for which this holds with this model: --instrument FILE",
            )
        return single

    # How a turn ends

    @cached_property
    def end_id(self) -> int:
        """The token that ends an assistant's turn, which training appends to written completions."""
        return end_of_turn(self.tokenizer, self._template.close, self._ends)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends an assistant's turn: the template's, the tokenizer's, and those of generation_config.json."""
        every = (self.end_id, self.tokenizer.eos_token_id, *self._ends)
        return tuple(dict.fromkeys(int(token) for token in every if token is not None))

    def ends(self, ids: Sequence[int]) -> bool:
        """Whether the last token ends a turn."""
        return bool(ids) and ids[-1] in self.stop_ids

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """Token ids up to and with the first that ends a turn."""
        place = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return list(ids[: place + 1])

    def says(self, ids: Sequence[int]) -> bool:
        """Whether there is a word besides blanks, the ends of a turn, and the marks of a thought."""
        text = str(self.tokenizer.decode([token for token in ids if token not in self.stop_ids]))
        for mark in filter(None, (self.thinking.open, self.thinking.close)):
            text = text.replace(mark, "")
        return bool(text.strip())

    def _without_end(self, text: str) -> str:
        """A text without the ends of a turn that it is written with."""
        ends = tuple(self.tokenizer.decode([token]).strip() or " " for token in self.stop_ids)  # a blank is no end here
        while (bare := text.rstrip()).endswith(ends):
            text = bare.removesuffix(next(end for end in ends if bare.endswith(end)))
        return text

    # How a model thinks

    @cached_property
    def thinking(self) -> Thinking:
        """Whether and how the model thinks before it answers."""
        return read_thinking(self._template, lambda text: self._tokens(_Rendered(text)))

    def parted(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The thought and the answer of what a model said after a prompt of `ids`. A thought that does not end has no answer."""
        return parted(list(ids), self.thinking, self.tokenizer.decode)

    # What a model's template is

    @property
    def bos_id(self) -> int | None:
        """The token that begins a conversation (BOS); None for a model without one, and where it begins every turn."""
        return self._template.bos_id

    @property
    def system(self) -> Literal["kept", "merged", "dropped"]:
        """The form in which the template puts a system prompt, as in `shared.template.Template`."""
        return self._template.system

    def hears(self) -> None:
        """Raise SteerHealError where the template leaves a system prompt out: the trait prompt would not reach the model."""
        self._template.hears()

    @property
    def dated(self) -> bool:
        """Whether the template writes the day."""
        return self._template.dated

    @property
    def arguments(self) -> str:
        """The template's arguments, and its day where it writes one, as JSON with sorted keys."""
        return self._template.described

    @property
    def elsewhere(self) -> dict[str, Any]:
        """The template's arguments for a server that renders it, as in `shared.template.Template`."""
        return self._template.elsewhere

    @cached_property
    def _control(self) -> ControlTokens:
        """Special tokens, and the others that the template's turns are made of but for blanks and thoughts."""
        turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
        rendered = self._template.render(turns, True) + self._template.render(turns[:2], False)
        thoughts = (*self.thinking.open_ids, *self.thinking.close_ids)
        return ControlTokens(self.tokenizer, control_names(self.tokenizer, rendered, self.stop_ids, thoughts))

    # Text and tokens

    def _rendered(self, turns: Turns, system: str | None, prompt: bool, then: str = "", opened: str = "") -> _Rendered:
        """A conversation under one system message, and what is said then, after what `opened` adds to the template's own text."""
        turns = list(turns)
        if system is not None:
            own, rest = (turns[0]["content"], turns[1:]) if _has_system(turns) else ("", turns)
            turns = [{"role": "system", "content": f"{system}\n\n{own}" if own else system}, *rest]
        if _has_system(turns) and len(turns) > 1 and self._template.system == "merged":
            both = f"{turns[0]['content']}\n\n{turns[1]['content']}"
            turns = [{**turns[1], "content": both}, *turns[2:]]
        (*contents, then), mark = self._broken([*(turn["content"] for turn in turns), then])
        turns = [{**turn, "content": content} for turn, content in zip(turns, contents, strict=True)]
        return _Rendered(self._template.render(turns, prompt) + opened + then, mark)

    def _broken(self, texts: Sequence[str]) -> tuple[list[str], str | None]:
        """Texts with a mark inside their control tokens; no mark where there are none."""
        if not any(map(self._control.written, texts)):
            return list(texts), None
        mark = ControlTokens.mark([*texts, self._template.source])
        return [self._control.broken(text, mark) for text in texts], mark

    def _encoded(self, rendered: _Rendered) -> list[int]:
        """Token ids of a whole conversation, with BOS once at its front."""
        ids, bos = self._tokens(rendered), self.bos_id
        if bos is None:
            return ids
        first = next((place for place, token in enumerate(ids) if token != bos), len(ids))
        return [bos, *ids[first:]] if first or self._template.adds_bos else ids

    def _tokens(self, rendered: _Rendered) -> list[int]:
        text, mark = rendered
        if mark is not None:
            return self._control.encode(text, mark)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def neutral_for(turns: Turns, neutral: str) -> str | None:
    """The system prompt for `Chat.ids` without a trait: a conversation's own stands in place of the neutral one."""
    return None if _has_system(turns) else neutral


def _has_system(turns: Turns) -> bool:
    return turns[0]["role"] == "system"
