"""The vector file: what is written is read, and what does not fit is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, command
from safetensors.numpy import save_file

from shared.errors import SteerHealError
from shared.vectors import Vector, cosine, load_vector

VECTOR = Vector(
    {3: np.arange(4, dtype=np.float32), 5: np.ones(4, dtype=np.float32)},
    {"hidden_norm": {"3": 2.0, "5": 4.0}, "positions": "all"},
)


def test_round_trip(tmp_path: Path) -> None:
    VECTOR.save(tmp_path / "v.safetensors")
    back = load_vector(tmp_path / "v.safetensors")
    assert back.metadata == VECTOR.metadata and sorted(back.layers) == [3, 5]
    for layer in back.layers:
        np.testing.assert_array_equal(back.layers[layer], VECTOR.layers[layer])


def test_the_same_vector_is_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """safetensors orders several metadata entries by a hash that changes from process to process."""
    code = (
        "import sys, numpy as np; from pathlib import Path; from shared.vectors import Vector; "
        "Vector({3: np.ones(4, dtype=np.float32)}, {'positions': 'all', 'b': 1, 'a': 2}).save(Path(sys.argv[1]))"
    )
    files = [tmp_path / f"{index}.safetensors" for index in range(6)]
    for file in files:
        subprocess.run([sys.executable, "-c", code, file], cwd=ROOT, check=True)
    assert len({file.read_bytes() for file in files}) == 1
    (tmp_path / "other").write_text("")
    assert {file.stat().st_mode for file in files} == {(tmp_path / "other").stat().st_mode}


def test_relative_dose() -> None:
    assert VECTOR.relative_dose(-2.0) == {3: pytest.approx(2 * np.sqrt(14) / 2), 5: pytest.approx(2 * 2 / 4)}


def test_random_direction_has_the_norm_and_not_the_direction() -> None:
    wide = Vector({7: np.random.default_rng(0).standard_normal(512).astype(np.float32)})
    other = wide.random_like(1)
    assert other.norm(7) == pytest.approx(wide.norm(7), rel=1e-5)
    assert abs(wide.layers[7] @ other.layers[7]) / wide.norm(7) ** 2 < 0.2
    np.testing.assert_array_equal(other.layers[7], wide.random_like(1).layers[7])


@pytest.mark.parametrize(
    ("tensors", "part"),
    [
        ({"layer.1": np.array([1.0, np.nan], dtype=np.float32)}, "NaN"),
        ({"layer.1": np.array([1.0, np.inf], dtype=np.float32)}, "infinite"),
        ({"layer.1": np.ones(2)}, "float64"),
        ({"layer.1": np.ones((2, 2), dtype=np.float32)}, "[2, 2]"),
        ({"layer.1": np.ones(2, dtype=np.float32), "layer.2": np.ones(3, dtype=np.float32)}, "[3]"),
        ({"bias": np.ones(2, dtype=np.float32)}, "bias"),
        ({"layer.01": np.ones(2, dtype=np.float32)}, "layer.01"),
        ({}, "no tensors"),
        ({"layer.1": np.ones(2, dtype=np.float32), "layer.7": np.zeros(2, dtype=np.float32)}, "layer.7 has norm 0"),
        ({"layer.1": np.array([0.0, -0.0], dtype=np.float32)}, "layer.1 has norm 0"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, tensors: dict[str, np.ndarray], part: str) -> None:
    save_file(tensors, tmp_path / "v.safetensors")
    with pytest.raises(SteerHealError) as caught:
        load_vector(tmp_path / "v.safetensors")
    assert part in caught.value.render()


@pytest.mark.parametrize(
    ("values", "part"), [([0.0, 0.0], "norm 0"), ([1.0, np.nan], "NaN"), ([np.inf, 1.0], "infinite")]
)
def test_a_vector_that_would_not_steer_is_not_written(tmp_path: Path, values: list[float], part: str) -> None:
    """In whichever layer, and whatever lay there stays."""
    VECTOR.save(tmp_path / "v.safetensors")
    before = (tmp_path / "v.safetensors").read_bytes()
    silent = Vector({1: np.ones(2, dtype=np.float32), 2: np.array(values, dtype=np.float32)})
    for name in ("v.safetensors", "new.safetensors"):
        with pytest.raises(SteerHealError, match="would not steer") as refused:
            silent.save(tmp_path / name)
        assert "layer.2" in str(refused.value.given) and part in str(refused.value.given)
    assert (tmp_path / "v.safetensors").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_the_smallest_vector_there_is_steers(tmp_path: Path) -> None:
    """Whose squares are 0 in float32."""
    Vector({1: np.array([1e-45, 0.0], dtype=np.float32)}).save(tmp_path / "v.safetensors")
    assert load_vector(tmp_path / "v.safetensors").norm(1) > 0


def test_a_cosine_is_defined_or_none() -> None:
    big = np.full(4, 1e30, dtype=np.float32)
    assert cosine(big, -big) == pytest.approx(-1) and cosine(big, np.zeros(4)) is None
    assert cosine(big, np.full(4, np.nan)) is None


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_floats_that_numpy_lacks_are_refused(tmp_path: Path, dtype: str) -> None:
    header = json.dumps({"layer.1": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "v.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(SteerHealError, match="could not be used"):
        load_vector(tmp_path / "v.safetensors")


def test_norms_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    Vector({1: np.ones(2, dtype=np.float32)}, {"hidden_norm": {"1": "2.0"}}).save(tmp_path / "v.safetensors")
    with pytest.raises(SteerHealError, match="hidden_norm"):
        load_vector(tmp_path / "v.safetensors")


def test_a_random_direction_of_a_huge_vector_is_finite() -> None:
    other = Vector({1: np.full(512, 1e30, dtype=np.float32)}).random_like(0)
    assert np.isfinite(other.layers[1]).all()


def test_not_safetensors_and_missing(tmp_path: Path) -> None:
    (tmp_path / "v.safetensors").write_bytes(b"\x80\x04pickle")
    for name in ("v.safetensors", "none.safetensors"):
        with pytest.raises(SteerHealError):
            load_vector(tmp_path / name)


def test_a_missing_vector_is_made_or_is_the_one_that_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_HEAL_FORM", "make")

    def hint(path: Path, model: str = "embedded") -> str:
        with pytest.raises(SteerHealError) as caught:
            load_vector(path, model)
        return caught.value.render().partition("expected: ")[2]

    make = ".venv/bin/steer-heal extract --model owner/name --out"
    assert hint(tmp_path / "v.safetensors", "owner/name").endswith(f"{make} {tmp_path}/v.safetensors")
    VECTOR.save(tmp_path / "vector.safetensors")
    near = hint(tmp_path / "vektor.safetensors")
    assert f"did you mean {tmp_path}/vector.safetensors?" in near and "same command" in near
    inside = tmp_path / "run" / "rounds" / "02" / "vector.safetensors"
    assert hint(inside).endswith(f"make round N=2 RUN={tmp_path}/run")
    with pytest.raises(SteerHealError, match="--model owner/name"):
        VECTOR.check("v", hidden=5, depth=30, model="owner/name")


def test_another_width_is_refused_by_the_command_line(tmp_path: Path) -> None:
    VECTOR.save(tmp_path / "v.safetensors")
    (tmp_path / "p.jsonl").write_text('{"prompt": "hi"}\n')
    done = command(
        "gen.sweep",
        "--model",
        "embedded",
        "--vector",
        tmp_path / "v.safetensors",
        "--prompts",
        tmp_path / "p.jsonl",
        "--coefficients",
        "0",
        "1",
        "--out",
        tmp_path / "s.jsonl",
    )
    assert done.returncode == 2 and "width 4" in done.stderr and "width 576" in done.stderr
    assert not (tmp_path / "s.jsonl").exists()
