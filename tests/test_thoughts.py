"""One thought opened and one closed, whatever marks a template writes it with; and where a turn ends that is closed with several."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from families import CHATML, FAMILIES, tokenizer_of

from evals.measures.forced_choice.ask import cut_thought
from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument
from shared.chat import Chat
from shared.errors import SteerHealError

TURNS = [{"role": "user", "content": "X <think> [THINK]?"}]
ASKED = "<|im_start|>user\nX <think> [THINK]?<|im_end|>\n<|im_start|>assistant\n"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"


def chat(ending: str, template: dict[str, Any] | None = None, words: tuple[str, ...] = (), source: str = "") -> Chat:
    """ChatML whose prompt of an answer ends with a text; source: what else is in the template."""
    tokenizer = copy.deepcopy(tokenizer_of(FAMILIES["phi4"]))
    tokenizer.add_tokens(list(words), special_tokens=True)
    tokenizer.chat_template = CHATML.replace(PROMPT, PROMPT + ending) + "{# " + source + " #}"
    return Chat(tokenizer, template)


def opened(one: Chat) -> str:
    text: str = one.tokenizer.decode(one.opened(TURNS, None, "<think>\n"))
    return text


OFF = "{% if enable_thinking is defined and not enable_thinking %}"


@pytest.mark.parametrize(
    "ending",
    [
        "<think>\nOkay, I have finished thinking.\n</think>\n\n",
        "<think>\n\n</think>\n\n",
        "</think>\n",
        "<thought></thought>",
        "<reasoning>\n</reasoning>\n",
        "[THINK][/THINK]",
    ],
)
def test_a_thought_that_the_template_closes_is_taken_away_whole(ending: str) -> None:
    for one in (chat(ending), chat(OFF + ending + "{% endif %}", {"enable_thinking": False})):
        assert one.text(TURNS) == ASKED + ending and one.thinking.prompt == "closed"
        assert opened(one) == ASKED + "<think>\n"
        assert one.closing("</think>") == "</think>"
        assert one.parted(one.plain("Yes.")) == ([], one.plain("Yes."))


@pytest.mark.parametrize(
    ("ending", "closing"),
    [
        ("<think>\n", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("<thought>\n", "</thought>"),
        ("<|thinking|>", "<|/thinking|>"),
    ],
)
@pytest.mark.parametrize("special", [False, True])
def test_a_thought_that_the_template_opens_is_the_only_one(ending: str, closing: str, special: bool) -> None:
    one = chat(ending, words=(ending.strip(), closing) if special else (), source=closing)
    thinking = one.thinking
    assert (thinking.kind, thinking.open, thinking.close, thinking.prompt) == (
        "always",
        ending.strip(),
        closing,
        "opens",
    )
    assert opened(one) == ASKED + ending and (len(thinking.close_ids) == 1) == special
    said = [*one.plain("hm"), *thinking.close_ids, *one.plain("Yes.")]
    assert one.parted(said) == (said[: -len(one.plain("Yes."))], one.plain("Yes."))
    renderer = InstrumentRenderer(one, load_instrument("embedded"))
    assert one.tokenizer.decode(renderer.suffix).startswith(closing)
    assert one.tokenizer.decode(cut_thought(said, renderer, one.tokenizer)) == "hm"
    assert (thinking.close_ids[0] in renderer.stop_ids) == special


def test_thoughts_that_can_be_switched_are_known_without_the_switch() -> None:
    one = chat(OFF + "<thought></thought>{% endif %}")
    assert (one.thinking.kind, one.thinking.open, one.thinking.prompt) == ("optional", "<thought>", "model")
    said = one.plain("<thought>hm</thought>Yes.")
    assert one.tokenizer.decode(one.parted(said)[1]) == "Yes."


def test_a_mark_that_nothing_closes_is_refused() -> None:
    with pytest.raises(SteerHealError, match="a mark that is not known") as refused:
        chat("<|ponder|>").opened(TURNS, None, "<think>\n")
    assert "<|ponder|>" in str(refused.value.given)


@pytest.mark.parametrize("ending", ["<think>\n", "[THINK]"])
@pytest.mark.parametrize("special", [False, True])
def test_a_written_completion_is_no_thought(ending: str, special: bool) -> None:
    closing = ending.strip().replace("<", "</").replace("[", "[/")
    one = chat(ending, words=(ending.strip(), closing) if special else (), source=closing)
    prompt, said = one.completed(TURNS, None, "Yes.")
    assert one.tokenizer.decode(prompt) == f"{ASKED}{ending}{closing}\n\n"
    assert said == [*one.plain("Yes."), one.end_id]
    if not special:  # as ordinary words they are a thought, and its opening stands in the prompt
        prompt, said = one.completed(TURNS, None, f"{ending}hm{closing}Yes.")
        assert one.tokenizer.decode(prompt) == ASKED + ending and one.tokenizer.decode(said[:-1]) == f"hm{closing}Yes."
    assert one.completed(TURNS, None, " ")[1] == []


def test_a_turn_ends_before_the_conversation_does() -> None:
    """Known ends or not: Phi-3 closes a turn with one token, and behind it the conversation with its end of sequence."""
    tokenizer = tokenizer_of(FAMILIES["phi3"])
    end, eos = (tokenizer.convert_tokens_to_ids(name) for name in ("<|end|>", "<|endoftext|>"))
    for ends in ([eos], [eos, end], []):
        one = Chat(tokenizer, {}, ends)
        assert one.end_id == end and {*one.stop_ids} == {end, eos}
        assert one.completed(TURNS, None, "Yes.")[1][-1] == end
    tokenizer = tokenizer_of(FAMILIES["phi4"])
    tokenizer.chat_template = CHATML + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"
    assert (
        Chat(tokenizer, {}, [tokenizer.convert_tokens_to_ids("<|endoftext|>")]).tokenizer.decode(
            [Chat(tokenizer).end_id]
        )
        == "<|im_end|>"
    )


def test_the_end_of_a_conversation_is_not_put_into_its_middle() -> None:
    one = Chat(tokenizer_of(FAMILIES["phi3"]))
    text = one.tokenizer.decode(one.next_turn("said", "Go on."))
    assert text == "said<|end|><|user|>Go on.<|end|><|assistant|>"


def test_an_end_of_several_tokens_is_refused() -> None:
    tokenizer = tokenizer_of(FAMILIES["qwen2"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n### end\n' }}{% endfor %}"
    )
    with pytest.raises(SteerHealError, match="no single token") as refused:
        Chat(tokenizer).stop_ids  # noqa: B018
    assert "### end" in str(refused.value.given)
    tokenizer.chat_template = "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n' }}{% endfor %}"
    assert Chat(tokenizer).end_id == tokenizer.eos_token_id


def test_labels_of_an_instrument_without_a_prefill_are_read_at_the_slot() -> None:
    """Behind the assistant's opening, and not behind the words of the question."""
    instrument = load_instrument("embedded").model_copy(update={"prefill": ""})
    one = Chat(tokenizer_of(FAMILIES["qwen2"]))
    renderer = InstrumentRenderer(one, instrument)
    slot = one.tokenizer.decode(renderer.free_answer([], []))
    for label, token in zip(instrument.labels, renderer.label_ids, strict=True):
        assert one.encode(slot + label) == [*one.encode(slot), token] == [*renderer.answer([], []), token]
    letters = instrument.model_copy(update={"labels": list("ABCDEFG")})
    with pytest.raises(SteerHealError, match="must be one token"):  # the slot ends with a blank that they join
        InstrumentRenderer(Chat(tokenizer_of(FAMILIES["mistral"])), letters)


def test_a_thought_of_blanks_says_nothing() -> None:
    one = Chat(tokenizer_of(FAMILIES["qwen3"]))
    for said in ("", "\n", "<think>\n\n</think>\n\n"):
        assert not one.says([*one.plain(said), one.end_id])
    for said in ("Yes.", "<think>\nhm", "<think>\n\n</think>\n\nYes."):
        assert one.says(one.plain(said))
