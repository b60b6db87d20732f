"""Vignettes from the package, a file, and a data set of the `datasets` library."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shared.errors import SteerHealError
from shared.records import DATA
from shared.vignettes import load_vignettes

CARD = """---
configs:
- config_name: classic
  data_files:
  - split: other_violate
    path: rows.jsonl
---
"""


def test_a_file_and_a_data_set_give_the_same_rows(tmp_path: Path) -> None:
    shutil.copyfile(DATA / "vignettes.jsonl", tmp_path / "rows.jsonl")
    (tmp_path / "README.md").write_text(CARD)
    file = load_vignettes(str(tmp_path / "rows.jsonl"))
    published = load_vignettes(f"{tmp_path}:classic:other_violate")
    assert [(row.id, row.text, row.foundation_coarse) for row in published] == [
        (row.id, row.text, row.foundation_coarse) for row in file
    ]
    assert len(file) == len(load_vignettes("embedded")) == 70
    assert {row.condition for row in published} == {"other_violate"} and {row.condition for row in file} == {None}
    for name in ("classic:other_violate[:9]", "other_violate[:9]"):
        part = load_vignettes(f"{tmp_path}:{name}")
        assert [row.id for row in part] == [row.id for row in file[:9]] and part[0].condition == "other_violate"


def test_an_edited_data_set_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    lines = (DATA / "vignettes.jsonl").read_text().splitlines()
    for count in (70, 5):
        (tmp_path / "rows.jsonl").write_text("\n".join(lines[:count]) + "\n")
        assert len(load_vignettes(f"{tmp_path}:classic:other_violate")) == count


def test_the_published_files_load(tinymfv: Path) -> None:
    rows = load_vignettes(str(tinymfv / "vignettes_classic_other_violate.jsonl"))
    assert len(rows) == 132 and len({row.foundation_coarse for row in rows}) == 7


@pytest.mark.parametrize("name", ["no/such-file.jsonl", "{folder}:classic:no_split"])
def test_what_cannot_be_had_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "README.md").write_text(CARD)
    shutil.copyfile(DATA / "vignettes.jsonl", tmp_path / "rows.jsonl")
    with pytest.raises(SteerHealError, match="wassname/tiny-mfv"):
        load_vignettes(name.format(folder=tmp_path))


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    text = (DATA / "vignettes.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text + text.splitlines()[0] + "\n")
    with pytest.raises(SteerHealError, match="repeat"):
        load_vignettes(str(tmp_path / "rows.jsonl"))
