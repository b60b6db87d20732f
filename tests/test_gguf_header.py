"""The header of a GGUF file: what is read, what is refused, and that nothing in a file makes it fail in another way."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.embedded import embedded_gguf
from shared.errors import SteerHealError
from shared.families import GGUF
from shared.gguf_header import TYPES, read_header
from shared.gguf_model import REST, bytes_of, dtype_of, read_model
from shared.models import Model, resolve_model


def small(path: Path, architecture: str = "llama", tensors: int = 2, alignment: int = 32, **fields: Any) -> Path:
    """A file with the keys of a tiny llama, and no weights that make one."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_custom_alignment(alignment)
    values = {
        "block_count": 1, "embedding_length": 32, "feed_forward_length": 32, "attention.head_count": 2, "context_length": 64,
    }  # fmt: skip
    for key, value in values.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ß"])
    writer.add_array("tokenizer.ggml.token_type", [1, 1, 3])
    for key, value in {"tokenizer.chat_template": "x", **fields}.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key.replace("__", "."), value)
    for index in range(tensors):
        writer.add_tensor(f"t{index}", np.arange(32 + index, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_types_are_the_package_s() -> None:
    known = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert TYPES.items() <= known.items()
    for number in TYPES:  # each can be dequantised
        kind = gguf.GGMLQuantizationType(number)
        block = np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8)
        assert gguf.quants.dequantize(block, kind).size == TYPES[number][1]


def test_architectures_are_among_those_that_transformers_dequantises() -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    renamed = {"qwen3moe": "qwen3_moe"}
    assert {renamed.get(name, name) for name in GGUF} <= set(GGUF_SUPPORTED_ARCHITECTURES)


def test_it_reads_what_the_package_reads(tmp_path: Path) -> None:
    path = small(tmp_path / "m.gguf", tensors=5, alignment=64)
    mine, theirs = read_header(path), gguf.GGUFReader(path)
    known = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert mine.fields == known and mine.fields["tokenizer.ggml.tokens"] == ["a", "b", "ß"]
    for tensor, other in zip(mine.tensors, theirs.tensors, strict=True):
        assert (tensor.name, tensor.kind, tensor.offset, tensor.size) == (other.name, other.tensor_type.name, other.data_offset, other.n_bytes)  # fmt: skip
        assert tensor.shape == tuple(int(size) for size in reversed(other.shape))


def test_the_size_of_the_embedded_model_is_known(model: Model) -> None:
    header = read_model(embedded_gguf())
    assert dtype_of(header) == "bfloat16"
    assert 0 < bytes_of(header) - sum(file.stat().st_size for file in model.folder.iterdir()) < REST


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"architecture": "bert"}, "architecture bert"),
        ({"architecture": "controlvector"}, "steering vector"),
        ({"general__type": "adapter"}, "a adapter"),
        ({"split__count": 3}, "one of 3 parts"),
        ({"llama__rope__scaling__type": "longrope"}, "longrope"),
        ({"llama__rope__dimension_count": 8}, "8 of 16 dimensions"),
    ],
)
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], part: str) -> None:
    with pytest.raises(SteerHealError, match="not a model that can be dequantised") as refused:
        read_model(small(tmp_path / "m.gguf", **fields))
    assert part in str(refused.value.given)


def test_heads_without_a_dimension_are_refused(tmp_path: Path) -> None:
    path = small(tmp_path / "m.gguf")
    key = b"attention.head_count" + struct.pack("<I", 4)  # a uint32
    data = path.read_bytes()
    assert data.count(key + struct.pack("<I", 2)) == 1
    path.write_bytes(data.replace(key + struct.pack("<I", 2), key + struct.pack("<I", 64)))
    with pytest.raises(SteerHealError, match="not a model that can be dequantised") as refused:
        read_model(path)
    assert "64 heads share 32 dimensions" in str(refused.value.given)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda data: b"PK\3\4" + data[4:], "does not begin with GGUF"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "version 1"),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "big-endian"),
        (lambda data: data[:8] + struct.pack("<Q", 2**60) + data[16:], "do not fit"),
        (lambda data: data[:400], "cut short"),
        (lambda data: data[:-64], "the file is cut short"),
        (lambda data: data.replace(b"t1", b"t0"), "is there twice"),
        (lambda data: data.replace(b"block_count", b"block_coun\xff"), "utf-8"),
        (lambda data: b"", "does not begin"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, change: Any, part: str) -> None:
    path = small(tmp_path / "m.gguf")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SteerHealError, match="could not be read") as refused:
        resolve_model(str(path))
    assert part in str(refused.value.given) and str(path) in str(refused.value.given)


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_make_it_fail_in_another_way(tmp_path: Path, data: st.DataObject) -> None:
    whole = small(tmp_path / "m.gguf").read_bytes()
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "broken.gguf"
    path.write_bytes(bytes(broken[: data.draw(st.integers(0, len(whole)))]))
    with suppress(SteerHealError):
        read_model(path)


def test_a_refusal_waits_for_no_library(tmp_path: Path) -> None:
    """Of a file with a vocabulary of usual size, which is cut short at the end."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(embedded_gguf().read_bytes()[:-1000])
    code = (
        "import sys; from shared.cli import entry; from shared.models import Model, resolve_model\n"
        "try: entry(lambda: resolve_model(sys.argv[1]))\n"
        "finally: print(*sys.modules)"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "cut short" in done.stderr and time.monotonic() - begun < 10
    assert not {"torch", "transformers", "gguf", "vllm"} & set(done.stdout.split())
