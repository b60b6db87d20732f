"""What a stage is made from by a file or a local data set: edited, it is another input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from synthetic_run import IDENTITY, build
from test_vignettes import CARD

from evals.score import job_of
from shared.errors import SteerHealError
from shared.models import Model
from shared.records import DATA
from shared.sets import input_of


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A local data set, and the other files that a scoring reads."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text(CARD)
    shutil.copyfile(DATA / "vignettes.jsonl", tmp_path / "set" / "rows.jsonl")
    for name in ("instrument.json", "heldout.jsonl"):
        shutil.copyfile(DATA / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("edited", ["set/rows.jsonl", "set/README.md", "instrument.json", "heldout.jsonl"])
@pytest.mark.parametrize("mode", ["round", "full"])
def test_scores_of_a_file_that_was_edited_are_stale(files: Path, model: Model, edited: str, mode: str) -> None:
    named = f"eval.vignettes={files}/set:classic:other_violate eval.instrument={files}/instrument.json eval.heldout={files}/heldout.jsonl"
    run = build(files / "run", 1, full=mode == "full", overrides=named)
    job_of(run, 1, mode, model).finish(IDENTITY)
    assert job_of(run, 1, mode, model).done()
    path = files / edited
    text = path.read_text()
    path.write_text(text.replace("other_violate", "other_violate ", 1) if edited.endswith(".md") else text + "\n")
    label = "vignettes" if edited.startswith("set") else path.stem
    with pytest.raises(SteerHealError, match="was made from something else") as refused:
        job_of(run, 1, mode, model).done()
    assert refused.value.given == f"input {label} changed"
    assert not job_of(run, 1, mode, model, rebuild=True).done()
    path.write_text(text)
    assert job_of(run, 1, mode, model).done()


def test_what_a_value_names_is_the_input(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = str(files / "set"), str(files / "heldout.jsonl")
    assert input_of("vignettes", "embedded") == {"vignettes": DATA / "vignettes.jsonl"}
    assert input_of("instrument", "embedded", ".json") == {"instrument": DATA / "instrument.json"}
    assert input_of("dilemmas", file) == {"dilemmas": Path(file)}
    for name in (f"{folder}:train", f"{folder}:classic:train"):
        assert input_of("dilemmas", name) == {"dilemmas": Path(folder)}
    assert input_of("dilemmas", "somebody/something:train") == {}, "nothing on this machine"
    assert input_of("instrument", "moralmaps", installed=("moralmaps",)) == {}
    odd = files / "a:b.jsonl"
    odd.write_text(json.dumps({"prompt": "x"}))
    assert input_of("dilemmas", str(odd)) == {"dilemmas": odd}, "a file may have a colon in its name"
    monkeypatch.chdir(files)
    assert input_of("vignettes", "set:classic:other_violate") == {"vignettes": Path("set")}
