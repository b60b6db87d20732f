"""The report a machine is checked with, through the real command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import command

from gen.verify import DOSE, VerifyCheck, gap, in_own_process, noise, report
from shared.models import Model


def test_a_report_is_markdown_with_every_check(model: Model) -> None:
    checks = [VerifyCheck("a", True, "x"), VerifyCheck("b", False, "y"), VerifyCheck("c", None, "z")]
    text = report(model, "float32", ["model.layers.3"], checks)
    assert "| a | ok | x |" in text and "| b | FAILED | y |" in text and "| c | – | z |" in text
    assert "model.layers.3" in text and "torch" in text and str(Path.home()) not in text
    assert gap([0.0, 1.0], np.array([0.5, -1.0])) == 1.25  # the mean


def test_a_random_direction_is_as_large_as_the_residual_stream_allows() -> None:
    """A vector of ones is nothing to a model whose residual stream has a norm of 50,000, and everything to one of 5."""
    vector = noise({3: 50_000.0, 4: 5.0}, 64)
    assert {layer: round(float(np.linalg.norm(values)), 3) for layer, values in vector.layers.items()} == {3: 50_000 * DOSE, 4: 5 * DOSE}  # fmt: skip
    assert all(noise({3: 1.0}, 64).layers[3] == noise({3: 1.0}, 64).layers[3])


def refuse(graphs: bool) -> bool:
    from shared.errors import SteerHealError

    if not graphs:
        raise SteerHealError("an engine did not start", given="24 GB", next="make doctor")
    return graphs


def test_an_engine_of_its_own_process_hands_its_error_over() -> None:
    from shared.errors import SteerHealError

    assert in_own_process(refuse, True) is True
    with pytest.raises(SteerHealError, match="an engine did not start") as refused:
        in_own_process(refuse, False)
    assert refused.value.given == "24 GB"


def test_what_an_engine_is_examined_with_goes_to_another_process(model: Model) -> None:
    """A dequantised model does not: it holds the function that makes it."""
    import functools
    import pickle

    from gen.verify import examine
    from shared.config import resolve_config

    settings = resolve_config(None, "")[0].model
    ask = functools.partial(examine, model.folder, settings, noise({3: 1.0}, 64), np.zeros(3), [[1, 2]])
    again = pickle.loads(pickle.dumps(ask))
    assert again.args[0] == model.folder and again.args[1] == settings
    assert (again.args[2].layers[3] == ask.args[2].layers[3]).all()


@pytest.mark.slow
def test_this_machine_passes(small_model: Model, tmp_path: Path) -> None:
    done = command(
        "gen.verify",
        "--model",
        small_model.folder,
        "--set",
        "model.dtype=float32 model.max_model_len=512 vector.layers=[2,3]",
        "--out",
        tmp_path / "report.md",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = (tmp_path / "report.md").read_text()
    assert written.count("| ok |") == 5 and "FAILED" not in written and "time, steered over stock" in written
    assert written.strip() in done.stdout


def test_a_vector_of_another_model_is_refused(tmp_path: Path) -> None:
    from shared.vectors import Vector

    Vector({3: np.ones(7, dtype=np.float32)}).save(tmp_path / "v.safetensors")
    done = command("gen.verify", "--vector", tmp_path / "v.safetensors")
    assert done.returncode == 2 and "width 7" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["gen.verify", "gen.serve"])
def test_the_model_is_the_configurations_where_none_is_named(module: str, tmp_path: Path) -> None:
    """Never the embedded one under the settings of another."""
    from shared.vectors import Vector

    Vector({14: np.ones(576, dtype=np.float32)}).save(tmp_path / "v.safetensors")
    vector = f"{'trait=' * (module == 'gen.serve')}{tmp_path / 'v.safetensors'}"
    done = command(module, "--vector", vector, "--set", f"model.name={tmp_path / 'nope'}")
    assert done.returncode == 2 and str(tmp_path / "nope") in done.stderr, done.stdout + done.stderr
