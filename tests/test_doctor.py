"""make doctor: what it asserts, the next command when it does not hold, and that it runs where nothing else does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_setup import BASE, commands

from shared import doctor, machine, stage_checks
from shared.checks import KERNELS, lock
from shared.environment_checks import missing
from shared.machine_checks import the_hardware
from shared.stage_checks import STAGES, stage


def look(*arguments: str, python: str = sys.executable, cwd: Path = ROOT, **environment: str) -> tuple[int, str, str]:
    command = [python, "-m", "shared.doctor", *arguments]
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that was not set up."""
    folder = tmp_path_factory.mktemp("other") / "checkout"
    for name in ("gen", "train", "evals", "shared", "requirements"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", folder)
    return folder


@pytest.mark.long
def test_a_whole_environment_passes() -> None:
    """Every stage imports in a process of its own, and vLLM loads the kernels that this CPU can run."""
    done = subprocess.run(["make", "doctor"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is missing" in done.stdout
    for name in ("vllm", "cores", "instruction set", "Python.h", "glibc", "GiB free", "available", "GPU"):
        assert name in done.stdout
    for name in STAGES:
        assert f"ok  {name} " in done.stdout
    if lock().stem == "cpu":
        assert f"vLLM with {KERNELS[machine.instruction_set()]}\n" in done.stdout


def test_it_imports_the_standard_library_and_its_own_alone() -> None:
    code = "import sys, shared.doctor; print(sorted({n.split('.')[0] for n in sys.modules} - sys.stdlib_module_names))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "['__main__', 'shared']", done.stdout + done.stderr


def test_it_runs_with_a_python_that_is_too_old(tmp_path: Path) -> None:
    """3.9 and 3.10, which Ubuntu 22.04 and RHEL 9 have, know no tomllib; it says that the Python does not fit."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tomllib'] = None\n")
    _, said, error = look("--quick", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "instruction set" in said and "Traceback" not in error, error
    for python in filter(None, map(shutil.which, ("python3.9", "python3.10"))):
        if subprocess.run([python, "-c", ""], capture_output=True).returncode:  # a shim without a version behind it
            continue
        status, said, error = look("--quick", python=python)
        assert status == 2 and "this Python does not fit" in error and "instruction set" in said, error


def test_a_stage_is_named_when_its_import_begins_and_told_of_when_it_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A quick one does not wait for a slow one before it."""
    go = tmp_path / "go"
    slow = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.05)"
    monkeypatch.setattr(stage_checks, "STAGES", {"slow": slow, "quick": "pass"})
    monkeypatch.setattr(machine, "cores", lambda: 2)
    begun: list[str] = []
    rows = stage_checks.the_stages(begun.append)
    assert next(rows).name == "quick" and sorted(begun) == ["quick", "slow"]
    go.touch()
    assert [row.name for row in rows] == ["slow"]


def test_help_helps() -> None:
    status, said, _ = look("--help")
    assert status == 0 and said.startswith("usage:") and "--run" in said and "processor" not in said


def test_packages_of_another_checkout_are_named(checkout: Path) -> None:
    status, _, error = look("--quick", cwd=checkout)
    assert status == 2 and f"gen from {ROOT}" in error and "make clean setup" in error


@pytest.mark.parametrize("broken", [False, True])
def test_without_an_environment_it_tells_of_the_machine(checkout: Path, broken: bool) -> None:
    """By make, with the system's Python, beside a .venv that is not there or whose Python is gone."""
    if broken:
        (checkout / ".venv" / "bin").mkdir(parents=True)
        (checkout / ".venv" / "bin" / "python").symlink_to("/usr/bin/python3.0")
    command = ["make", "doctor", f"PYTHON={BASE}"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    shutil.rmtree(checkout / ".venv", ignore_errors=True)
    assert done.returncode == 2 and "instruction set" in done.stdout and "GiB free" in done.stdout
    assert ("is broken" if broken else "not set up yet") in done.stderr and "next:     make setup" in done.stderr


def test_absent_and_other_versions_are_listed(tmp_path: Path) -> None:
    listed = tmp_path / "cpu.txt"
    elsewhere = "no-such-package==2.0 ; platform_machine == 'riscv64'"
    listed.write_text(f"# a comment\nnumpy==0.0.1\nno-such-package==1.0\n{elsewhere}\n")
    assert [line.split()[0] for line in missing(listed)] == ["numpy==0.0.1,", "no-such-package==1.0"]
    assert missing(lock()) == []


@pytest.mark.parametrize(
    ("code", "said", "next"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL while it imports: a library", "make clean"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV while it imports: a compiled library", "make clean setup"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL while it imports: most likely short of memory", "more memory"),
        ("import no_such_module", "does not import", "make clean setup"),
    ],
    ids=["illegal", "segfault", "killed", "absent"],
)
def test_a_stage_that_dies_is_named_with_its_signal(code: str, said: str, next: str) -> None:
    row = stage("heal", code)
    assert row.error is not None
    text = row.error.render()
    assert text.startswith("error: heal ") and said in text and next in text.splitlines()[-1]
    if "ctypes" in code:
        assert "ctypes/__init__.py" in text  # where it was, by faulthandler
    if "no_such" in code:
        assert "ModuleNotFoundError: No module named 'no_such_module'" in text


@pytest.mark.parametrize(("gib", "little"), [(1.5, True), (4.9, True), (5.1, False), (60.0, False)])
def test_little_memory_is_a_warning_with_what_to_do(
    gib: float, little: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "memory_available", lambda: int(gib * machine.GIB))
    row = {row.name: row for row in the_hardware(tmp_path)}["memory"]
    assert row.error is None and (row.warning is not None) == little
    monkeypatch.setattr(sys, "argv", ["doctor", "--quick", "--run", str(tmp_path)])
    try:
        doctor.main()
    except SystemExit as ended:
        assert ended.code == 2  # of what else this machine lacks
    told = capsys.readouterr()
    assert ("  !   memory" in told.out) == little and ("  ok  memory" in told.out) != little
    assert ("warning: there is little memory" in told.err) == little
    assert (f"given:    {gib:.1f} GiB available" in told.err and "eval.contexts=0" in told.err) == little


def test_a_cpu_without_avx2_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "instruction_set", lambda: "x86_64")
    rows = {row.name: row for row in the_hardware(tmp_path)}
    error = rows["instruction set"].error
    assert error is not None and "without AVX2" in error.render() and "-cpu host" in error.render()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("echo NVIDIA H100, 570.86.10, 9.0, 81559 MiB", "the driver is too old"),
        ("echo Tesla V100, 580.65.06, 7.0, 16384 MiB", "compute capability 7.0"),
        ("echo No devices were found; exit 6", "No devices were found"),
        ("echo NVIDIA H100, 580.65.06, 9.0, 81559 MiB", ""),
    ],
    ids=["driver", "capability", "none", "fits"],
)
def test_the_driver_is_asked_without_torch(tmp_path: Path, checkout: Path, answer: str, said: str) -> None:
    """Before set-up, where the lock would be the one for a GPU."""
    path = commands(tmp_path / "bin", **{"nvidia-smi": answer})
    status, output, error = look("--quick", python=BASE, cwd=checkout, PATH=path)
    assert status == 2 and "not set up yet" in error
    if said:
        assert said in error and "LOCK=cpu" in error
    else:
        assert "H100, 81559 MiB, driver 580.65.06, compute capability 9.0" in output and error.count("error:") == 1


def test_no_compiler_and_no_place_to_write(tmp_path: Path) -> None:
    full = tmp_path / "sealed"
    full.mkdir(mode=0o555)
    status, _, error = look("--quick", "--run", str(full / "runs"), CXX="no-such-compiler")
    assert status == 2 and "there is no C++ compiler" in error and "apt install g++" in error
    if os.geteuid():  # root writes everywhere
        assert "cannot be written to" in error
