"""Numbers on a command line are numbers however they are written, and nothing else is."""

from __future__ import annotations

import argparse
import shlex
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.commands import COMMANDS
from shared.errors import SteerHealError
from shared.folding import gates_of
from shared.options import finite_number, positive, share, whole
from shared.subcommands import options_of

SWEEP = ["--model", "m", "--vector", "v", "--prompts", "p", "--out", "s.jsonl"]
SCORE = ["--model", "m", "--vector", "v", "--out", "s.jsonl"]
NEGATIVE = ["-1", "-5e-1", "-1.", "-.5", "-.5e0", "-1e-1", "-0.25E+1", "-1e1", "-0", "-0.0"]


@pytest.mark.parametrize("text", NEGATIVE)
def test_a_negative_number_is_no_option(text: str) -> None:
    value = float(text)
    sweep, score = options_of("sweep"), options_of("score")
    assert sweep.parse_args([*SWEEP, "--coefficients", text]).coefficients == [value]
    assert sweep.parse_args([*SWEEP, "--coefficients", "0", text, "1"]).coefficients == [0, value, 1]
    assert sweep.parse_args(["--coefficients", text, "2", text, *SWEEP]).coefficients == [value, 2, value]
    assert score.parse_args([*SCORE, "--coefficient", text, "--base"]).coefficient == [value]
    assert score.parse_args([*SCORE, f"--coefficient={text}"]).coefficient == [value]
    assert str(score.parse_args([*SCORE, "--coefficient", "-0"]).coefficient) == "[0.0]"
    assert gates_of([f"1={text}", "2=1"]) == {1: value, 2: 1.0}


@given(st.lists(st.floats(-1e50, 1e50), min_size=1), st.sampled_from(["r", "e", "f", "g"]))
def test_any_list_of_numbers_is_read_back(values: list[float], form: str) -> None:
    texts = [repr(value) if form == "r" else f"{value:.17{form}}" for value in values]
    found = options_of("sweep").parse_args([*SWEEP, "--coefficients", *texts]).coefficients
    assert found == [float(text) + 0.0 for text in texts]


@pytest.mark.parametrize("text", ["nan", "-nan", "inf", "-inf", "1e400", "-1e400", "1e101", "1_000", "\uff11", "1,2", "0x10", "", " 1", "one", "true", "--1", "-e5", "-."])  # fmt: skip
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    for words in ([*SWEEP, "--coefficients", text], [*SWEEP, f"--coefficients={text}"]):
        with pytest.raises(SteerHealError) as refused:
            options_of("sweep").parse_args(words)
        assert refused.value.next
    with pytest.raises(argparse.ArgumentTypeError):
        finite_number(text)
    with pytest.raises(SteerHealError, match="gate"):
        gates_of([f"1={text}"])


@pytest.mark.parametrize(
    "text", ["-1", "1.0", "1e2", "1_0", "\u0663", "\u00b2", "", " 1", "+1", "true", "9" * 30, str(2**31)]
)
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    for kind in (whole, positive):
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)
    with pytest.raises(SteerHealError):
        options_of("score").parse_args([*SCORE, f"--think={text}"])
    with pytest.raises(SteerHealError):
        gates_of([f"{text}=1"])


def test_limits() -> None:
    assert (whole("0"), positive("1"), share("0"), share("1."), share(".5")) == (0, 1, 0.0, 1.0, 0.5)
    for kind, text in ((positive, "0"), (share, "1.01"), (share, "-.1")):
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)
    with pytest.raises(SteerHealError, match="twice"):
        gates_of(["1=0.5", "1=0.7"])


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_reads_a_number_by_other_means(name: str) -> None:
    """int and float take 1_000, digits of other scripts and nan; and no option may begin like a negative number."""
    options = options_of(name)
    assert [action.dest for action in options._actions if action.type in (int, float)] == []
    assert not any(word[1:2].isdigit() for word in options.names)


def test_the_command_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep", *SWEEP, "--coefficients", "0", "-5e-1"])
    assert options_of("sweep").parse_args().coefficients == [0.0, -0.5]


@pytest.mark.parametrize(
    ("name", "words", "option"),
    [
        ("sweep", [*SWEEP, "--set", "train.lam=0.1", "--set", "train.tau=0.3"], "--set"),
        ("sweep", [*SWEEP, "--coefficients", "0", "1", "--samples", "2", "--coefficients", "2"], "--coefficients"),
        ("sweep", [*SWEEP, "--out=t.jsonl"], "--out"),
        ("heal", ["--model", "m", "--data", "a.jsonl", "--out", "o", "--data", "b.jsonl"], "--data"),
        ("compare", ["--base", "a", "--other", "b", "--seed", "0", "--seed", "0"], "--seed"),
    ],
)
def test_a_second_value_does_not_take_the_place_of_the_first(name: str, words: list[str], option: str) -> None:
    options = options_of(name)
    with pytest.raises(SteerHealError, match="an option is there twice") as caught:
        options.parse_args(words)
    assert caught.value.given == option
    assert options_of("score").parse_args([*SCORE, "--gate", "1=0", "--gate", "2=1"]).gate == ["1=0", "2=1"]


@pytest.mark.parametrize(
    ("words", "next"),
    [
        (["--coefficients", "0,1,-1.5", *SWEEP], ["--coefficients", "0", "1", "-1.5", *SWEEP]),
        ([*SWEEP, "--coefficients=0,1"], [*SWEEP, "--coefficients", "0", "1"]),
        (["--coefficients", "-0.5,0.5", *SWEEP], ["--coefficients", "-0.5", "0.5", *SWEEP]),
        ([*SWEEP, "--coefficients", "0", "-0.5,-.5e0"], [*SWEEP, "--coefficients", "0", "-0.5", "-.5e0"]),
        ([*SWEEP, "--coefficients", "0,", "-0.5,", "1."], [*SWEEP, "--coefficients", "0", "-0.5", "1."]),
        ([*SWEEP, "--max-tokens", "24"], [*SWEEP, "--set", "sweep.max_tokens=24"]),
        ([*SWEEP, "--max_tokens=24", "--set", "seed=1"], [*SWEEP, "--set", "seed=1 sweep.max_tokens=24"]),
        (["--seed", "3", *SWEEP], [*SWEEP, "--set", "seed=3"]),
        (["--dilemas", "3", *SWEEP], ["--help"]),
    ],
)
def test_a_hint_is_the_command_line_as_it_is_right(
    words: list[str], next: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STEER_HEAL_FORM", raising=False)
    with pytest.raises(SteerHealError) as caught:
        options_of("sweep").parse_args(words)
    assert shlex.split(caught.value.next) == ["python", "-m", "gen.sweep", *next], caught.value
    if next != ["--help"]:
        options_of("sweep").parse_args(next)


def test_a_key_of_several_sections_is_that_of_the_stage() -> None:
    for name, key in (("extract", "vector.layers"), ("heal", "train.layers"), ("score", "eval.bootstrap")):
        with pytest.raises(SteerHealError, match=f"--set {key}=VALUE"):
            options_of(name).parse_args([f"--{key.partition('.')[2]}", "1"])
