"""Adapters of strangers, made by PEFT: each kind is merged as PEFT computes it, or refused by name, on every road."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
)

from gen.students import served_student
from shared.adapters import BASE, Base, load_adapter, loads_from, note_base
from shared.errors import SteerHealError
from shared.fitting import admitted
from shared.folding import exact_network, fold
from shared.merging import merged
from shared.models import Model, resolve_model
from shared.vectors import Vector

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip
IDS = torch.arange(10)[None]
SHIFT = 0.3  # of every factor, so that an adapter that is lost or scaled wrongly is seen


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(LlamaConfig(**SIZE)).save_pretrained(folder)
    return resolve_model(str(folder))


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Gemma 3 with its vision tower."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gemma")
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(text_config={**SIZE, "head_dim": 8}, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return resolve_model(str(folder))


def make(base: Model, folder: Path, *, keep: bool = False, **options: object) -> Path:
    """An adapter that PEFT made and saved; keep: with the factors as they were initialised."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options}
    network = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    network = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    for name, value in network.named_parameters():
        if "lora_" in name and not keep:
            torch.nn.init.normal_(value, std=SHIFT)
    network.save_pretrained(folder, save_embedding_layers=False)
    return folder


def edited(folder: Path, **fields: object) -> Path:
    """Fields of an adapter's configuration, changed in place."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def renamed(folder: Path, change: Callable[[str], str]) -> Path:
    """Tensors of an adapter under other names, in place."""
    path = folder / "adapter_model.safetensors"
    save_file({change(name): value for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    return folder


@torch.inference_mode()
def logits(network: Any) -> torch.Tensor:
    return network.eval()(IDS).logits


def original(model: Model) -> Any:
    return AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)


def served(model: Model, folder: Path, cache: Path, road: str) -> None:
    """What a road does with an adapter before an engine starts."""
    if road == "exact":
        exact_network(model, folder)
    elif road == "server":
        merged(model, folder, cache, "float32")
    else:
        served_student(model, folder, cache, "float32", road)


ROADS = ["merged", "adapter", "server", "exact"]
PLAIN: dict[str, dict[str, object]] = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "not initialised": {"init_lora_weights": False},
    "transposed": {"fan_in_fan_out": True},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6}},
    "alphas": {"alpha_pattern": {"q_proj": 3}},
    "ranks, alphas, rslora": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 5, "proj": 1}, "use_rslora": True},
    "two layers": {"layers_to_transform": [0, 2]},
    "one layer by pattern": {"layers_to_transform": 1, "layers_pattern": "layers"},
    "excluded": {"exclude_modules": ["layers.1.mlp.down_proj"]},
    "regular expression": {"target_modules": r".*layers\.[02]\.self_attn\.[qkv]_proj"},
    "all linear": {"target_modules": "all-linear"},
}  # fmt: skip


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_lora_is_merged_and_folded_as_peft_computes_it(base: Model, tmp_path: Path, kind: str) -> None:
    folder = make(base, tmp_path / "a", **PLAIN[kind])
    wanted = logits(PeftModel.from_pretrained(original(base), folder))
    assert (wanted - logits(original(base))).abs().max() > 0.05
    found = original(merged(base, folder, tmp_path / "students", "float32"))
    torch.testing.assert_close(logits(found), wanted, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits(exact_network(base, folder)), wanted, atol=2e-5, rtol=1e-4)
    fold([(folder, 1.0)], tmp_path / "history")
    history = PeftModel.from_pretrained(original(base), tmp_path / "history")
    torch.testing.assert_close(logits(history), wanted, atol=2e-5, rtol=1e-4)
    loaded = served_student(base, folder, tmp_path / "students", "float32", "adapter")
    assert loaded.adapter == folder and loaded.rank >= load_adapter(folder).rank


def test_rounds_of_different_kinds_fold_into_their_sum(base: Model, tmp_path: Path) -> None:
    """rsLoRA and ranks by module beside plain LoRA: the scale of each is its own."""
    kinds = [PLAIN["ranks, alphas, rslora"], PLAIN["plain"]]
    folders = [make(base, tmp_path / str(index), **kind) for index, kind in enumerate(kinds)]
    fold([(folder, gate) for folder, gate in zip(folders, (1.0, 0.5), strict=True)], tmp_path / "history")
    wanted = original(base)
    for folder, gate in zip(folders, (1.0, 0.5), strict=True):
        peft = PeftModel.from_pretrained(original(base), folder).merge_and_unload()
        before = original(base).state_dict()
        with torch.no_grad():
            for name, value in wanted.named_parameters():
                value += gate * (peft.state_dict()[name] - before[name])
    found = PeftModel.from_pretrained(original(base), tmp_path / "history")
    torch.testing.assert_close(logits(found), logits(wanted), atol=2e-5, rtol=1e-4)


MADE: dict[str, dict[str, object]] = {  # by PEFT
    "use_dora": {"use_dora": True},
    "init_lora_weights 'pissa'": {"init_lora_weights": "pissa"},
    "init_lora_weights 'olora'": {"init_lora_weights": "olora"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 3]]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2]},
    "trainable_token_indices": {"trainable_token_indices": [3, 4]},
}
WRITTEN: dict[str, dict[str, object]] = {  # PEFT makes these with data, a GPU or another package
    "init_lora_weights 'loftq'": {"init_lora_weights": "loftq"},
    "init_lora_weights 'corda'": {"init_lora_weights": "corda"},
    "init_lora_weights 'eva'": {"init_lora_weights": "eva"},
    "corda_config": {"corda_config": {"corda_method": "ipm"}},
    "eva_config": {"eva_config": {"rho": 2.0}},
    "use_qalora": {"use_qalora": True},
    "use_bdlora": {"use_bdlora": {"nblocks": 2}},
    "kasa_config": {"kasa_config": {}},
    "arrow_config": {"arrow_config": {"top_k": 1}},
    "lora_ga_config": {"lora_ga_config": {"a": 1}},
    "megatron_config": {"megatron_config": {"a": 1}},
    "target_parameters": {"target_parameters": ["mlp.experts.down_proj"]},
    "bias 'all'": {"bias": "all"},
    "peft_type 'LOHA'": {"peft_type": "LOHA"},
    "a_field_of_2030": {"a_field_of_2030": "on"},
}


@pytest.mark.parametrize("field", [*MADE, *WRITTEN])
def test_other_kinds_are_refused_by_the_name_of_their_field(base: Model, tmp_path: Path, field: str) -> None:
    if field in MADE:
        folder = make(base, tmp_path / "a", keep=True, **MADE[field])
    else:
        folder = edited(make(base, tmp_path / "a"), **WRITTEN[field])
    for road in ROADS:
        with pytest.raises(SteerHealError) as refused:
            served(base, folder, tmp_path / "students", road)
        assert field in str(refused.value.given), road


@pytest.mark.parametrize("road", ROADS)
def test_modules_that_the_model_lacks_are_refused_by_name(
    base: Model, nested: Model, tmp_path: Path, road: str
) -> None:
    """vLLM and PEFT leave them out without a word, and the base would be scored as the student."""
    q = "model.layers.{}.self_attn.q_proj"
    for name, change in {
        "a text tower's": lambda name: name.replace("model.layers", "model.language_model.layers"),
        "beyond": lambda name: name.replace("layers.2", "layers.40"),
        "misspelt": lambda name: name.replace("layers.1.self_attn.q_proj", "layers.1.self_attn.query_proj"),
    }.items():
        folder = edited(renamed(make(base, tmp_path / name, target_modules=["q_proj"]), change), target_modules=["q_proj", "query_proj"])  # fmt: skip
        with pytest.raises(SteerHealError, match="the model lacks") as refused:
            served(base, folder, tmp_path / "students", road)
        lost = next(name for name in load_adapter(folder).modules if name not in {q.format(n) for n in range(3)})
        assert lost in str(refused.value.given) and ".self_attn.q_proj" in str(refused.value.expected)
    wide = tmp_path / "wide"
    LlamaForCausalLM(LlamaConfig(**{**SIZE, "hidden_size": 64})).save_pretrained(wide)
    with pytest.raises(SteerHealError, match="does not fit") as refused:
        served(base, make(resolve_model(str(wide)), tmp_path / "of a wider one"), tmp_path / "students", road)
    assert "down_proj [64, 48]" in str(refused.value.given) and "[32, 48]" in str(refused.value.expected)
    with pytest.raises(SteerHealError, match="the model lacks", check=lambda e: "layers_to_transform 5" in e.given):
        served(base, edited(make(base, tmp_path / "layers"), target_modules=".*(q|down)_proj", layers_to_transform=[0, 5]), tmp_path / "students", road)  # fmt: skip
    with pytest.raises(SteerHealError, match=r"does not fit|cannot apply|the model lacks"):
        served(base, make(nested, tmp_path / "of a wrapper", target_modules=["q_proj"]), tmp_path / "students", road)


@pytest.mark.parametrize("road", ROADS)
def test_an_adapter_of_other_weights_is_refused_by_its_note(base: Model, tmp_path: Path, road: str) -> None:
    folder = edited(make(base, tmp_path / "a"), base_model_name_or_path="someone/the-same-weights")
    note_base(folder, Base(model="someone/the-same-weights", fingerprint=base.fingerprint))
    served(base, folder, tmp_path / "students", road)
    note_base(folder, Base(model="someone/others", fingerprint="f" * 64))
    with pytest.raises(SteerHealError, match="another model") as refused:
        served(base, folder, tmp_path / "students", road)
    assert "someone/others" in str(refused.value.given)


@pytest.mark.parametrize("road", ROADS)
def test_a_stranger_s_adapter_over_another_folder_is_refused(base: Model, tmp_path: Path, road: str) -> None:
    """Of the same architecture: without the check it would be merged, and called a student of this model."""
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**SIZE)).save_pretrained(tmp_path / "other")
    folder = make(resolve_model(str(tmp_path / "other")), tmp_path / "a")
    with pytest.raises(SteerHealError, match="another model") as refused:
        served(base, folder, tmp_path / "students", road)
    assert str(tmp_path / "other") in str(refused.value.given) and str(tmp_path / "other") in refused.value.next
    shutil.copytree(base.folder, tmp_path / "copy")
    (tmp_path / "copy" / "notes.txt").write_text("the same weights")
    served(base, edited(folder, base_model_name_or_path=str(tmp_path / "copy")), tmp_path / "students", road)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("owner/name", None),
        ("Owner/Name", None),
        ("unsloth/name-unsloth-bnb-4bit", "not compared"),
        ("/elsewhere/name", "cannot be compared"),
        ("owner/name-base", "refused"),
        ("owner/other", "refused"),
        (None, None),
    ],
)
def test_a_stranger_s_adapter_of_a_model_on_the_hub(
    base: Model, tmp_path: Path, named: str | None, told: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model("owner/name", base.folder, "a" * 40)
    folder = edited(make(base, tmp_path / "a"), base_model_name_or_path=named)
    if told == "refused":
        with pytest.raises(SteerHealError, match="another model", check=lambda e: str(named) in e.given):
            admitted(folder, model)
        return
    admitted(folder, model)
    admitted(folder, model)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("as its base") == (told is not None) and (told or "") in said


def test_tensors_that_the_configuration_does_not_name_are_refused(base: Model, tmp_path: Path) -> None:
    """PEFT leaves them out; merged or served they would count."""
    for fields, lost in (
        ({"target_modules": ["q_proj"]}, "model.layers.0.mlp.down_proj"),
        ({"layers_to_transform": [0, 1]}, "model.layers.2.mlp.down_proj"),
        ({"exclude_modules": ["layers.1.self_attn.q_proj"]}, "model.layers.1.self_attn.q_proj"),
        ({"target_modules": r"model\.layers\.[01]\..*"}, "model.layers.2.mlp.down_proj"),
    ):
        folder = edited(make(base, tmp_path / "a"), **fields)
        with pytest.raises(SteerHealError) as refused:
            load_adapter(folder)
        assert f"{lost} has tensors" in str(refused.value.given)


def test_ranks_and_tensors_that_are_not_as_configured_are_refused(base: Model, tmp_path: Path) -> None:
    for fields, said in (
        ({"r": 5}, r"factors of rank 5"),
        ({"rank_pattern": {"q_proj": 3}}, r"q_proj: A \[4, 32\], B \[32, 4\]"),
        ({"rank_pattern": {"q_proj": "4"}}, "rank '4'"),
        ({"rank_pattern": {"(": 4}}, "adapter_config.json"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha None"),
        ({"lora_alpha": True}, "alpha True"),
        ({"target_modules": 3}, "target_modules is 3"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform"),
        ({"use_rslora": "yes"}, "use_rslora"),
    ):
        with pytest.raises(SteerHealError, match=said):
            load_adapter(edited(make(base, tmp_path / "a"), **fields))
    for change in (
        lambda name: name.replace("lora_A.weight", "lora_A.default.weight"),
        lambda name: name.replace("base_model.model.", ""),
        lambda name: name.replace("layers.0.self_attn.q_proj.lora_B.weight", "layers.0.self_attn.q_proj.lora_magnitude_vector"),
    ):  # fmt: skip
        with pytest.raises(SteerHealError, match="tensor"):
            load_adapter(renamed(make(base, tmp_path / "b"), change))


def test_heads_and_embeddings_are_not_changed_behind_the_models_back(base: Model, tmp_path: Path) -> None:
    """A head that is the embedding as well would change what every token looks like."""
    folder = make(base, tmp_path / "a", target_modules=["lm_head"])
    wanted = logits(PeftModel.from_pretrained(original(base), folder))
    found = original(merged(base, folder, tmp_path / "students", "float32"))
    torch.testing.assert_close(logits(found), wanted, atol=2e-5, rtol=1e-4)
    with pytest.raises(SteerHealError, match="the engine cannot apply"):
        served_student(base, folder, tmp_path / "students", "float32", "adapter")
    tied = tmp_path / "tied"
    LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=True)).save_pretrained(tied)
    with pytest.raises(SteerHealError, check=lambda e: "lm_head" in e.given):
        admitted(folder, resolve_model(str(tied)))


def test_the_language_model_of_a_multimodal_one(nested: Model, tmp_path: Path) -> None:
    """By Transformers' names and by those of its checkpoint; by a text model's it is merged, since vLLM would leave it out."""
    pattern = r".*language_model.*\.(q|down)_proj"
    folder = make(nested, tmp_path / "a", target_modules=pattern)
    assert all(name.startswith("model.language_model.layers.") for name in load_adapter(folder).modules)
    wanted = logits(PeftModel.from_pretrained(original(nested), folder))
    assert (wanted - logits(original(nested))).abs().max() > 0.05
    assert served_student(nested, folder, tmp_path / "students", "float32", "adapter").adapter == folder
    for name, prefix in (("b", "language_model.model.layers"), ("c", "model.layers")):
        other = renamed(make(nested, tmp_path / name, target_modules=pattern), lambda name: name.replace("model.language_model.layers", prefix))  # noqa: B023  # fmt: skip
        edited(other, target_modules=["q_proj", "down_proj"])
        for one in (folder, other):
            found = original(merged(nested, one, tmp_path / "students", "float32"))
            torch.testing.assert_close(logits(found), wanted, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(logits(exact_network(nested, one)), wanted, atol=2e-5, rtol=1e-4)
    assert served_student(nested, tmp_path / "b", tmp_path / "students", "float32", "adapter").adapter == tmp_path / "b"
    with pytest.raises(SteerHealError, match="the engine cannot apply") as refused:
        served_student(nested, tmp_path / "c", tmp_path / "students", "float32", "adapter")
    assert "model.layers.0" in str(refused.value.given) and "model.student=merged" in refused.value.next


def test_square_transposed_weights_are_refused(base: Model, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)).save_pretrained(tmp_path / "gpt2")
    path = tmp_path / "gpt2" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 2, "hidden_size": 32}))
    model = resolve_model(str(tmp_path / "gpt2"))
    folder = make(model, tmp_path / "a", target_modules=["attn.c_proj"], fan_in_fan_out=True)
    with pytest.raises(SteerHealError, match="Conv1D"):
        admitted(folder, model)


def test_a_server_is_not_started_over_an_adapter_that_does_not_fit(
    base: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gen.serve import main

    Vector({1: np.ones(576, dtype=np.float32)}).save(tmp_path / "v.safetensors")
    options = [
        "--model",
        "embedded",
        "--adapter",
        make(base, tmp_path / "a"),
        "--vector",
        f"t={tmp_path}/v.safetensors",
    ]
    monkeypatch.setattr(sys, "argv", ["gen.serve", *map(str, options)])
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("a server was started"))
    with pytest.raises(SteerHealError, check=lambda e: "model.layers.0" in e.given):
        main()


def test_a_folded_history_says_whose_it_is_and_loads_as_it_stands(base: Model, tmp_path: Path) -> None:
    """By Transformers and PEFT alone, from its path."""
    folders = [make(base, tmp_path / str(number)) for number in (1, 2)]
    for number, folder in enumerate(folders, start=1):
        edited(folder, base_model_name_or_path=loads_from(base))
        note_base(folder, Base(model=base.name, fingerprint=base.fingerprint, dtype="bfloat16", round=number))
    fold([(folder, 1.0) for folder in folders], tmp_path / "history")
    note = json.loads((tmp_path / "history" / BASE).read_text())
    assert (note["fingerprint"], note["dtype"], note["round"]) == (base.fingerprint, "bfloat16", 2)
    card = (tmp_path / "history" / "README.md").read_text()
    assert base.fingerprint in card and "`bfloat16`" in card and "round 1 at gate 1, round 2 at gate 1" in card
    assert str(base.folder) not in card and "this is not the student" not in card, (
        "a path of this machine is not published"
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "history", dtype=torch.float32)
    wanted = original(merged(base, tmp_path / "history", tmp_path / "students", "float32"))
    torch.testing.assert_close(logits(loaded), logits(wanted), atol=2e-5, rtol=1e-4)
    fold([(folders[1], 1.0)], tmp_path / "second alone")
    assert "this is not the student of round 2" in (tmp_path / "second alone" / "README.md").read_text()


def test_a_model_of_the_hub_is_named_by_its_id_and_revision(base: Model, tmp_path: Path) -> None:
    """PEFT takes the revision out of adapter_config.json; main, which is not in this cache, would not be found."""
    revision = "a" * 40
    snapshot = tmp_path / "models--owner--name" / "snapshots" / revision
    shutil.copytree(base.folder, snapshot)
    model = Model("owner/name", snapshot, revision)
    folder = edited(make(model, tmp_path / "a"), base_model_name_or_path=loads_from(model), revision=model.revision)
    wanted = logits(exact_network(model, folder))
    note_base(folder, Base(model=model.name, revision=revision, fingerprint=model.fingerprint, round=1))
    fold([(folder, 1.0)], tmp_path / "history")
    options = {"cache_dir": tmp_path, "local_files_only": True, "dtype": torch.float32}
    found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "history", **options)
    torch.testing.assert_close(logits(found), wanted, atol=2e-5, rtol=1e-4)
    card = (tmp_path / "history" / "README.md").read_text()
    assert f"'owner/name', revision='{revision}'" in card and "base_model: owner/name" in card
