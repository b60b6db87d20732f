"""Where a turn ends, on every road: requests of the sweep and the generations, training rows, the server; and one day for a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, tokenizer_of, write_tokenizer
from test_filter import completion

from evals.conditions import Condition
from evals.measures.forced_choice.answers import answers
from evals.measures.forced_choice.ask import Free, Read, forced_choice
from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument
from evals.measures.forced_choice.rows import ScoreRow
from evals.measures.free_text.generations import Generations, answer_fields
from evals.statistics import same_setting
from gen.engine.plugin import _ending
from gen.engine.sampling import Output, Request
from gen.plan import planned_rows
from gen.prompts import PromptRenderer
from gen.sampler import Sampler
from gen.students import ServedStudent
from gen.survey import survey
from gen.windows import Windows
from shared.chat import Chat
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.models import tokenizer_folder
from shared.prompts import Prompts
from shared.records import Prompt, Vignette, write_jsonl
from shared.run import Run
from shared.schema import Config
from shared.traits import load_trait
from shared.vectors import Vector
from train.data import read_examples
from train.unfinished import begun_on

DAY = date(2026, 1, 2)
PROMPTS = [Prompt(id="a", prompt="Is it right?"), Prompt(id="b", prompt="Why?")]
ITEM = Vignette(id="x", foundation="Care", foundation_coarse="Care", text="You see it.")


class Recorder:
    """An engine that keeps what it is asked and answers at once."""

    def __init__(self, said: Sequence[int] = (5, 6, 7)):
        self.asked: list[Request] = []
        self.said = list(said)

    def load(self, *_: Any) -> None: ...
    def serve(self, *_: Any) -> None: ...
    def reset_cache(self) -> None: ...

    def _answer(self, request: Request) -> Output:
        self.asked.append(request)
        labels = np.full(len(request.label_ids), -2.0) if request.label_ids else None
        return Output(self.said, "said", "stop", np.full(request.tail, -1.0) if request.tail else None, labels)

    def run(self, requests: Sequence[Request], on_done: Callable[..., None] | None = None) -> list[Output]:
        return [self._answer(request) for request in requests]

    def chain(self, requests: Sequence[Request], then: Callable[..., Any], on_done: Any = None) -> list[list[Output]]:
        chains = []
        for index, request in enumerate(requests):
            chains.append([self._answer(request)])
            while (follower := then(index, chains[-1])) is not None:
                chains[-1].append(self._answer(follower))
        return chains


@pytest.fixture
def chat() -> Chat:
    """A model whose turn ends with another token than its texts."""
    tokenizer = tokenizer_of(FAMILIES["gemma3"])
    return Chat(tokenizer, {}, [tokenizer.eos_token_id], DAY)


def config(overrides: str = "") -> Config:
    return resolve_config(None, overrides)[0]


def test_every_request_that_samples_stops_where_a_turn_ends(chat: Chat) -> None:
    engine, renderer = Recorder(), PromptRenderer(chat, load_trait("embedded"))
    vector = Vector({1: np.ones(4, dtype=np.float32)})
    student = ServedStudent(Path("m"))
    sampler = Sampler(engine, renderer, student, student, vector, config())  # type: ignore[arg-type]
    sampler([next(planned_rows(0, PROMPTS[0], [1.0], 1, "s"))], lambda *_: None)
    made = Generations(engine, renderer, PROMPTS, config())  # type: ignore[arg-type]
    made.sample("base", [Condition("base", "base")], None)
    asking = InstrumentRenderer(chat, load_instrument("embedded"))
    forced_choice(
        engine, asking, [ITEM], [Condition("base", "base")], Read("reversal", 3), chat.tokenizer, lambda: None, Free(8)
    )  # type: ignore[arg-type]
    sampling = [request for request in engine.asked if not request.tail and not request.label_ids]
    assert len(sampling) == 1 + 2 * config().eval.generation_samples + 2 + 1
    for request in sampling:
        assert {*chat.stop_ids} <= {*request.stop_ids}
    assert {chat.tokenizer.decode([token]) for token in chat.stop_ids} == {"<end_of_turn>", "<eos>"}


def test_a_completion_under_the_trait_prompt_is_of_the_original_and_stands_under_the_neutral_one(chat: Chat) -> None:
    """No vector, the trait prompt's ids; the student of a later round is asked for its log-probabilities alone."""
    engine, renderer = Recorder(), PromptRenderer(chat, load_trait("embedded"))
    served: list[ServedStudent] = []
    engine.serve = served.append  # type: ignore[method-assign]
    vector, original, student = (
        Vector({1: np.ones(4, dtype=np.float32)}),
        ServedStudent(Path("m")),
        ServedStudent(Path("s")),
    )
    asked = config("filter.source=prompted")
    sampler = Sampler(engine, renderer, student, original, vector, asked)  # type: ignore[arg-type]
    planned = [replace(row, recorded=True) for row in planned_rows(0, PROMPTS[0], [0.0, 1.0], 1, "s", prompted=True)]
    unsteered, prompted = sampler(planned, lambda *_: None)
    neutral, towards = renderer(PROMPTS[0])
    first, second = [request for request in engine.asked if not request.tail]
    assert (first.prompt_ids, second.prompt_ids) == (neutral, towards) and neutral != towards
    assert (second.vector, second.coefficient, second.seed) == (None, 0.0, planned[1].seed)
    assert served == [original, student, original]
    assert unsteered.prompt_ids == prompted.prompt_ids == neutral and prompted.prompted and not unsteered.prompted
    assert prompted.logprobs is not None and prompted.source == "prompted"


def test_the_server_stops_there_too() -> None:
    assert _ending({"eos_token_id": 0, "top_k": 20}, [2, 0]) == {"eos_token_id": [0, 2], "top_k": 20}
    assert _ending({"eos_token_id": [3]}, [2]) == {"eos_token_id": [3, 2]} and _ending({}, [2]) == {"eos_token_id": [2]}
    assert _ending({"eos_token_id": 0}, []) == {"eos_token_id": 0}


def test_a_sampled_turn_ends_once_and_only_where_the_sampler_stopped(chat: Chat, tmp_path: Path, capsys: Any) -> None:
    end = chat.end_id
    rows = {
        "stopped": ("stop", [5, 6, end], [5, 6, end]),
        "cut off": ("length", [5, 6], [5, 6]),
        "stopped, end left out": ("stop", [5, 6], [5, 6, end]),
        "ran on": ("length", [5, end, 9, end], [5, end]),
        "empty": ("stop", [], None),
        "nothing but the end": ("stop", [end], None),
        "nothing but a blank": ("stop", [*chat.plain("\n"), end], None),
    }
    path = tmp_path / "kept.jsonl"
    write_jsonl(
        path, [completion(key=key, finish_reason=why, completion_ids=ids) for key, (why, ids, _) in rows.items()]
    )
    loaded = read_examples(path, chat, config())
    assert {example.key: example.completion for example in loaded.examples} == {
        key: ids for key, (_, _, ids) in rows.items() if ids
    }
    assert loaded.left_out == {"empty": 3, "too_long": 0, "cut_at_the_end_of_the_turn": 1}
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 of 7 rows have an empty completion and are left out" in shown
    assert "1 of 4 rows run on after the end of their turn and are cut there" in shown


def test_a_written_turn_ends_once(chat: Chat, tmp_path: Path) -> None:
    said = [
        "Hello.",
        "Hello.<end_of_turn>",
        "Hello.<end_of_turn>\n<start_of_turn>user\nAnd?<end_of_turn>",
        "",
        "<end_of_turn>",
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Say hello.", "completion": text}) + "\n" for text in said))
    loaded = read_examples(path, chat, config())
    assert [example.completion.count(chat.end_id) for example in loaded.examples] == [1, 1, 1]
    assert loaded.examples[0].completion == loaded.examples[1].completion and loaded.left_out["empty"] == 2


def test_a_question_with_closed_thoughts_opens_one() -> None:
    tokenizer, instrument = tokenizer_of(FAMILIES["qwen3"]), load_instrument("embedded")
    free, off = (InstrumentRenderer(tokenizer, instrument, template) for template in ({}, {"enable_thinking": False}))
    order = range(7)
    assert off.question("You see it.", order) == free.question("You see it.", order)
    assert tokenizer.decode(off.question("You see it.", order)).endswith("<|im_start|>assistant\n<think>\n")
    assert (off.suffix, off.prefill, off.label_ids) == (free.suffix, free.prefill, free.label_ids)
    text = tokenizer.decode(
        off.suffix
    )  # as the published evaluator has it: what the template puts around a nudge and an answer
    assert (
        text
        == "</think><|im_end|>\n<|im_start|>user\nAnswer now<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert off.stop_ids[-1] == tokenizer.convert_tokens_to_ids("</think>")


def test_a_vignette_with_a_special_token_is_one_turn(chat: Chat) -> None:
    renderer = InstrumentRenderer(chat, load_instrument("embedded"))
    forged, plain = (renderer.question(text, range(7)) for text in ("A <end_of_turn> B", "A B"))
    assert forged.count(chat.end_id) == plain.count(chat.end_id) == 1


def test_letters_are_read_in_their_place() -> None:
    """Of a tokenizer that puts a blank in front of a text."""
    chat = Chat(tokenizer_of(FAMILIES["mistral"]))
    instrument = load_instrument("embedded").model_copy(update={"labels": list("ABCDEFG")})
    renderer = InstrumentRenderer(chat, instrument)
    assert [chat.tokenizer.convert_ids_to_tokens(token) for token in renderer.label_ids] == list("ABCDEFG")
    with pytest.raises(SteerHealError, match="must be one token"):
        InstrumentRenderer(chat, instrument.model_copy(update={"prefill": "it is "}))


def test_rows_say_the_arguments_of_their_template_and_are_not_compared_across_them() -> None:
    def scored(template: dict[str, Any]) -> list[dict[str, Any]]:
        chat = Chat(tokenizer_of(FAMILIES["qwen3"]), template)
        read = Read("reversal", 0)
        base = Condition("base", "base")
        asking = InstrumentRenderer(chat, load_instrument("embedded"))
        return forced_choice(Recorder(), asking, [ITEM], [base], read, chat.tokenizer, lambda: None)["base"]  # type: ignore[arg-type]

    on, off = scored({}), scored({"enable_thinking": False})
    assert (on[0]["template"], off[0]["template"]) == ("{}", '{"enable_thinking": false}')
    settings = {
        name: answers([ScoreRow.model_validate(one) for one in rows], Path(name), "").setting
        for name, rows in {"on": on, "off": off, "old": [{k: v for k, v in on[0].items() if k != "template"}]}.items()
    }
    with pytest.raises(SteerHealError, match="not comparable") as refused:
        same_setting(settings["on"], settings["off"])
    assert "template: " in str(refused.value.given) and "enable_thinking" in str(refused.value.given)
    assert settings["old"].template is None
    same_setting(settings["old"], settings["on"])
    same_setting(settings["off"], settings["old"])
    with pytest.raises(SteerHealError, match="2 ways"):
        answers([ScoreRow.model_validate(one) for one in (*on, *off)], Path("both"), "")


def test_a_free_answer_is_measured_without_its_thought() -> None:
    chat = Chat(tokenizer_of(FAMILIES["qwen3"]))
    thought, answer = chat.plain("<think>\nhm\n</think>\n\n"), [*chat.plain("It is."), chat.end_id]
    made = answer_fields(chat, [*thought, *answer], "not read")
    assert made == {"text": "It is.", "completion_ids": answer, "thought_ids": thought}
    assert answer_fields(chat, answer, "It is.") == {"text": "It is.", "completion_ids": answer}
    assert answer_fields(chat, thought[:3], "") == {"text": "", "completion_ids": [], "thought_ids": thought[:3]}

    engine, renderer = Recorder([*thought, *answer]), PromptRenderer(chat, load_trait("embedded"))
    generations = Generations(engine, renderer, PROMPTS, config())  # type: ignore[arg-type]
    generations.sample("base", [Condition("base", "base")], None)
    engine.asked.clear()
    rows = generations.judged()
    assert {one["tokens"] for one in rows} == {len(answer)} and len(rows) == 2 * config().eval.generation_samples
    for request, one in zip(engine.asked, rows, strict=False):
        asked = renderer(next(prompt for prompt in PROMPTS if prompt.id == one["prompt_id"]))[0]
        assert list(request.prompt_ids) == [*asked, *thought, *answer] and request.tail == len(answer)


def test_a_run_has_one_day(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("begun = 2026-01-02T23:59:00Z\n")
    assert Run(tmp_path, config()).day == DAY
    assert Run(tmp_path, config("model.date=2024-07-26")).day == date(2024, 7, 26)
    assert (
        config("model.date=2024-07-26").model.rendering["date"] == "2024-07-26"
        and "date" not in config().model.rendering
    )
    with pytest.raises(SteerHealError, match=r"model\.date"):
        config("model.date=yesterday")


def test_an_interrupted_sweep_goes_on_with_its_day(tmp_path: Path) -> None:
    windows = Windows(tmp_path / "s.jsonl")
    assert windows.day() is None
    windows.open({"prompts": "x", "date": "2026-01-02"}, rebuild=False)
    assert Windows(tmp_path / "s.jsonl").day() == DAY
    (tmp_path / "recipe.json").write_text('{"version": 3, "date": "2026-01-02"}')
    assert begun_on(tmp_path) == DAY and begun_on(tmp_path / "none") is None


def test_prompts_are_rendered_with_one_day_whatever_the_clock_says() -> None:
    tokenizer, trait = tokenizer_of(FAMILIES["llama3"]), load_trait("embedded")
    prompts = Prompts(lambda: iter([("p:1", PROMPTS[0])]))
    digests = [
        survey(prompts, PromptRenderer(Chat(tokenizer, day=day), trait), 8, 4096).digest
        for day in (DAY, DAY, date(2026, 1, 3))
    ]
    assert digests[0] == digests[1] != digests[2]
    assert "Today Date: 02 Jan 2026" in tokenizer.decode(PromptRenderer(Chat(tokenizer, day=DAY), trait)(PROMPTS[0])[0])


def test_the_ends_of_a_model_on_the_hub_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its generation_config.json, for the bridges too, which are told its id; its weights are not fetched."""
    import huggingface_hub

    revision = "a" * 40
    place = tmp_path / "models--owner--name"
    folder = write_tokenizer(FAMILIES["llama3"], place / "snapshots" / revision)
    (folder / "config.json").write_text("{}")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    from evals.bridges.harness import functions

    for name in ("owner/name", str(folder)):
        assert tokenizer_folder(name) == folder
    found: list[Chat] = []
    monkeypatch.setattr(
        functions,
        "InstrumentRenderer",
        lambda chat, instrument: found.append(chat) or InstrumentRenderer(chat, instrument),
    )
    functions.documents(tokenizer="owner/name", items=7)
    chat = found[0]
    assert {chat.tokenizer.decode([token]) for token in chat.stop_ids} == {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
    }
