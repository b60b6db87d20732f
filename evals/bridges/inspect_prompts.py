"""What is put to a model of Inspect, and read back: token ids, their text, or turns of a chat; evals.bridges.inspect_task says which is exact."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any, Protocol

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    Logprob,
    Model,
    ModelName,
)

from evals.measures.forced_choice.ask import Read, cut_thought
from evals.measures.forced_choice.instrument import InstrumentRenderer
from shared.chat import Chat
from shared.errors import SteerHealError
from shared.instrument import Instrument

BY_ID = ("openai-api-completions", "vllm-completions")
CONTINUED = ("openai-api", "vllm", "sglang")
STEERABLE = (*BY_ID, "openai-api", "vllm")
PASSED_THROUGH = {
    "chat_template": "{{ messages[0].content }}",
    "tokenizer_call_args": {"add_special_tokens": False},
    "do_sample": False,
}  # of the provider hf
LONG = 2**20  # tokens: more than a question has
EXACT = "inspect eval steer_heal/forced_choice --model openai-api-completions/SERVICE/MODEL -T tokenizer=MODEL"


class Form(Protocol):
    """How a provider is asked. A question is what its prompts are made of, a thought a sequence of its tokens."""

    route: str
    template: str  # the chat template's arguments, as rows have them

    @property
    def labels(self) -> Sequence[str]:
        """The labels as the provider writes them in its log-probabilities."""

    def question(self, vignette: str, listing: Sequence[int]) -> Any:
        """A vignette and its options in the order of `listing`, as prompts begin."""

    def prompt(self, question: Any, thought: Sequence[Any] | None) -> tuple[list[ChatMessage], bool | None]:
        """Up to the thought where that is None, else up to the answer slot; and whether the tokens are other than the exact ones."""

    def body(self, question: Any, answering: bool) -> dict[str, Any] | None:
        """Fields of the request that Inspect has no name for."""

    def thought(self, tokens: Sequence[Logprob], completion: str) -> tuple[list[Any], str, int | None]:
        """A thought to put before the answer, its text, and its number of tokens where that is known."""


class Ids:
    """Token ids, or for Hugging Face the text of the same ids."""

    def __init__(
        self,
        renderer: InstrumentRenderer,
        read: Read,
        system: str | None,
        steering: list[dict[str, Any]],
        as_text: bool,
    ):
        self._renderer, self._tokenizer, self._read, self._system = renderer, renderer.chat.tokenizer, read, system
        self._steering, self._as_text, self.template = steering, as_text, renderer.chat.arguments
        ids = renderer.label_ids
        self.route = "text" if as_text else "token ids"
        self.labels = self._tokenizer.convert_ids_to_tokens(ids) if as_text else [f"token_id:{token}" for token in ids]

    def question(self, vignette: str, listing: Sequence[int]) -> list[int]:
        return self._renderer.question(vignette, listing, self._system)

    def prompt(self, question: list[int], thought: Sequence[int] | None) -> tuple[list[ChatMessage], bool | None]:
        ids = question if thought is None else self._renderer.answer(question, thought, self._read.stop)
        text = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if self._as_text:
            return [ChatMessageUser(content=text)], self._renderer.chat.encode(text) != ids
        return [ChatMessageUser(content=text, metadata={"prompt_token_ids": ids})], False

    def body(self, question: list[int], answering: bool) -> dict[str, Any] | None:
        if self._as_text:
            return None
        steering = {"vllm_xargs": {"steer_terms": placed(self._steering, len(question))}} if self._steering else {}
        tokens = (
            {"logprob_token_ids": self._renderer.label_ids}
            if answering
            else {**_undisturbed(self._read), "stop_token_ids": self._renderer.stop_ids}
        )
        return {"return_tokens_as_token_ids": True, **tokens, **steering}

    def thought(self, tokens: Sequence[Logprob], completion: str) -> tuple[list[int], str, int | None]:
        names = [token.token for token in tokens]
        if self._as_text:
            ids = list(self._tokenizer.convert_tokens_to_ids(names))
        elif strange := [name for name in names if not name.startswith("token_id:")]:
            raise SteerHealError(
                "a server does not name tokens by their ids",
                given=repr(strange[0]),
                expected="'token_id:N', vLLM's return_tokens_as_token_ids",
                next="serve the model with vLLM, or ask in turns: --model openai-api/..., without -T tokenizer",
            )
        else:
            ids = [int(name.removeprefix("token_id:")) for name in names]
        if self._read.stop:
            ids = cut_thought(ids, self._renderer, self._tokenizer)
        else:
            stops = [place for place, token in enumerate(ids) if token in self._renderer.stop_ids]
            _whole(stops[0] if stops else len(ids), self._read)
        return ids, str(self._tokenizer.decode(ids)), len(ids)


class Turns:
    """Turns of a chat, the last of which is the assistant's and to be continued."""

    route = "chat turns"

    def __init__(
        self, instrument: Instrument, read: Read, system: str | None, steering: list[dict[str, Any]], template: dict[str, Any], continued: bool
    ):  # fmt: skip
        self._instrument, self._read, self._system, self._steering = instrument, read, system, steering
        self._arguments, self._continued, self.labels = template, continued, instrument.labels
        self.template = json.dumps(template, sort_keys=True)

    def question(self, vignette: str, listing: Sequence[int]) -> str:
        return self._instrument.question(vignette, listing)

    def prompt(self, question: str, thought: Sequence[str] | None) -> tuple[list[ChatMessage], bool | None]:
        instrument = self._instrument
        before: list[ChatMessage] = [ChatMessageSystem(content=self._system)] if self._system is not None else []
        before.append(ChatMessageUser(content=question))
        if thought is None:
            return [*before, ChatMessageAssistant(content=instrument.think_open)], None
        thinking = ChatMessageAssistant(content=instrument.think_open + "".join(thought) + instrument.think_close)
        return [
            *before,
            thinking,
            ChatMessageUser(content=instrument.nudge),
            ChatMessageAssistant(content=instrument.prefill),
        ], None

    def body(self, question: str, answering: bool) -> dict[str, Any] | None:
        if not self._continued:
            return None
        template = {"chat_template_kwargs": self._arguments} if self._arguments else {}
        steering = {"vllm_xargs": {"steer_terms": placed(self._steering, 1)}} if self._steering else {}
        thinking = {} if answering else _undisturbed(self._read)
        return {"continue_final_message": True, "add_generation_prompt": False, **thinking, **template, **steering}

    def thought(self, tokens: Sequence[Logprob], completion: str) -> tuple[list[str], str, int | None]:
        if self._read.stop:
            text = completion.partition(self._instrument.think_close)[0]
            return [text], text, None
        _whole(len(tokens), self._read)
        raw = [bytes(token.bytes) if token.bytes else token.token.encode() for token in tokens]
        fed, full = (b"".join(part).decode(errors="ignore") for part in (raw[:-1], raw))
        return [fed], full, len(tokens)


def form_of(
    model: Model,
    instrument: Instrument,
    read: Read,
    *,
    chat: Chat | None,
    system: str | None,
    steering: list[dict[str, Any]],
    template: dict[str, Any],
) -> Form:
    """The form in which a model's provider is asked. Raises SteerHealError where it would answer another question than the one put to it.

    Args:
        model: of Inspect.
        instrument: the question.
        read: how it is read.
        chat: of the model's tokenizer; None where none was named.
        system: a system prompt for the question.
        steering: terms, as a server of gen.serve takes them.
        template: arguments of the chat template.
    """
    provider = ModelName(model).api
    by_id, as_text = provider in BY_ID, provider == "hf"
    if (by_id or as_text) != (chat is not None):
        raise SteerHealError(
            "the provider and the tokenizer do not go together",
            given=f"{model}, {'no' if chat is None else 'a'} tokenizer",
            expected=f"a tokenizer for {', '.join(BY_ID)} and hf, and none for others",
            next=EXACT,
        )
    if as_text and any(getattr(model.api, name, None) != value for name, value in PASSED_THROUGH.items()):
        arguments = " ".join(f"-M {name}={shlex.quote(json.dumps(value))}" for name, value in PASSED_THROUGH.items())
        raise SteerHealError(
            "Hugging Face would put its chat template around the prompt, or sample the thought",
            given=", ".join(f"{name}={getattr(model.api, name, None)}" for name in PASSED_THROUGH),
            expected="a template that passes the prompt through, no special tokens added, greedy decoding",
            next=f"--model hf/FOLDER {arguments} -T tokenizer=FOLDER",
        )
    if steering and (provider not in STEERABLE or (not by_id and windowed(steering))):
        raise SteerHealError(
            "this provider cannot be asked to steer like this",
            given=f"{model}, {steering}",
            expected=f"one of {', '.join(STEERABLE)}; windows, and positions other than 'all', with token ids alone",
            next=f"make serve VECTORS=NAME=FILE, then {EXACT}",
        )
    if chat is not None:
        return Ids(InstrumentRenderer(chat, instrument), read, system, steering, as_text)
    return Turns(instrument, read, system, steering, template, provider in CONTINUED)


def in_the_question(terms: Sequence[Any]) -> list[dict[str, Any]]:
    """The terms of a task, checked; each gets its positions or its window. Raises SteerHealError for what no server would take, and for
    a window that begins after the question: in the second phase of a read nobody could say where that is."""
    from gen.engine.terms import LIST, read_terms

    everywhere = [
        {"positions": "all", **term} if not {"positions", "from", "until"} & set(term) else dict(term) for term in terms
    ]
    for term in read_terms({LIST: everywhere}) if everywhere else ():
        if term.window(LONG, "all")[0] >= LONG:
            raise SteerHealError(
                "a window begins after the question",
                given=f"from {term.start}",
                expected='a position from 0, or "end-1" and before: the bridge reads its answer in two phases',
                next="-T steer_from=end-1",
            )
    return everywhere


def placed(terms: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """The terms with their windows as absolute positions in a question of `tokens` tokens."""
    from gen.engine.steering import END
    from gen.engine.terms import LIST, read_terms

    windows = [(term, *term.window(size, "all")) for term in read_terms({LIST: list(terms)})]
    return [
        {
            "vector": term.vector,
            "coefficient": float(term.coefficient),
            "from": start,
            **({"until": end} if end < END else {}),
        }
        for term, start, end in windows
    ]


def windowed(terms: Sequence[dict[str, Any]]) -> bool:
    """Whether a term is not everywhere."""
    return any(term.get("positions", "") != "all" for term in terms)


def _undisturbed(read: Read) -> dict[str, Any]:
    """A thought as the engine samples it: the penalties of a model's generation_config are off, and no end before its time."""
    return {"repetition_penalty": 1.0, "min_tokens": 0 if read.stop else read.think}


def _whole(tokens: int, read: Read) -> None:
    if tokens != read.think:
        raise SteerHealError(
            "a thought ended before the length asked for",
            given=f"{tokens} tokens",
            expected=f"{read.think} tokens: a provider that can forbid the end of a text",
            next="let the model end its thought: -T stop=true; or leave it out: -T think=0",
        )
