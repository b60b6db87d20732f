"""Values without quotes are read alike alone, in lists and in tables, and TOML is read as TOML."""

from __future__ import annotations

import shlex
import tomllib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.bare import read_bare
from shared.config import resolve_config

numbers = st.from_regex(r"\A[+-]?(?:[0-9]{1,3}\.?[0-9]{0,3}|\.[0-9]{1,3})(?:[eE][+-]?[0-9])?\Z")
words = st.from_regex(r"\A[A-Za-z./_~-][A-Za-z0-9./:_@+=-]{0,12}\Z") | st.sampled_from(
    ["true", "false", "True", "inf", "nan_", "2026-01-02", "007", "1_000", "a b", "owner/set:train[:100]", "x[1:2]+y[2:]", "probe=items.jsonl"]
)  # fmt: skip
leaves = numbers | words
keys = st.from_regex(r"\A[a-z][a-z0-9_-]{0,5}\Z")
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
blank = st.sampled_from(["", " "])


def written(tree: Any, gap: str) -> str:
    if isinstance(tree, list):
        return f"[{gap}{f'{gap},{gap}'.join(written(one, gap) for one in tree)}{gap}]"
    if isinstance(tree, dict):
        return (
            f"{{{gap}{f'{gap},{gap}'.join(f'{key}{gap}={gap}{written(one, gap)}' for key, one in tree.items())}{gap}}}"
        )
    return str(tree)


def wanted(tree: Any) -> Any:
    if isinstance(tree, list):
        return [wanted(one) for one in tree]
    if isinstance(tree, dict):
        return {key: wanted(one) for key, one in tree.items()}
    return read_bare(tree)


@given(trees, blank)
@example(["-.5", "1.", "a"], "")
@example({"lam": "1.", "tau": ".3", "report_to": ["tensorboard"]}, "")
def test_a_value_is_read_alike_alone_and_inside(tree: Any, gap: str) -> None:
    assert repr(read_bare(written(tree, gap))) == repr(wanted(tree))


@given(trees)
def test_what_is_toml_is_read_as_toml(tree: Any) -> None:
    text = written(tree, " ")
    try:
        found = tomllib.loads(f"value = {text}")
    except ValueError:
        return
    assert repr(read_bare(text)) == repr(found["value"])


@given(st.text("[]{},=a1. '\"", max_size=20))
def test_any_text_has_a_value(text: str) -> None:
    """What is neither a list nor a table is a word, and the schema says what it should have been."""
    found = read_bare(text)
    assert isinstance(found, str | int | float | list | dict)
    if isinstance(found, str) and not text.strip().startswith(("'", '"')):
        assert found == text


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        ("train={lam=1., tau=.3}", "tau", 0.3),
        ("train={lam=.1}", "lam", 0.1),
        ("train={report_to=[tensorboard]}", "report_to", ["tensorboard"]),
        ("train={report_to=[tensorboard,wandb], lam=-0.}", "report_to", ["tensorboard", "wandb"]),
        ("sweep={coefficients=[-.5, 1.]}", "coefficients", [-0.5, 1.0]),
        ("sweep={dilemmas=owner/set:train[:100], samples=3}", "dilemmas", "owner/set:train[:100]"),
        ("eval={measures=[retention, probe=items.jsonl]}", "measures", ["retention", "probe=items.jsonl"]),
        ('model={name="a#, b", dtype=float32}', "name", "a#, b"),
        ("model={name=./a, chat_template_kwargs={enable_thinking=false, effort=low}}", "chat_template_kwargs", {"enable_thinking": False, "effort": "low"}),
    ],
)  # fmt: skip
def test_a_table_of_set_reads_what_plain_keys_read(overrides: str, key: str, value: Any) -> None:
    section = overrides.partition("=")[0]
    assert getattr(getattr(resolve_config(None, shlex.quote(overrides))[0], section), key) == value
