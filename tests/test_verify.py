"""The report a machine is checked with, through the real command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import command

from gen.verify import Check, gap, report
from shared.models import Model


def test_a_report_is_markdown_with_every_check(model: Model) -> None:
    checks = [Check("a", True, "x"), Check("b", False, "y"), Check("c", None, "z")]
    text = report(model, "float32", ["model.layers.3"], checks)
    assert "| a | ok | x |" in text and "| b | FAILED | y |" in text and "| c | – | z |" in text
    assert "model.layers.3" in text and "torch" in text and str(Path.home()) not in text
    assert gap([0.0, 1.0], np.array([0.5, -1.0])) == 2.0


@pytest.mark.slow
def test_this_machine_passes(tmp_path: Path) -> None:
    done = command(
        "gen.verify", "--set", "model.dtype=float32 model.max_model_len=512", "--out", tmp_path / "report.md"
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
