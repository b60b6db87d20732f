"""requirements/install.sh: what it refuses, and that it goes on after an interruption and mends a broken .venv.

It runs as it is, in a folder with a lock of three small packages and a wheel called torch, which stands for torch's size alone.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

BASE = getattr(sys, "_base_executable", sys.executable)
PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "steer-heal"
version = "0"
requires-python = ">=3.11,<3.14"
[tool.setuptools]
packages = ["shared"]
"""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing of a request."""


def pin(name: str) -> str:
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "requirements").mkdir()
    (folder / "shared").mkdir()
    (folder / "shared" / "__init__.py").touch()
    shutil.copy(ROOT / "requirements" / "install.sh", folder / "requirements")
    absent = "no-such-package==1 ; platform_machine == 'riscv64'"
    lines = [pin("uv"), "torch==0.0.1+cpu", pin("setuptools"), pin("six"), pin("idna"), absent]
    (folder / "requirements" / "cpu.txt").write_text("\n".join(lines) + "\n")
    (folder / "requirements" / "gpu.txt").write_text("\n".join(lines) + "\n")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels" / "torch-0.0.1+cpu-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch.py", "")
        wheel.writestr("torch-0.0.1+cpu.dist-info/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1+cpu\n")
        wheel.writestr(
            "torch-0.0.1+cpu.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("torch-0.0.1+cpu.dist-info/RECORD", "")
    return folder


def begin(project: Path, lock: str = "cpu", python: str = BASE, **environment: str) -> subprocess.Popen[str]:
    links = f"{project}/wheels {os.environ.get('PIP_FIND_LINKS', '')}".strip()
    return subprocess.Popen(
        ["requirements/install.sh", lock],
        cwd=project,
        env={**os.environ, "PYTHON": python, "PIP_FIND_LINKS": links, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def install(project: Path, lock: str = "cpu", python: str = BASE, **environment: str) -> tuple[int, str]:
    process = begin(project, lock, python, **environment)
    said = process.communicate(timeout=300)[0]
    return process.returncode, said


def works(project: Path) -> bool:
    code = "import shared, torch, six, idna, setuptools"
    return subprocess.run([project / ".venv" / "bin" / "python", "-P", "-c", code]).returncode == 0


def whole(project: Path) -> None:
    if not (project / ".venv").exists() or not works(project):
        assert install(project)[0] == 0


def commands(folder: Path, **scripts: str) -> str:
    """A PATH on which these commands come first."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("scripts", "lock", "said", "next"),
    [
        ({"uname": "echo Darwin"}, "cpu", "runs on Linux alone", "a Linux machine or container"),
        ({"uname": "echo MINGW64_NT-10.0"}, "cpu", "runs on Linux alone", "WSL 2"),
        ({"uname": "[ $1 = -s ] && echo Linux || echo aarch64"}, "gpu", "resolved for x86_64 alone", "LOCK=cpu"),
        (
            {"uname": "[ $1 = -s ] && echo Linux || echo riscv64"},
            "cpu",
            "no lock for this machine",
            "make setup LOCK=cpu",
        ),
        ({"getconf": "exit 1"}, "cpu", "another C library, such as musl", "a container"),
        ({"getconf": "echo glibc 2.28"}, "cpu", "glibc 2.31 or newer", "newer distribution"),
        ({"getconf": "echo glibc 2.31"}, "gpu", "glibc 2.34 or newer", "newer distribution"),
        ({"nvidia-smi": "echo 570.86.10; echo 570.86.10"}, "gpu", "driver 570.86.10", "update the driver"),
    ],
    ids=["macos", "windows", "gpu-on-arm", "riscv", "musl", "old-glibc", "old-glibc-gpu", "old-driver"],
)
def test_a_machine_that_does_not_do_is_refused_before_anything_is_written(
    project: Path, tmp_path: Path, scripts: dict[str, str], lock: str, said: str, next: str
) -> None:
    before = sorted(project.iterdir())
    status, output = install(project, lock, PATH=commands(tmp_path / "bin", **scripts))
    assert status == 2 and said in output, output
    assert output.startswith("error: ") and output.count("\n") == 4 and next in output.splitlines()[-1]
    assert sorted(project.iterdir()) == before


def fake_python(version: str = "3, 12", ready: str = "True", header: str = "") -> str:
    """A Python of another version, without some module, or without its header, as far as the script asks."""
    lines = f"import sys, sysconfig; sys.version_info = ({version}, 0)"
    if header:
        lines += f"; sysconfig.get_path = lambda name: {header!r}"
    if ready != "True":
        lines += "; sys.modules['ensurepip'] = None"
    return f'[ "$1" = -c ] && exec {BASE} -c "{lines}; exec(sys.argv[1])" "$2"; exec {BASE} "$@"'


@pytest.mark.parametrize(
    ("script", "said", "next"),
    [
        ("exit 127", "no Python that fits", "install one"),
        (fake_python("3, 10"), "no Python that fits", "install one"),
        (fake_python("3, 14"), "no Python that fits", "install one"),
        (fake_python(ready="False"), "venv and ensurepip", "apt install python3.12-venv"),
        (fake_python(header="/nowhere"), "/nowhere/Python.h is missing", "python3.12-dev"),
    ],
    ids=["shim", "too-old", "too-new", "no-ensurepip", "no-header"],
)
def test_a_python_that_does_not_do_is_refused(project: Path, tmp_path: Path, script: str, said: str, next: str) -> None:
    path = commands(tmp_path / "bin", python_of_a_test=script)
    status, output = install(project, python="python_of_a_test", PATH=path)
    assert status == 2 and said in output and next in output.splitlines()[-1], output
    assert not (project / ".venv").exists()


def test_a_shim_without_a_version_is_passed_over(project: Path, tmp_path: Path) -> None:
    """PYTHON left out: the first that runs is taken, and here it is then refused for its header."""
    scripts = {
        "python3.11": "exit 127",
        "python3.12": "exit 127",
        "python3.13": fake_python("3, 13", header="/nowhere"),
    }
    path = commands(tmp_path / "bin", **scripts)
    status, output = install(project, python="", PATH=path)
    assert status == 2 and "python3.13-dev" in output, output


def test_without_a_cpp_compiler_it_is_refused(project: Path) -> None:
    status, output = install(project, CXX="no-such-compiler")
    assert status == 2 and "no no-such-compiler" in output and "g++" in output.splitlines()[-1], output


WAITS = """
import pathlib, signal, sys
if "install" in sys.orig_argv and any(word.startswith("torch==") for word in sys.orig_argv):
    pathlib.Path({file!r}).touch()
    while True:
        signal.pause()
"""


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_cut_off_it_goes_on_by_the_same_command(project: Path, tmp_path: Path, number: int) -> None:
    """To the whole group, as a terminal does it, while pip is at work on torch: there it waits until it is ended."""
    reached = tmp_path / "reached"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WAITS.format(file=str(reached)))
    process = begin(project, PYTHONPATH=str(tmp_path / "site"))
    while not reached.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    try:
        os.killpg(process.pid, number)
        said = process.communicate(timeout=60)[0]
    finally:  # one left behind would hold the lock of every later test
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == (-number if number == signal.SIGKILL else 130), said
    assert number == signal.SIGKILL or "the same command goes on" in said
    status, output = install(project)
    assert status == 0 and "was cut off at torch==0.0.1+cpu" in output and "set up in" in output, output
    assert works(project)
    assert len(output.splitlines()) < 15


@pytest.mark.long
def test_half_a_package_is_installed_again(project: Path) -> None:
    """As a kill leaves it: its folder of metadata stands, and a file of the package is missing."""
    whole(project)
    (module,) = (project / ".venv").glob("lib/python*/site-packages/six.py")
    module.unlink()
    (project / ".venv" / ".unfinished").write_text("the other packages\n")
    status, output = install(project)
    assert status == 0 and "was cut off at the other packages" in output, output
    assert works(project) and not (project / ".venv" / ".unfinished").exists()


@pytest.mark.long
def test_a_broken_environment_is_named_and_built_anew(project: Path) -> None:
    whole(project)
    python = project / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/usr/bin/python3.0")
    status, output = install(project)
    assert status == 0 and ".venv is broken (its Python does not run); it is built anew" in output, output
    assert works(project)


@pytest.mark.long
def test_what_an_extra_index_of_pips_has_is_found(project: Path, tmp_path: Path) -> None:
    """By uv too, also where PyPI or a mirror has the package in another version."""
    whole(project)
    place = tmp_path / "simple" / "six"
    place.mkdir(parents=True)
    name = "six-99.0-py3-none-any.whl"
    with zipfile.ZipFile(place / name, "w") as wheel:
        wheel.writestr("six.py", "")
        wheel.writestr("six-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: six\nVersion: 99.0\n")
        wheel.writestr("six-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("six-99.0.dist-info/RECORD", "")
    (place / "index.html").write_text(f'<a href="{name}">{name}</a>')
    lock = project / "requirements" / "cpu.txt"
    before = lock.read_text()
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            lock.write_text(before.replace(pin("six"), "six==99.0"))
            index = f"http://127.0.0.1:{server.server_port}/simple"
            status, output = install(project, PIP_EXTRA_INDEX_URL=f"{index} {index}/none", NO_PROXY="127.0.0.1")
        finally:
            lock.write_text(before)
            server.shutdown()
    assert status == 0, output
    assert list((project / ".venv").glob("lib/python*/site-packages/six-99.0.dist-info"))


@pytest.mark.slow
def test_the_header_is_that_of_the_environments_python(project: Path, tmp_path: Path) -> None:
    """Not of another on PATH, which would not compile the engine's kernels."""
    whole(project)
    others = {f"python3.{minor}": fake_python(f"3, {minor}", header="/nowhere") for minor in (11, 12, 13)}
    with (project / ".setup.lock").open("a") as file:  # what is looked at next
        fcntl.flock(file, fcntl.LOCK_EX)
        status, output = install(project, python="", PATH=commands(tmp_path / "bin", **others))
    assert status == 2 and "another set-up" in output, output
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys, sysconfig\nif sys.prefix != sys.base_prefix:\n    sysconfig.get_path = lambda name, *more, **other: '/gone'\n"
    )
    status, output = install(project, python="", PYTHONPATH=str(tmp_path / "site"))
    assert status == 2 and "/gone/Python.h is missing" in output, output


@pytest.mark.slow
def test_a_set_up_beside_another_is_refused(project: Path) -> None:
    with (project / ".setup.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, output = install(project)
    assert status == 2 and "another set-up" in output


@pytest.mark.slow
def test_another_python_than_the_environments_is_refused(project: Path, tmp_path: Path) -> None:
    whole(project)
    path = commands(tmp_path / "bin", another=fake_python("3, 13", header=sysconfig.get_path("include")))
    status, output = install(project, python="another", PATH=path)
    assert status == 2 and "make clean setup PYTHON=another" in output, output
    assert works(project)


@pytest.mark.slow
def test_the_other_lock_is_not_put_over_the_first(project: Path) -> None:
    whole(project)
    (project / ".venv" / ".ready-cpu").touch()
    status, output = install(project, "gpu")
    assert status == 2 and "make clean setup LOCK=gpu" in output, output


@pytest.mark.long
def test_a_failure_shows_the_end_of_the_log(project: Path) -> None:
    lock = project / "requirements" / "cpu.txt"
    whole = lock.read_text()
    try:
        lock.write_text(whole.replace(pin("six"), "six==0.0.0.1"))
        status, output = install(project)
    finally:
        lock.write_text(whole)
    assert status == 2 and "the packages could not be installed" in output and "six==0.0.0.1" in output, output
    assert "all of it: .venv/setup.log" in output


def test_something_else_called_venv_is_left_alone(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns(".venv", "*.egg-info"))
    (folder / ".venv").mkdir()
    (folder / ".venv" / "diary").touch()
    status, output = install(folder)
    assert status == 2 and "move it away" in output and (folder / ".venv" / "diary").exists(), output


def test_the_locks_hold_one_version_of_each_package_on_every_machine() -> None:
    """Each pin, by its marker, on every Python and architecture that the lock is for."""
    for name, architectures in (("cpu", ("x86_64", "aarch64")), ("gpu", ("x86_64",))):
        text = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        rows = [Requirement(line) for line in text if line and not line.startswith("#")]
        assert all(len(row.specifier) == 1 and str(row.specifier).startswith("==") for row in rows)
        for full in ("3.11.0", "3.11.9", "3.12.1", "3.13.0"):
            for machine in architectures:
                here = {"python_full_version": full, "platform_machine": machine}
                names = [row.name.lower() for row in rows if row.marker is None or row.marker.evaluate(here)]
                assert len(names) == len(set(names)) and {"torch", "uv", "soupsieve"} <= set(names)
                assert ("intel-openmp" in names) == (name == "cpu" and machine == "x86_64")
