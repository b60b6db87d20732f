"""Which model: embedded, local, or from a hub that cannot be reached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import SteerHealError
from shared.models import Model, resolve


def test_a_local_folder_is_taken_as_it_is(model: Model, tmp_path: Path) -> None:
    link = tmp_path / "model"
    link.symlink_to(model.folder)
    local = resolve(str(link))
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
    assert resolve(str(copy)).fingerprint != model.fingerprint


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteerHealError, match="not a model"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"n_layer": 2, "n_embd": 8}', '{"num_hidden_layers": "2", "hidden_size": true}']
)
def test_a_configuration_that_says_no_size_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").touch()
    found = resolve(str(tmp_path))
    with pytest.raises(SteerHealError, match="a model's configuration"):
        assert found.depth
    with pytest.raises(SteerHealError, match="a model's configuration"):
        assert found.hidden


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_path_has_is_refused(name: str) -> None:
    with pytest.raises(SteerHealError, match="a model could not be had"):
        resolve(name)


def test_a_hub_that_cannot_be_reached_names_the_way_on() -> None:
    code = "from shared.models import resolve; from shared.cli import entry; entry(lambda: resolve('no-such-organisation/no-such-model'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert (
        done.returncode == 2
        and "no-such-model" in done.stderr
        and "model.name=embedded" in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.slow
def test_a_damaged_cache_is_built_again(model: Model, tmp_path: Path) -> None:
    """The same bytes come out of the dequantisation, here and in a cache whose weights were damaged."""
    code = "from shared.models import resolve; print(resolve('embedded').fingerprint)"
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
