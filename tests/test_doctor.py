"""make doctor: what it asserts, and the next command when it does not hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import ROOT

from shared.doctor import missing


def test_a_whole_environment_passes() -> None:
    done = subprocess.run(["make", "doctor"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is missing" in done.stdout and "vllm" in done.stdout and "cores" in done.stdout


def test_packages_of_another_checkout_are_named(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "shared.doctor"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and f"gen from {ROOT}" in done.stderr and "make clean setup" in done.stderr


def test_absent_and_other_versions_are_listed(tmp_path: Path) -> None:
    lock = tmp_path / "cpu.txt"
    lock.write_text("# a comment\nnumpy==0.0.1\nno-such-package==1.0\n")
    assert [line.split()[0] for line in missing(lock)] == ["numpy==0.0.1,", "no-such-package==1.0"]
    assert missing(ROOT / "requirements" / "cpu.txt") == [] or missing(ROOT / "requirements" / "gpu.txt") == []
