"""A model's chat template: what it renders, in one day's light, and what it does with a system prompt and with the end of a turn."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from shared.commands import setting
from shared.errors import SteerHealError, in_one_line
from shared.strict import read_object

Turns = Sequence[dict[str, Any]]
SAID = "\u2042answer\u2042"  # stands for the words of an assistant where a template is looked at
PROBE = ({"role": "user", "content": "x"},)


class Template:
    """The chat template of a tokenizer.

    Args:
        tokenizer: of transformers.
        arguments: variables of the template, such as enable_thinking.
        day: the day that a template with a clock writes; today's, UTC, unless given.
    """

    def __init__(self, tokenizer: Any, arguments: dict[str, Any] | None = None, day: date | None = None):
        self._tokenizer, self.arguments = tokenizer, dict(arguments or {})
        self.day = day or datetime.now(UTC).date()
        self._clock_read = False

    @property
    def source(self) -> str:
        """The text of the template."""
        return str(self._tokenizer.get_chat_template())

    def render(self, turns: Turns, prompt: bool, **more: Any) -> str:
        """Turns as text, with `prompt` up to and with what opens the assistant's turn; more: further variables.

        Raises SteerHealError where the template refuses them.
        """
        from jinja2 import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(turns),
                    add_generation_prompt=prompt,
                    tokenize=False,
                    **{"strftime_now": self._clock, **self.arguments, **more},
                )
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            under = f", under {json.dumps(self.arguments, default=str)}" if self.arguments else ""
            raise SteerHealError(
                "a conversation does not fit the chat template",
                given=in_one_line(error) + under,
                expected="turns that the model's template takes, after a system prompt"
                + (", and arguments of the kinds that it takes" if under else ""),
                next=f"without its arguments: {setting('model.chat_template_kwargs={}')}"
                if under
                else f"choose a chat model whose template takes them: {setting('model.name=embedded')}",
            ) from None

    def check(self) -> None:
        """Raise SteerHealError for a template that takes the contents of a turn in parts alone: it leaves out what is said as text."""

        def heard(content: Any) -> bool:
            try:
                return SAID in self.render([{"role": "user", "content": content}], True)
            except (SteerHealError, TypeError):  # it refuses such a turn, or takes no parts: said where it is rendered
                return False

        if not heard(SAID) and heard([{"type": "text", "text": SAID}]):
            raise SteerHealError(
                "a chat template leaves out what the user says",
                given=f"a user turn is rendered as {self.render([{'role': 'user', 'content': 'x'}], True)!r}",
                expected="a template that takes the contents of a turn as text, and not in parts alone",
                next=f"choose a chat model of text alone: {setting('model.name=embedded')}",
            )

    def _clock(self, form: str) -> str:
        """What a template takes for the time: the day at midnight."""
        self._clock_read = True
        return datetime(self.day.year, self.day.month, self.day.day).strftime(form)

    def around(self, user: str) -> tuple[str, str]:
        """The text of a user turn and an assistant's, before the assistant's words and after them."""
        before, content, after = self._answered(user)
        if not content:
            raise SteerHealError(
                "a chat template leaves out what the assistant says",
                given="a user turn and an assistant's",
                expected="a template that renders both",
                next=f"choose another chat model: {setting('model.name=embedded')}",
            )
        return before, after

    @cached_property
    def close(self) -> str:
        """The text that the template puts after an assistant's last words, such as the end-of-turn token and a line break; nothing where it
        leaves those words out."""
        return self._answered("x")[2]

    @cached_property
    def between(self) -> str:
        """The part of `close` that ends a turn but not the conversation: the text before a user turn that follows."""
        after = self._answered("x", then="y")[2]
        added = [token.content for token in self._tokenizer.added_tokens_decoder.values()]
        parts = (
            re.split(f"({'|'.join(map(re.escape, sorted(added, key=len, reverse=True)))})", self.close)
            if added
            else [self.close]
        )
        kept = ""
        for part in parts:
            if not after.startswith(kept + part):
                break
            kept += part
        return kept

    @cached_property
    def added(self) -> str:
        """What the prompt of an answer ends with that stands before no finished answer, such as an opened thought."""
        prompt, before = self.render(PROBE, True), self._answered("x", then="y")[0]
        return prompt.removeprefix(before) if prompt.startswith(before) else ""

    def with_arguments(self, **more: Any) -> Template:
        """The same template under further arguments."""
        return Template(self._tokenizer, {**self.arguments, **more}, self.day)

    def _answered(self, user: str, then: str | None = None) -> tuple[str, str, str]:
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": SAID}]
        if then is not None:
            turns.append({"role": "user", "content": then})
        return self.render(turns, False).partition(SAID)

    @cached_property
    def bos_id(self) -> int | None:
        """The token that begins a conversation (BOS); None for a model without one, and where it begins every turn."""
        bos = self._tokenizer.bos_token_id
        if bos is None or self.adds_bos:
            return None if bos is None else int(bos)
        text = self.render([{"role": "user", "content": "x"}], True)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        front = next((place for place, token in enumerate(ids) if token != bos), len(ids))
        return int(bos) if front and ids.count(bos) == front else None

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer itself puts BOS in front of a text."""
        return bool(self._tokenizer("x")["input_ids"][:1] == [self._tokenizer.bos_token_id])

    @cached_property
    def system(self) -> Literal["kept", "merged", "dropped"]:
        """The form in which the template puts a system prompt: a turn or a part of one, the front of the first user turn since the template refuses
        a system turn, or nothing. Raises SteerHealError where the template refuses it and renders no user turn either."""
        system, user = {"role": "system", "content": SAID}, {"role": "user", "content": "x"}
        try:
            return "kept" if SAID in self.render([system, user], True) else "dropped"
        except SteerHealError:
            if SAID not in self.render([{**user, "content": SAID}], True):
                raise
            return "merged"

    def hears(self) -> None:
        """Raise SteerHealError where a system prompt is dropped: whatever is asked under one would be asked without it."""
        if self.system == "dropped":
            raise unheard()

    @cached_property
    def dated(self) -> bool:
        """Whether the template writes the day."""
        self._clock_read = False
        system, assistant = {"role": "system", "content": "x"}, {"role": "assistant", "content": "x"}
        for turns in (
            PROBE,
            (system, *PROBE),
            (*PROBE, assistant, *PROBE),
        ):  # a template may write the day in some turns alone
            with suppress(SteerHealError):
                self.render(turns, True)
        return self._clock_read

    @property
    def elsewhere(self) -> dict[str, Any]:
        """The arguments under which a server, whose clock is its own, writes this day: with date_string, where the template takes that."""
        if not self.dated:
            return self.arguments
        dated = self.with_arguments(date_string=self.day.strftime("%d %b %Y"))
        same = not dated.dated and dated.render(PROBE, True) == self.render(PROBE, True)
        return dated.arguments if same else self.arguments

    @property
    def described(self) -> str:
        """The template's arguments, and its day where it writes one, as JSON with sorted keys."""
        day = {"date": self.day.isoformat()} if self.dated else {}
        return json.dumps({**self.arguments, **day}, sort_keys=True)


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


def ends_of(folder: Path) -> tuple[int, ...]:
    """The end-of-sequence ids of a model folder's generation_config.json, or else of its config.json; none where neither has any."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            eos = read_object(
                folder / name,
                what="a model's configuration could not be read",
                expected="JSON as save_pretrained writes it",
                next="choose another model.name, or download it again",
            ).get("eos_token_id")
            ids = eos if isinstance(eos, list) else [eos]
            if ids := [token for token in ids if isinstance(token, int) and token >= 0]:
                return tuple(ids)
    return ()


def unheard() -> SteerHealError:
    """The error of a conversation that is the same under every system prompt."""
    return SteerHealError(
        "the trait prompt does not reach the model",
        given="a chat template that leaves the system prompt out",
        expected="a chat template that renders it",
        next=f"choose a chat model whose template has a system turn, such as {setting('model.name=embedded')}",
    )
