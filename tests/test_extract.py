"""The vector against a naive forward, one context at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import ROOT, command
from safetensors.torch import save_file

from evals.measures.activations import states, student_layers
from gen.extract import activations, extract, in_fp32, stage
from shared.chat import Chat
from shared.errors import SteerHealError
from shared.merging import merged
from shared.models import Model
from shared.run import open_run
from shared.schema import ModelConfig, VectorConfig
from shared.traits import load_trait
from shared.vectors import load_vector

pytestmark = pytest.mark.slow

CONTEXTS = [
    "Hello.",
    "My boss wants me to lie to a customer. What now?",
    "Write a short poem about the sea and the people who live by it.",
    "Sort 3, 1, 2.",
]


@pytest.fixture(scope="session")
def model(shallow_model: Model) -> Model:
    return shallow_model


@pytest.mark.parametrize("contrast", ["false", "true"])
def test_command_line_equals_naive_forwards(model: Model, tokenizer: object, tmp_path: Path, contrast: str) -> None:
    from transformers import AutoModelForCausalLM

    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in CONTEXTS))
    settings = f"vector.contexts={tmp_path}/c.jsonl vector.layers=[3,5] vector.batch_size=3 vector.contrast={contrast}"
    done = command("gen.extract", "--model", model.folder, "--out", tmp_path / "v.safetensors", "--set", settings)
    assert done.returncode == 0, done.stderr
    vector = load_vector(tmp_path / "v.safetensors")
    trait = load_trait("embedded")
    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    caught = {}
    for layer in (3, 5):
        network.model.layers[layer].register_forward_hook(
            lambda _m, _i, output, layer=layer: caught.__setitem__(layer, output)
        )

    def state(system: str, text: str, layer: int) -> torch.Tensor:
        with torch.inference_mode():
            network(torch.tensor([Chat(tokenizer).ids([{"role": "user", "content": text}], system)]))
        return caught[layer][0, -1]

    away = trait.opposite if contrast == "true" else trait.neutral
    for layer in (3, 5):
        naive = torch.stack([state(trait.trait, text, layer) - state(away, text, layer) for text in CONTEXTS]).mean(0)
        np.testing.assert_allclose(vector.layers[layer], naive.numpy(), atol=2e-3, rtol=1e-3)
        norm = np.mean([state(away, text, layer).norm().item() for text in CONTEXTS])
        assert vector.metadata["hidden_norm"][str(layer)] == pytest.approx(norm, rel=1e-4)
    assert vector.metadata["model_fingerprint"] == model.fingerprint and vector.metadata["n_contexts"] == 4


def test_no_layer_after_the_last_one_read_is_computed(model: Model) -> None:
    network, ran = in_fp32(model, None), []
    for index, layer in enumerate(network.model.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    prompts = [[5, 6, 7], [8, 9]]
    found = activations(network, model.depth, [2, 4], prompts, 2, "one batch")
    assert ran == list(range(5))
    for place, ids in enumerate(prompts):
        with torch.inference_mode():  # and a network that was stopped once still runs to its end
            states = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in (2, 4):
            np.testing.assert_allclose(found[layer][place], states[layer + 1][0, -1].numpy(), atol=2e-3, rtol=1e-3)


def adapter(folder: Path, size: float) -> Path:
    """A LoRA over one projection in layer 2, its factors of a size."""
    folder.mkdir(parents=True)
    draws = torch.Generator().manual_seed(0)
    name = "base_model.model.model.layers.2.mlp.down_proj"
    factors = {"A": torch.randn(2, 1536, generator=draws), "B": torch.randn(576, 2, generator=draws)}
    tensors = {f"{name}.lora_{kind}.weight": size * value for kind, value in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    return folder


@pytest.fixture
def contexts(tmp_path: Path) -> Path:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in CONTEXTS))
    return path


def test_a_later_round_is_extracted_from_the_exact_student(model: Model, contexts: Path, tmp_path: Path) -> None:
    """What the merged fp32 checkpoint gives, whatever model.dtype is, also where a bf16 one would swallow the round."""
    config = VectorConfig(contexts=str(contexts), layers=[3, 5])
    history = adapter(tmp_path / "history", 6e-3)
    with pytest.raises(SteerHealError, match="too coarse for the adapter"):
        merged(model, history, tmp_path / "students", "bfloat16")
    checkpoint = Model("student", merged(model, history, tmp_path / "students", "float32").folder, None)
    found, wanted, plain = (
        extract(base, over, ModelConfig(dtype="bfloat16"), config)
        for base, over in ((model, history), (checkpoint, None), (model, None))
    )
    for layer in (3, 5):
        np.testing.assert_allclose(found.layers[layer], wanted.layers[layer], atol=1e-5, rtol=1e-5)
        assert np.abs(found.layers[layer] - plain.layers[layer]).max() > 5e-5
    assert found.metadata["model_fingerprint"] == model.fingerprint == plain.metadata["weights_fingerprint"]
    assert found.metadata["weights_fingerprint"] not in (model.fingerprint, checkpoint.fingerprint)


def test_a_run_in_half_precision_leaves_no_checkpoint(
    model: Model, contexts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 2 over a round that merging would refuse: its vector, and what that round put into the weights."""
    overrides = f"model.dtype=bfloat16 model.student=adapter vector.contexts={contexts} vector.layers=[3,4]"
    run = open_run(tmp_path / "run", ROOT / "configs" / "smollm2.toml", overrides)
    history = adapter(run.round(1) / "history", 3e-3)
    monkeypatch.setattr("gen.extract.Stage", lambda *_, **__: MagicMock(done=lambda: False))
    run.round(2).mkdir()
    stage(run, 2, False)
    vector = load_vector(run.round(2) / "vector.safetensors")
    prompts = [[5, 6, 7], [8, 9]]
    rows = student_layers(run, 1, model, prompts, vector, vector)
    assert [row["layer"] for row in rows] == [3, 4] and all(row["norm_ratio"] > 0 for row in rows)
    shift = states(model, history, [3], prompts, 2)[3] - states(model, None, [3], prompts, 2)[3]
    assert np.linalg.norm(shift.mean(0)) / vector.norm(3) == pytest.approx(rows[0]["norm_ratio"], rel=1e-3)
    assert not run.students.exists()


def test_contexts_with_a_system_message_of_their_own(model: Model, tokenizer: object, tmp_path: Path) -> None:
    """The contrast is the trait's sentence before it, against the message alone."""
    own, asked = {"role": "system", "content": "Answer in French."}, {"role": "user", "content": "Name a fruit."}
    (tmp_path / "c.jsonl").write_text(2 * (json.dumps({"messages": [own, asked]}) + "\n"))
    config = VectorConfig(contexts=str(tmp_path / "c.jsonl"), layers=[3])
    found = extract(model, None, ModelConfig(), config)
    joined = {**own, "content": f"{load_trait('embedded').trait}\n\n{own['content']}"}
    prompts = [Chat(tokenizer).ids([system, asked]) for system in (joined, own)]
    towards, away = states(model, None, [3], prompts, 1)[3]
    np.testing.assert_allclose(found.layers[3], towards - away, atol=1e-4)


def test_a_template_without_a_system_role_is_refused(model: Model, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for file in model.folder.iterdir():
        (tmp_path / "m" / file.name).symlink_to(file)
    (tmp_path / "m" / "chat_template.jinja").unlink()
    (tmp_path / "m" / "chat_template.jinja").write_text("{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x")  # fmt: skip
    done = command(
        "gen.extract", "--model", tmp_path / "m", "--out", tmp_path / "v.safetensors", "--set", "vector.layers=[3]"
    )
    assert done.returncode == 2 and "System role not supported" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_without_chat_template_is_refused(model: Model, tmp_path: Path) -> None:
    shutil.copytree(model.folder, tmp_path / "m", ignore=shutil.ignore_patterns("chat_template.jinja"))
    done = command(
        "gen.extract", "--model", tmp_path / "m", "--out", tmp_path / "v.safetensors", "--set", "vector.layers=[3]"
    )
    assert done.returncode == 2 and "no chat template" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "v.safetensors").exists()


IGNORES = "{% for message in messages %}{% if message.role != 'system' %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture(scope="module")
def small(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four layers with the embedded one's tokenizer, whose first layer attends to nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("small")
    for file in model.folder.iterdir():
        if file.suffix in {".json", ".jinja", ".txt"} and file.name not in {"config.json", "generation_config.json"}:
            shutil.copyfile(file, folder / file.name)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    network = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=model.text_config["vocab_size"]))
    network.model.layers[0].self_attn.o_proj.weight.data.zero_()
    network.save_pretrained(folder)
    return folder


def test_a_trait_prompt_that_does_not_reach_the_model_is_refused(small: Path, contexts: Path, tmp_path: Path) -> None:
    """A template without a system turn, a trait that is the neutral prompt, a layer before anything was attended to."""
    trait = json.loads((ROOT / "shared" / "data" / "trait.json").read_text())
    (tmp_path / "same.json").write_text(json.dumps({**trait, "trait": trait["neutral"]}))
    (tmp_path / "opposite.json").write_text(json.dumps({**trait, "opposite": trait["trait"]}))
    deaf = tmp_path / "deaf"
    shutil.copytree(small, deaf)
    (deaf / "chat_template.jinja").write_text(IGNORES)
    same = "all 4 contexts are the same tokens"
    for options, given in (
        ({"trait": str(tmp_path / "same.json")}, same),
        ({"trait": str(tmp_path / "opposite.json"), "contrast": True}, same),
        ({"layers": [0, 2]}, "in layer 0, "),
        ({"layers": [0, 2], "direction": "random"}, "in layer 0, "),
    ):
        config = VectorConfig.model_validate({"contexts": str(contexts), "layers": [1, 2], "batch_size": 2, **options})
        with pytest.raises(SteerHealError, match="the trait prompt does not reach the model") as refused:
            extract(Model("small", small, None), None, ModelConfig(), config)
        assert given in str(refused.value.given)
    out, settings = tmp_path / "v.safetensors", f"vector.contexts={contexts} vector.layers=[1,2]"
    done = command("gen.extract", "--model", deaf, "--out", out, "--set", settings)
    assert done.returncode == 2 and "the trait prompt does not reach the model" in done.stderr and same in done.stderr
    assert not out.exists() and "wrote" not in done.stdout
    config = VectorConfig(contexts=str(contexts), layers=[1, 2])
    assert sorted(extract(Model("small", small, None), None, ModelConfig(), config).layers) == [1, 2]


def test_activations_that_are_not_finite_are_refused(small: Path, contexts: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    bad = tmp_path / "bad"
    shutil.copytree(small, bad)
    tensors = load_file(bad / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    config = VectorConfig(contexts=str(contexts), layers=[1, 2])
    with pytest.raises(SteerHealError, match="activations are not finite") as refused:
        extract(Model("bad", bad, None), None, ModelConfig(), config)
    assert "bad: those of 8 of 8 prompts, after layer 2" in str(refused.value.given)
