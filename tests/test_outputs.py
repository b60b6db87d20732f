"""No command writes over what it reads. The table of commands itself is walked over: a new one with --out and no guard fails here."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import command
from synthetic_run import build

from shared.cli import configured
from shared.commands import COMMANDS
from shared.errors import SteerHealError
from shared.folding import fold
from shared.models import Model
from shared.options import Options
from shared.outputs import guard, output_file, output_folder
from shared.stage import Stage
from shared.subcommands import options_of
from train.commandline import heal_options
from train.unfinished import Unfinished

WRITING = [name for name in COMMANDS if "--out" in options_of(name).names]
# options whose words name no path: settings, hub repositories, gates of rounds, a number of its own kind, words for vLLM
NO_PATH = {"set", "push_to", "gate", "vllm", "memory", "cluster", "help", "outputs"}


def words_of(options: Options) -> Iterator[argparse.Action]:
    """The options that take words of the user's."""
    for action in options._actions:
        if action.nargs != 0 and action.choices is None and action.type in (None, Path):
            yield action


def reading() -> Iterator[tuple[str, str]]:
    """Every command that writes, with every option that names something to read."""
    for name in WRITING:
        options = options_of(name)
        instead = {action.dest for action in options.file_options.actions} if options.file_options else set()
        for action in words_of(options):
            if action.dest == "runs":  # of compare, which has no --out then
                continue
            if action.dest in options.reads and not (action.dest == "run" and "out" in instead):  # it has no --out then
                yield name, action.dest


def line(options: Options, **values: Path) -> list[str]:
    """A command line in which options have these values, and the required ones some other."""
    words: list[str] = []
    for action in options._actions:
        value: object = values.get(action.dest, "elsewhere" if action.required else None)
        if value is None:
            continue
        value = f"x={value}" if action.metavar == "NAME=FILE" else value
        words += [*action.option_strings[:1], str(value)]
    return words


def suffix_of(options: Options) -> str:
    """The suffix that a command's output has; none for a folder."""
    for suffix in ("", ".jsonl", ".json", ".safetensors", ".md", ".csv"):
        try:
            if str(options.writes["out"](f"some/new{suffix}")[0]) == f"some/new{suffix}":
                return suffix
        except SteerHealError:
            continue
    raise AssertionError(f"{options.prog} writes nothing")


def test_there_are_commands_that_write() -> None:
    assert {"extract", "sweep", "filter", "heal", "score", "compare", "export", "card", "study", "verify"} <= set(
        WRITING
    )
    assert {name for name in COMMANDS if name.startswith("bench")} <= set(WRITING)


@pytest.mark.parametrize("name", WRITING)
def test_every_word_of_a_command_that_writes_is_read_written_or_no_path(name: str) -> None:
    options = options_of(name)
    assert "out" in options.writes
    known = NO_PATH | options.reads.keys() | options.writes.keys()
    assert [action.dest for action in words_of(options) if action.dest not in known] == []


def test_an_option_out_that_does_not_say_what_it_writes_is_no_option() -> None:
    with pytest.raises(TypeError, match="does not say"):
        Options("gen.new", "A new command.").add_argument("--out", type=Path)


@pytest.mark.parametrize("how", ["same", "link", "hard", "dots", "link to the folder", "linked input"])
@pytest.mark.parametrize(("name", "dest"), list(reading()))
def test_what_is_read_is_not_written_over(name: str, dest: str, how: str, tmp_path: Path) -> None:
    """By whatever name."""
    options = options_of(name)
    suffix = suffix_of(options)
    home = tmp_path / "home"
    home.mkdir()
    read = home / f"it{suffix}"
    if dest == "run":  # a folder whose inner files are read
        (read / "rounds" / "01").mkdir(parents=True)
        (read / "config.toml").touch()
        if name == "study":
            shutil.copytree(read, read / "cell")
    elif suffix:
        read.write_text("precious")
    else:
        read.mkdir()
        (read / "inner").write_text("precious")
    out = {
        "same": read, "link": home / f"link{suffix}", "hard": home / f"hard{suffix}", "dots": home / ".." / "home" / read.name,
        "link to the folder": tmp_path / "other" / read.name, "linked input": read,
    }[how]  # fmt: skip
    (tmp_path / "other").symlink_to(home)
    if how == "link":
        out.symlink_to(read)
    if how == "hard":
        if read.is_dir():
            pytest.skip("a folder has one name")
        out.hardlink_to(read)
    given = read
    if how == "linked input":
        given = tmp_path / "elsewhere"
        given.symlink_to(read)
    with pytest.raises(SteerHealError, match=r"written over|wrong suffix|is a folder|is a file") as refused:
        options.parse_args(line(options, **{dest: given, "out": out}))
    assert refused.value.next.startswith(("name another --out", "--out "))
    if dest != "run":
        assert "written over" in refused.value.what
        assert (read if suffix else read / "inner").read_text() == "precious"


@pytest.mark.parametrize("name", WRITING)
def test_a_folder_that_holds_or_is_in_what_is_read(name: str, tmp_path: Path) -> None:
    options = options_of(name)
    suffix = suffix_of(options)
    for dest in (dest for one, dest in reading() if one == name and dest != "run"):
        holder = tmp_path / dest
        holder.mkdir()
        inner = holder / "precious.jsonl"
        inner.write_text("precious")
        if suffix:  # a file into a folder that is read, be it there or not, or be it a link's end
            (tmp_path / f"far{suffix}").write_text("precious")
            (holder / "link").symlink_to(tmp_path / f"far{suffix}")
            outs = [holder / f"new{suffix}", holder / "deep" / f"new{suffix}", tmp_path / f"far{suffix}"]
            given = holder
        else:  # a folder that is replaced with what is in it
            outs, given = [holder, tmp_path], inner
        for out in outs:
            with pytest.raises(SteerHealError, match="written over"):
                options.parse_args(line(options, **{dest: given, "out": out}))
        assert inner.read_text() == "precious"


@pytest.mark.parametrize("name", WRITING)
def test_an_output_of_its_own_is_taken(name: str, tmp_path: Path) -> None:
    options = options_of(name)
    read, out = tmp_path / "read.jsonl", tmp_path / "new" / f"out{suffix_of(options)}"
    read.write_text("precious")
    values = {dest: read for one, dest in reading() if one == name and dest != "run"}
    found = options.parse_args(line(options, **values, out=out))
    assert out in found.outputs and sorted(tmp_path.iterdir()) == [read]


@pytest.mark.parametrize("name", [name for name in WRITING if suffix_of(options_of(name))])
def test_the_suffix_is_checked(name: str, tmp_path: Path) -> None:
    options = options_of(name)
    for wrong in ("notes.txt", "notes.tar", "Makefile.bak", ".."):
        if wrong == ".." and name in ("sweep", "filter", "score"):
            continue  # which put a file of theirs into a folder
        with pytest.raises(SteerHealError, match=r"wrong suffix|is a folder") as refused:
            options.parse_args(line(options, out=tmp_path / wrong))
        offered = refused.value.next.removeprefix("--out ")
        assert options.parse_args(line(options, out=Path(offered))).outputs[0] == Path(offered)


def test_two_outputs_of_one_command(tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl").symlink_to(tmp_path / "rejected.jsonl")
    with pytest.raises(SteerHealError, match="written over"):
        options_of("filter").parse_args(["--in", str(tmp_path / "x"), "--out", str(tmp_path)])


def test_a_study_does_not_replace_the_folder_of_its_runs(tmp_path: Path) -> None:
    """Be there runs in it yet or not."""
    options = options_of("study")
    runs = tmp_path / "studies" / "runs"
    for _ in range(2):
        for out in (runs, runs.parent, runs / "a-s0" / "rounds" / "01"):
            with pytest.raises(SteerHealError, match="written over"):
                options.parse_args(line(options, run=runs, out=out))
            (runs / "a-s0" / "rounds").mkdir(parents=True, exist_ok=True)
            (runs / "a-s0" / "config.toml").touch()
        for out in (tmp_path / "results", runs / "results"):
            assert options.parse_args(line(options, run=runs, out=out)).out == out


@pytest.mark.parametrize("case", ["case of a letter", "mounted elsewhere"])
def test_one_file_by_two_names_that_no_link_joins(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without case, or under a bind mount: the system says that they are one."""
    a, b = tmp_path / "Rows.json", tmp_path / "rows.json"
    a.touch()
    b.touch()
    samefile = os.path.samefile
    monkeypatch.setattr(
        os.path, "samefile", lambda one, other: {Path(one), Path(other)} == {a, b} or samefile(one, other)
    )
    with pytest.raises(SteerHealError, match="written over"):
        guard([b], [a])


def test_what_a_configuration_names_is_not_written_over(tmp_path: Path) -> None:
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    options = options_of("sweep")
    for key in ("sweep.dilemmas", "sweep.mundane", "vector.contexts", "vector.trait", "eval.heldout", "eval.vignettes"):
        words = line(options, model=Path("embedded"), out=prompts)
        arguments = options.parse_args([*words, "--set", f"{key}={prompts}"])
        with pytest.raises(SteerHealError, match="written over"):
            configured(arguments)
    assert prompts.read_text() == '{"prompt": "a"}\n'


def test_a_folder_of_training_in_progress_is_an_output_too(tmp_path: Path) -> None:
    data = tmp_path / "adapter.healing" / "kept.jsonl"
    data.parent.mkdir()
    data.touch()
    with pytest.raises(SteerHealError, match="written over"):
        heal_options().parse_args(["--data", str(data), "--out", str(tmp_path / "adapter")])


def test_a_folder_of_the_users_is_not_removed_for_a_training(tmp_path: Path) -> None:
    notes = tmp_path / "adapter.healing" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("precious")
    with pytest.raises(SteerHealError, match="of the user's"):
        Unfinished(notes.parent, {"a": 1})
    assert notes.read_text() == "precious"
    notes.rename(notes.with_name("base.safetensors"))  # as a training that was killed leaves it
    assert Unfinished(notes.parent, {"a": 1}).rows is not None and not (notes.parent / "base.safetensors").exists()


def test_a_stage_of_a_run_does_not_write_over_its_inputs(tmp_path: Path) -> None:
    run = build(tmp_path / "run", rounds=1)
    kept = run.round(1) / "kept.jsonl"
    before = kept.read_bytes()
    (run.round(1) / "link.jsonl").symlink_to(kept)
    with pytest.raises(SteerHealError, match="written over"):
        Stage(run, 1, "again", settings={}, inputs={"kept": kept}, outputs=[run.round(1) / "link.jsonl"])
    assert kept.read_bytes() == before


def test_compare_keeps_its_inputs(tmp_path: Path) -> None:
    """In a process of its own, through a link whose name has the right suffix."""
    base, link = tmp_path / "base.jsonl", tmp_path / "out.json"
    base.write_text("precious\n")
    link.symlink_to(base)
    done = command("evals.compare", "--base", f"{base}:a", "--other", base, "--out", link)
    assert done.returncode == 2 and "written over" in done.stderr and "next:     name another --out" in done.stderr
    assert base.read_text() == "precious\n" and link.is_symlink()


def test_the_embedded_models_own_files_are_not_written_over(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is named by an id is read too, where it lies."""
    cache = tmp_path / "cache"
    shutil.copytree(model.folder, cache / model.folder.name, copy_function=os.symlink)
    monkeypatch.setenv("STEER_HEAL_CACHE", str(cache))
    weights = cache / model.folder.name / "model.safetensors"
    done = command("gen.extract", "--model", "embedded", "--out", weights, "--set", "vector.n_contexts=2")
    assert done.returncode == 2 and "written over" in done.stderr, done.stderr
    assert weights.is_symlink()


def test_the_adapters_of_a_history_are_not_written_over(tmp_path: Path) -> None:
    """They are read through gates.json, which names them."""
    import torch
    from safetensors.torch import save_file

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shapes = (("A", (2, 3)), ("B", (4, 2)))
    save_file(
        {f"base_model.model.x.lora_{name}.weight": torch.ones(shape) for name, shape in shapes},
        adapter / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["x"], "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    fold([(adapter, 1.0)], tmp_path / "history")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    done = command(
        "train.heal",
        "--model",
        "embedded",
        "--data",
        tmp_path / "rows.jsonl",
        "--history",
        tmp_path / "history",
        "--out",
        adapter,
    )
    assert done.returncode == 2 and "written over" in done.stderr, done.stderr
    assert (adapter / "adapter_config.json").is_file()


def test_files_and_folders_are_not_taken_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    (tmp_path / "b").touch()
    with pytest.raises(SteerHealError, match="is a folder"):
        output_file(".json")(str(tmp_path / "a.json"))
    with pytest.raises(SteerHealError, match="is a file"):
        output_folder()(str(tmp_path / "b"))
    assert output_file(".json", inside="x.json")(str(tmp_path / "a.json")) == [tmp_path / "a.json" / "x.json"]


@pytest.mark.parametrize("out", [".", "./", "..", "/", "sub/..", "new/../new"])
def test_a_folder_without_a_name_of_its_own(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here := tmp_path / "here").mkdir()
    (here / "sub").mkdir()
    (here / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(here)
    words = ["--model", "m", "--data", "rows.jsonl", "--out", out]
    if out == "new/../new":
        assert heal_options().parse_args(words).out == Path(out)
        return
    with pytest.raises(SteerHealError, match="over another of the same command") as caught:
        heal_options().parse_args(words)
    assert "rows.jsonl" in str(caught.value.given)
    assert heal_options().parse_args([*words[:3], "elsewhere/rows.jsonl", *words[4:]]).out == Path(out)
