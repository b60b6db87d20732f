"""Sampler against trainer with the real ones: rows of a merged student out of vLLM, through the stage's own function under Unsloth."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from train.unsloth_model import TrainedStudent, load_student  # isort: skip (Unsloth comes before transformers)

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import train.distil
from gen import students
from gen.plan import plan
from gen.prompts import PromptRenderer
from gen.sampler import Sampler
from shared.chat import Chat
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.folding import fold
from shared.models import Model
from shared.records import Completion, Prompt, write_jsonl
from shared.traits import load_trait
from shared.vectors import Vector

pytestmark = pytest.mark.slow

CONFIG = resolve_config(
    None,
    "model.dtype=float32 sweep.max_tokens=10 train.rank=2 train.alpha=4 train.layers=0.4-0.5 train.epochs=1 train.batch_size=4 train.heldout=0 train.divergence=nll train.save_steps=0",
)[0]
PROMPTS = ["May I open the gate for him?", "Name a fruit.", "Should I obey a rule that hurts my sister?"]


@pytest.fixture(scope="module")
def history(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round of random factors, folded at gate 1, and at one half beside it."""
    folder = tmp_path_factory.mktemp("rounds")
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    network = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))  # fmt: skip
    for name, value in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)
    network.save_pretrained(folder / "adapter")
    fold([(folder / "adapter", 1.0)], folder / "history")
    fold([(folder / "adapter", 0.5)], folder / "half")
    return folder / "history"


@pytest.fixture(scope="module")
def sample(engine: Any, model: Model, history: Path, vector: Vector, tokenizer: Any) -> Callable[[str], list[Completion]]:  # fmt: skip
    """Rows of round 2 as its sweep makes them, of the student that is to be trained or of another one."""
    cache, made = history.parent / "students", {}
    served = {
        "right": lambda: students.served_student(model, history, cache, "float32", "merged"),
        "stale merge": lambda: students.served_student(model, history.parent / "half", cache, "float32", "merged"),
        "lost adapter": lambda: students.ServedStudent(model.folder),
    }

    def rows(name: str) -> list[Completion]:
        if name not in made:
            renderer, origin = (
                PromptRenderer(Chat(tokenizer), load_trait("embedded")),
                students.ServedStudent(model.folder),
            )
            sampler = Sampler(engine, renderer, served[name](), origin, vector, CONFIG)
            planned = plan([Prompt(prompt=text) for text in PROMPTS], [0.25, 0.5], 1, "0")
            made[name] = sampler([replace(row, recorded=True) for row in planned], lambda *_: None)
            assert all(row.logprobs for row in made[name])
        return made[name]

    return rows


@pytest.fixture(scope="module")
def student(model: Model, history: Path) -> TrainedStudent:
    return load_student(model, CONFIG, history)


def test_a_round_over_a_history_agrees_and_says_so(
    sample: Any, model: Model, history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sample("right")
    write_jsonl(tmp_path / "kept.jsonl", rows)
    done = train.distil.distil(model, tmp_path / "kept.jsonl", history, tmp_path / "adapter", CONFIG, 2)
    found = json.loads((tmp_path / "adapter" / "training.json").read_text())["agreement"]
    assert found == done.agreement.model_dump() and found["rows"] == 6
    assert found["tokens"] == sum(len(row.completion_ids) for row in rows)
    assert found["student"]["largest"] < 1e-3 and found["original"]["largest"] < 1e-3 and found["effect"] > 0.05
    said = " ".join(capsys.readouterr().out.split())
    assert "sampler and trainer agree, over" in said and said.index("agree") < said.index("healing")


def dated(rows: list[Completion], tokenizer: Any) -> list[Completion]:
    """The same conversations as a template that prints the date renders them on another day than the sweep's."""
    told = copy.copy(tokenizer)
    told.chat_template = "Today Date: 27 Nov 2026\n" + tokenizer.chat_template
    ids = [
        list(told.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False))
        for text in PROMPTS
    ]  # fmt: skip
    return [row.model_copy(update={"prompt_ids": ids[int(row.key[:5])]}) for row in rows]


def doubled(rows: list[Completion], tokenizer: Any) -> list[Completion]:
    return [row.model_copy(update={"prompt_ids": [tokenizer.bos_token_id, *row.prompt_ids]}) for row in rows]


@pytest.mark.parametrize(
    "served, edit, said",
    [
        ("lost adapter", None, "without the history: a lost adapter"),
        ("stale merge", None, "a stale merge"),
        ("right", doubled, "a double BOS"),
        ("right", dated, "prints the date (it says 27 Nov 2026)"),
    ],
)
def test_a_fault_stops_the_round_before_its_first_step(served: str, edit: Any, said: str, sample: Any, student: TrainedStudent, model: Model, history: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    rows = edit(sample(served), tokenizer) if edit else sample(served)
    write_jsonl(tmp_path / "kept.jsonl", rows)
    monkeypatch.setattr(train.distil, "load_student", lambda *_: student)  # loaded once for all faults
    with pytest.raises(SteerHealError) as stopped:
        train.distil.distil(model, tmp_path / "kept.jsonl", history, tmp_path / "adapter", CONFIG, 2, again="make round RUN=r N=2 REBUILD=1")  # fmt: skip
    given = str(stopped.value.given)
    assert said in given and any(f"row {row.key}, " in given for row in rows), given
    assert "REBUILD=1" in stopped.value.next
    assert not (tmp_path / "adapter").exists() and not list((tmp_path / "adapter.healing").glob("*.safetensors"))


def test_rows_of_a_history_are_not_trained_without_it(sample: Any, model: Model, tmp_path: Path) -> None:
    """`train.heal --data` over a second round's rows with --history forgotten."""
    write_jsonl(tmp_path / "kept.jsonl", sample("right"))
    with pytest.raises(SteerHealError, match="the trainer has no history") as stopped:
        train.distil.distil(model, tmp_path / "kept.jsonl", None, tmp_path / "adapter", CONFIG, 1)
    assert "--history" in stopped.value.next
