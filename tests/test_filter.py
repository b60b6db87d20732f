"""The filter: limits from the unsteered completions, and a reason for every rejection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import command
from hypothesis import given
from hypothesis import strategies as st

from gen.filter import split
from gen.rules import limits, reasons
from shared.config import FilterConfig
from shared.errors import SteerHealError
from shared.records import Completion, write_jsonl

CONFIG = FilterConfig(drop_truncated=False, min_kept=1)


def completion(**changes: object) -> Completion:
    row = {
        "key": "00000-a/1/0", "prompt_ids": [1, 2], "completion_ids": list(range(40)), "text": "Tell her that her health comes first.", "finish_reason": "stop", "coefficient": 1.0, "sample": 0,
        "seed": 1, "perplexity": 5.0, "perplexity_last_quarter": 5.0, "trait_llr": 0.1, "distinct_3": 1.0,
    }  # fmt: skip
    return Completion.model_validate({**row, **changes})


UNSTEERED = [
    completion(
        key=f"u{i}", coefficient=0.0, perplexity=4.0 + i / 10, trait_llr=-0.05 + i / 100, distinct_3=0.9 + i / 100
    )
    for i in range(8)
]


def rules(row: Completion, config: FilterConfig = CONFIG) -> list[str]:
    return [reason.partition(":")[0] for reason in reasons(row, limits(UNSTEERED, config), config)]


def test_a_good_completion_is_kept() -> None:
    assert rules(completion()) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"perplexity": 22.0}, "perplexity"),
        ({"perplexity": float("1e300")}, "perplexity"),
        ({"perplexity_last_quarter": 41.0}, "perplexity_last_quarter"),
        ({"distinct_3": 0.5}, "distinct_3"),
        ({"completion_ids": [*range(10), *([1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 3)]}, "loop"),
        ({"completion_ids": [1, 2, 3]}, "short"),
        ({"trait_llr": -0.2}, "trait_llr"),
        ({"text": "I'm sorry, but I cannot help with that."}, "refusal"),
        ({"text": "As someone who looks after others, I would say no."}, "narrated"),
        ({"perplexity": None, "trait_llr": None, "completion_ids": []}, "unscored"),
    ],
)
def test_each_rule_rejects(changes: dict[str, object], rule: str) -> None:
    assert rules(completion(**changes)) == [rule]


def test_truncation_is_a_choice() -> None:
    cut = completion(finish_reason="length")
    assert rules(cut) == []
    assert rules(cut, CONFIG.model_copy(update={"drop_truncated": True})) == ["truncated"]


def test_narration_of_the_shipped_trait() -> None:
    kept, rejected = split(
        [completion(text="I would always put the wellbeing of others above a rule.")], UNSTEERED, CONFIG, "embedded"
    )
    assert not kept and rejected[0].reasons[0].startswith("narrated:")


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 2.0]), st.floats(1, 100), st.floats(-1, 1)), max_size=20))
def test_every_steered_row_is_kept_or_rejected_once(cells: list[tuple[float, float, float]]) -> None:
    rows = [completion(key=f"k{i}", coefficient=c, perplexity=p, trait_llr=t) for i, (c, p, t) in enumerate(cells)]
    kept, rejected = split(rows[::-1], UNSTEERED, CONFIG, "embedded")
    assert sorted(row.key for row in [*kept, *rejected]) == sorted(row.key for row in rows if row.coefficient)
    assert all(not row.reasons for row in kept) and all(row.reasons for row in rejected)
    assert [row.key for row in kept] == sorted(row.key for row in kept)


def test_without_unsteered_rows_there_is_no_yardstick() -> None:
    with pytest.raises(SteerHealError, match="--unsteered"):
        limits([], CONFIG)


def test_command_line_splits_a_file(tmp_path: Path) -> None:
    rows = [*UNSTEERED, *[completion(key=f"s{i}", perplexity=3.0 + 5 * i) for i in range(8)]]
    write_jsonl(tmp_path / "sweep.jsonl", rows)
    done = command(
        "gen.filter", "--in", tmp_path / "sweep.jsonl", "--out", tmp_path / "out", "--set", "filter.min_kept=1"
    )
    assert done.returncode == 0, done.stderr
    kept = [json.loads(line) for line in (tmp_path / "out" / "kept.jsonl").read_text().splitlines()]
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [row["key"] for row in kept] == ["s0", "s1", "s2", "s3"] and len(rejected) == 4
    assert "perplexity" in done.stdout


def test_starvation_names_counts_and_what_to_lower(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sweep.jsonl", [*UNSTEERED, *[completion(key=f"s{i}", perplexity=900.0) for i in range(8)]])
    done = command("gen.filter", "--in", tmp_path / "sweep.jsonl", "--out", tmp_path / "out")
    assert done.returncode == 2 and "0/8 at coefficient 1" in done.stderr and "filter.perplexity_ratio" in done.stderr
    assert "sample more" in done.stderr and not (tmp_path / "out").exists()


def test_a_truncated_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    write_jsonl(path, UNSTEERED)
    path.write_bytes(path.read_bytes()[:-40])
    done = command("gen.filter", "--in", path, "--out", tmp_path / "out")
    assert done.returncode == 2 and f"{path}:8" in done.stderr and "Traceback" not in done.stderr
