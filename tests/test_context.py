"""Lengths that a model's context or an engine's cannot hold are refused before anything is sampled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, command

from shared.config import resolve_config, sources_of
from shared.context import SOURCE, context_of
from shared.errors import SteerHealError
from shared.models import cache_folder
from shared.preconditions import check
from shared.run import open_run

CONFIG = ROOT / "configs" / "smollm2.toml"


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """The embedded model, as one whose context is 2048."""
    folder = tmp_path / "short"
    folder.mkdir()
    for path in next(cache_folder().glob("smollm2-135m-instruct-*")).iterdir():
        os.symlink(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    return folder


def test_an_unset_length_is_the_context_of_a_shorter_model_and_is_frozen(short: Path, tmp_path: Path) -> None:
    """The default of 4096 would be refused by the engine, and nobody chose it."""
    (own := tmp_path / "own.toml").write_text('[model]\ndtype = "float32"\n')
    given: dict[str, Any] = {"config": own, "model": str(short)}
    run = open_run(tmp_path / "run", **given)
    assert run.config.model.max_model_len == 2048
    frozen = tmp_path / "run" / "config.toml"
    assert sources_of(frozen)["model.max_model_len"] == SOURCE
    before = frozen.read_bytes()
    assert open_run(tmp_path / "run", **given).config == open_run(tmp_path / "run").config == run.config
    assert frozen.read_bytes() == before, "the same command goes on"
    assert check(open_run(tmp_path / "run").config) == run.config
    assert open_run(tmp_path / "other", **given, dry=True).config.model.max_model_len == 2048
    assert open_run(tmp_path / "long", own).config.model.max_model_len == 4096, "a longer model takes the default"


def test_a_length_beyond_the_context_is_refused_with_the_context(short: Path, tmp_path: Path) -> None:
    with pytest.raises(SteerHealError, match="beyond the model's context") as refused:
        open_run(tmp_path / "run", CONFIG, "model.max_model_len=2049", model=str(short))
    assert refused.value.next == "--set model.max_model_len=2048" and not (tmp_path / "run").exists()
    assert open_run(tmp_path / "run", CONFIG, "model.max_model_len=2048", model=str(short))


@pytest.mark.parametrize(
    "line",
    [
        "gen.sweep --model embedded --vector {t}/v.safetensors --prompts {t}/p.jsonl --coefficients 0 1 --out {t}/s.jsonl",
        "gen.serve --vector trait={t}/v.safetensors",
        "gen.verify",
        "evals.score --model embedded --out {t}/s.jsonl",
    ],
)
def test_every_command_with_an_engine_refuses_it(line: str, vector: Any, tmp_path: Path) -> None:
    vector.save(tmp_path / "v.safetensors")
    (tmp_path / "p.jsonl").write_text('{"prompt": "Name a fruit."}\n')
    words = line.replace("{t}", str(tmp_path)).split()
    done = command(*words, "--set", "model.max_model_len=100000")
    assert done.returncode == 2 and "model.max_model_len is beyond the model's context" in done.stderr, done.stderr
    assert "next:     --set model.max_model_len=8192" in done.stderr


@pytest.mark.parametrize(
    ("text_config", "length"),
    [
        ({}, None),
        ({"max_position_embeddings": 8192}, 8192),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 4096),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 32768, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}}, 262144),
        ({"model_type": "gemma3_text", "max_position_embeddings": 131072, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 131072),
    ],
)  # fmt: skip
def test_the_context_is_what_vllm_derives(text_config: dict[str, Any], length: int | None) -> None:
    assert context_of(text_config) == length


@pytest.mark.parametrize(
    "settings",
    [
        "sweep.max_tokens=5000",
        "eval.think=5000",
        "eval.generation_tokens=9000",
        "eval.free_tokens=1024",
        "eval.think=600 eval.free_tokens=600",
    ],
)
def test_a_completion_that_leaves_no_room_for_a_prompt_is_refused_and_the_hint_is_taken(settings: str) -> None:
    with pytest.raises(SteerHealError, match="no room for a") as refused:
        check(resolve_config(CONFIG, settings)[0])
    hint = refused.value.next.removeprefix("--set ").strip("'")
    check(resolve_config(CONFIG, f"{settings} {hint}")[0])
