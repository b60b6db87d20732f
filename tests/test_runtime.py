"""What a process sets before large libraries are imported, and puts back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from gen.engine.options import engine_uncompiled
from shared.runtime import gc_disabled, limit_spinning

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize("was", [True, False])
def test_collection_is_as_it_was_afterwards(was: bool) -> None:
    try:
        (gc.enable if was else gc.disable)()
        with pytest.raises(ImportError), gc_disabled():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == was
    finally:
        gc.enable()


@pytest.mark.parametrize("mine", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_a_user_s_own_waiting_wins(monkeypatch: pytest.MonkeyPatch, mine: dict[str, str]) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ, **mine})
    limit_spinning()
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == (mine or {"GOMP_SPINCOUNT": "1000"})


@pytest.mark.parametrize("options", [{"enforce_eager": True}, {"enforce_eager": False}, {}])
def test_only_what_is_decorated_inside_stays_uncompiled(monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]) -> None:  # fmt: skip
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU's engine compiles")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)

    def double(x: int) -> int:
        return 2 * x

    with engine_uncompiled(options):
        inside = torch.compile(double, backend="eager")
    assert (inside is double) == bool(options.get("enforce_eager"))
    assert torch.compile(double, backend="eager") is not double


def test_libgomp_reads_it_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set in Python before torch is imported is early enough: OpenMP says so itself, in the first line that it prints when loaded."""
    code = "from shared.runtime import limit_spinning; limit_spinning(); import torch"
    # vLLM, once imported by another test, asks for OpenMP to be preloaded: before Python runs, and so before our setting.
    environment = {name: value for name, value in os.environ.items() if name not in (*NAMES, "LD_PRELOAD")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch brings another OpenMP")
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr
