"""Which model: embedded, local, or from a hub that cannot be reached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import SteerHealError
from shared.layers import decoder_layers
from shared.models import Dequantised, Model, load_network, resolve_model
from shared.publish import digest


def test_a_local_folder_is_taken_as_it_is(model: Model, tmp_path: Path) -> None:
    link = tmp_path / "model"
    link.symlink_to(model.folder)
    local = resolve_model(str(link))
    assert (local.depth, local.hidden, local.revision) == (30, 576, None) and local.fingerprint == model.fingerprint


def test_a_fingerprint_sees_every_byte(model: Model, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(model.folder, copy)
    weights = copy / "model.safetensors"
    with open(weights, "r+b") as handle:
        handle.seek(weights.stat().st_size // 2)
        byte = handle.read(1)
        handle.seek(-1, os.SEEK_CUR)
        handle.write(bytes([byte[0] ^ 1]))
    assert resolve_model(str(copy)).fingerprint != model.fingerprint


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Weight files that are read for a fingerprint, under a cache of their own and a clock that has gone on since they were written."""
    found: list[Path] = []

    def seen(file: Path) -> str:
        if file.suffix == ".safetensors":
            found.append(file)
        return digest(file)

    monkeypatch.setenv("STEER_HEAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shared.cache.digest", seen)
    monkeypatch.setattr("shared.cache.SETTLED", -1)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "weights"
    place.mkdir()
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(b"some weights")
    return place


def test_weights_are_read_once(folder: Path, reads: list[Path], tmp_path: Path) -> None:
    wanted = Model("m", folder, None).fingerprint
    (tmp_path / "link").symlink_to(folder)
    assert Model("m", tmp_path / "link", None).fingerprint == wanted and len(reads) == 1
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    note.write_bytes(b"\xff")
    assert Model("m", folder, None).fingerprint == wanted and len(reads) == 2
    note.write_text(note.read_text()[:-1])  # the right size and times, and half of a digest
    assert Model("m", folder, None).fingerprint == wanted and len(reads) == 3


def test_changed_weights_are_read_again(folder: Path, reads: list[Path]) -> None:
    """Another byte under the old size and the old date."""
    old, weights = Model("m", folder, None).fingerprint, folder / "model.safetensors"
    times = weights.stat()
    weights.write_bytes(b"some weightz")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights.stat().st_mtime_ns == times.st_mtime_ns
    new = Model("m", folder, None).fingerprint
    assert new != old and len(reads) == 2
    (folder / "config.json").write_text("[]")
    assert Model("m", folder, None).fingerprint not in (old, new) and len(reads) == 2


def test_a_digest_is_not_kept_of_what_may_still_change(
    folder: Path, reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.cache.SETTLED", 3600 * 10**9)
    for _ in range(2):
        assert Model("m", folder, None).fingerprint
    assert len(reads) == 2 and not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_costs_time_alone(
    folder: Path, reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    wanted = Model("m", folder, None).fingerprint
    monkeypatch.setenv("STEER_HEAL_CACHE", str(tmp_path / "file"))
    assert Model("m", folder, None).fingerprint == wanted and len(reads) == 2


def test_an_architecture_without_a_stack_of_layers_is_refused() -> None:
    import torch

    one, other = (torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Identity()] * 2)}) for _ in range(2))
    assert decoder_layers(one, 2)[0] == "layers"
    for network, depth in ((one, 3), (torch.nn.ModuleDict({"a": one, "b": other}), 2)):
        with pytest.raises(SteerHealError, match="decoder layers could not be found"):
            decoder_layers(network, depth)


def test_weights_go_straight_to_their_device(model: Model) -> None:
    import torch

    network = load_network(model.folder, torch.float32, "meta")  # which holds no values: nothing can have been copied
    assert {value.device.type for value in network.parameters()} == {"meta"} and not network.training


def test_the_stand_in_computes_on_its_device(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the benchmark puts it, weights and inputs alike: a GPU, where there is one."""
    import contextlib

    import torch

    from evals import bench
    from evals.bridges.huggingface import HuggingFace
    from evals.measures.forced_choice.ask import Read

    class Asked(Exception):
        pass

    def generate(ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> None:
        raise Asked(ids.device.type, attention_mask.device.type)

    stand_in = HuggingFace(model.folder, "float32", 0, "meta")
    stand_in._model.generate = generate
    with pytest.raises(Asked) as asked:
        stand_in._batch([[1, 2], [3]], type("Renderer", (), {"stop_ids": [0]}), Read("reversal", 2))
    assert asked.value.args == ("meta", "meta") and stand_in._model.device.type == "meta"
    given: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("gen.engine.engine.engine", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(bench, "HuggingFace", lambda *arguments: given.extend(arguments))
    monkeypatch.setattr(bench, "check_same_logprobs", lambda *_: (_ for _ in ()).throw(Asked()))
    with contextlib.suppress(Asked, AttributeError):
        bench.speedup("embedded", "embedded", 1, 7)
    assert given[-1] == "cuda"


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteerHealError, match="not a model"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"n_layer": 2, "n_embd": 8}', '{"num_hidden_layers": "2", "hidden_size": true}']
)
def test_a_configuration_that_says_no_size_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").touch()
    found = resolve_model(str(tmp_path))
    with pytest.raises(SteerHealError, match="a model's configuration"):
        assert found.depth
    with pytest.raises(SteerHealError, match="a model's configuration"):
        assert found.hidden


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_path_has_is_refused(name: str) -> None:
    with pytest.raises(SteerHealError, match=r"neither a model folder nor a Hugging Face id|no such model"):
        resolve_model(name)


def test_a_hub_that_cannot_be_reached_names_the_way_on() -> None:
    code = "from shared.models import resolve_model; from shared.cli import entry; entry(lambda: resolve_model('no-such-organisation/no-such-model'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert (
        done.returncode == 2
        and "no-such-model" in done.stderr
        and "`embedded`" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_the_embedded_model_takes_the_same_road(model: Model) -> None:
    """To the weights that every figure was measured with."""
    assert isinstance(model, Dequantised)
    weights = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
    assert digest(model.folder / "model.safetensors") == weights == (model.folder / "SHA256").read_text().strip()


@pytest.mark.long
def test_a_damaged_cache_is_built_again(model: Model, tmp_path: Path) -> None:
    """The same bytes come out of the dequantisation, here and in a cache whose weights were damaged."""
    code = "from shared.models import resolve_model; print(resolve_model('embedded').fingerprint)"
    folder = tmp_path / "cache" / model.folder.name
    folder.mkdir(parents=True)
    (folder / "SHA256").write_text("0" * 64)
    (folder / "model.safetensors").write_bytes(b"damaged")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "STEER_HEAL_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert "does not match its checksum" in done.stdout and done.stdout.split()[-1] == model.fingerprint
