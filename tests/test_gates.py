"""A run's student on the play server: adapters at gates beside vectors, against the folded export under HF hooks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving import serving

from gen.gates import gate_list, model_of
from shared.errors import SteerHealError
from shared.models import Model
from shared.vectors import Vector

PROMPT = [1, 4093, 198] + [100 + 13 * index % 900 for index in range(30)]


def test_gates_are_read_from_text() -> None:
    import argparse

    assert gate_list("1,0,0.5,1") == [0.0, 0.5, 1.0] and [model_of(gate) for gate in (0.0, 0.5)] == [
        "healed-0",
        "healed-0.5",
    ]
    for bad in ("nan", "0,1000", "", "a"):
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            gate_list(bad)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "nothing to play with"),
        (["--run", "RUN", "--vector", "v.safetensors"], "do not go with --run"),
        (["--run", "RUN", "--history", "RUN"], "do not go with --run"),
        (["--run", "RUN"], "no such vector yet"),
        (["--run", "RUN", "--round", "2"], "no such vector yet"),
        (["--run", "nowhere"], "no configuration file"),
    ],
)
def test_a_page_about_nothing_is_refused(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gen.play import main
    from shared.config import resolve_config, to_toml

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(to_toml(*resolve_config(None)))
    monkeypatch.setattr("sys.argv", ["play", *(word.replace("RUN", str(tmp_path / "run")) for word in words)])
    with pytest.raises(SteerHealError, match=part) as refused:
        main()
    assert refused.value.next


@pytest.mark.long
def test_a_runs_student_answers_at_every_gate_beside_vectors(model: Model, vector: Vector, tmp_path: Path) -> None:
    """Of `steer-heal play --run`: the base, the student at three gates, and both under the run's vector, in one batch."""
    import torch
    from hooked import Hooked
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from shared.config import resolve_config, to_toml
    from shared.folding import fold, refold

    run = tmp_path / "run"
    here = run / "rounds" / "01"
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    network = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))  # fmt: skip
    for name, value in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)
    network.save_pretrained(here / "adapter")
    fold([(here / "adapter", 1.0)], here / "history")
    refold(here / "history", {1: 0.5}, tmp_path / "half")
    vector.save(here / "vector.safetensors")
    (here / "manifests").mkdir()
    for stage in ("extract", "heal"):
        (here / "manifests" / f"{stage}.json").write_text("{}")
    config, sources = resolve_config(None, "model.dtype=float32 model.max_model_len=256")
    (run / "config.toml").write_text(to_toml(config, sources))
    arguments = ("--run", str(run), "--gates", "0,0.5,1")
    with serving(vector, tmp_path, arguments=arguments, module="gen.play", vectors=False) as server:
        about = server.http.get("/steer/play").json()
        assert [each["model"] for each in about["gates"]] == ["healed-0", "healed-0.5", "healed-1"]
        assert about["trait"] and about["neutral"] and len(about["prompts"]) > 3
        for name, folder in (
            ("embedded", None),
            ("healed-0", None),
            ("healed-0.5", tmp_path / "half"),
            ("healed-1", here / "history"),
        ):
            oracle = Hooked(model.folder, vector, folder)
            for coefficient in (0.0, 1.0):
                steering = (
                    {"vllm_xargs": {"steer_vector": "trait", "steer_coefficient": coefficient}} if coefficient else {}
                )
                ask = {"model": name, "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "logprobs": 0, **steering}
                answer = server.http.post("/v1/completions", json=ask).json()["choices"][0]
                expected = float(oracle.logprobs(PROMPT, coefficient)[-1].max())
                np.testing.assert_allclose(
                    answer["logprobs"]["token_logprobs"][0], expected, atol=1e-4, err_msg=f"{name} at {coefficient}"
                )
