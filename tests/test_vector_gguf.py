"""Control vectors in GGUF: what is written is read, by us and as llama.cpp and repeng read it, and block for block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
from conftest import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.errors import SteerHealError
from shared.vectors import Vector, load_vector

WIDTH = 8
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
LAYERS = st.dictionaries(
    st.integers(1, 200), arrays(np.float32, WIDTH, elements=FLOATS).filter(lambda values: values.any()), min_size=1, max_size=5
)  # fmt: skip
METADATA = st.fixed_dictionaries(
    {},
    optional={
        "positions": st.sampled_from(["all", "generated"]),
        "trait": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
        "model_fingerprint": st.just("0" * 64),
        "n_contexts": st.integers(0, 10**6),
        "split_half_cosine": st.dictionaries(st.sampled_from(["1", "2"]), st.floats(-1, 1)),
    },
)


def theirs(path: Path, directions: dict[str, np.ndarray], architecture: str = "controlvector", **fields: Any) -> Path:
    """A file as repeng's ControlVector.export_gguf writes it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for key, value in fields.items():
        writer.add_string(key.replace("__", "."), value)
    for name, values in directions.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@given(layers=LAYERS, metadata=METADATA)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path: Path, layers: dict[int, np.ndarray], metadata: dict[str, Any]) -> None:
    """Through GGUF and through safetensors: bit for bit, with the metadata."""
    vector = Vector(layers, metadata)
    vector.save(tmp_path / "v.gguf")
    load_vector(tmp_path / "v.gguf").save(tmp_path / "v.safetensors")
    for name in ("v.gguf", "v.safetensors"):
        back = load_vector(tmp_path / name)
        assert back.digest() == vector.digest() and back.metadata == metadata


def test_it_is_read_as_repeng_and_llama_cpp_read_it(tmp_path: Path) -> None:
    vector = Vector({3: np.arange(1, 5, dtype=np.float32), 5: np.ones(4, np.float32)}, {"model_type": "qwen2"})
    vector.save(tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector" and fields["controlvector.model_hint"] == "qwen2"
    assert fields["controlvector.layer_count"] == 2 and json.loads(fields["steer_heal.provenance"])["version"] == 1
    directions = {int(tensor.name.removeprefix("direction.")): tensor for tensor in reader.tensors}
    assert sorted(directions) == [3, 5]
    for layer, tensor in directions.items():
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and len(tensor.shape) == 1
        np.testing.assert_array_equal(tensor.data, vector.layers[layer])
    # llama.cpp: common_control_vector_load_one puts direction.l at (l - 1) * n, llama_adapter_cvec::apply takes tensors[il] from
    # (il - 1) * n, and tensors[il] is added to the output of block il, counted from 0.
    flat = np.zeros(5 * 4, np.float32)
    for layer, tensor in directions.items():
        flat[(layer - 1) * 4 : layer * 4] += tensor.data
    added = {block: flat[(block - 1) * 4 : block * 4] for block in range(1, 6)}
    for block, values in added.items():
        np.testing.assert_array_equal(values, vector.layers.get(block, np.zeros(4)))


def test_a_direction_of_repeng_is_of_the_block_that_we_steer() -> None:
    """repeng takes direction l from hidden_states[l + 1], and we layer.l from a hook behind block l: the same states."""
    import torch

    from gen.extract import activations

    network = gguf_files.network("llama")
    ids = torch.arange(20).reshape(1, -1)
    with torch.inference_mode():
        states = network(ids, output_hidden_states=True).hidden_states
    found = activations(network, 3, [0, 1], [ids[0].tolist()], 1, "test")
    for layer, values in found.items():
        np.testing.assert_allclose(values[0], states[layer + 1][0, -1].numpy(), atol=1e-6)


def test_a_stranger_s_file_is_read(tmp_path: Path) -> None:
    """Without our keys; a direction of zeros is a layer that is not steered, as in llama.cpp."""
    named = {f"direction.{layer}": np.full(4, layer, np.float32) for layer in (7, 1, 12)}
    path = theirs(tmp_path / "v.gguf", {**named, "direction.2": np.zeros(4, np.float32)})
    vector = load_vector(path)
    assert sorted(vector.layers) == [1, 7, 12] and vector.layers[12].tolist() == [12] * 4
    assert vector.metadata == {"model_type": "llama"} and vector.relative_dose(1.0) == {}
    path.rename(tmp_path / "v.bin")
    assert load_vector(tmp_path / "v.bin").digest() == vector.digest(), "by what it is, not by its name"


ONE = {"direction.1": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    ("directions", "fields", "part"),
    [
        (ONE, {"architecture": "llama"}, "architecture llama"),
        ({"direction.0": np.ones(4, np.float32)}, {}, "direction.0"),
        ({"direction.-1": np.ones(4, np.float32)}, {}, "direction.-1"),
        ({"direction.01": np.ones(4, np.float32)}, {}, "direction.01"),
        ({"layer.1": np.ones(4, np.float32)}, {}, "layer.1"),
        ({"direction.1": np.ones(4, np.float16)}, {}, "F16"),
        ({"direction.1": np.ones((2, 2), np.float32)}, {}, "[2, 2]"),
        ({"direction.1": np.zeros(4, np.float32)}, {}, "none other than 0"),
        ({}, {}, "0 directions"),
        ({"direction.1": np.array([1, np.nan], np.float32)}, {}, "NaN"),
        ({"direction.1": np.array([np.inf, 1], np.float32)}, {}, "infinite"),
        ({**ONE, "direction.2": np.ones(3, np.float32)}, {}, "[3]"),
        (ONE, {"steer_heal__provenance": "{"}, "v.gguf"),
        (ONE, {"steer_heal__provenance": "[1]"}, "v.gguf"),
        (ONE, {"steer_heal__provenance": '{"version": 9}'}, "version 9"),
        (ONE, {"steer_heal__provenance": '{"positions": "some"}'}, "positions"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, directions: dict[str, Any], fields: dict[str, Any], part: str) -> None:
    with pytest.raises(SteerHealError, match="could not be used") as refused:
        load_vector(theirs(tmp_path / "v.gguf", directions, **fields))
    assert part in str(refused.value.given)


def test_block_0_cannot_be_written(tmp_path: Path) -> None:
    vector = Vector({0: np.ones(4, np.float32), 1: np.ones(4, np.float32)})
    with pytest.raises(SteerHealError, match="cannot steer block 0"):
        vector.save(tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


def convert(*words: object) -> Any:
    return command("shared.main", "vector", "convert", *words)


def test_the_command_converts_both_ways(tmp_path: Path) -> None:
    vector = Vector({14: np.ones(576, np.float32)}, {"positions": "generated", "trait": "ß", "model": "embedded"})
    vector.save(tmp_path / "v.safetensors")
    out = convert("--in", tmp_path / "v.safetensors", "--out", tmp_path / "v.gguf", "--model", "embedded")
    assert out.returncode == 0 and "layers 14, width 576" in out.stdout and "all positions" in out.stdout, out.stderr
    assert gguf.GGUFReader(tmp_path / "v.gguf").fields["controlvector.model_hint"].contents() == "llama"
    back = convert("--in", tmp_path / "v.gguf", "--out", tmp_path / "back.safetensors")
    assert back.returncode == 0, back.stderr
    found = load_vector(tmp_path / "back.safetensors")
    assert found.digest() == vector.digest() and found.metadata == {**vector.metadata, "model_type": "llama"}


def test_the_command_refuses(tmp_path: Path) -> None:
    path = theirs(tmp_path / "v.gguf", {"direction.30": np.ones(576, np.float32)})
    deep = convert("--in", path, "--out", tmp_path / "v.safetensors", "--model", "embedded")
    assert deep.returncode == 2 and "layers [30]" in deep.stderr and "0 to 29" in deep.stderr
    for out, part in ((path, "written over"), (tmp_path / "v.txt", "wrong suffix")):
        done = convert("--in", path, "--out", out)
        assert done.returncode == 2 and part in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.gguf"]


@pytest.mark.parametrize("stage", ["gen.sweep", "gen.serve", "evals.score"])
def test_a_stage_takes_a_control_vector(tmp_path: Path, stage: str) -> None:
    """It is read, and found to be of another width than the model."""
    path = theirs(tmp_path / "v.gguf", ONE)
    (tmp_path / "p.jsonl").write_text('{"prompt": "hi"}\n')
    words = {
        "gen.sweep": ["--model", "embedded", "--vector", path, "--prompts", tmp_path / "p.jsonl", "--coefficients", 0, 1, "--out", tmp_path / "s.jsonl"],
        "gen.serve": ["--model", "embedded", "--vector", f"trait={path}"],
        "evals.score": ["--model", "embedded", "--vector", path, "--coefficient", 1, "--out", tmp_path / "s.jsonl"],
    }[stage]  # fmt: skip
    done = command(stage, *words)
    assert done.returncode == 2 and "width 4" in done.stderr and "width 576" in done.stderr, done.stderr
