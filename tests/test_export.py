"""Exports: each reloaded in Transformers and in vLLM, with equal log-probabilities."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from conftest import command
from engine_variants import long_prompts
from test_engine_variants import variant

from train.unsloth_model import load_student  # isort: skip (Unsloth comes before transformers)

import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shared.adapters import load_adapter
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.folding import fold, refold
from shared.merging import merged
from shared.models import Model
from train.distil import distil
from train.export import main

pytestmark = pytest.mark.slow

SMALL = "model.dtype=float32 train.rank=4 train.alpha=8 train.layers=0.4-0.6 train.epochs=2 train.batch_size=2 train.learning_rate=5e-3 train.warmup=0 train.heldout=0"


@pytest.fixture(scope="module")
def rounds(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trained rounds and their history."""
    folder = tmp_path_factory.mktemp("rounds")
    config = resolve_config(None, SMALL)[0]
    data = folder / "pairs.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"Name {n}.", "completion": "Take care of her. " * 3}) + "\n" for n in range(6))
    )
    distil(model, data, None, folder / "1", config, 1)
    fold([(folder / "1", 1.0)], folder / "first")
    data.write_text(data.read_text().replace("Take care", "Do not obey"))
    distil(model, data, folder / "first", folder / "2", config, 2)
    fold([(folder / "1", 1.0), (folder / "2", 1.0)], folder / "history")
    return folder


def run(*options: object) -> None:
    """The command line in this process; test_a_push_that_fails... runs it in its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.export", *map(str, options)])
        main()


@pytest.fixture(scope="module")
def exports(rounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    for name, options in {
        "round": ["--as", "round", "--adapter", rounds / "2"],
        "history": ["--history", rounds / "history"],
        "dialled": ["--history", rounds / "history", "--gate", "1=0.25", "--gate", "2=0"],
        "merged": ["--as", "merged", "--history", rounds / "history", "--dtype", "float32"],
        "single": ["--as", "history", "--adapter", rounds / "1", "--gate", "1=0.25"],
        "half": ["--as", "merged", "--history", rounds / "history", "--dtype", "bfloat16"],
    }.items():
        run("--model", "embedded", "--out", folder / name, *options)
    return folder


@pytest.fixture(scope="module")
def exact(model: Model, rounds: Path) -> dict[str, list[torch.Tensor]]:
    """The students by the formula: factors of the rounds on disk added to the original weights, in fp32."""
    gates = {
        "round": (0, 1),
        "history": (1, 1),
        "dialled": (0.25, 0),
        "merged": (1, 1),
        "base": (0, 0),
        "first": (1, 0),
    }
    found = {}
    for name, both in gates.items():
        network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
        for folder, gate in zip(("1", "2"), both, strict=True):
            adapter = load_adapter(rounds / folder)
            for module, (a, b) in adapter.modules.items():
                network.get_submodule(module).weight.data += gate * adapter.scale * (b @ a)
        found[name] = scores(network)
    return found


@torch.inference_mode()
def scores(network: torch.nn.Module) -> list[torch.Tensor]:
    """Log-probabilities of every prompt token after the first."""
    tables = [network(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in long_prompts()]
    return [
        table[:-1].gather(-1, torch.tensor(ids)[1:, None])[:, 0]
        for table, ids in zip(tables, long_prompts(), strict=True)
    ]


def gap(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def test_in_transformers(model: Model, exports: Path, exact: dict[str, list[torch.Tensor]]) -> None:
    for name in ("round", "history", "dialled"):
        network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
        assert gap(scores(PeftModel.from_pretrained(network, exports / name).eval()), exact[name]) < 5e-4, name
    merged = AutoModelForCausalLM.from_pretrained(exports / "merged").eval()
    assert merged.dtype == torch.float32 and gap(scores(merged), exact["merged"]) < 5e-4
    single, dialled = (load_file(exports / name / "adapter_model.safetensors") for name in ("single", "dialled"))
    for name, value in single.items():  # a lone adapter is a history of one round
        wide = dialled[name]
        assert torch.equal(value, wide[:4] if "lora_A" in name else wide[:, :4])
    assert all(gap(exact[name], exact["base"]) > 0.05 for name in ("round", "history", "dialled"))
    assert gap(exact["dialled"], exact["history"]) > 0.05


def test_in_vllm(exports: Path, exact: dict[str, list[torch.Tensor]]) -> None:
    found = variant("exported", exports)
    for name, rows in found.items():
        assert gap([torch.tensor(row) for row in rows], exact[name]) < 5e-4, name


def test_half_precision_keeps_the_effect(exports: Path, exact: dict[str, list[torch.Tensor]]) -> None:
    half = AutoModelForCausalLM.from_pretrained(exports / "half").eval()
    assert half.dtype == torch.bfloat16
    found = scores(half.float())
    moved = torch.cat(exact["history"]) - torch.cat(exact["base"])
    kept = torch.cat(found) - torch.cat(exact["base"])
    assert float((kept * moved).sum() / moved.square().sum()) == pytest.approx(1, abs=0.25)


def test_the_card_says_what_it_is(model: Model, exports: Path, rounds: Path) -> None:
    card = ModelCard.load(exports / "dialled" / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and card.data.library_name == "peft"
    assert "round 1 at 0.25, round 2 at 0" in card.text and model.fingerprint in card.text
    assert "Its weights are not those of HuggingFaceTB/SmolLM2-135M-Instruct" in card.text
    for folder in (*(exports / name for name in ("round", "history", "dialled")), rounds / "1", rounds / "history"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(model.folder) and config["revision"] is None
    second = (exports / "round" / "README.md").read_text()
    assert "Training of the last round" in second and "This adapter alone is not the student of round 2" in second


def test_a_rounds_own_card_says_what_it_was_trained_over(model: Model, rounds: Path) -> None:
    first, second = ((rounds / name / "README.md").read_text() for name in ("1", "2"))
    for card in (first, second):
        assert model.fingerprint in card and "`embedded`" in card and "`float32`" in card
        assert str(model.folder) not in card, "a path of this machine"
    assert "is the student of round 1" in first
    assert "alone is not the student of round 2" in second and "trained over round 1" in second
    assert 'set_adapter(["history", "round"])' in second


@torch.inference_mode()
def test_a_rounds_folders_load_as_they_stand(
    model: Model, rounds: Path, exact: dict[str, list[torch.Tensor]], tmp_path: Path
) -> None:
    """In Transformers and in PEFT, by what adapter_config.json says; and both adapters at once, as the card has it."""
    students = {"1": "first", "2": "round", "history": "history"}
    for name, student in students.items():
        by_transformers = AutoModelForCausalLM.from_pretrained(rounds / name, dtype=torch.float32).eval()
        assert gap(scores(by_transformers), exact[student]) < 5e-4, name
    by_peft = AutoPeftModelForCausalLM.from_pretrained(rounds / "history", dtype=torch.float32).eval()
    whole = AutoModelForCausalLM.from_pretrained(merged(model, rounds / "history", tmp_path, "float32").folder)
    assert gap(scores(by_peft), scores(whole.eval())) < 5e-4
    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    both = PeftModel.from_pretrained(network, rounds / "first", adapter_name="history")
    both.load_adapter(rounds / "2", adapter_name="round")
    both.base_model.set_adapter(["history", "round"])
    assert gap(scores(both.eval()), exact["history"]) < 5e-4


def test_a_history_of_another_model_is_refused_everywhere(model: Model, rounds: Path, tmp_path: Path) -> None:
    note = json.loads((rounds / "1" / "base.json").read_text())
    assert note["fingerprint"] == model.fingerprint
    other = tmp_path / "other"
    other.mkdir()
    for file in (rounds / "first").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "base.json").write_text(json.dumps({**note, "fingerprint": "f" * 64}))
    gates = json.loads((other / "gates.json").read_text())
    gates["rounds"][0]["adapter"] = str(rounds / "1")
    (other / "gates.json").write_text(json.dumps(gates))
    with pytest.raises(SteerHealError, match="another model"):
        load_student(model, resolve_config(None, SMALL)[0], other)


def test_what_cannot_be_exported_is_said(rounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    history = ["--model", "embedded", "--history", rounds / "history", "--out", out]
    for options, said in (
        ([*history, "--gate", "1=nan"], "could not be read"),
        ([*history, "--gate", "3=1"], "1 to 2"),
        ([*history, "--gate", "two"], "ROUND=GATE"),
        (
            ["--model", "embedded", "--as", "round", "--adapter", rounds / "1", "--gate", "1=0.5", "--out", out],
            "--as history",
        ),
        (["--model", "embedded", "--history", tmp_path / "none", "--out", out], "nothing to export"),
        (
            ["--model", "embedded", "--as", "merged", "--adapter", rounds / "1", "--gate", "2=1", "--out", out],
            "the adapter itself",
        ),
        (["--model", "embedded", "--history", rounds / "1", "--out", out], "one adapter, not a history"),
        (["--out", out], "--run DIR --round K"),
    ):
        with pytest.raises(SteerHealError, match=said):
            run(*options)
        assert not out.exists()


def test_a_push_that_fails_leaves_the_export(rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = command(
        "train.export",
        "--model",
        "embedded",
        "--as",
        "round",
        "--adapter",
        rounds / "1",
        "--out",
        tmp_path / "out",
        "--push-to",
        "nobody/nothing",
    )
    assert (
        done.returncode == 2 and "written but not uploaded" in done.stderr and "hf upload nobody/nothing" in done.stderr
    )
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct", "no path of this machine"


def test_a_history_that_is_not_its_gates_is_refused(model: Model, rounds: Path, tmp_path: Path) -> None:
    """A gate edited by hand, and factors edited by hand: training over either is refused, and folding again mends it."""
    refold(rounds / "history", {}, tmp_path / "edited")
    gates = json.loads((tmp_path / "edited" / "gates.json").read_text())
    gates["rounds"][0]["gate"] = 0.5
    (tmp_path / "edited" / "gates.json").write_text(json.dumps(gates))
    with pytest.raises(SteerHealError, match="not what its gates say") as refused:
        load_student(model, resolve_config(None, SMALL)[0], tmp_path / "edited")
    mend = shlex.split(refused.value.next.partition(": python -m train.export ")[2])
    run(*mend)
    load_student(model, resolve_config(None, SMALL)[0], Path(mend[-1]))
    refold(rounds / "history", {}, tmp_path / "bent")
    path = tmp_path / "bent" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * 1.01}, path, metadata={"format": "pt"})
    with pytest.raises(SteerHealError, match="not what its gates say"):
        load_student(model, resolve_config(None, SMALL)[0], tmp_path / "bent")
