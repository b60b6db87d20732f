"""Rows of JSON Lines, CSV and Parquet, and of data sets of such files: the same rows from all of them, or one plain refusal."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gen.extract import contexts_of
from shared.chat import Chat
from shared.errors import SteerHealError
from shared.prompts import load_heldout, open_prompts
from shared.records import Completion, Pair, Prompt
from shared.schema import Config, VectorConfig
from shared.sets import input_of, revision_of, revisions_of
from shared.sources import open_rows, origin_of
from shared.tables import count_rows, write_parquet
from train.data import load_examples

ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet")
ODD = [  # text that other readers take for a date, a number, nothing, a path or a divider
    "2024-01-01", "2024-01-01T10:00:00Z", "NA", "null", "None", "nan", "true", "007", "1.5", "1e5", "-", " a ", "a,b;c\td", 'say "no"', "'",
    "line one\nline two", "a\r\nb", "a\u2028b", "\ufeffa", "é", "😀", "#a", "=1+1", "{}", "[1]", "\\n",
]  # fmt: skip


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A file of rows, as its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        write_parquet(path, [{name: row.get(name) for name in names} for row in rows])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="", encoding="utf-8") as text:
            table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), delimiter="," if path.suffix == ".csv" else "\t")  # fmt: skip
            table.writeheader()
            table.writerows(rows)
    return path


def read(name: object, kind: type[Any] = Prompt) -> list[Any]:
    with open_rows(str(name), what="no", made_by="make it") as source:
        return [row for _, row in source.rows(kind)]


ROWS = [{"id": f"{n}", "domain": f"{n % 2}", "prompt": text, "completion": text} for n, text in enumerate(ODD)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_and_a_data_set_of_the_same_rows_give_the_same_rows(ending: str, tmp_path: Path) -> None:
    wanted = [Pair.model_validate(row) for row in ROWS]
    path = written(tmp_path / "set" / f"train{ending}", ROWS)
    assert read(path, Pair) == wanted
    assert read(f"{tmp_path}/set:train", Pair) == wanted
    assert [row.id for row in read(f"{tmp_path}/set:train[10%:20%]")] == ["3", "4"]
    assert [row.id for row in read(f"{tmp_path}/set:train[:2]+train[-1:]")] == ["0", "1", str(len(ODD) - 1)]
    assert count_rows(path) == len(ROWS)
    written(tmp_path / "several" / f"train-0{ending}", ROWS[:3])
    written(tmp_path / "several" / f"train-1{ending}", ROWS[3:])
    assert read(f"{tmp_path}/several:train", Pair) == wanted
    assert [row.id for row in read(f"{tmp_path}/several:train[2:5]")] == ["2", "3", "4"]


def test_json_is_read_as_lines_where_it_is_lines_and_by_datasets_where_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "lines").mkdir()
    (tmp_path / "array").mkdir()
    written(tmp_path / "rows.jsonl", ROWS[:2]).rename(tmp_path / "lines" / "train.json")
    (tmp_path / "array" / "train.json").write_text(json.dumps(ROWS[6:8]))
    assert read(f"{tmp_path}/lines:train", Pair) == [Pair.model_validate(row) for row in ROWS[:2]]
    assert read(f"{tmp_path}/array:train", Pair) == [Pair.model_validate(row) for row in ROWS[6:8]]
    assert [row.id for row in read(f"{tmp_path}/array:train[1:]")] == ["7"]


def test_conversations_of_a_parquet_file_are_those_of_json_lines(tmp_path: Path) -> None:
    asked = [
        {"role": "user", "content": "Hello.", "name": None},
        {"role": "assistant", "content": "Yes?", "name": None},
    ]
    rows = [{"id": 7, "messages": asked, "images": []}, {"id": 8, "messages": [asked[0], asked[1], asked[0], asked[1]]}]
    for kind in (Prompt, Pair):
        one, other = (read(written(tmp_path / f"a{ending}", rows), kind) for ending in (".jsonl", ".parquet"))
        assert one == other and [row.turns[-1] for row in one] == [{"role": "user", "content": "Hello."}] * 2


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({"id": texts, "prompt": texts.filter(str.strip)}, optional={"genre": texts}), min_size=1, max_size=5), cut=st.integers(0, 5))  # fmt: skip
def test_no_row_depends_on_how_it_is_written(rows: list[dict[str, str]], cut: int, tmp_path: Path) -> None:
    wanted = [Prompt.model_validate(row) for row in rows]
    from shared.tables import numbered_rows

    for ending in ENDINGS:
        path = written(tmp_path / f"rows{ending}", rows)
        assert read(path) == wanted and count_rows(path) == len(rows)
        assert [row for _, row in numbered_rows(path, Prompt, made_by="-", begin=cut, end=cut + 2)] == wanted[cut : cut + 2]  # fmt: skip


@pytest.mark.parametrize("begin", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_mark_and_other_ends_of_lines(begin: str, end: str, tmp_path: Path) -> None:
    for ending, lines in ((".csv", ["prompt,completion", '"a",b', "", "c,d"]), (".jsonl", ["", '{"prompt": "a", "completion": "b"}', "", '{"prompt": "c", "completion": "d"}'])):  # fmt: skip
        path = tmp_path / f"rows{ending}"
        path.write_bytes((begin + end.join(lines) + end).encode())
        assert [(row.prompt, row.completion) for row in read(path, Pair)] == [("a", "b"), ("c", "d")]
        with open_rows(str(path), what="no", made_by="-") as source:
            assert [source.place(number) for number, _ in source.rows(Pair)] == [f"{path}:2", f"{path}:4"]


REFUSED = [
    ("a.csv", b"prompt,completion\na,b\nc\n", "a.csv:3: 1 cells, where the header has 2"),
    ("a.csv", b'prompt,completion\n"a\nb",c\n,d\n', "a.csv:4: row: a pair row has either prompt or messages"),
    ("a.csv", b"prompt,score\na,b\n", "a.csv:2: completion: Field required"),
    ("a.csv", b"prompt,prompt\na,b\n", "column 'prompt' twice"),
    ("a.csv", b"prompt;completion\na;b\n", "columns are divided by ';'"),
    ("a.csv", b'prompt,completion\n"a,b\n', "a.csv:2: unexpected end of data"),
    ("a.csv", b"prompt,completion\na\xff,b\n", "not UTF-8"),
    ("a.csv", "prompt,completion\na,b\n".encode("utf-16"), "UTF-16"),
    ("a.csv", b"prompt,completion\n", "a.csv"),
    ("a.csv", b"", "a.csv"),
    ("a.csv", b"prompt,completion,label\na,b,0\n", "a.csv:2: row: label is false"),
    ("a.csv", b"prompt,completion,system\na,b,Be brief.\n", "a.csv:2: row: system would not be seen"),
    ("a.csv", b'messages,completion\n"[]",b\n', "a.csv:2: messages: Input should be a valid list"),
    ("a.parquet", b"prompt,completion\na,b\n", "a.parquet row 0: "),
    ("a.parquet", [{"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "b"}], "a.parquet row 1: row: a pair row has either"),
    ("a.parquet", [{"prompt": 3, "completion": "b"}], "a.parquet row 0: prompt: Input should be a valid string"),
    ("a.parquet", [], "a.parquet"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "part"), REFUSED)
def test_a_bad_row_is_named_by_file_row_and_field(name: str, content: Any, part: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_parquet(path, content)
    with pytest.raises(SteerHealError) as refused:
        read(path, Pair)
    assert part in str(refused.value.given) and "make it" in refused.value.next, refused.value.render()


def test_what_other_programs_write_is_refused_with_a_command_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "their rows.csv"
    path.write_text('prompt;completion\n"a;b";c\n')
    with pytest.raises(SteerHealError) as refused:
        read(path, Pair)
    subprocess.run(refused.value.next.partition(", or make")[0].replace("python ", f"{sys.executable} ", 1), shell=True, check=True)  # fmt: skip
    assert [(row.prompt, row.completion) for row in read(tmp_path / "their rows-converted.csv", Pair)] == [("a;b", "c")]
    with pytest.raises(SteerHealError) as refused:
        read(written(tmp_path / "alpaca.csv", [{"instruction": "a", "output": "b"}]), Pair)
    assert "csv.DictReader" in refused.value.next and "&& jq" in refused.value.next


def test_a_folder_and_an_unknown_split_are_told_what_to_type(tmp_path: Path) -> None:
    written(tmp_path / "set" / "train.jsonl", ROWS)
    with pytest.raises(SteerHealError, match="is a folder") as refused:
        read(tmp_path / "set")
    assert f"{tmp_path}/set:train" in refused.value.next
    for split, part in (("test", 'Unknown split "test"'), ("train[:x]", "train[:x]"), ("train[2:2]", "no rows")):
        with pytest.raises(SteerHealError) as refused:
            read(f"{tmp_path}/set:{split}")
        assert part in str(refused.value.given)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_table_of_any_length_is_read_in_constant_memory(ending: str, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": f"What about {index}? " * 20} for index in range(10_000)]
    path = tmp_path / f"p{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=500, compression="none", use_dictionary=False)  # fmt: skip
    else:
        written(path, rows)
    assert path.stat().st_size > 3 * 2**20
    del rows
    read(written(tmp_path / f"one{ending}", [{"prompt": "a"}]))  # what is imported is not the file's
    before, arrow = pyarrow.total_allocated_bytes(), 0
    tracemalloc.start()
    try:
        with open_prompts(str(path)) as prompts:
            for count, _ in enumerate(prompts, start=1):
                arrow = max(arrow, pyarrow.total_allocated_bytes() - before) if count % 100 == 0 else arrow
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 10_000 and peak < 2**20 and arrow < 2**20, f"{peak / 2**20:.1f} and {arrow / 2**20:.1f} MiB"


def test_the_samplers_rows_are_known_in_every_form(tmp_path: Path, tokenizer: Any) -> None:
    row = Completion(key="a", prompt_ids=[1], completion_ids=[20], text="", finish_reason="length", coefficient=1.0, sample=0, seed=1, perplexity=2.0, perplexity_last_quarter=None, trait_llr=None, distinct_3=None)  # fmt: skip
    rows = [row.model_dump(), row.model_copy(update={"key": "b", "completion_ids": [30]}).model_dump()]
    for ending in (".jsonl", ".parquet"):
        path = written(tmp_path / ending[1:] / f"train{ending}", rows)
        for name in (path, f"{path.parent}:train"):
            found = load_examples(name, tokenizer, Config())
            assert [(one.key, one.prompt, one.completion) for one in found] == [("a", [1], [20]), ("b", [1], [30])]


def test_where_the_end_is_not_known_the_end_of_turn_is_trained_on_and_an_empty_completion_is_not(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": ""}]
    (found,) = load_examples(written(tmp_path / "rows.jsonl", rows), tokenizer, Config())
    assert found.completion[-1] == Chat(tokenizer).end_id and tokenizer.decode(found.completion[:-1]) == "b"
    assert "1 of 2 rows have an empty completion" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_contexts_and_heldout_prompts_are_files_and_data_sets(ending: str, tmp_path: Path) -> None:
    rows = [{"id": f"p{n}", "genre": f"g{n % 3}", "prompt": f"What about {n}?"} for n in range(9)]
    path, plain = written(tmp_path / "set" / f"train{ending}", rows), written(tmp_path / "rows.jsonl", rows)
    wanted = contexts_of(VectorConfig(contexts=str(plain)), 4)
    assert [row.id for row in wanted] == ["p0", "p1", "p2", "p3"]
    for name in (str(path), f"{path.parent}:train"):
        assert contexts_of(VectorConfig(contexts=name), 4) == wanted
        assert load_heldout(name) == load_heldout(str(plain)) and len(load_heldout(name)) == 9
    assert [row.id for row in load_heldout(f"{path.parent}:train[3:5]")] == ["p3", "p4"]
    with pytest.raises(SteerHealError, match="needs a unique id"):
        load_heldout(f"{path.parent}:train[:2]+train[:2]")
    assert input_of("contexts", f"{path.parent}:train") == {"contexts": path.parent}


def test_what_was_read_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file and a folder by their content, a data set of the hub by its commit, here one that is cached."""
    import datasets.config
    import huggingface_hub.constants
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    path = written(tmp_path / "set" / "train.jsonl", ROWS)
    before = [origin_of(str(path)), origin_of(f"{path.parent}:train[:5]")]
    assert [one["name"] for one in before] == ["train.jsonl", "set:train[:5]"]
    written(path, ROWS[:-1])
    assert all(a["sha256"] != b["sha256"] for a, b in zip(before, [origin_of(str(path)), origin_of(f"{path.parent}:train")], strict=True))  # fmt: skip

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    commit = "ab" * 20
    table = Dataset.from_list([{"prompt": "a", "id": 3, "source": "x"}, {"prompt": "b", "id": 4, "source": "y"}])
    folder = tmp_path / "cache" / "owner___thing" / "default" / "0.0.0" / commit
    folder.mkdir(parents=True)
    with ArrowWriter(path=str(folder / "thing-train.arrow"), features=table.features) as writer:
        for row in table:
            writer.write(row)
        writer.finalize()
    about = {
        "builder_name": "json", "dataset_name": "thing", "config_name": "default", "features": table.features.to_dict(),
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "splits": {"train": {"name": "train", "num_bytes": 1, "num_examples": 2, "dataset_name": "thing"}},
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(about))
    name = "owner/thing:train[1:]"
    assert revision_of(name) == commit and origin_of(name) == {"name": name, "revision": commit}
    values = {"one": "embedded", "two": str(path), "three": f"{path.parent}:train", "four": name}
    assert revisions_of(**values) == {"four": f"owner/thing@{commit}"}
    assert [(row.id, row.prompt) for row in read(name)] == [("4", "b")]
    assert [row.id for row in read(f"owner/thing@{commit}:train")] == ["3", "4"]
    with pytest.raises(SteerHealError, match=f"commit {commit} is cached"):
        read(f"owner/thing@{'c' * 40}:train")
    with pytest.raises(SteerHealError, match="row 0: completion: Field required") as refused:
        read("owner/thing:train", Pair)
    assert "the columns are prompt, id, source" in str(refused.value.expected)


@pytest.mark.parametrize(
    ("command", "rows"),
    [
        (["train.heal", "--model", "embedded", "--data", "FILE", "--out", "OUT"], "prompt,completion\na,b\n,c\n"),
        (["gen.sweep", "--model", "embedded", "--vector", "VECTOR", "--prompts", "FILE", "--coefficients", "1", "--out", "OUT.jsonl"], "prompt,tools\na,\nb,c\n"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_before_anything_heavy_is_imported(command: list[str], rows: str, tmp_path: Path) -> None:
    import numpy as np

    from shared.vectors import Vector

    (tmp_path / "rows.csv").write_text(rows)
    Vector({14: np.ones(576, dtype=np.float32)}).save(tmp_path / "v.safetensors")
    meant = {"FILE": "rows.csv", "OUT": "out", "OUT.jsonl": "out.jsonl", "VECTOR": "v.safetensors"}
    arguments = [str(tmp_path / meant[word]) if word in meant else word for word in command]
    code = (
        "import sys, importlib\n"
        "sys.argv[0] = sys.argv[1]; module = sys.argv.pop(1)\n"
        "from shared.errors import SteerHealError\n"
        "try:\n    importlib.import_module(module).main()\n"
        "except SteerHealError as error:\n    print(error.given, [name for name in ('torch', 'transformers', 'datasets', 'vllm', 'unsloth') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert f"{tmp_path}/rows.csv:3: " in done.stdout and done.stdout.strip().endswith("[]"), done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "v.safetensors"]
