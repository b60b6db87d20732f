"""JSONL reading and writing, strata, and the shipped data files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_filter import completion

from evals.rows import ConditionLine, TokenRow
from shared.errors import SteerHealError
from shared.lines import placed_jsonl
from shared.records import DATA, Completion, Manifest, Prompt, Record, Vignette, read_jsonl, write_jsonl
from shared.schema import Config
from shared.strata import stratified
from shared.tables import write_parquet
from shared.traits import load_trait
from train.data import load_examples


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8))  # a blank prompt is refused
def test_round_trip_of_any_text(texts: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.jsonl"
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        write_jsonl(path, [Prompt(id=str(i), prompt=text) for i, text in enumerate(clean)])
        assert [row.prompt for row in read_jsonl(path, Prompt, made_by="x")] == clean


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt": "a"',
        b'{"prompt": 3}',
        b'{"other": 1}',
        b'{"messages": []}',
        b'{"prompt": []}',
        b"[1]",
        b"null",
        b'{"prompt": "\xff"}',
        b'{"prompt": "a", "version": 2}',
        b"[" * 100_000,
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n' + line)
    with pytest.raises(SteerHealError) as caught:
        read_jsonl(path, Prompt, made_by="make it")
    assert f"{path}:2" in caught.value.render() and "make it" in caught.value.render()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Completion, {"perplexity": 0.0}),
        (Completion, {"perplexity_last_quarter": -1.0}),
        (Completion, {"completion_ids": [-5]}),
        (Completion, {"prompt_ids": [10**30]}),
        (TokenRow, {"ce": [1.0, 2.0]}),
        (Manifest, {"counts": {"tokens": "many"}}),
        (ConditionLine, {"gate": None}),
    ],
)
def test_values_that_no_stage_writes_are_refused(kind: type[Record], change: dict[str, object], tmp_path: Path) -> None:
    valid: dict[type[Record], dict[str, object]] = {
        Completion: completion().model_dump(),
        TokenRow: {"key": "a", "tokens": ["b"], "ce": [1.0], "kl_base": [0.5], "kl_previous": [0.5]},
        Manifest: {"settings": {}, "inputs": {}, "outputs": {}, "counts": {"tokens": 3}, "seconds": 1.0, "commit": None, "versions": {}, "hardware": {}},
        ConditionLine: {"stage": "healed", "name": "healed-0.5", "coefficient": 0.0, "draw": None, "headline": False, "gate": 0.5},
    }  # fmt: skip
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [valid[kind]])
    assert len(read_jsonl(path, kind, made_by="make it")) == 1
    write_jsonl(path, [{**valid[kind], **change}])
    with pytest.raises(SteerHealError, match=next(iter(change)) + "|one length|a gate|counts"):
        read_jsonl(path, kind, made_by="make it")


USER = {"role": "user", "content": "a"}
PAIRS: list[tuple[dict[str, object], str]] = [
    ({"promt": "a"}, "either prompt or messages"),
    ({}, "either prompt or messages"),
    ({"prompt": "a", "messages": [USER]}, "either prompt or messages"),
    ({"messages": []}, "the last is the user's"),
    ({"messages": [{"role": "user"}]}, "the last is the user's"),
    ({"messages": [USER, {"role": "assistant", "content": "b"}]}, "the last is the user's"),
    ({"messages": [{"role": "system", "content": "b"}]}, "the last is the user's"),
]


@pytest.mark.parametrize(("asked", "problem"), PAIRS)
def test_a_pair_without_one_prompt_is_named(
    asked: dict[str, object], problem: str, tmp_path: Path, tokenizer: object
) -> None:
    """As training reads it: nothing is trained on as an empty turn, and no prompt is dropped."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**row, "completion": "c"}) + "\n" for row in ({"prompt": "fine"}, asked)))
    with pytest.raises(SteerHealError) as caught:
        load_examples(path, tokenizer, Config())
    assert f"{path}:2" in caught.value.render() and problem in caught.value.render()


def test_a_prompt_is_the_messages_that_say_the_same(tmp_path: Path, tokenizer: object) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**row, "completion": "c"}) + "\n" for row in ({"prompt": "a"}, {"messages": [USER]})))  # fmt: skip
    first, second = load_examples(path, tokenizer, Config())
    assert first.prompt == second.prompt and first.completion == second.completion


def test_a_row_is_found_where_its_place_says(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = [b"\n", '{"prompt": "é\u2028"}\r\n'.encode(), b"  \n", b'{"prompt": "b"}']
    path.write_bytes(b"".join(lines))
    found = [(line, begin, row.prompt) for line, begin, row in placed_jsonl(path, Prompt, made_by="-")]
    assert found == [(2, 1, "é\u2028"), (4, len(b"".join(lines[:3])), "b")]
    assert path.read_bytes()[found[1][1] :] == lines[3]


def test_missing_and_empty_files(tmp_path: Path) -> None:
    for name, content in (("none", None), ("empty", ""), ("blank", "\n\n")):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(SteerHealError, match="make it"):
            read_jsonl(tmp_path / name, Prompt, made_by="make it")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_path_has(name: str) -> None:
    with pytest.raises(SteerHealError, match="could not be read"):
        read_jsonl(Path(name), Prompt, made_by="make setup")


def test_nan_is_never_written_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_jsonl(tmp_path / "x.jsonl", [{"a": 1.0}, {"a": float("nan")}])
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(1, 50))
def test_strata_differ_by_at_most_one_until_they_run_out(genres: list[str], count: int) -> None:
    rows = [Prompt(id=str(i), genre=genre, prompt="x") for i, genre in enumerate(genres)]
    chosen = stratified(rows, count, "genre")
    assert len(chosen) == min(count, len(rows))
    assert [int(row.id) for row in chosen] == sorted(int(row.id) for row in chosen)
    for a in set(genres):
        for b in set(genres):
            taken = [sum(row.genre == g for row in chosen) for g in (a, b)]
            assert taken[0] >= taken[1] - 1 or taken[0] == genres.count(a)


def test_shipped_prompts() -> None:
    files = {
        name: read_jsonl(DATA / f"{name}.jsonl", Prompt, made_by="-")
        for name in ("contexts", "dilemmas", "mundane", "heldout")
    }
    assert len(files["contexts"]) >= 256 and len({row.genre for row in files["contexts"]}) >= 10
    assert len(files["dilemmas"]) >= 64 and len(files["mundane"]) >= 16 and len(files["heldout"]) == 16
    texts = [row.prompt for rows in files.values() for row in rows]
    ids = [row.id for rows in files.values() for row in rows]
    assert len(set(texts)) == len(texts) and len(set(ids)) == len(ids)


def test_shipped_vignettes() -> None:
    rows = read_jsonl(DATA / "vignettes.jsonl", Vignette, made_by="-")
    counts = {
        name: sum(row.foundation_coarse == name for row in rows) for name in {row.foundation_coarse for row in rows}
    }
    assert counts == dict.fromkeys(
        ["Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "Social Norms"], 10
    )


def test_shipped_vignettes_are_not_the_published_ones(tinymfv: Path) -> None:
    def words(text: str) -> set[tuple[str, ...]]:
        tokens = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        return {tuple(tokens[i : i + 6]) for i in range(2, len(tokens) - 5)}

    published = set()
    for path in sorted(tinymfv.glob("vignettes_*.jsonl")):
        for line in path.read_text().splitlines():
            published |= words(json.loads(line)["text"])
    for row in read_jsonl(DATA / "vignettes.jsonl", Vignette, made_by="-"):
        assert not words(row.text) & published, row.text


def test_shipped_trait() -> None:
    trait = load_trait("embedded")
    assert len({trait.trait, trait.opposite, trait.neutral}) == 3


def test_parquet_holds_what_jsonl_holds(tmp_path: Path) -> None:
    """Nested lists, nulls beside numbers and unicode, read back by another library."""
    from datasets import Dataset

    rows = [
        {"id": "a", "lp": [[[-1.5, None]], [[-2.0, 0.25]]], "p": [0.25, 0.75], "text": "é\u2028x"},
        {"id": "b", "lp": [[[None, None]], [[0.0, 1e-300]]], "p": None, "text": ""},
    ]
    write_parquet(tmp_path / "rows.parquet", rows)
    assert Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache")).to_list() == rows
    assert [path.name for path in tmp_path.glob("*.parquet*")] == ["rows.parquet"]
