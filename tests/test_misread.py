"""Inputs that would be read as something else, refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import SteerHealError
from shared.filter_record import FilterRecord
from shared.instrument import foundation_of
from shared.records import DATA, Pair, Prompt, Vignette
from shared.run import open_run
from shared.schema import band
from shared.tables import numbered_rows
from shared.traits import load_trait
from shared.vignettes import check_vignettes


@pytest.mark.parametrize("name", [" label", "Label", "LABEL"])
def test_a_field_with_blanks_or_capitals_is_not_left_out(tmp_path: Path, name: str) -> None:
    """A rejected row would be trained on."""
    table, lines = tmp_path / "p.csv", tmp_path / "p.jsonl"
    table.write_text(f"prompt,completion,{name}\nhi,good,true\nbye,bad,false\n")
    lines.write_text(json.dumps({"prompt": "a", "completion": "b", name: False}) + "\n")
    for path in (table, lines):
        with pytest.raises(SteerHealError) as refused:
            list(numbered_rows(path, Pair, made_by="x"))
        assert f"field {name!r} is not read: name it 'label'" in refused.value.render()


def test_a_system_prompt_with_a_capital_is_not_lost_from_a_table(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["hi"], "System": ["be cruel"], "ID": [1]}), path)
    with pytest.raises(SteerHealError) as refused:
        list(numbered_rows(path, Prompt, made_by="x"))
    assert "field 'System' is not read: name it 'system'" in refused.value.render()


@pytest.mark.parametrize("spec", ["0-5", "0-15", "0.4-15", "0.45-inf", "2-3", "0.6-0.4", "nan-1"])
def test_a_band_of_shares_is_within_the_depth(spec: str) -> None:
    """0-5 would be every layer."""
    with pytest.raises(SteerHealError, match="a layer band could not be read"):
        band(spec, 30)
    assert band("0-1", 30) == list(range(30)) and band([0, 5], 30) == [0, 5]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"narrations": ["x"]}, "narrations"),
        ({"narration": [""]}, "matches every text"),
        ({"narration": ["a*"]}, "matches every text"),
        ({"readfor": None}, "readfor"),
    ],
)
def test_a_trait_file_has_no_field_that_is_left_out(tmp_path: Path, change: dict[str, object], part: str) -> None:
    path = tmp_path / "trait.json"
    path.write_text(json.dumps({**json.loads((DATA / "trait.json").read_text()), **change}))
    with pytest.raises(SteerHealError) as refused:
        load_trait(str(path))
    assert part in refused.value.render()


def test_a_foundation_is_named_in_full() -> None:
    assert [foundation_of(name) for name in ("Care (e)", "care", "Social Norms", "SocialNorms", "Authority")] == [
        0,
        0,
        6,
        6,
        3,
    ]
    assert foundation_of("Careless driving") is None and foundation_of("Authoritarian") is None


def test_ratings_of_some_foundations_alone_are_refused() -> None:
    """The set would be taken as one that nobody rated."""
    row = {"id": "a", "foundation": "Care", "foundation_coarse": "Care", "text": "x"}
    six = {f"human_{name}": 10.0 for name in ("Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty")}
    with pytest.raises(SteerHealError, match="rated for some foundations alone"):
        check_vignettes([Vignette.model_validate({**row, **six})], "v.jsonl")


def test_a_filter_record_adds_up() -> None:
    line = {"coefficient": 1.0, "n": 10, "kept": 3, "perplexity": None, "distinct_3": None, "trait_llr": None, "relative_dose": None}  # fmt: skip
    whole = {"limits": {}, "causes": {}, "rejected": 7}
    assert FilterRecord.model_validate({**whole, "lines": [line], "kept": 3}).kept == 3
    for lines, kept in (([line], 300), ([line, line], 3)):
        with pytest.raises(ValueError):
            FilterRecord.model_validate({**whole, "lines": lines, "kept": kept})


@pytest.mark.parametrize(("form", "dry"), [("steer-heal", True), ("make", False)])
def test_a_hint_asks_for_no_more_than_the_command_did(
    form: str, dry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a round would take is not a round."""
    monkeypatch.setenv("STEER_HEAL_FORM", form)
    with pytest.raises(SteerHealError, match="a run has no configuration") as refused:
        open_run(tmp_path / "run", None, None, dry=True)
    assert refused.value.next.endswith(" --dry-run") == dry
