"""Ratios and their file, and the baselines against the engine tests' oracle."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, command
from hooked import Hooked
from test_engine import QUESTIONS

from gen import baselines
from shared.chat import Chat
from shared.errors import SteerHealError
from shared.models import Model
from shared.ratios import (
    UNKNOWN,
    Side,
    interleave,
    interval,
    merge_ratios,
    met,
    ratio_of_times,
    read_ratios,
    show_ratios,
)
from shared.records import DATA
from shared.vectors import Vector

MACHINE, VERSIONS = {"cores": 2, "instruction_set": "avx2"}, {"python": "3.11"}


def test_interval_equals_a_brute_force_bootstrap_of_the_median() -> None:
    values = np.random.default_rng(3).gamma(9.0, 0.1, size=101)
    draws = np.random.default_rng(4).choice(values, (20_000, 101))
    low, high = interval(values)
    assert (low, high) == pytest.approx(np.quantile(np.median(draws, axis=1), [0.025, 0.975]), abs=0.02)
    assert low <= np.median(values) <= high


def test_interval_of_equal_values_is_a_point_and_of_one_is_none() -> None:
    assert interval([1.5] * 5) == (1.5, 1.5)
    assert interval([1.5, 1.2, 1.7]) == (1.2, 1.7), "too few for more than their range"
    assert interval([1.5]) == (None, None)


@pytest.mark.parametrize(
    ("median", "bound", "faster", "expected"),
    [
        (1.03, 1.03, False, True),
        (1.04, 1.03, False, False),
        (1.6, 1.5, True, True),
        (1.5, 1.5, True, True),
        (1.4, 1.5, True, False),
        (1.4, None, True, None),
    ],
)
def test_when_a_bound_is_met(median: float, bound: float | None, faster: bool, expected: bool | None) -> None:
    assert met(median, bound, faster) is expected


def test_ratios_are_taken_within_rounds() -> None:
    ours, theirs = Side(list), Side(list)
    ours.seconds, theirs.seconds = [1.0, 2.0, 4.0], [3.0, 6.0]  # the other side took part in two rounds
    ours.tokens = theirs.tokens = [24.0]
    found = ratio_of_times(ours, theirs, "x", bound=3.0, faster=True)
    assert (found["median"], found["low"], found["high"], found["n"], found["met"]) == (3.0, 3.0, 3.0, 2, True)
    assert found["seconds"] == {"ours": 2.0, "reference": 4.5}
    assert (
        ratio_of_times(ours, theirs, "x")["median"] == pytest.approx(1 / 3)
        and ratio_of_times(ours, theirs, "x")["met"] is None
    )


def test_sides_take_turns_and_begin_in_turn() -> None:
    order: list[str] = []
    sides = {
        name: Side(lambda name=name: order.append(name) or [[1, 2]], lambda name=name: order.append(f"-{name}"), first)  # type: ignore[misc]
        for name, first in (("a", None), ("b", None), ("c", 1))
    }
    interleave("turns", sides, 3)
    assert [name for name in order if name[0] != "-"] == ["a", "b", "c", "b", "a", "a", "b"]
    assert order[:2] == ["-a", "a"] and sides["a"].tokens == [2.0] * 3 and len(sides["c"].seconds) == 1


def test_merging_keeps_what_other_benchmarks_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "docs" / "bench.json"
    row = {"median": 1.0, "low": None, "high": None, "n": 1, "what": "theirs"}
    merge_ratios(out, {"heal": row, "sweep": row}, MACHINE, VERSIONS)
    merge_ratios(
        out,
        {"sweep": {**row, "median": 2.0, "low": 1.0, "high": 3.0, "bound": 2.5, "met": True}},
        {**MACHINE, "threads": 4},
        {"torch": "2"},
    )
    found = json.loads(out.read_text())
    assert found["ratios"]["heal"] == {**row, "instruction_set": "avx2"} and found["ratios"]["sweep"]["median"] == 2.0
    assert found["machine"] == {**MACHINE, "threads": 4} and found["versions"] == {**VERSIONS, "torch": "2"}
    assert [path.name for path in out.parent.iterdir()] == ["bench.json"]
    show_ratios(out)
    assert "2.000 [1.000, 3.000]" in capsys.readouterr().out


def test_every_shipped_ratio_says_its_instruction_set_as_the_docs_do() -> None:
    """One that nobody noted is said not to be recorded."""
    found = read_ratios(ROOT / "docs" / "bench.json")
    sets = {name: row["instruction_set"] for name, row in found["ratios"].items()}
    assert {name for name, kind in sets.items() if kind == UNKNOWN} == {"score_speedup_vs_hf"}
    assert all(kind == machine.get("instruction_set", UNKNOWN) for kind, machine in found["machines"].items())
    assert set(sets.values()) <= found["machines"].keys()
    for page in ("engine.md", "training.md"):
        text = (ROOT / "docs" / page).read_text().partition("(AVX-512)")[2]
        shown = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
        assert {sets[name] for name in shown if name in sets} == {"avx512"}, page


def test_ratios_of_two_machines_do_not_share_a_file(tmp_path: Path) -> None:
    out, row = tmp_path / "bench.json", {"median": 1.0, "low": None, "high": None, "n": 1, "what": "theirs"}
    merge_ratios(out, {"heal": row}, MACHINE, VERSIONS)
    before = out.read_bytes()
    with pytest.raises(SteerHealError, match="of another machine"):
        merge_ratios(out, {"sweep": row}, {**MACHINE, "cores": 64}, VERSIONS)
    assert out.read_bytes() == before
    merge_ratios(out, {"heal": row}, {**MACHINE, "cores": 64}, VERSIONS)  # all of it is made again
    assert json.loads(out.read_text())["machine"]["cores"] == 64


def test_ratios_of_two_instruction_sets_stand_side_by_side(tmp_path: Path) -> None:
    """Also where the file is from before the instruction set was recorded."""
    out, row = tmp_path / "bench.json", {"median": 1.0, "low": None, "high": None, "n": 1, "what": "theirs"}
    out.write_text(json.dumps({"machine": {"cores": 2}, "versions": {}, "ratios": {"heal": row, "sweep": row}}))
    wide = {"cores": 2, "instruction_set": "avx512"}
    merge_ratios(out, {"heal": {**row, "median": 2.0}}, MACHINE, VERSIONS)
    merge_ratios(out, {"heal": {**row, "median": 3.0}}, wide, VERSIONS)
    merge_ratios(out, {"heal": {**row, "median": 4.0}}, MACHINE, VERSIONS)
    found = json.loads(out.read_text())
    heal = found["ratios"]["heal"]
    assert (heal["median"], heal["instruction_set"]) == (4.0, "avx2") and found["ratios"]["sweep"] == row
    assert {kind: other["median"] for kind, other in heal["others"].items()} == {"not recorded": 1.0, "avx512": 3.0}
    assert found["machine"] == MACHINE and found["machines"] == {
        "not recorded": {"cores": 2},
        "avx2": MACHINE,
        "avx512": wide,
    }


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"ratios": [], "versions": {}}'])
def test_a_broken_benchmark_file_is_refused_and_kept(text: str, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    out.write_text(text)
    with pytest.raises(SteerHealError, match="benchmark file"):
        merge_ratios(out, {}, MACHINE, VERSIONS)
    with pytest.raises(SteerHealError, match="benchmark file"):
        read_ratios(out)
    assert out.read_text() == text


def test_the_command_says_what_it_cannot_do(tmp_path: Path) -> None:
    done = command("gen.bench", "--out", tmp_path / "b.json", "--only", "C", "--quick")
    assert done.returncode == 2 and "nothing to measure" in done.stderr and not (tmp_path / "b.json").exists()


@pytest.mark.slow
def test_baselines_steer_as_the_oracle_does(model: Model, tokenizer: object, vector: Vector) -> None:
    """A coefficient per row of a padded batch, and the library one prompt at a time, against plain forwards."""
    oracle = Hooked(model.folder, vector)
    prompts = [Chat(tokenizer).ids([{"role": "user", "content": text}], "Be brief.") for text in QUESTIONS]
    coefficients = [0.0, 1.0, 2.0]
    expected = [oracle.logprobs(ids, c)[-1] for ids, c in zip(prompts, coefficients, strict=True)]
    hooked = baselines.Hooked(model.folder, vector, dtype="float32", stop=Chat(tokenizer).end_id, pad=0)
    assert len({len(ids) for ids in prompts}) > 1
    with torch.inference_mode():
        batch = hooked.padded(prompts)
        places = (batch["attention_mask"].cumsum(-1) - 1).clamp(
            min=0
        )  # generate counts positions so; a forward does not
        with hooked.steered(coefficients):
            rows = hooked.network(**batch, position_ids=places).logits[:, -1].log_softmax(-1)
        plain = hooked.network(torch.tensor([prompts[1]])).logits[0, -1].log_softmax(-1)
    for row, other in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, other, atol=1e-4, rtol=0)
    torch.testing.assert_close(plain, oracle.logprobs(prompts[1], 0.0)[-1], atol=1e-4, rtol=0)  # the hooks are gone
    assert (rows[1] - plain).abs().max() > 0.1

    greedy = baselines.Sampling(8, 8, temperature=0.0)
    work = [(ids, c) for ids in prompts[:2] for c in coefficients]
    per_row = baselines.per_row(hooked, work, greedy)
    assert per_row == baselines.per_coefficient(hooked, work, greedy)
    for (ids, c), tokens in zip(work, per_row, strict=True):
        table = oracle.logprobs([*ids, *tokens], c)[len(ids) - 1 : -1].clone()
        table[:, hooked.stop] = -torch.inf  # the least length forbids the end of the turn
        assert table.argmax(-1).tolist() == tokens
    pytest.importorskip("steering_vectors", reason="make bench installs it")
    assert baselines.one_at_a_time(hooked, work, greedy) == per_row
    with torch.inference_mode(), baselines.steering_vectors_context(hooked, 2.0):
        peer = hooked.network(torch.tensor([prompts[1]])).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(peer, oracle.logprobs(prompts[1], 2.0)[-1], atol=1e-4, rtol=0)
    assert (peer - plain).abs().max() > 0.1


@pytest.mark.parametrize("module", ["shared.bench", "gen.bench", "train.bench", "evals.bench"])
def test_a_file_that_is_no_benchmark_is_refused_before_anything_is_measured(tmp_path: Path, module: str) -> None:
    out = tmp_path / "theirs.json"
    out.write_text('{"ratios": []}')
    needs = ["--vignettes", DATA / "vignettes.jsonl"] if module == "evals.bench" else []
    done = command(module, *needs, "--out", out)
    assert done.returncode == 2 and "a benchmark file could not be read" in done.stderr, done.stderr
    assert out.read_text() == '{"ratios": []}'
