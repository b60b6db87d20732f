"""What a stage is made from by a file or a local data set: edited, it is another input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from synthetic_run import IDENTITY, build
from test_vignettes import CARD

from evals.measures.forced_choice.instrument import load_instrument
from evals.score import job_of
from shared.errors import SteerHealError
from shared.models import Model
from shared.records import DATA
from shared.run import Run
from shared.sets import input_of, open_set


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


def built(folder: Path, **settings: str) -> Run:
    """A run whose evaluation names what the checks before a run cannot find on this machine."""
    run = build(folder, 1)
    judged = run.config.eval.model_copy(update=settings)
    return Run(run.folder, run.config.model_copy(update={"eval": judged}))


def cached_set(cache: Path, revision: str, rows: list[dict[str, str]]) -> None:
    """A data set of the hub, somebody/something, as `datasets` caches it."""
    from datasets import Dataset, DatasetInfo
    from datasets.arrow_writer import ArrowWriter

    folder = cache / "somebody___something" / "default" / "0.0.0" / revision
    folder.mkdir(parents=True)
    made = Dataset.from_list(rows)
    with ArrowWriter(path=str(folder / "something-train.arrow")) as writer:
        for row in made:
            writer.write(row)
        count, size = writer.finalize()
    split = {"name": "train", "num_bytes": size, "num_examples": count, "dataset_name": "something"}
    names = {"builder_name": "json", "dataset_name": "something", "config_name": "default", "version": "0.0.0"}
    DatasetInfo(features=made.features, splits=[split], **names).write_to_directory(str(folder))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that cannot be reached, and an empty cache."""
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_scores_of_a_data_set_of_the_hub_at_another_revision_are_stale(hub: Path, model: Model, tmp_path: Path) -> None:
    name = "somebody/something:train"
    run = built(tmp_path / "run", heldout=name)
    with pytest.raises(SteerHealError, match="a data set could not be found"):
        job_of(run, 1, "round", model)
    cached_set(hub, "a" * 40, [{"prompt": "x"}])
    job = job_of(run, 1, "round", model)
    assert job.inputs["heldout"] == f"somebody/something@{'a' * 40}" and "vignettes" in job.inputs
    job.finish(IDENTITY)
    assert job_of(run, 1, "round", model).done()
    cached_set(hub, "b" * 40, [{"prompt": "y"}])
    with open_set(name, what="x", next="y") as rows:
        assert rows[0] == {"prompt": "y"}, "what is read is what is recorded"
    with pytest.raises(SteerHealError, match="was made from something else") as refused:
        job_of(run, 1, "round", model).done()
    assert refused.value.given == "input heldout changed"


def test_scores_by_another_moralmaps_are_stale(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = load_instrument("embedded")
    run = built(tmp_path, instrument="moralmaps")
    monkeypatch.setattr("evals.measures.forced_choice.moralmaps.published_instrument", lambda: embedded)
    job_of(run, 1, "round", model).finish(IDENTITY)
    assert job_of(run, 1, "round", model).done()
    other = embedded.model_copy(update={"nudge": f"{embedded.nudge} Now."})
    monkeypatch.setattr("evals.measures.forced_choice.moralmaps.published_instrument", lambda: other)
    with pytest.raises(SteerHealError, match="was made from something else") as refused:
        job_of(run, 1, "round", model).done()
    assert refused.value.given == "input instrument changed"
