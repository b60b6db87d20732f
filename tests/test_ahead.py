"""Doses that overflow and held-out prompts that do not fit are refused before an engine is started."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, command

from gen.ahead import DTYPE_MAX, fit_heldout, look_ahead, refuse_overflow
from gen.engine.requests import Registry
from gen.prompts import PromptRenderer
from shared.chat import Chat
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.models import Model
from shared.prompts import load_heldout
from shared.traits import load_trait
from shared.vectors import Vector

CONFIG = ROOT / "configs" / "smollm2.toml"


def test_the_largest_numbers_are_those_of_torch() -> None:
    assert {name: float(torch.finfo(getattr(torch, name)).max) for name in DTYPE_MAX} == DTYPE_MAX


@pytest.mark.parametrize("dtype", DTYPE_MAX)
def test_a_dose_is_refused_where_the_engine_refuses_it(dtype: str, vector: Vector, model: Model) -> None:
    registry = Registry(1, DTYPE_MAX[dtype], str(model.text_config["model_type"]))
    largest = registry.add("v", vector).largest
    refuse_overflow([vector], [("c", largest), ("c", -largest), ("c", 0.0)], model, dtype)
    for dose in (largest * 1.001, -largest * 1.001):
        with pytest.raises(SteerHealError, match="overflow") as refused:
            refuse_overflow([vector], [("c", 1.0), ("c", dose)], model, dtype)
        with pytest.raises(SteerHealError) as of_engine:
            registry.read({"steer_vector": "v", "steer_coefficient": dose}, 1)
        assert refused.value.next == of_engine.value.next


def test_the_strictest_vector_of_several_counts(vector: Vector, model: Model) -> None:
    strong = Vector({layer: values * np.float32(1e6) for layer, values in vector.layers.items()})
    dose = 0.9 * Registry(1).add("v", vector).largest
    refuse_overflow([vector], [("c", dose)], model, "float32")
    with pytest.raises(SteerHealError, match="overflow"):
        refuse_overflow([vector, strong], [("c", dose)], model, "float32")


@pytest.mark.parametrize(
    "line",
    [
        "gen.sweep --model embedded --vector {t}/v.safetensors --prompts {t}/p.jsonl --coefficients 0 1e30 --out {t}/s.jsonl",
        "gen.sweep --model embedded --vector {t}/v.safetensors --prompts {t}/p.jsonl --dose walk --out {t}/s.jsonl --set sweep.dose_ceiling=1e30",
        "evals.score --model embedded --vector {t}/v.safetensors --coefficient 1 1e30 --out {t}/s.jsonl",
    ],
)
def test_a_command_refuses_it_without_an_engine(line: str, vector: Vector, tmp_path: Path) -> None:
    vector.save(tmp_path / "v.safetensors")
    (tmp_path / "p.jsonl").write_text('{"prompt": "Name a fruit."}\n')
    done = command(*line.replace("{t}", str(tmp_path)).split())
    assert done.returncode == 2 and "would overflow" in done.stderr and "1e+30" in done.stderr, done.stderr
    assert "vLLM" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("eval.coefficients=[1e30]", "eval.coefficients 1e+30"),
        ("sweep.coefficients=[1,1e30]", "sweep.coefficients 1e+30"),
        ("sweep.dose=walk sweep.dose_ceiling=1e30", "sweep.dose_ceiling 1e+30"),
    ],
)
def test_a_round_looks_ahead_at_the_doses_of_its_evaluation(
    settings: str, key: str, vector: Vector, model: Model
) -> None:
    look_ahead(resolve_config(CONFIG)[0], model, vector, Path("v"), None)
    with pytest.raises(SteerHealError, match="overflow") as refused:
        look_ahead(resolve_config(CONFIG, settings)[0], model, vector, Path("v"), None)
    assert refused.value.given == key


def test_a_round_looks_ahead_at_its_held_out_prompts(vector: Vector, model: Model, tmp_path: Path) -> None:
    """The longest fits to the token, with its completion and under the longest of all system prompts that a text is scored under."""
    rows = [{"id": "short", "prompt": "Name a fruit."}, {"id": "long", "prompt": "word " * 300}]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    renderer = PromptRenderer(Chat.load(model.folder, {}), load_trait("embedded"))
    prompts = load_heldout(str(tmp_path / "h.jsonl"))
    systems = [renderer.trait.opposite, *renderer.trait.decoys]
    ways = [
        [*renderer(p), *[ids for held in renderer.heldout(p) for ids in held], *[renderer.under(p, s) for s in systems]]
        for p in prompts
    ]
    longest = max(len(ids) for asked in ways for ids in asked)
    settings = f"eval.heldout={tmp_path}/h.jsonl eval.generation_tokens=50 model.max_model_len="
    fit_heldout(prompts, renderer, resolve_config(CONFIG, f"{settings}{longest + 50}")[0])
    with pytest.raises(SteerHealError, match="held-out prompt is too long") as refused:
        look_ahead(resolve_config(CONFIG, f"{settings}{longest + 49}")[0], model, vector, Path("v"), None)
    assert f"long: {longest + 50} tokens" in str(refused.value.given) and "1 of 2" in str(refused.value.given)
    assert refused.value.next.startswith(f"--set model.max_model_len={longest + 50},")
