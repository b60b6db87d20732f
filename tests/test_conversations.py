"""Rows as TRL and OpenAI write them: one prompt and one completion, from a file and from a data set alike, or a plain refusal."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.chat import Chat
from shared.errors import SteerHealError
from shared.prompts import open_prompts
from shared.records import Pair, Prompt, read_jsonl
from shared.schema import Config
from shared.sets import names_set
from shared.tables import numbered_rows
from shared.traits import load_trait
from train.data import load_examples


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


ASKED, ANSWER = "Shall I sign it?", "I would not."
USER, ASSISTANT = said("user", ASKED), said("assistant", ANSWER)
BEFORE = [said("system", "Be brief."), said("user", "Hello."), said("assistant", "Yes?")]
SAME: dict[str, dict[str, Any]] = {  # rows of one prompt and one completion
    "text": {"prompt": ASKED, "completion": ANSWER},
    "TRL, conversational": {"prompt": [USER], "completion": [ASSISTANT]},
    "TRL, wanted": {"prompt": [USER], "completion": [ASSISTANT], "label": True},
    "TRL, wanted by a number": {"prompt": [USER], "completion": [ASSISTANT], "label": 1},
    "axolotl, trained on": {"messages": [USER, said("assistant", ANSWER, train=True)]},
    "text and messages": {"prompt": ASKED, "completion": [ASSISTANT]},
    "messages and text": {"messages": [USER], "completion": ANSWER},
    "OpenAI": {"messages": [USER, ASSISTANT]},
    "OpenAI, weighted": {"messages": [USER, said("assistant", ANSWER, weight=1)]},
    "OpenAI, nulls": {"messages": [said("user", ASKED, name=None, tool_calls=None), said("assistant", ANSWER, refusal=None)], "tools": None},
    "content in parts": {"messages": [said("user", parts("Shall I ", "sign it?")), said("assistant", parts(ANSWER))]},
    "prompt in parts": {"prompt": [said("user", parts(ASKED))], "completion": ANSWER},
    "prompt beside messages": {"prompt": ASKED, "messages": [USER, ASSISTANT]},
}  # fmt: skip


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def given_as(how: str, folder: Path, rows: list[dict[str, Any]]) -> str:
    """The name of a file or of a data set with these rows."""
    if how == "file":
        return str(lines(folder / "rows.jsonl", rows))
    lines(folder / "set" / "train.jsonl", rows)
    return f"{folder / 'set'}:train"


@pytest.mark.parametrize("how", ["file", "set"])
def test_one_prompt_and_completion_however_they_are_written(how: str, tmp_path: Path, tokenizer: Any) -> None:
    for index, (name, row) in enumerate(SAME.items()):
        folder = tmp_path / str(index)
        folder.mkdir()
        source = given_as(how, folder, [row])
        with open_prompts(source) as prompts:
            assert [prompt.turns for _, prompt in prompts] == [[USER]], name
        (example,) = load_examples(source, tokenizer, Config())
        assert example.prompt == Chat(tokenizer).ids([USER], load_trait("embedded").neutral), name
        assert tokenizer.decode(example.completion, skip_special_tokens=True) == ANSWER, name


@pytest.mark.parametrize("how", ["file", "set"])
def test_of_several_turns_the_last_is_trained_on(
    how: str, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = [*BEFORE, USER]
    rows = [
        {"messages": [*conversation, ASSISTANT]},
        {"prompt": conversation, "completion": [ASSISTANT]},
        {"prompt": conversation[:2], "completion": [*conversation[2:], ASSISTANT]},
        {"messages": [said("developer", "Be brief."), *conversation[1:], ASSISTANT]},
        {"messages": [*conversation[:2], said("assistant", "Yes?", weight=0), USER, said("assistant", ANSWER, weight=1)]},
    ]  # fmt: skip
    wanted = Chat(tokenizer).ids(conversation)
    for index, row in enumerate(rows):
        folder = tmp_path / str(index)
        folder.mkdir()
        source = given_as(how, folder, [row])
        (example,) = load_examples(source, tokenizer, Config())
        assert example.prompt == wanted, row
        assert tokenizer.decode(example.completion, skip_special_tokens=True) == ANSWER
        assert "1 of 1 rows have several turns" in " ".join(capsys.readouterr().out.split())
    load_examples(given_as("file", tmp_path, [SAME["OpenAI"]]), tokenizer, Config())
    assert "several turns" not in capsys.readouterr().out


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": [USER, said("tool", "4")]}, "role 'tool' is none of system, user, assistant"),
    ({"messages": [USER, said("Assistant", ANSWER)]}, "role 'Assistant' is none of"),
    ({"messages": [USER, said(3, ANSWER)]}, "role 3 is none of"),
    ({"messages": [USER, said("assistant", None, tool_calls=[{"id": "a"}])]}, "tool_calls would not be seen"),
    ({"messages": [USER, said("assistant", ANSWER, reasoning_content="Hm.")]}, "reasoning_content would not be seen"),
    ({"messages": [USER, said("assistant", ANSWER, function_call={"name": "f"})]}, "function_call would not be seen"),
    ({"messages": [USER, said("assistant", ANSWER, weight=0)]}, "weight is 0"),
    ({"messages": [USER, said("assistant", None)]}, "content is NoneType"),
    ({"messages": [USER, said("assistant", [])]}, "content is list"),
    ({"messages": [said("user", [{"type": "image_url", "image_url": {"url": "x"}}]), ASSISTANT]}, "a part is 'image_url'"),
    ({"messages": [said("user", ["a"]), ASSISTANT]}, "a part is 'str'"),
    ({"messages": [USER]}, "end with the assistant's turn"),
    ({"messages": [ASSISTANT]}, "the last is the user's"),
    ({"messages": [USER, ASSISTANT, ASSISTANT]}, "the last is the user's"),
    ({"messages": [USER, ASSISTANT], "tools": [{"type": "function"}]}, "tools would not be seen"),
    ({"messages": "a"}, "messages"),
    ({"prompt": ASKED, "completion": []}, "role and content"),
    ({"prompt": ASKED, "completion": [USER]}, "end with the assistant's turn"),
    ({"prompt": ASKED, "completion": 3}, "completion"),
    ({"prompt": [ASSISTANT], "completion": ANSWER}, "the last is the user's"),
    ({"prompt": ASKED, "completion": ANSWER, "label": False}, "label is false"),
    ({"prompt": ASKED, "completion": ANSWER, "system": "Be brief."}, "system would not be seen"),
    ({"prompt": ASKED, "completion": ANSWER, "label": 0}, "label is false"),
    ({"prompt": ASKED, "completion": ANSWER, "label": "undesirable"}, "label is 'undesirable'"),
    ({"prompt": ASKED, "completion": ANSWER, "system_prompt": "Be brief."}, "system_prompt would not be seen"),
    ({"prompt": ASKED, "completion": ANSWER, "history": [["Hello.", "Yes?"]]}, "history would not be seen"),
    ({"prompt": ASKED, "completion": ANSWER, "documents": [{"text": "a"}]}, "documents would not be seen"),
    ({"prompt": ASKED, "completion": ANSWER, "reasoning": "Hm."}, "reasoning would not be seen"),
    ({"messages": [said("user", ASKED, images=["a.png"]), ASSISTANT]}, "images would not be seen"),
    ({"messages": [USER, said("assistant", ANSWER, weight=0.5)]}, "weight is 0.5"),
    ({"messages": [USER, said("assistant", ANSWER, weight="0")]}, "weight is '0'"),
    ({"messages": [USER, said("assistant", ANSWER, train=False)]}, "train is False"),
    ({"prompt": ASKED, "completion": [said("assistant", ANSWER, loss=False)]}, "loss is False"),
    ({"prompt": ASKED}, "completion"),
    ({"prompt": ASKED, "completion": ANSWER, "context": "A contract."}, "context would not be seen"),
    ({"prompt": ASKED, "completion": ANSWER, "input": "A contract."}, "input would not be seen"),
    ({"messages": [USER, ASSISTANT], "instruction": "Be brief."}, "instruction would not be seen"),
    ({"completion": ANSWER, "instruction": ASKED}, "instruction would not be seen"),
    ({"messages": [said("user", ASKED, name="Ada"), ASSISTANT]}, "messages.0: name would not be seen"),
    ({"prompt": [said("user", ASKED, name="Ada")], "completion": ANSWER}, "prompt.0: name would not be seen"),
    ({"prompt": ASKED, "completion": [said("assistant", ANSWER, prefix=True)]}, "completion.0: prefix would not be seen"),
    ({"prompt": "Another.", "messages": [USER, ASSISTANT]}, "prompt is not what the messages ask"),
    ({"prompt": [ASSISTANT], "messages": [USER, ASSISTANT]}, "prompt is not what the messages ask"),
    ({"text": "Shall I sign it? I would not."}, "text does not say where a prompt ends"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "part"), REFUSED)
def test_what_cannot_be_trained_on_as_it_stands(row: dict[str, Any], part: str, tmp_path: Path) -> None:
    """A prompt's own thoughts and label are those of an answer, and the answer is not read with it."""
    if row.keys() & {"reasoning", "label"}:
        assert read_jsonl(lines(tmp_path / "prompts.jsonl", [row]), Prompt, made_by="-")[0].prompt == ASKED
    path = lines(tmp_path / "rows.jsonl", [SAME["text"], row])
    with pytest.raises(SteerHealError) as refused:
        read_jsonl(path, Pair, made_by="make it")
    assert f"{path}:2" in str(refused.value.given) and part in str(refused.value.given)
    assert '{"prompt": "...", "completion": "..."}' in str(refused.value.expected)


BOTH: list[tuple[dict[str, Any], list[dict[str, str]] | None]] = [  # what is asked; None: refused
    ({"prompt": "Hello.", "messages": [*BEFORE, USER, ASSISTANT]}, [*BEFORE, USER]),
    ({"prompt": ASKED, "messages": [*BEFORE, USER, ASSISTANT]}, [*BEFORE, USER]),
    ({"prompt": BEFORE, "messages": [*BEFORE, USER, ASSISTANT]}, [*BEFORE, USER]),
    ({"prompt": [*BEFORE, USER], "messages": [*BEFORE, USER, ASSISTANT]}, [*BEFORE, USER]),
    ({"prompt": "Another.", "messages": [*BEFORE, USER, ASSISTANT]}, None),
    ({"prompt": [USER], "messages": [*BEFORE, USER, ASSISTANT]}, None),
    ({"prompt": "Another.", "messages": [USER]}, None),
    ({"prompt": "", "messages": [USER, ASSISTANT]}, None),
]


@pytest.mark.parametrize(("row", "asked"), BOTH)
def test_a_prompt_beside_messages_is_one_thing_for_every_command(
    row: dict[str, Any], asked: list[dict[str, str]] | None, tmp_path: Path
) -> None:
    path = lines(tmp_path / "rows.jsonl", [row])
    for kind in (Prompt, Pair) if row["messages"][-1] == ASSISTANT else (Prompt,):
        if asked is None:
            with pytest.raises(SteerHealError) as refused:
                read_jsonl(path, kind, made_by="-")
            assert "prompt is not what the messages ask" in str(refused.value.given)
        else:
            assert [found.turns for found in read_jsonl(path, kind, made_by="-")] == [asked]


@pytest.mark.parametrize("blank", ["", "  ", "\n\t", "\u00a0"])
def test_a_prompt_without_a_word_is_refused(blank: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": blank}, {"prompt": [said("user", blank)]}, {"messages": [*BEFORE, said("user", blank)]}]  # fmt: skip
    for row in rows:
        path = lines(tmp_path / "rows.jsonl", [SAME["text"], row])
        with pytest.raises(SteerHealError, match="line 2") as refused, open_prompts(str(path)) as prompts:
            list(prompts)
        assert "the prompt is empty" in str(refused.value.given)
    path = lines(tmp_path / "rows.jsonl", [SAME["text"], {"prompt": blank}])
    with pytest.raises(SteerHealError) as refused:
        read_jsonl(path, Prompt, made_by="-")
    if subprocess.run(["sh", "-c", "command -v jq"], capture_output=True).returncode == 0:
        subprocess.run(refused.value.next.partition(", or make")[0], shell=True, check=True)
        assert len(read_jsonl(tmp_path / "rows-converted.jsonl", Prompt, made_by="-")) == 1


FOREIGN: dict[str, dict[str, Any]] = {
    "a preference": {"prompt": ASKED, "chosen": ANSWER, "rejected": "Yes."},
    "a preference of conversations": {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [said("assistant", "Yes.")]},
    "a preference with its prompt inside": {"chosen": [USER, ASSISTANT], "rejected": [USER, said("assistant", "Yes.")]},
    "OpenAI's preference": {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [said("assistant", "Yes.")]},
    "ShareGPT": {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWER}]},
    "Alpaca": {"instruction": ASKED, "input": "", "output": ANSWER},
    "Dolly": {"instruction": ASKED, "context": "", "response": ANSWER},
    "a question": {"question": ASKED, "answer": ANSWER},
}  # fmt: skip


@pytest.mark.parametrize("row", FOREIGN.values(), ids=FOREIGN)
def test_other_shapes_are_refused_with_the_command_that_converts_them(
    row: dict[str, Any], tmp_path: Path, tokenizer: Any
) -> None:
    path = lines(tmp_path / "their rows.jsonl", [row, row])
    with pytest.raises(SteerHealError, match="is not read") as refused:
        load_examples(path, tokenizer, Config())
    converting = refused.value.next.partition(", or make")[0]
    if subprocess.run(["sh", "-c", "command -v jq"], capture_output=True).returncode:
        pytest.skip("jq is not installed")
    subprocess.run(converting, shell=True, check=True)
    first, second = load_examples(tmp_path / "their rows-converted.jsonl", tokenizer, Config())
    assert first.prompt == second.prompt == Chat(tokenizer).ids([USER], load_trait("embedded").neutral)
    assert tokenizer.decode(first.completion, skip_special_tokens=True) == ANSWER


@pytest.mark.parametrize("how", ["file", "set"])
def test_ids_are_text_and_a_slice_is_part_of_a_name(how: str, tmp_path: Path) -> None:
    rows = [{"id": 7 + index, "domain": index, **SAME["TRL, conversational"]} for index in range(3)]
    source = given_as(how, tmp_path, rows)
    with open_prompts(source) as prompts:
        assert [(prompt.id, prompt.domain) for _, prompt in prompts] == [("7", "0"), ("8", "1"), ("9", "2")]
    if how == "set":
        with open_prompts(f"{source}[:1]") as prompts:
            assert [prompt.id for _, prompt in prompts] == ["7"]
        with open_prompts(f"{source}[1:]") as prompts:
            assert [prompt.id for _, prompt in prompts] == ["8", "9"]


def test_names_of_data_sets() -> None:
    assert all(
        map(names_set, ("a/b:train", "a/b:c:train", "a/b:train[:5]", "a/b:c:train[10%:20%]", "a:train[:5]+test[2:]"))
    )
    assert not any(map(names_set, ("a/b", "a/b:c:d:e", "rows.jsonl")))


@pytest.mark.parametrize("value", [True, 1.5, [1], {"a": 1}])
def test_an_id_of_another_kind_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(SteerHealError, match="id"):
        read_jsonl(lines(tmp_path / "a.jsonl", [{"id": value, "prompt": "a"}]), Prompt, made_by="make it")


FORMS: list[Callable[[str, str], dict[str, Any]]] = [
    lambda asked, answer: {"prompt": asked, "completion": answer},
    lambda asked, answer: {"prompt": [said("user", asked)], "completion": [said("assistant", answer)]},
    lambda asked, answer: {"prompt": asked, "completion": [said("assistant", parts(answer))]},
    lambda asked, answer: {"messages": [said("user", parts(asked)), said("assistant", answer)]},
    lambda asked, answer: {"messages": [said("user", asked)], "completion": answer},
]
texts = st.text(st.characters(codec="utf-8"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.sampled_from(FORMS), texts, texts), min_size=1, max_size=4))
def test_no_character_is_lost(
    rows: list[tuple[Callable[[str, str], dict[str, Any]], str, str]], tmp_path: Path
) -> None:
    path = lines(tmp_path / "rows.jsonl", [form(asked, answer) for form, asked, answer in rows])
    found = read_jsonl(path, Pair, made_by="-")
    assert [(row.turns[-1]["content"], row.completion) for row in found] == [
        (asked, answer) for _, asked, answer in rows
    ]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "role": st.sampled_from(["system", "user", "assistant", "developer", "tool", "User", 1, None]),
                "content": st.none() | st.text(max_size=3) | st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": st.text(max_size=3)}), max_size=2),
                "weight": st.sampled_from([0, 1, None]),
                "tool_calls": st.sampled_from([None, [], [{}]]),
            },
        ),
        max_size=4,
    ),
    field=st.sampled_from(["messages", "prompt", "completion"]),
)  # fmt: skip
def test_any_conversation(messages: list[dict[str, Any]], field: str, tmp_path: Path) -> None:
    """It is read as what it says, or refused; a row that is read can be rendered: it asks, in text, as one of three."""
    row = {
        field: messages,
        **({"prompt": "a"} if field == "completion" else {"completion": "b"} if field == "prompt" else {}),
    }
    path = tmp_path / "rows.jsonl"
    path.write_bytes((json.dumps(row) + "\n").encode())
    for kind in (Prompt, Pair):
        try:
            (found,) = read_jsonl(path, kind, made_by="make it")
        except SteerHealError as error:
            assert error.next
            continue
        assert found.turns[-1]["role"] == "user"
        assert all(
            turn.keys() == {"role", "content"} and turn["role"] in ("system", "user", "assistant")
            for turn in found.turns
        )
        assert all(isinstance(turn["content"], str) for turn in found.turns)


def test_the_sampler_is_known_by_its_first_row(tmp_path: Path, tokenizer: Any) -> None:
    """Whatever stands before it."""
    row = {"key": "a", "prompt_ids": [1], "completion_ids": [5, 2], "text": "", "finish_reason": "stop", "coefficient": 1.0, "sample": 0, "seed": 1, "perplexity": None, "perplexity_last_quarter": None, "trait_llr": None, "distinct_3": None}  # fmt: skip
    pair = json.dumps({"prompt": 'It says "completion_ids".', "completion": "b"})
    path = tmp_path / "rows.jsonl"
    for before in ("", "\n", "  \n\n", "\ufeff", "\ufeff\n"):
        path.write_text(before + json.dumps(row) + "\n")
        assert [example.completion for example in load_examples(path, tokenizer, Config())] == [[5, 2]]
        path.write_text(before + pair + "\n")
        assert len(load_examples(path, tokenizer, Config())) == 1
    for broken, part in ((json.dumps(row)[:-1], "completion_ids"), (pair[:-1], "prompt (or messages), completion")):
        path.write_text(broken + "\n")
        with pytest.raises(SteerHealError, match=r"rows\.jsonl:1") as refused:
            load_examples(path, tokenizer, Config())
        assert part in str(refused.value.expected)
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(SteerHealError, match="twice"):
        load_examples(path, tokenizer, Config())


def test_the_command_takes_a_data_set(tmp_path: Path) -> None:
    """As far as the rows, which hold nothing to train on."""
    source = given_as("set", tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    done = command("train.heal", "--model", "embedded", "--data", f"{tmp_path}/none:train", "--out", tmp_path / "a")
    assert done.returncode == 2 and "no folder" in done.stderr, done.stderr
    done = command("train.heal", "--model", "embedded", "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "a")
    assert done.returncode == 2 and "there is no such data file" in done.stderr and "a data set" in done.stderr
    assert source and not (tmp_path / "a").exists()


def read_pairs(path: Path) -> list[Pair]:
    return [row for _, row in numbered_rows(path, Pair, made_by="-")]


def test_a_conversation_in_a_cell_is_json(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Why?"}]
    said = [{"role": "assistant", "content": "So."}]
    path = tmp_path / "rows.csv"

    def write(names: list[str], *rows: list[str]) -> None:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([names, *rows])

    write(["messages"], [json.dumps([*asked, *said])])
    (row,) = read_pairs(path)
    assert (row.turns, row.completion) == (asked, "So.")
    write(["prompt", "completion"], [json.dumps(asked), json.dumps(said)], ['[{"a": 1}]', "007"], ["x", ""])
    first, second, third = read_pairs(path)
    assert (first.turns, first.completion) == (asked, "So.")
    assert (second.prompt, second.completion) == ('[{"a": 1}]', "007"), "no conversation, and so text"
    assert (third.prompt, third.completion) == ("x", ""), "left out and counted, as of JSON Lines"
    write(["prompt", "completion"], [repr(asked), "So."])
    with pytest.raises(SteerHealError, match="as Python prints it") as refused:
        read_pairs(path)
    subprocess.run(
        refused.value.next.partition(", or make")[0].replace("python", sys.executable, 1), shell=True, check=True
    )
    (row,) = read_pairs(tmp_path / "rows-converted.csv")
    assert (row.turns, row.completion) == (asked, "So.")


def test_a_table_of_another_shape_is_converted_into_a_file_of_its_own(tmp_path: Path) -> None:
    path, precious = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    precious.write_text("precious")
    path.write_text("question,answer\n007,NA\n")
    with pytest.raises(SteerHealError) as refused:
        read_pairs(path)
    first = refused.value.next.partition(" && ")[0]
    subprocess.run(first.replace("python", sys.executable, 1), shell=True, check=True)
    assert precious.read_text() == "precious"
    assert json.loads((tmp_path / "rows-2.jsonl").read_text()) == {"question": "007", "answer": "NA"}
