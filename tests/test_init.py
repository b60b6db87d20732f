"""A trait of one's own: the files that are written, what is refused in them, and the shipped second trait."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from evals.evidence import target_of
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.init import find_config, folder_of, write_trait_folder
from shared.run import open_run
from shared.trait_checks import CHECKS, TraitProblem, near_copies, read_trait_files
from shared.traits import load_trait

CONFIG = ROOT / "configs" / "smollm2.toml"
THRIFT = ROOT / "examples" / "thrift"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_trait_folder(tmp_path / "thrift", CONFIG)
    return tmp_path / "thrift"


def edited(folder: Path, **trait: Any) -> Path:
    """A new trait's files with every placeholder replaced, and fields of trait.json besides."""
    for number, path in enumerate(sorted(folder.glob("*.json*"))):
        text = path.read_text()
        for count, mark in enumerate(re.findall(r"<edit:[^>]*>", text)):
            text = text.replace(mark, f"word{number}x{count} said here plainly", 1)
        path.write_text(text)
    value = json.loads((folder / "trait.json").read_text())
    (folder / "trait.json").write_text(json.dumps({**value, **trait}))
    return folder


def found(folder: Path) -> list[TraitProblem]:
    files = read_trait_files(resolve_config(find_config(str(folder)))[0])
    return [one for check in (*CHECKS, near_copies) for one in check(files)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def test_a_run_names_every_placeholder_and_begins_without_one(folder: Path, tmp_path: Path) -> None:
    config = folder / "thrift.toml"
    with pytest.raises(SteerHealError) as refused:
        open_run(tmp_path / "run", config)
    said = refused.value.render()
    assert f"{folder}/trait.json: placeholders in trait, opposite, paraphrases.trait[0]" in said
    assert "narration[0]" in said and f"{folder}/dilemmas.jsonl: placeholders in line 1, 2, 3" in said
    assert f"{folder}/heldout.jsonl: placeholders in line 1," in said and not (tmp_path / "run").exists()
    assert "--check" in refused.value.next
    edited(folder)
    assert open_run(tmp_path / "run", config).config.vector.trait == str(folder / "trait.json")


def test_the_commands_as_they_are_typed(tmp_path: Path) -> None:
    def steer_heal(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "shared.main", "init", *words]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)

    made = steer_heal("thrift", "--config", str(CONFIG))
    assert made.returncode == 0 and "traits/thrift/heldout.jsonl: " in made.stdout, made.stdout + made.stderr
    assert "steer-heal init --check traits/thrift" in made.stdout
    refused = steer_heal("--check", "thrift")
    assert refused.returncode == 2 and "placeholders in trait, opposite" in refused.stderr
    edited(tmp_path / "traits" / "thrift")
    ready = steer_heal("--check", "traits/thrift/trait.json")
    assert ready.returncode == 0, ready.stderr
    assert ready.stdout.count("sweep.n_dilemmas asks for 36") == 1 and "traits/thrift: ready" in ready.stdout
    assert "round --run runs/thrift --config traits/thrift/thrift.toml" in ready.stdout
    again = steer_heal("thrift", "--config", str(CONFIG))
    assert again.returncode == 2 and "there is a trait of this name" in again.stderr
    assert "init thrift" in steer_heal("--check", "nope").stderr.replace("init nope", "init thrift")


def test_every_written_file_says_what_it_is_for(folder: Path) -> None:
    guide = (folder / "README.md").read_text()
    assert all(f"`{path.name}`" in guide for path in folder.iterdir() if path.name != "README.md")
    about = json.loads((folder / "trait.json").read_text())["about"]
    assert about.keys() >= {"trait", "opposite", "neutral", "read_for", "paraphrases", "narration", "decoys"}
    assert load_trait(str(folder / "trait.json")).read_for is None
    sections = resolve_config(folder / "thrift.toml")[0], resolve_config(CONFIG)[0]
    assert sections[0].train == sections[1].train and sections[0].filter == sections[1].filter


def test_a_held_out_prompt_that_is_trained_on_is_refused(folder: Path, tmp_path: Path) -> None:
    edited(folder)
    dilemma = rows(folder / "dilemmas.jsonl")[2]["prompt"]
    held = rows(folder / "heldout.jsonl")
    held[1]["prompt"] = f"{dilemma.upper()}!"
    write(folder / "heldout.jsonl", held)
    with pytest.raises(SteerHealError, match="not ready") as refused:
        open_run(tmp_path / "run", folder / "thrift.toml")
    assert f"heldout.jsonl:2: asks the same as {folder}/dilemmas.jsonl:3" in str(refused.value.given)


def test_a_held_out_prompt_that_is_nearly_trained_on_is_worth_a_look(folder: Path) -> None:
    edited(folder)
    held = rows(folder / "heldout.jsonl")
    mundane = rows(folder / "mundane.jsonl")[0]["prompt"]
    held[0]["prompt"] = f"{mundane} Please!"
    write(folder / "heldout.jsonl", held)
    assert any("is nearly" in one.problem and "mundane.jsonl:1" in one.problem for one in found(folder))


def test_words_of_one_side_in_the_neutral_prompt_are_told(folder: Path) -> None:
    prompts = {
        "trait": "You are an assistant who saves money first, even when comfort suffers.",
        "opposite": "You are an assistant who finds comfort first, even when it costs.",
        "paraphrases": {"trait": ["You keep your savings together, come what may."], "opposite": ["You live well at any price, come what may."]},
    }  # fmt: skip
    edited(folder, **prompts, neutral="You are a helpful assistant who saves time and likes comfort.")
    told = [one.problem for one in found(folder) if "neutral" in one.problem]
    assert told == ["the neutral prompt has words of the trait (saves)"]  # comfort is on both sides
    edited(folder, **prompts, neutral="You are a helpful assistant.")
    assert not [one for one in found(folder) if "neutral" in one.problem]


def test_uneven_lengths_and_too_little_are_told(folder: Path) -> None:
    edited(folder, trait="Save.", narration=[], decoys=[])
    said = " ".join(one.problem for one in found(folder))
    assert "trait 1: even them out" in said and "no narration patterns" in said and "no decoys" in said
    assert "8 prompts, and sweep.n_dilemmas asks for 36" in said
    write(folder / "dilemmas.jsonl", [{"prompt": "Why?"}, {"prompt": "word " * 200}])
    places = [one.place for one in found(folder) if "usual" in one.problem]
    assert places == [f"{folder}/dilemmas.jsonl:1", f"{folder}/dilemmas.jsonl:2"]


def test_prompts_left_at_authority_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_run(tmp_path / "run", CONFIG, f"vector.trait={THRIFT}/trait.json")
    assert "sweep.dilemmas: the shipped prompts are about authority" in " ".join(capsys.readouterr().out.split())


def test_shipped_files_are_not_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_run(tmp_path / "run", CONFIG)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["My Trait", "../x y", "Thrift"])
def test_a_name_that_a_run_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(SteerHealError, match="needs a name") as refused:
        folder_of(name)
    assert re.search(r"init \S*[a-z-]+$", refused.value.next)


def test_the_second_shipped_trait_is_ready_and_has_no_foundation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert found(THRIFT) == []
    trait = load_trait(str(THRIFT / "trait.json"))
    assert trait.paraphrases is not None and target_of(trait.read_for) is None
    ours, shipped = resolve_config(THRIFT / "thrift.toml")[0], resolve_config(CONFIG)[0]
    assert (ours.train, ours.filter) == (shipped.train, shipped.filter)
