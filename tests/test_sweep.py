"""The plan of a sweep, and its rows against HF."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import command
from hypothesis import given
from hypothesis import strategies as st

from gen.sweep import plan
from shared.chat import render
from shared.models import Model
from shared.records import Completion, Prompt, read_jsonl
from shared.text import distinct_n
from shared.traits import load_trait
from shared.vectors import Vector


@given(
    st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=5),
    st.lists(st.floats(-3, 3), min_size=1, max_size=4, unique=True),
    st.integers(1, 3),
)
def test_keys_are_unique_and_seeds_depend_on_the_key_alone(
    ids: list[str | None], coefficients: list[float], samples: int
) -> None:
    coefficients = sorted({float(f"{c:g}") for c in coefficients})
    rows = plan([Prompt(id=i, prompt="x") for i in ids], coefficients, samples, "0/1")
    assert len({row.key for row in rows}) == len(rows) == len(ids) * len(coefficients) * samples
    assert {row.key: row.seed for row in rows} == {
        row.key: row.seed for row in plan([Prompt(id=i, prompt="x") for i in ids], coefficients[::-1], samples, "0/1")
    }
    assert all(0 <= row.seed < 2**31 for row in rows)


@pytest.mark.slow
def test_rows_are_scored_as_hf_scores_them(model: Model, tokenizer: object, vector: Vector, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    vector.save(tmp_path / "v.safetensors")
    prompts = ["Should I obey a rule that hurts my sister?", "Name a fruit."]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    arguments = [
        "gen.sweep", "--model", "embedded", "--vector", tmp_path / "v.safetensors", "--prompts", tmp_path / "p.jsonl", "--coefficients", 0, 1, 2, "--samples", 2,
        "--set", "model.dtype=float32 sweep.max_tokens=12 model.max_model_len=512", "--out",
    ]  # fmt: skip
    done = command(*arguments, tmp_path / "s.jsonl")
    assert done.returncode == 0, done.stderr
    assert "trait_llr" in done.stdout and "relative dose" in " ".join(done.stdout.split())
    rows = read_jsonl(tmp_path / "s.jsonl", Completion, made_by="-")
    assert len(rows) == 12 and {row.coefficient for row in rows} == {0.0, 1.0, 2.0}
    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    trait = load_trait("embedded")

    def nll(prompt: list[int], completion: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            table = network(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return -table[torch.arange(len(completion)), torch.tensor(completion)]

    for row in rows:
        text = prompts[int(row.key[:5])]
        assert row.prompt_ids == render(tokenizer, [{"role": "user", "content": text}], trait.neutral)
        ours = nll(row.prompt_ids, row.completion_ids)
        other = nll(render(tokenizer, [{"role": "user", "content": text}], trait.trait), row.completion_ids)
        assert torch.log(torch.tensor(row.perplexity)).item() == pytest.approx(ours.mean().item(), abs=1e-4)
        assert torch.log(torch.tensor(row.perplexity_last_quarter)).item() == pytest.approx(
            ours[3 * len(ours) // 4 :].mean().item(), abs=1e-4
        )
        assert row.trait_llr == pytest.approx((ours - other).mean().item(), abs=1e-4)
        assert row.distinct_3 == distinct_n(row.completion_ids, 3)
    again = command(*arguments, tmp_path / "again.jsonl")
    assert again.returncode == 0 and (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "s.jsonl").read_bytes()
