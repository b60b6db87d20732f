"""What is read is what is written: no number out of text, no row twice, nothing outside of its range."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from test_fuzz import ROWS

from evals.measures.forced_choice.rows import ScoreRow
from evals.measures.free_text.rows import Generation
from evals.rows import ConditionLine, Heldout, StudentLayer, TrainingStep
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.filter_record import FilterRecord, SweepLine
from shared.folding import GatedRound
from shared.records import (
    Completion,
    Manifest,
    Pair,
    Prompt,
    Record,
    Training,
    Vignette,
    read_jsonl,
)
from shared.schema import Config, Section
from shared.strict import WIDEST, check_values, parse_json
from shared.tables import read_parquet, write_parquet

SEVENTH = [1 / 7] * 7
VALID: dict[type[Record], dict[str, Any]] = {
    **ROWS,
    Vignette: {"id": "a", "foundation": "Care", "foundation_coarse": "Care", "text": "x", "wrong": 3.5, **{f"human_{name}": 14.0 for name in ("Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "SocialNorms")}},
    ScoreRow: {"id": "a", "foundation": "Care", "lp": [[[-2.0] * 7]], "p": SEVENTH, "score": [0.0] * 7, "pmass_allowed": 0.9, "label": SEVENTH, "nll_prefill": 0.5, "text": "a", "debias": "reversal", "think_tokens": 4, "stop": False, "temperature": 0.0, "instrument": "a", "top_k": 3, "name": "base"},
    Generation: {"name": "base", "prompt_id": "a", "prompt": "a", "sample": 0, "text": "a", "finish_reason": "stop", "nll": 3.0, "tokens": 3, "perplexity": 2.718281828459045, "trait_llr": 0.1, "distinct_1": 0.5, "distinct_2": 0.5, "distinct_3": 0.5, "loop_share": 0.0},
    SweepLine: {"coefficient": 1.0, "n": 3, "kept": 2, "perplexity": 2.0, "distinct_3": 0.5, "trait_llr": 0.1, "relative_dose": 0.2},
    FilterRecord: {"limits": {"loop": 0.3}, "lines": [], "causes": {"loop": 1}, "kept": 2, "rejected": 1},
    StudentLayer: {"layer": 3, "norm_ratio": 0.5, "cos_teacher": 0.5, "cos_round_1": -0.5, "split_half": 0.9},
    ConditionLine: {"stage": "steered", "name": "steered", "coefficient": 1.0, "draw": 0, "headline": True},
    Heldout: {"step": 1, "epoch": 1.0, "heldout_ce": 2.0},
    TrainingStep: {"step": 1, "loss": 1.0, "ce": 1.0, "fired": 0.5, "gradient_ratio": 0.5, **{f"kl_{name}_{kind}": 0.5 for name in ("base", "previous") for kind in ("mean", "rmse", "p95", "max")}},
    Training: {"divergence": "nll", "aggregate": "mean", "reference": "base", "lam": 0.1, "tau": 0.3, "load_in_4bit": False, "examples": 3, "heldout": 0, "tokens": 9, "steps": 2, "start": {"base": 0.0, "previous": 0.0}, "findings": []},
    Manifest: {"settings": {}, "inputs": {}, "outputs": {}, "counts": {"tokens": 3}, "seconds": 1.0, "commit": None, "versions": {}, "hardware": {}},
    GatedRound: {"round": 1, "gate": 1.0, "adapter": "a", "sha256": "a", "rank": 4, "scale": 2.0},
}  # fmt: skip
FOUND = [(kind, name) for kind, row in VALID.items() for name, value in row.items() if type(value) in (int, float)]


def read(kind: type[Record], path: Path, *rows: dict[str, Any]) -> list[Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_jsonl(path, kind, made_by="make it")


@pytest.mark.parametrize("kind", VALID)
def test_the_rows_of_these_tests_are_valid(kind: type[Record], tmp_path: Path) -> None:
    assert len(read(kind, tmp_path / "a.jsonl", VALID[kind])) == 1
    assert len(read(kind, tmp_path / "a.jsonl", {**VALID[kind], "version": 1})) == 1
    for version in (True, 1.0, "1", 2, None):
        with pytest.raises(SteerHealError):
            read(kind, tmp_path / "a.jsonl", {**VALID[kind], "version": version})


@pytest.mark.parametrize(("kind", "name"), FOUND)
def test_nothing_but_a_number_is_a_number(kind: type[Record], name: str, tmp_path: Path) -> None:
    value = VALID[kind][name]
    wrong: list[Any] = [
        str(value),
        f" {value} ",
        True,
        False,
        [value],
        {"a": value},
        "",
        "nan",
        float("nan"),
        math.inf,
        10**400,
        -(10**400),
    ]
    if kind.model_fields[name].annotation is int:
        wrong += [float(value), value + 0.5]
    for one in wrong:
        with pytest.raises(SteerHealError) as refused:
            read(kind, tmp_path / "a.jsonl", {**VALID[kind], name: one})
        assert "a.jsonl:1" in refused.value.render()
    text = json.dumps({**VALID[kind], name: "NUMBER"}).replace('"NUMBER"', "1e400")
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(SteerHealError, match="too large a number"):
        read_jsonl(tmp_path / "a.jsonl", kind, made_by="make it")


@pytest.mark.parametrize("value", ["false", "no", 0, 1, 0.0, None])
def test_nothing_but_true_and_false_is_a_truth(value: Any, tmp_path: Path) -> None:
    with pytest.raises(SteerHealError):
        read(ScoreRow, tmp_path / "a.jsonl", {**VALID[ScoreRow], "stop": value})


@pytest.mark.parametrize(
    ("kind", "change", "part"),
    [
        (Vignette, {"wrong": -0.1}, "wrong"),
        (Vignette, {"wrong": 5.5}, "wrong"),
        (Vignette, {"human_Care": 100.5}, "human_Care"),
        (Vignette, {"human_Care": -1.0}, "human_Care"),
        (Vignette, {"human_Care": 40.0}, "per cent of the raters"),
        (ScoreRow, {"p": [0.5] * 7}, "sum to 3.5"),
        (ScoreRow, {"p": [1 / 7] * 6}, "7 items"),
        (ScoreRow, {"p": [-0.1, 0.3, *[0.16] * 5]}, "p.0"),
        (ScoreRow, {"label": [1.0, *[0.1] * 6]}, "sum to 1.6"),
        (ScoreRow, {"pmass_allowed": 1.01}, "pmass_allowed"),
        (ScoreRow, {"pmass_allowed": -0.01}, "pmass_allowed"),
        (ScoreRow, {"lp": [[[0.01] + [-9.0] * 6]]}, "lp"),
        (ScoreRow, {"lp": [[[-0.5] * 7]]}, "their mass is"),
        (ScoreRow, {"think_tokens": -1}, "think_tokens"),
        (ScoreRow, {"temperature": -1.0}, "temperature"),
        (ScoreRow, {"debias": "forward"}, "debias"),
        (Generation, {"tokens": -1}, "tokens"),
        (Generation, {"perplexity": 0.5}, "perplexity"),
        (Generation, {"distinct_3": 1.5}, "distinct_3"),
        (Generation, {"loop_share": -0.1}, "loop_share"),
        (Generation, {"nll": -1.0}, "nll"),
        (Completion, {"sample": -1}, "sample"),
        (Completion, {"seed": -1}, "seed"),
        (Completion, {"seed": 2**31}, "seed"),
        (Completion, {"distinct_3": 1.01}, "distinct_3"),
        (Completion, {"perplexity": 0.9}, "perplexity"),
        (SweepLine, {"kept": 4}, "4 kept of 3"),
        (SweepLine, {"n": -1}, "n"),
        (StudentLayer, {"cos_teacher": 1.1}, "cos_teacher"),
        (StudentLayer, {"norm_ratio": -1.0}, "norm_ratio"),
        (TrainingStep, {"fired": 1.5}, "fired"),
        (TrainingStep, {"kl_base_max": -0.5}, "kl_base_max"),
        (Training, {"steps": -1}, "steps"),
        (Manifest, {"counts": {"tokens": True}}, "counts.tokens"),
        (Manifest, {"counts": {"kept": -1}}, "counts.kept"),
        (Manifest, {"seconds": -1.0}, "seconds"),
        (GatedRound, {"round": 0}, "round"),
        (GatedRound, {"rank": 0}, "rank"),
    ],
)  # fmt: skip
def test_what_is_outside_its_range(kind: type[Record], change: dict[str, Any], part: str, tmp_path: Path) -> None:
    with pytest.raises(SteerHealError) as refused:
        read(kind, tmp_path / "a.jsonl", {**VALID[kind], **change})
    assert part in str(refused.value.given)


def test_rounding_is_no_fault(tmp_path: Path) -> None:
    """Published shares are whole per cents, log-probabilities of half precision are a little above 0."""
    published = {f"human_{name}": share for name, share in zip(("Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "SocialNorms"), (15.0, 15.0, 15.0, 14.0, 14.0, 14.0, 15.0), strict=True)}  # fmt: skip
    assert sum(published.values()) == 102
    read(Vignette, tmp_path / "a.jsonl", {**VALID[Vignette], **published})
    certain = [5e-4, *[-30.0] * 6]
    read(ScoreRow, tmp_path / "a.jsonl", {**VALID[ScoreRow], "lp": [[certain]], "pmass_allowed": math.exp(5e-4)})
    read(Completion, tmp_path / "a.jsonl", {**VALID[Completion], "perplexity": 0.9995})
    single = [float(f"{share:.7f}") for share in SEVENTH]
    read(ScoreRow, tmp_path / "a.jsonl", {**VALID[ScoreRow], "p": single})


@pytest.mark.parametrize("kind", [kind for kind in VALID if kind.known_by])
def test_two_rows_of_one_key_are_refused(kind: type[Record], tmp_path: Path) -> None:
    row = VALID[kind]
    with pytest.raises(SteerHealError, match="twice") as refused:
        read(kind, tmp_path / "a.jsonl", row, row)
    assert all(name in str(refused.value.given) for name in kind.known_by)
    other = {**row, kind.known_by[-1]: 7 if kind is Generation else "other"}
    assert len(read(kind, tmp_path / "a.jsonl", row, other)) == 2


def test_a_table_is_as_strict_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, [VALID[ScoreRow]])
    assert len(read_parquet(path, ScoreRow, made_by="make it")) == 1
    for change in (
        {"temperature": "0.0"},
        {"think_tokens": 4.0},
        {"stop": 0},
        {"pmass_allowed": 1.5},
        {"p": [0.5] * 7},
    ):
        write_parquet(path, [{**VALID[ScoreRow], **change}])
        with pytest.raises(SteerHealError, match=next(iter(change))):
            read_parquet(path, ScoreRow, made_by="make it")
    write_parquet(path, [VALID[ScoreRow]] * 2)
    with pytest.raises(SteerHealError, match="twice"):
        read_parquet(path, ScoreRow, made_by="make it")
    write_parquet(path, [])
    with pytest.raises(SteerHealError, match="no rows"):
        read_parquet(path, ScoreRow, made_by="make it")


TEXTS = {
    "a key twice": '{"a": 1, "a": 1}', "deep inside": '[{"b": {"a": 1, "c": 2, "a": 3}}]', "by an escape": '{"a": 1, "\\u0061": 2}',
    "NaN": '{"a": NaN}', "infinity": '{"a": -Infinity}', "too large": '{"a": 1e400}', "half a character": '{"a": "\\ud800"}',
    "half a key": '{"\\udc00": 1}', "endless digits": '{"a": ' + "9" * 5000 + "}", "endless levels": "[" * 5000,
    "two values": "{} {}", "a comma after": '{"a": 1,}', "quotes of another kind": "{'a': 1}",
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_json_that_says_two_things_or_none(text: str, tmp_path: Path) -> None:
    for content in (text, text.encode(), b"\xef\xbb\xbf" + text.encode()):
        with pytest.raises(ValueError):
            parse_json(content)
    (tmp_path / "a.jsonl").write_text('{"prompt": "fine"}\n' + text + "\n")
    with pytest.raises(SteerHealError, match="line 2"):
        read_jsonl(tmp_path / "a.jsonl", Prompt, made_by="make it")


ROW = '{"prompt": "a", "completion": "b"}'
FIRST = {
    "blank": ("\n" + ROW, None), "blanks": ("\n  \n\t\r\n" + ROW, None), "mark": ("\ufeff" + ROW, None), "mark and blank": ("\ufeff\n" + ROW, None),
    "carriage returns": (ROW + "\r\n" + ROW + "\r\n", None),
    "a comment": ("# rows\n" + ROW, "a comment"), "another comment": ("// rows\n" + ROW, "a comment"),
    "an array": (f"[{ROW}]", "an array"), "an array over lines": (f"[\n{ROW}\n]", "an array"),
    "an object over lines": (json.dumps(json.loads(ROW), indent=1), "over several lines"),
    "a table": ("prompt,completion\na,b\n", "a CSV"), "broken": (ROW[:-1] + "\n", "Expecting"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [Prompt, Pair])
@pytest.mark.parametrize(("text", "problem"), FIRST.values(), ids=FIRST)
def test_a_first_line_is_said_for_what_it_is(
    text: str, problem: str | None, kind: type[Record], tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode())
    if problem is None:
        assert {row.prompt for row in read_jsonl(path, kind, made_by="make it")} == {"a"}
        return
    with pytest.raises(SteerHealError, match=problem) as refused:
        read_jsonl(path, kind, made_by="make it")
    assert "a.jsonl:1:" in str(refused.value.given) and '{"prompt": "..."' in str(refused.value.expected)


CONVERTED = {
    "carriage returns alone": (ROW + "\r" + ROW + "\r", "carriage return"),
    "two on a line": (f"{ROW} {ROW}\n", "several objects"),
    "commas behind": (f"{ROW},\n{ROW},\n", "a comma after"),
    "Python's quotes": (f"{json.loads(ROW)}\n{json.loads(ROW)}\n", "a dictionary of Python's"),
    "two marks": (f"\ufeff\ufeff{ROW}\n{ROW}\n", "cannot be seen"),
    "record separators": (f"\x1e{ROW}\n\x1e{ROW}\n", "cannot be seen"),
    "a space without a width": (f"\u200b{ROW}\n{ROW}\n", "cannot be seen"),
}


@pytest.mark.parametrize(("text", "problem"), CONVERTED.values(), ids=CONVERTED)
def test_rows_in_another_form_are_converted_by_the_command(text: str, problem: str, tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "a b.jsonl"
    path.write_bytes(text.encode())
    with pytest.raises(SteerHealError, match=problem) as refused:
        read_jsonl(path, Pair, made_by="make it")
    converting = refused.value.next.partition(", or make the file")[0].replace("python -c", f"{sys.executable} -c")
    if converting.startswith("jq") and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    subprocess.run(converting, shell=True, check=True)
    found = read_jsonl(tmp_path / "a b-converted.jsonl", Pair, made_by="-")
    assert [(row.prompt, row.completion) for row in found] == [("a", "b")] * 2


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """What reads rows goes through them several times, and of a pipe would see the rest alone; one without a writer never opens."""
    (path := tmp_path / "a b").mkdir()
    os.mkfifo(pipe := path / "rows.jsonl")
    for name in (pipe, Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(SteerHealError, match="a pipe or a device") as refused:
            read_jsonl(name, Prompt, made_by="make it")
        assert "cat " in refused.value.next


def test_a_pointer_and_a_page_are_no_rows(tmp_path: Path) -> None:
    for text, problem in (
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ("<!DOCTYPE html>\n", "HTML"),
    ):
        (path := tmp_path / "a.jsonl").write_text(text)
        with pytest.raises(SteerHealError, match=problem):
            read_jsonl(path, Prompt, made_by="make it")


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "latin-1"])
def test_an_encoding_is_said_and_the_command_converts_it(name: str, tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "a b.jsonl"
    path.write_bytes('{"prompt": "é"}\n'.encode(name))
    with pytest.raises(SteerHealError, match="UTF-8") as refused:
        read_jsonl(path, Prompt, made_by="make it")
    subprocess.run(refused.value.next.partition(", or make")[0], shell=True, check=True)
    assert [row.prompt for row in read_jsonl(tmp_path / "a b-converted.jsonl", Prompt, made_by="-")] == ["é"]


@pytest.mark.parametrize(
    ("pack", "name"), [("gzip", "gzip"), ("bz2", "bzip2"), ("lzma", "xz"), ("zipfile", "zip"), ("pyarrow", "Parquet")]
)
def test_what_is_packed_is_said_to_be(pack: str, name: str, tmp_path: Path) -> None:
    import bz2
    import gzip
    import lzma
    import zipfile

    path, content = tmp_path / "a.jsonl", b'{"prompt": "a"}\n'
    if pack == "zipfile":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.jsonl", content)
    elif pack == "pyarrow":
        write_parquet(path, [{"prompt": "a"}])
    else:
        path.write_bytes({"gzip": gzip, "bz2": bz2, "lzma": lzma}[pack].compress(content))
    with pytest.raises(SteerHealError, match=name) as refused:
        read_jsonl(path, Prompt, made_by="make it")
    assert str(path) in refused.value.next


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.binary(max_size=6),
    middle=st.sampled_from([b"", ROW.encode(), b"\n" + ROW.encode() + b"\n"]),
    end=st.binary(max_size=6),
)
def test_any_first_bytes(start: bytes, middle: bytes, end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(start + middle + end)
    try:
        rows = read_jsonl(path, Pair, made_by="make it")
        assert {(row.prompt, row.completion) for row in rows} == {("a", "b")}
    except SteerHealError as error:
        error.render().encode()
        assert error.next


# ------------------------------------------------------------------------------------------------ the configuration


def keys() -> Iterator[tuple[str, FieldInfo]]:
    for section, field in Config.model_fields.items():
        if isinstance(field.default, Section):
            for name, inner in type(field.default).model_fields.items():
                yield f"{section}.{name}", inner
        else:
            yield section, field


def of(field: FieldInfo, kind: type) -> bool:
    return field.annotation is kind or kind in get_args(field.annotation)


NUMERIC = [
    (key, field)
    for key, field in keys()
    if (of(field, int) or of(field, float)) and get_origin(field.annotation) is not list
]


@pytest.mark.parametrize(("key", "field"), NUMERIC, ids=[key for key, _ in NUMERIC])
def test_no_key_takes_what_is_no_number(key: str, field: FieldInfo, tmp_path: Path) -> None:
    wrong = ['"1"', "true", "[1]", "{a=1}", "nan", "inf", "-inf", "1e400", "9" * 30, "2026-01-01"]
    if not of(field, float):
        wrong += ["2.0", "2.5"]
    section, _, name = key.rpartition(".")
    for text in wrong:
        path = tmp_path / "c.toml"
        path.write_text((f"[{section}]\n" if section else "") + f"{name} = {text}\n")
        with pytest.raises(SteerHealError) as refused:
            resolve_config(path)
        assert key in refused.value.what and "c.toml" in str(refused.value.given)
        with pytest.raises(SteerHealError) as refused:
            resolve_config(None, f"{key}='{text}'")
        assert key in refused.value.what and "--set" in str(refused.value.given)


@pytest.mark.parametrize(("key", "field"), NUMERIC, ids=[key for key, _ in NUMERIC])
def test_every_limit_of_a_key_holds(key: str, field: FieldInfo) -> None:
    for limit in field.metadata:
        for kind, step, inclusive in ((Ge, -1, True), (Gt, 0, False), (Le, 1, True), (Lt, 0, False)):
            if isinstance(limit, kind):
                bound = getattr(limit, kind.__name__.lower())
                with pytest.raises(SteerHealError, match=key):
                    resolve_config(None, f"{key}={bound + step}")
                if inclusive:
                    resolve_config(None, f"{key}={bound}")


def test_text_that_no_path_can_have(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[vector]\ntrait = "a\\u0000b"\n')
    with pytest.raises(SteerHealError, match="NUL"):
        resolve_config(tmp_path / "c.toml")
    with pytest.raises(SteerHealError, match="half a character"):
        resolve_config(None, "vector.trait=a\udcff")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_plain_values_survive_json(value: Any) -> None:
    try:
        check_values(value)
    except ValueError:
        return
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert abs(value) <= WIDEST if isinstance(value, int | float) else True


def test_every_record_is_strict() -> None:
    """A new one is, too: the rule is in the base."""

    class New(Record):
        number: float

    assert New.model_config.get("strict") is True and issubclass(New, BaseModel)
    for kind in VALID:
        assert kind.model_config.get("strict") is True and kind.model_config.get("allow_inf_nan") is False
