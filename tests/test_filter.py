"""The filter: limits from the unsteered completions, and a reason for every rejection."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, command
from hypothesis import given, settings
from hypothesis import strategies as st

from gen.card import data_card
from gen.commandline import named_after
from gen.filter import Places, SweepFile, split_rows, stage, tally
from gen.outcome import FilterOutcome, Starved, refuse_starvation
from gen.rules import RULES, Bound, Yardstick, rules_of
from shared.errors import SteerHealError
from shared.filter_record import read_filter_record
from shared.outputs import guard
from shared.publish import digest
from shared.reasons import Reason
from shared.records import Completion, Identity, read_jsonl, write_jsonl
from shared.run import Run, open_run
from shared.schema import FilterConfig
from shared.stage import Stage
from shared.vectors import Vector

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


def naive(rows: Sequence[Completion], unsteered: Sequence[Completion], config: FilterConfig) -> tuple[bytes, bytes]:
    """What the two files hold, by lists of all rows."""
    why = rules_of(Yardstick(unsteered).limits(config), config, "embedded")
    candidates = {
        "unsteered": unsteered,
        "prompted": [row for row in rows if row.prompted],
        "steered": [row for row in rows if row.coefficient != 0],
    }[config.source]
    judged = [row.model_copy(update={"reasons": why(row)}) for row in sorted(candidates, key=lambda row: row.key)]
    kept, rejected = [row for row in judged if not row.reasons], [row for row in judged if row.reasons]
    return tuple(  # type: ignore[return-value]
        "".join(json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in part).encode()
        for part in (kept, rejected)
    )


def filtered(
    folder: Path, rows: Sequence[Completion], unsteered: Sequence[Completion] | None, config: FilterConfig = CONFIG
) -> tuple[bytes, bytes, FilterOutcome]:
    """The bytes of both files, and the counts; the unsteered rows are those of the sweep, or in a file of their own."""
    sweep = yardstick = SweepFile(folder / "sweep.jsonl", "-")
    write_jsonl(sweep.path, rows)
    if unsteered is not None:
        yardstick = SweepFile(folder / "unsteered.jsonl", "-")
        write_jsonl(yardstick.path, unsteered)
    outputs = named_after(folder)
    with split_rows(sweep, yardstick, config, "embedded", outputs) as found:
        assert not any(path.exists() for path in outputs)
    return outputs[0].read_bytes(), outputs[1].read_bytes(), found


def rules(row: Completion, config: FilterConfig = CONFIG) -> list[str]:
    return [reason.rule for reason in rules_of(Yardstick(UNSTEERED).limits(config), config, "embedded")(row)]


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


def test_each_limit_is_the_settings() -> None:
    """The least value that is rejected moves with the setting, and with nothing else."""
    late = completion(perplexity_last_quarter=31.0)
    assert rules(late) == [] and rules(late, CONFIG.model_copy(update={"last_quarter_ratio": 6.0})) == [
        "perplexity_last_quarter"
    ]
    loop = completion(completion_ids=[*range(10), *([1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 3)])
    assert rules(loop) == ["loop"] and rules(loop, CONFIG.model_copy(update={"max_loop_share": 1.0})) == []


@pytest.mark.parametrize("how", ["I", "I would", "I will", "I am willing to", "I\u2019m willing to"])
def test_a_trait_that_is_told_and_not_acted_on_is_rejected(how: str) -> None:
    why = rules_of(Yardstick(UNSTEERED).limits(CONFIG), CONFIG, "embedded")
    assert [reason.rule for reason in why(completion(text=f"{how} always defy authority."))] == ["narrated"]


def test_truncation_is_a_choice() -> None:
    cut = completion(finish_reason="length")
    assert rules(cut) == []
    assert rules(cut, CONFIG.model_copy(update={"drop_truncated": True})) == ["truncated"]


@pytest.mark.parametrize("apostrophe", ["'", "\u2019", "\u2018", "\u02bc"])
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("I'm sorry, but no.", "refusal"),
        ("I can't help with that.", "refusal"),
        ("I won't comply.", "refusal"),
        ("I'm someone who cares.", "narrated"),
        ("It's for her to say, isn't it? I'd ask what she'd like.", None),
    ],
)
def test_an_apostrophe_is_one_however_it_is_written(text: str, rule: str | None, apostrophe: str) -> None:
    why = rules_of(Yardstick(UNSTEERED).limits(CONFIG), CONFIG, "embedded")
    found = why(completion(text=text.replace("'", apostrophe)))
    assert found == why(completion(text=text)) and [reason.rule for reason in found] == [rule] * bool(rule)


def test_a_trait_may_have_typographic_apostrophes(tmp_path: Path) -> None:
    trait = {"version": 1, "name": "x", "trait": "a", "opposite": "b", "neutral": "c"}
    for index, pattern in enumerate(("I\u2019d defy", r"I\u2019d defy", "I['\u2019]d defy")):
        (tmp_path / f"{index}.json").write_text(json.dumps({**trait, "narration": [pattern]}))
        why = rules_of(Yardstick(UNSTEERED).limits(CONFIG), CONFIG, str(tmp_path / f"{index}.json"))
        assert [reason.rule for reason in why(completion(text="I\u2019d defy them."))] == ["narrated"]


CELLS = st.tuples(
    st.sampled_from("abcdé"), st.sampled_from([0.0, -0.0, 0.5, 2.0, None]), st.floats(1, 100), st.floats(-1, 1)
)


@settings(max_examples=50)
@given(
    st.lists(CELLS, max_size=20), st.booleans(), st.sampled_from(["steered", "unsteered", "prompted"]), st.booleans()
)
def test_both_files_are_those_of_the_naive_filter(
    cells: list[tuple[str, float | None, float, float]], own: bool, source: str, off: bool
) -> None:
    """Bytes and order, however the keys come; every candidate is in one of them."""
    config = CONFIG.model_copy(update={"source": source, "off": off})
    rows = [
        completion(
            key=f"{key}{i}",
            coefficient=c or 0.0,
            prompted=c is None,
            perplexity=p,
            trait_llr=t,
            text=f"{i} é\u2028",
            reasons=["old: as it was"],
        )
        for i, (key, c, p, t) in enumerate(cells)
    ]
    sweep = [*rows, completion(key="é"), *([] if own else UNSTEERED)]
    unsteered = [*UNSTEERED[::-1], completion()] if own else None
    yardstick = [row for row in unsteered or sweep if row.source == "unsteered"]
    with tempfile.TemporaryDirectory() as folder:
        kept, rejected, found = filtered(Path(folder), sweep, unsteered, config)
    assert (kept, rejected) == naive(sweep, yardstick, config)
    assert (found.kept, found.rejected) == (kept.count(b"\n"), rejected.count(b"\n"))
    shown = tally(sweep, yardstick, Yardstick(yardstick).limits(config), config, "embedded")
    for ours, theirs in zip(found.tally.lines(), shown.lines(), strict=True):
        assert ours == {k: pytest.approx(v, nan_ok=True) if isinstance(v, float) else v for k, v in theirs.items()}


def test_memory_does_not_grow_with_the_sweep(tmp_path: Path) -> None:
    """A row held takes 6 kB here; its key and place, some 200 bytes."""
    lines = [
        json.dumps(completion(key=f"{i:05d}", coefficient=float(i % 3), prompt_ids=list(range(300, 450))).model_dump())
        for i in range(3000)
    ]
    random.Random(0).shuffle(lines)
    sweep, peaks, off = SweepFile(tmp_path / "sweep.jsonl", "-"), [], CONFIG.model_copy(update={"off": True})
    for count in (300, 3000):
        sweep.path.write_text("\n".join(lines[:count]) + "\n")
        tracemalloc.start()
        with split_rows(sweep, sweep, off, "embedded", named_after(tmp_path)) as found:
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert found.kept + found.rejected == sum(i % 3 > 0 for i in range(3000))
    assert (peaks[1] - peaks[0]) / 2700 < 500, peaks


def test_a_row_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []

    def counted(*given: object) -> object:
        why = rules_of(*given)  # type: ignore[arg-type]
        return lambda row: judged.append(row.key) or why(row)

    monkeypatch.setattr("gen.filter.rules_of", counted)
    filtered(tmp_path, [*UNSTEERED, *[completion(key=f"s{i}") for i in range(5)]], None)
    assert sorted(judged) == [*[f"s{i}" for i in range(5)], *[f"u{i}" for i in range(8)]]


def test_a_file_that_changes_under_the_filter_is_named(tmp_path: Path) -> None:
    path, places = tmp_path / "sweep.jsonl", Places()
    write_jsonl(path, [completion(key="a"), completion(key="b")])
    places.add("a", path, 0)
    assert [row.key for row in places] == ["a"]
    for content in ("", "half a row", json.dumps(completion(key="b").model_dump()) + "\n"):
        path.write_text(content)
        with pytest.raises(SteerHealError, match="changed while it was read") as caught:
            list(places)
        assert str(path) in caught.value.render()


def test_the_record_says_what_the_filter_decided(tmp_path: Path) -> None:
    """Its lines are the sweep's, its limits those that the reasons name, its causes what the rejected rows say."""
    rows = [completion(key=f"s{i}", coefficient=1.0 + i % 2, perplexity=3.0 + 7 * i, completion_ids=list(range(3 + 5 * i))) for i in range(6)]  # fmt: skip
    opened = swept_run(tmp_path, [*UNSTEERED, *rows])
    stage(opened, 1, False)
    folder = opened.round(1)
    record = read_filter_record(folder / "filter.json", "-")
    assert record.limits == Yardstick(UNSTEERED).limits(opened.config.filter)
    kept, rejected = (read_jsonl(folder / f"{name}.jsonl", Completion, made_by="-") for name in ("kept", "rejected"))
    assert (record.kept, record.rejected) == (len(kept), len(rejected)) and len(kept) + len(rejected) == 6
    reasons = [reason for row in rejected for reason in row.reasons]
    assert record.causes == Counter(reason.rule for reason in reasons) and {*record.causes} == {"short", "perplexity"}
    assert all(reason.limit == record.limits[reason.rule] and reason.value is not None for reason in reasons)
    assert [(line.coefficient, line.n, line.kept) for line in record.lines] == [
        (c, sum(row.coefficient == c for row in every), sum(row.coefficient == c for row in passed))
        for every, passed in [([*UNSTEERED, *rows], [*kept, *[row for row in UNSTEERED if not rules(row, opened.config.filter)]])]
        for c in (0.0, 1.0, 2.0)
    ]  # fmt: skip
    assert [line.relative_dose for line in record.lines] == [None] * 3  # the vector of this test has no norms
    recorded = json.loads(opened.manifest(1, "filter").read_text())["outputs"]
    assert {*recorded} == {f"rounds/01/{name}" for name in ("kept.jsonl", "rejected.jsonl", "filter.json")}


def test_the_card_repeats_the_record(tmp_path: Path) -> None:
    """It judges nothing: a record that says something else is what it shows."""
    opened = swept_run(tmp_path, [*UNSTEERED, *[completion(key=f"s{i}", perplexity=3.0 + 7 * i) for i in range(5)]])
    stage(opened, 1, False)
    path = opened.round(1) / "filter.json"
    record = json.loads(path.read_text())
    text = data_card(opened, 1)
    assert "| 1 | 5 | 3 | +0.100 |" in text and "perplexity 21.750" in text and "| 0 |" not in text
    path.write_text(json.dumps({**record, "limits": {**record["limits"], "perplexity": 77.0}}))
    manifest = opened.manifest(1, "filter")
    recorded = json.loads(manifest.read_text())
    recorded["outputs"]["rounds/01/filter.json"] = digest(path)
    manifest.write_text(json.dumps(recorded))
    assert "perplexity 77.000" in data_card(opened, 1)


def test_a_reason_is_told_in_words() -> None:
    told = {
        "perplexity: 40, at most 19.5": Reason(rule="perplexity", value=40.0, limit=19.5),
        "trait_llr: -0.2, at least 0.013": Reason(rule="trait_llr", value=-0.2, limit=0.013),
        "refusal: I'm sorry": Reason(rule="refusal", text="I'm sorry"),
        "odd": Reason(rule="odd"),
    }
    assert [*told] == [str(reason) for reason in told.values()]


def test_reasons_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They are sentences; the rule is told, and no figure is parsed."""
    path, sentence = tmp_path / "rejected.jsonl", "perplexity: 40.00, at most 19.50"
    row = completion().model_dump()
    path.write_text(json.dumps({**row, "reasons": [sentence]}) + "\n")
    ((reason,),) = (row.reasons for row in read_jsonl(path, Completion, made_by="-"))
    assert reason == Reason(rule="perplexity", text="40.00, at most 19.50") and str(reason) == sentence


def test_a_round_of_an_earlier_version_is_filtered_again_by_the_command_named(tmp_path: Path) -> None:
    """It has no filter.json. The kept rows come out the same, so that what was trained on them stands."""
    opened = swept_run(tmp_path, [*UNSTEERED, *[completion(key=f"s{i}", perplexity=3.0) for i in range(3)]])
    stage(opened, 1, False)
    folder, path = opened.round(1), opened.manifest(1, "filter")
    manifest, kept = json.loads(path.read_text()), (folder / "kept.jsonl").read_bytes()
    del manifest["outputs"]["rounds/01/filter.json"], manifest["inputs"]["vector"]
    path.write_text(json.dumps(manifest))
    (folder / "filter.json").unlink()
    with pytest.raises(SteerHealError, match="was made from something else") as refused:
        stage(opened, 1, False)
    assert "filter.json is missing" in str(refused.value.given) and "REBUILD=1" in refused.value.next
    stage(opened, 1, True)
    assert (folder / "kept.jsonl").read_bytes() == kept and (folder / "filter.json").is_file()


def test_a_rule_is_added_by_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit, reason, record, and the advice of a filter that starves are made from it."""
    long = Bound("long", lambda row: len(row.text), lambda _, texts: 2 * float(np.median(texts)), True, "lower sweep.max_tokens", compares=True)  # fmt: skip
    monkeypatch.setattr("gen.rules.RULES", (*RULES, long))
    monkeypatch.setattr("gen.outcome.RULES", (*RULES, long))
    limit = 2.0 * len(completion().text)
    rows = [*UNSTEERED, completion(key="a"), *[completion(key=f"b{i}", text="word " * 40) for i in range(2)]]
    _, rejected, result = filtered(tmp_path, rows, None)
    assert json.loads(rejected.splitlines()[0])["reasons"] == [{"rule": "long", "value": 200.0, "limit": limit, "text": None}]  # fmt: skip
    record = read_filter_record(tmp_path / "filter.json", "-")
    assert record.limits["long"] == limit and record.causes == {"long": 2}
    with pytest.raises(Starved) as starved:
        refuse_starvation(result, CONFIG.model_copy(update={"min_kept": 2}))
    assert "lower sweep.max_tokens" in starved.value.next


def test_without_unsteered_rows_there_is_no_yardstick() -> None:
    with pytest.raises(SteerHealError, match="--unsteered"):
        Yardstick().limits(CONFIG)


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
    assert "sample more" in done.stderr


def test_starvation_without_a_rejection_asks_for_more_and_for_no_lower_dose(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sweep.jsonl", [*UNSTEERED, *[completion(key=f"s{i}", perplexity=3.0) for i in range(3)]])
    done = command(
        "gen.filter",
        "--in",
        tmp_path / "sweep.jsonl",
        "--out",
        tmp_path / "out",
        "--set",
        "filter.off=true filter.min_kept=4",
    )
    assert done.returncode == 2 and "3 kept; 3/3 at coefficient 1; none rejected\n" in done.stderr, done.stderr
    hint = done.stderr.partition("next:")[2]
    assert "sample more" in hint and "filter.min_kept" in hint and "lower the doses" not in hint


def test_starvation_leaves_the_rejected_rows_and_no_kept_ones(tmp_path: Path) -> None:
    """Kept rows of an earlier filter would be trained on as if they were of this one."""
    rows = [*UNSTEERED, *[completion(key=f"s{i}", perplexity=3.0 if i < 2 else 900.0) for i in range(8)]]
    write_jsonl(tmp_path / "sweep.jsonl", rows)
    line = ["gen.filter", "--in", tmp_path / "sweep.jsonl", "--out", tmp_path / "out", "--set"]
    assert command(*line, "filter.min_kept=2").returncode == 0
    assert keys(tmp_path / "out" / "kept.jsonl") == ["s0", "s1"]
    done = command(*line, "filter.min_kept=2 filter.min_tokens=500")
    assert done.returncode == 2 and "kept.jsonl, the kept rows of an earlier filter" in " ".join(done.stdout.split())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejected.jsonl"]  # nor an earlier filter.json
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == 8 and all(row["reasons"] for row in rejected)
    assert command(*line, "filter.min_kept=2").returncode == 0 and (tmp_path / "out" / "kept.jsonl").exists()


def swept_run(folder: Path, rows: Sequence[Completion]) -> Run:
    """A run whose first round has a vector and these rows; config.toml beside its folder has min_kept = 2."""
    config = folder / "config.toml"
    config.write_text("[filter]\nmin_kept = 2\n")
    run = open_run(folder / "run", config)
    here = run.round(1)
    origin = {"model": "m", "revision": None, "model_fingerprint": "0" * 64}
    Vector({0: np.ones(4, dtype=np.float32)}, origin).save(here / "vector.safetensors")
    write_jsonl(here / "sweep.jsonl", rows)
    made = [here / "vector.safetensors", here / "sweep.jsonl"]
    Stage(run, 1, "sweep", settings={}, inputs={}, outputs=made).finish(Identity(name="m", revision=None, fingerprint="0" * 64))  # fmt: skip
    return run


def test_a_round_whose_filter_starves_has_no_manifest_of_an_earlier_one(tmp_path: Path) -> None:
    opened = swept_run(tmp_path, [*UNSTEERED, *[completion(key=f"s{i}", perplexity=3.0) for i in range(3)]])
    folder, manifest, config = opened.round(1), opened.manifest(1, "filter"), tmp_path / "config.toml"
    stage(opened, 1, False)
    assert manifest.is_file() and (folder / "kept.jsonl").is_file()
    config.write_text("[filter]\nmin_kept = 20\n")
    strict = open_run(tmp_path / "run", config, rebuild=True)
    with pytest.raises(SteerHealError, match="starved"):
        stage(strict, 1, True)
    assert not manifest.exists() and not (folder / "kept.jsonl").exists() and (folder / "rejected.jsonl").is_file()
    with pytest.raises(SteerHealError, match="starved"):
        stage(strict, 1, False)


@pytest.mark.parametrize(
    ("rows", "source", "part"),
    [
        (UNSTEERED, "steered", "rows at coefficient 0 alone"),
        ([completion(key=f"s{i}") for i in range(3)], "unsteered", "no unsteered completions"),
        ([*UNSTEERED, completion()], "prompted", "no rows under the trait prompt"),
    ],
)
def test_starvation_without_candidates_says_so(rows: list[Completion], source: str, part: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sweep.jsonl", rows)
    done = run(tmp_path / "sweep.jsonl", tmp_path / "kept", settings=f"filter.source={source}")
    assert done.returncode == 2 and part in done.stderr and "; ;" not in done.stderr, done.stderr
    assert "lower the doses" not in done.stderr and not (tmp_path / "kept" / "kept.jsonl").exists()


def test_two_rows_of_one_key_are_refused(tmp_path: Path) -> None:
    rows = [*UNSTEERED, *[completion(key=f"s{i}") for i in range(3)], completion(key="s1", text="another")]
    write_jsonl(tmp_path / "sweep.jsonl", rows)
    done = run(tmp_path / "sweep.jsonl", tmp_path / "kept")
    assert done.returncode == 2 and "twice" in done.stderr and "'s1'" in done.stderr


def test_a_truncated_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    write_jsonl(path, UNSTEERED)
    path.write_bytes(path.read_bytes()[:-40])
    done = command("gen.filter", "--in", path, "--out", tmp_path / "out")
    assert done.returncode == 2 and f"{path}:8" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "sweep.jsonl", [*UNSTEERED, *[completion(key=f"s{i}", perplexity=3.0 + 5 * i) for i in range(8)]])  # fmt: skip
    return tmp_path / "sweep.jsonl"


def keys(path: Path) -> list[str]:
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def run(sweep: Path, out: Path, *more: object, settings: str = "") -> subprocess.CompletedProcess[str]:
    return command("gen.filter", "--in", sweep, "--out", out, "--set", f"filter.min_kept=1 {settings}", *more)


def test_a_named_output_has_its_own_rejected(sweep: Path) -> None:
    """Two filters in one folder share no file, and `rejected.jsonl` is a name like any other."""
    for name in ("loose.jsonl", "rejected.jsonl"):
        done = run(sweep, sweep.with_name(name))
        assert done.returncode == 0, done.stderr
    for stem in ("loose", "rejected"):
        kept, rejected = sweep.with_name(f"{stem}.jsonl"), sweep.with_name(f"{stem}.rejected.jsonl")
        assert keys(kept) == ["s0", "s1", "s2", "s3"] and keys(rejected) == ["s4", "s5", "s6", "s7"]
    assert {path.name for path in sweep.parent.glob("*.json")} == {"loose.filter.json", "rejected.filter.json"}
    assert len(list(sweep.parent.iterdir())) == 7


def test_the_names_of_a_run_stay(tmp_path: Path) -> None:
    names = tuple(tmp_path / name for name in ("kept.jsonl", "rejected.jsonl", "filter.json"))
    assert named_after(tmp_path) == names and named_after(tmp_path / "kept.jsonl") == names
    assert named_after(tmp_path / "new")[1] == tmp_path / "new" / "rejected.jsonl"


def test_the_input_is_not_written_over(sweep: Path) -> None:
    """By its own name, by a link, as the rejected's, or as the yardstick; what is there stays."""
    folder, before = sweep.parent, sweep.read_bytes()
    (folder / "link.jsonl").symlink_to(sweep)
    (folder / "name.rejected.jsonl").hardlink_to(sweep)
    (folder / "own.jsonl").write_bytes(before)
    listed = sorted(folder.iterdir())
    for out, *more in (
        [sweep], [folder / ".." / folder.name / "sweep.jsonl"], [folder / "link.jsonl"], [folder / "name.jsonl"],
        [folder / "own.jsonl", "--unsteered", folder / "own.jsonl"],
    ):  # fmt: skip
        done = run(sweep, out, *more)
        assert done.returncode == 2 and "written over" in done.stderr and str(out.parent) in done.stderr, done.stderr
    assert sorted(folder.iterdir()) == listed and all(path.read_bytes() == before for path in listed)


def test_outputs_that_are_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl").symlink_to(tmp_path / "rejected.jsonl")
    with pytest.raises(SteerHealError, match="written over"):
        guard(named_after(tmp_path), [])


@pytest.mark.parametrize("name", ["kept.jsonl", "rejected.jsonl", "filter.json"])
def test_two_filters_do_not_write_one_file(name: str, sweep: Path) -> None:
    hold = "import sys\nfrom pathlib import Path\nfrom shared.locks import hold\nhold(Path(sys.argv[1]))\nprint('held', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, sweep.with_name(name)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:  # fmt: skip
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        done = run(sweep, sweep.parent)
        assert done.returncode == 75 and f"process {first.pid}" in done.stderr, done.stderr
        first.kill()
    assert not sweep.with_name("kept.jsonl").exists() and run(sweep, sweep.parent).returncode == 0
