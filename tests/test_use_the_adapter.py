"""docs/use-the-adapter.md: its commands are read by their parsers, its Python runs as it stands; the card of an export."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, command
from huggingface_hub import ModelCard
from synthetic_run import build

from shared.models import Model
from shared.subcommands import command_in, options_of
from train.card import licence_of, model_card

PAGES = ("use-the-adapter.md", "own-trait.md")
BLOCKS = re.findall(r"(?s)## ([\w ]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", (ROOT / "docs" / "use-the-adapter.md").read_text())  # fmt: skip


def lines() -> list[str]:
    found = []
    for page in PAGES:
        for block in re.findall(r"(?s)```sh\n(.*?)```", (ROOT / "docs" / page).read_text()):
            found += [line for line in block.splitlines() if line.startswith("steer-heal ")]
    return found


@pytest.mark.parametrize("line", lines())
def test_a_command_of_a_recipe_has_options_that_there_are(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    name = command_in(words)
    assert name is not None
    options_of(name).parse_args(words[len(name.split()) :])


def test_python_recipes_are_of_three_programs() -> None:
    assert [name for name, _ in BLOCKS] == ["Transformers", "PEFT", "vLLM"]
    for _, code in BLOCKS:
        compile(code, "recipe", "exec")


def test_the_card_has_licence_tags_code_and_verdicts_with_their_limits(model: Model, tmp_path: Path) -> None:
    run = build(tmp_path / "run", 1, overrides="eval.bootstrap=100")
    assert command("evals.report", "--run", run.folder).returncode == 0
    text = model_card(model, "merged", {1: 1.0}, None, None, (run, 1))
    data = ModelCard(text).data
    assert data.license == "apache-2.0" and "activation-steering" in data.tags and data.library_name == "transformers"
    verdict = text.partition("## Verdict")[2].partition("## ")[0]
    assert re.search(r"free text: \*\*\w+\*\*: .+\.", verdict) and "moral forced choice: **" in verdict
    assert "What it does not say" in verdict and "one training run" in verdict
    assert "model.generate(" in text and '"You are a helpful assistant."' in text and "Licence:" not in text
    code = text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")


def test_a_licence_is_taken_from_the_base_and_not_invented(model: Model, tmp_path: Path) -> None:
    other = Model("somebody/model", tmp_path, None)
    assert licence_of(other) is None and licence_of(model) == "apache-2.0"
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: gemma\n---\nlicense: mit\n")
    assert licence_of(other) == "gemma"
    (tmp_path / "README.md").write_text("no head\nlicense: mit\n")
    assert licence_of(other) is None


@pytest.fixture(scope="module")
def exports(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random rounds over the embedded model, folded; exports/adapter and exports/merged as the page makes them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from shared.folding import fold

    folder = tmp_path_factory.mktemp("use")
    for number in (1, 2):
        torch.manual_seed(number)
        network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
        made = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        student = get_peft_model(network, made)
        for name, value in student.named_parameters():
            if "lora_B" in name:
                value.data *= 0.02
        student.save_pretrained(folder / f"round-{number}")
    fold([(folder / "round-1", 1.0), (folder / "round-2", 1.0)], folder / "history")
    for kind, name in (("history", "adapter"), ("merged", "merged")):
        done = command("train.export", "--model", "embedded", "--history", folder / "history", "--as", kind, "--out", folder / "exports" / name, *(["--dtype", "float32"] if kind == "merged" else []))  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.long
@pytest.mark.parametrize(("name", "code"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_a_python_recipe_runs_as_it_stands(name: str, code: str, exports: Path) -> None:
    (exports / "recipe.py").write_text(code)
    quiet: dict[str, Any] = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}  # fmt: skip
    done = subprocess.run([sys.executable, "recipe.py"], cwd=exports, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.strip().splitlines()
    assert said and len(said[-1]) > 10
    if name != "Transformers":
        healed, original = (re.search(rf"(?ms)^{word} (.*?)(?=^healed |^original |\Z)", done.stdout) for word in ("healed", "original"))  # fmt: skip
        assert healed and original and healed[1].strip() != original[1].strip(), done.stdout


@pytest.mark.long
def test_the_code_of_a_card_runs(exports: Path) -> None:
    for kind in ("adapter", "merged"):
        text = (exports / "exports" / kind / "README.md").read_text()
        code = text.partition("```python\n")[2].partition("```")[0]
        (exports / "card.py").write_text(code.replace("FOLDER", f'"exports/{kind}"'))
        done = subprocess.run([sys.executable, "card.py"], cwd=exports, capture_output=True, text=True)
        assert done.returncode == 0 and len(done.stdout) > 20, done.stderr[-3000:]
