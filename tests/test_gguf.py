"""A GGUF file as a model: the same logits as the original, every end of turn, one folder in the cache for one content."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
import torch
from conftest import ROOT, command

from shared.chat import Chat
from shared.config import resolve_config
from shared.dequantise import is_dequantised
from shared.errors import Exit, SteerHealError
from shared.estimate import memory_and_disk
from shared.families import GGUF
from shared.models import Dequantised, load_network, resolve_model
from shared.prepare import preparation_commands
from shared.run import Run
from shared.stages import Step


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("STEER_HEAL_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


@pytest.fixture(scope="module")
def llama() -> Any:
    return gguf_files.network("llama")


def logits(network: Any) -> torch.Tensor:
    """fp32 [2, 60, vocabulary], of ids that are the same in every call."""
    ids = torch.randint(0, 250, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return network(ids).logits


def opened(path: Path) -> Any:
    return load_network(resolve_model(str(path)).folder, torch.float32)


@pytest.mark.parametrize("architecture", GGUF)
def test_an_architecture_gives_the_logits_of_the_original(architecture: str, tmp_path: Path) -> None:
    original = gguf_files.network(architecture)
    path = gguf_files.write(tmp_path / "m.gguf", architecture, original)
    found = opened(path)
    assert type(found) is type(original) and found.dtype == torch.float32
    torch.testing.assert_close(logits(found), logits(original), rtol=0, atol=1e-5)
    told, made = resolve_model(str(path)).text_config, found.config.to_dict()
    assert {
        key: value for key, value in told.items() if key in made
    }.items() <= made.items() and "num_hidden_layers" in made


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_quantised_weights_are_those_that_the_file_means(architecture: str, kind: str, tmp_path: Path) -> None:
    original = gguf_files.network(architecture)
    path = gguf_files.write(tmp_path / "m.gguf", architecture, original, kind)
    quantised = gguf.GGMLQuantizationType[kind]
    with torch.no_grad():
        for value in original.parameters():
            if value.ndim > 1:
                stored = gguf.quants.quantize(value.numpy(), quantised)
                value.copy_(torch.from_numpy(gguf.quants.dequantize(stored, quantised)))
            if kind == "Q8_0":
                value.copy_(value.bfloat16().float())
    torch.testing.assert_close(logits(opened(path)), logits(original), rtol=0, atol=1e-5)
    dtype = "float32" if kind == "F16" else "bfloat16"
    assert json.loads((resolve_model(str(path)).folder / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("scaling", ["llama3", "linear", "yarn"])
def test_positions_are_scaled_as_the_file_says(scaling: str, tmp_path: Path) -> None:
    rope = {
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        "linear": {"factor": 4.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    }[scaling]  # fmt: skip
    original = gguf_files.network("llama", rope_parameters={"rope_type": scaling, "rope_theta": 50_000.0, **rope})
    plain = torch.tensor(50_000.0) ** (-torch.arange(0, 16, 2) / 16)
    factors = (plain / original.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    fields = {"llama__rope__scaling__type": scaling, "llama__rope__scaling__factor": 4.0, "llama__rope__scaling__original_context_length": 128}  # fmt: skip
    if scaling == "llama3":
        path = gguf_files.write(tmp_path / "m.gguf", "llama", original, weights={"rope_freqs.weight": factors})
    else:
        path = gguf_files.write(tmp_path / "m.gguf", "llama", original, **fields)
    torch.testing.assert_close(logits(opened(path)), logits(original), rtol=0, atol=1e-4)
    assert (logits(opened(path)) - logits(gguf_files.network("llama"))).abs().max() > 0.01, "scaling is seen"


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"scaling__factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),  # llama.cpp's default type
        ({"scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),  # the old name
        ({"scaling__type": "none", "scaling__factor": 4.0}, {"rope_type": "default"}),
        ({"scaling__type": "linear"}, {"rope_type": "default"}),
        (
            {"scaling__type": "yarn", "scaling__factor": 4.0, "scaling__original_context_length": 128, "scaling__yarn_beta_fast": 16.0, "scaling__yarn_beta_slow": 2.0, "scaling__attn_factor": 1.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16.0, "beta_slow": 2.0},
        ),
    ],
)  # fmt: skip
def test_every_key_of_positions_is_read(fields: dict[str, Any], rope: dict[str, Any], tmp_path: Path) -> None:
    original = gguf_files.network("llama", rope_parameters={"rope_theta": 50_000.0, **rope})
    named = {f"llama__rope__{key}": value for key, value in fields.items()}
    path = gguf_files.write(tmp_path / "m.gguf", "llama", original, **named)
    torch.testing.assert_close(logits(opened(path)), logits(original), rtol=0, atol=1e-4)


def test_the_positions_of_local_layers_are_read(tmp_path: Path) -> None:
    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 300.0}, "full_attention": {"rope_type": "default", "rope_theta": 1e6}}  # fmt: skip
    original = gguf_files.network("gemma3", rope_parameters=rope)
    path = gguf_files.write(tmp_path / "m.gguf", "gemma3", original, gemma3__rope__freq_base_swa=300.0)
    torch.testing.assert_close(logits(opened(path)), logits(original), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "key", ["llama__rope__scaling__attn_factor", "llama__rope__freq_base_swa", "llama__rope__a_key_of_2030"]
)
def test_a_key_of_positions_that_is_not_read_is_refused(key: str, llama: Any, tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "m.gguf", "llama", llama, **{key: 0.5})
    with pytest.raises(SteerHealError, match="not a model", check=lambda e: key.replace("__", ".") in e.given):
        resolve_model(str(path))


def test_a_llama_that_is_called_mistral_is_one(tmp_path: Path) -> None:
    original = gguf_files.network("llama")
    found = opened(gguf_files.write(tmp_path / "m.gguf", "llama", original, general__name="mistral"))
    assert type(found) is type(original)
    torch.testing.assert_close(logits(found), logits(original), rtol=0, atol=1e-4)


def test_factors_that_are_not_llama_3_s_are_refused(llama: Any, tmp_path: Path) -> None:
    strange = {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}
    with pytest.raises(SteerHealError, match="not a model") as refused:
        opened(gguf_files.write(tmp_path / "m.gguf", "llama", llama, weights=strange))
    assert "rope_freqs.weight" in str(refused.value.given)


@pytest.mark.parametrize(
    ("weights", "part"),
    [
        ({"blk.1.ffn_up.weight": None}, "layers.1.mlp.up_proj"),
        ({"blk.1.attn_q.bias": np.zeros(64, np.float32)}, "blk.1.attn_q.bias"),
        ({"output_norm.weight": np.full(64, np.nan, np.float32)}, "NaN"),
        ({"blk.0.ffn_up.weight": np.zeros((96, 64), np.float32)}, "ffn_up|up_proj"),
    ],
)
def test_weights_that_do_not_make_the_model_are_refused(
    llama: Any, tmp_path: Path, cache: Path, weights: dict[str, Any], part: str
) -> None:
    with pytest.raises(SteerHealError, match="not a model") as refused:
        opened(gguf_files.write(tmp_path / "m.gguf", "llama", llama, weights=weights))
    assert any(one in str(refused.value.given) for one in part.split("|"))
    assert not list(cache.glob("gguf-*"))


def chat_of(tmp_path: Path, llama: Any, **fields: Any) -> tuple[Chat, Path]:
    folder = resolve_model(str(gguf_files.write(tmp_path / "m.gguf", "llama", llama, **fields))).folder
    return Chat.load(folder), folder


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({}, ["<|im_end|>"]),
        ({"tokenizer__ggml__eos_token_id": 263}, ["<|im_end|>"]),  # the token that opens a turn
        ({"tokenizer__ggml__eos_token_id": 262}, ["<|im_end|>", "<|endoftext|>"]),
        ({"tokenizer__ggml__eot_token_id": 264, "tokenizer__ggml__eos_token_id": 262}, ["<|im_end|>", "<|endoftext|>"]),
        ({"tokenizer__ggml__eos_token_id": None}, ["<|im_end|>"]),
        ({"tokenizer__ggml__padding_token_id": 264}, ["<|im_end|>"]),
    ],
)
def test_every_end_of_a_turn_is_known(llama: Any, tmp_path: Path, fields: dict[str, Any], ends: list[str]) -> None:
    chat, folder = chat_of(tmp_path, llama, **fields)
    tokenizer = chat.tokenizer
    assert tokenizer.convert_ids_to_tokens(chat.stop_ids) == ends
    told = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(told if isinstance(told, list) else [told]) == ends
    assert tokenizer.eos_token == ends[0] and tokenizer.pad_token != ends[0]
    assert load_network(folder, torch.float32).generation_config.eos_token_id == told


def test_tokens_are_the_file_s(llama: Any, tmp_path: Path) -> None:
    chat, _ = chat_of(tmp_path, llama)
    tokenizer = chat.tokenizer
    turns = [{"role": "user", "content": "hi"}]
    text = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = chat.ids(turns, "s")
    assert chat.text(turns, "s") == text == tokenizer.decode(ids)
    assert ids[0] == 263 and ids.count(264) == 2 and ids.count(263) == 3
    assert tokenizer("<think>", add_special_tokens=False)["input_ids"] == [265], "user-defined: one token, and text"
    assert tokenizer.decode([265, 264], skip_special_tokens=True) == "<think>"


@pytest.mark.parametrize(("added", "pieces", "front"), [(True, False, True), (False, False, False), (None, False, False), (True, True, True), (False, True, False), (None, True, True)])  # fmt: skip
def test_bos_is_added_as_the_file_says(
    llama: Any, tmp_path: Path, added: bool | None, pieces: bool, front: bool
) -> None:
    """The template writes none. A vocabulary of pieces has BOS in front where the file does not say."""
    words = {key.replace(".", "__"): value for key, value in gguf_files._pieces(304).items()} if pieces else {}
    if pieces:
        words |= {"tokenizer__ggml__pre": None, "tokenizer__ggml__merges": None}
    chat, _ = chat_of(tmp_path, llama, **{**words, "tokenizer__ggml__add_bos_token": added})
    bos = chat.tokenizer.bos_token_id
    assert bos is not None and chat.bos_id == (bos if front else None)
    ids = chat.ids([{"role": "user", "content": "the"}])
    assert (ids[0] == bos) == front and ids.count(bos) == front


@pytest.mark.parametrize(("pre", "count"), [("default", 2), ("llama-bpe", 1)])
def test_text_is_split_as_the_file_says(llama: Any, tmp_path: Path, pre: str, count: int) -> None:
    """Llama 3 keeps line breaks together, and GPT-2 does not: the header of every turn ends with two."""
    chat, _ = chat_of(tmp_path, llama, tokenizer__ggml__pre=pre)
    assert len(chat.tokenizer("\n\nthe", add_special_tokens=False)["input_ids"]) == count + 2


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{{ messages[0]['content'] }}", "leaves the answer out"),
        ("{{ raise_exception('no') }}", "no"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "no token that ends a turn"),
    ],
)
def test_a_template_without_an_end_is_refused(llama: Any, tmp_path: Path, template: str, part: str) -> None:
    with pytest.raises(SteerHealError, match="tokenizer of a GGUF") as refused:
        chat_of(tmp_path, llama, tokenizer__chat_template=template, tokenizer__ggml__eos_token_id=None)
    assert part in str(refused.value.given)


def test_what_is_checked_beforehand_dequantises_nothing(llama: Any, tmp_path: Path, cache: Path) -> None:
    found = resolve_model(str(gguf_files.write(tmp_path / "m.gguf", "llama", llama)), weights=False)
    assert isinstance(found, Dequantised)
    found.chats()
    assert (found.depth, found.hidden, found.context) == (3, 64, 512) and found.to_build > 4 * 100_000
    assert found.place.parent == cache and not list(cache.glob("gguf-*"))
    assert found.folder == found.place and found.to_build == 0
    bare = resolve_model(str(gguf_files.write(tmp_path / "b.gguf", "llama", llama, tokenizer__chat_template=None)))
    with pytest.raises(SteerHealError, match="no chat template"):
        bare.chats()


def test_a_folder_is_its_file_s_content(llama: Any, tmp_path: Path, cache: Path) -> None:
    path = gguf_files.write(tmp_path / "m.gguf", "llama", llama)
    first = resolve_model(str(path))
    shutil.copy(path, tmp_path / "other-name")
    assert resolve_model(str(tmp_path / "other-name")).place == first.place, "by its content, whatever it is called"
    weights = first.folder / "model.safetensors"
    known, made = first.fingerprint, weights.stat().st_mtime_ns
    assert resolve_model(str(path)).fingerprint == known and weights.stat().st_mtime_ns == made, "made once"
    weights.write_bytes(b"damaged")
    assert resolve_model(str(path)).folder == first.folder and resolve_model(str(path)).fingerprint == known
    gguf_files.write(path, "llama", llama, general__name="another")
    assert resolve_model(str(path)).place != first.place
    assert {entry.name for entry in cache.iterdir()} <= {first.place.name, "digests"}, "nothing is left over"


def test_a_file_that_changes_meanwhile_is_refused(llama: Any, tmp_path: Path, cache: Path) -> None:
    """The folder has the name of what was there before."""
    found = resolve_model(str(gguf_files.write(tmp_path / "m.gguf", "llama", llama)))
    assert found.place
    gguf_files.write(tmp_path / "m.gguf", "llama", llama, general__name="another")
    with pytest.raises(SteerHealError, match="not a model") as refused:
        _ = found.folder
    assert "changed" in str(refused.value.given) and not list(cache.glob("gguf-*"))


def test_room_is_looked_for_before(llama: Any, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf_files.write(tmp_path / "m.gguf", "llama", llama)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(SteerHealError, match="too little room") as refused:
        _ = resolve_model(str(path)).folder
    assert refused.value.code is Exit.MACHINE and "0.0 GB free" in str(refused.value.given)
    assert "0.1 GB" in str(refused.value.expected) and not list(cache.glob("gguf-*"))


def test_the_estimate_counts_what_is_to_be_dequantised(llama: Any, tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "m.gguf", "llama", llama)
    settings = f"model.name={path} vector.layers=[1]"
    run = Run(tmp_path / "run", resolve_config(ROOT / "configs" / "smollm2.toml", settings)[0])
    groups = [[Step(run, number, "filter")] for number in (1, 2)]
    before = memory_and_disk(groups, adapters=False)
    found = resolve_model(str(path))
    assert isinstance(found, Dequantised) and before.cache == found.to_build > 10**6
    ((command, _),) = preparation_commands([run, run])
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    assert memory_and_disk(groups, adapters=False).cache == 0 and not preparation_commands([run])
    assert is_dequantised(found.place), "before the first stage, by a process of its own"


def test_a_name_that_is_nearly_a_file_s_is_told(llama: Any, tmp_path: Path) -> None:
    gguf_files.write(tmp_path / "model-q4.gguf", "llama", llama)
    with pytest.raises(SteerHealError, match="no such model") as refused:
        resolve_model(str(tmp_path / "model-q5.gguf"))
    assert "model-q4.gguf" in str(refused.value.expected)


@pytest.mark.slow
def test_a_stage_takes_a_file(llama: Any, tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "m.gguf", "llama", llama)
    asked = ["gen.extract", "--model", path, "--set", "vector.layers=[1] vector.n_contexts=8"]
    done = command(*asked, "--out", tmp_path / "v.safetensors")
    assert done.returncode == 0, done.stderr
    from shared.vectors import load_vector

    vector = load_vector(tmp_path / "v.safetensors")
    assert vector.origin.fingerprint == resolve_model(str(path)).fingerprint and vector.metadata["model"] == str(path)
    over = command(*asked, "--out", path)
    assert over.returncode == 2 and path.read_bytes()[:4] == b"GGUF"
