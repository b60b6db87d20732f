"""The digest of the code: it sees every source that rows depend on, and nothing else."""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_filter import completion
from test_imports import ALLOWED
from test_windows import lines, opened

from shared.code import IMPORTS, code_digest, digest_of_sources
from shared.errors import Exit, SteerHealError
from train.unfinished import Unfinished

SOURCES = [path.relative_to(ROOT) for name in IMPORTS["evals"] for path in sorted((ROOT / name).rglob("*.py"))]


def copied(folder: Path, *packages: str) -> Path:
    """A folder with packages in it, as a checkout elsewhere has them."""
    for name in packages:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copied(tmp_path, *IMPORTS)


def in_process(folder: Path, package: str) -> str:
    """What a process whose packages lie in a folder takes for the digest."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import shared.code as c; print(c.__file__, c.code_digest({package!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    place, _, digest = done.stdout.strip().rpartition(" ")
    assert place == str(folder / "shared" / "code.py")
    return digest


def edited_in_process(folder: Path, imports: str, source: str) -> subprocess.CompletedProcess[str]:
    """A process that imports a command, edits a source, and asks for the digest of `gen` for the first time."""
    code = f"""
import sys; sys.path.insert(0, {str(folder)!r})
import {imports}
assert "shared.code" in sys.modules and {imports}.__file__.startswith({str(folder)!r})
open({str(folder / source)!r}, "a").write("# edited")
from shared.code import code_digest
print(code_digest("gen"))
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)


def of(folder: Path, package: str = "evals") -> str:
    return digest_of_sources([folder / name for name in IMPORTS[package]])


def test_a_package_is_keyed_by_all_that_it_imports() -> None:
    assert {name: set(parts) for name, parts in IMPORTS.items()} == {
        name: {name, *below} for name, below in ALLOWED.items()
    }
    assert len({code_digest(name) for name in IMPORTS}) == len(IMPORTS)


def test_another_checkout_has_the_same_digest(copy: Path) -> None:
    """With other line ends, bytecode, documents, tests and what editors leave beside the sources."""
    for path in copy.rglob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert in_process(copy, "gen") == code_digest("gen")
    assert compileall.compile_dir(copy, quiet=1) and (copy / "shared" / "__pycache__").is_dir()
    (copy / "gen" / "README.md").write_text("a document")
    (copy / "gen" / "notes.txt").write_text("a document")
    (copy / "gen" / "tests").mkdir()
    for name in ("tests/test_x.py", "test_x.py", "conftest.py", ".#sweep.py", "sweep.py~", "sweep.pyc"):
        (copy / "gen" / name).write_text("x = 1\n")
    (copy / "gen" / ".ipynb_checkpoints").mkdir()
    (copy / "gen" / ".ipynb_checkpoints" / "sweep.py").write_text("x = 1\n")
    for name in IMPORTS:
        assert of(copy, name) == code_digest(name)


def test_every_source_counts(copy: Path) -> None:
    """Those that render a prompt and that seed a sample among them, which no list of modules had."""
    assert {Path("gen/prompts.py"), Path("shared/seeds.py"), Path("evals/measures/forced_choice/instrument.py")} <= {
        *SOURCES
    }
    before = of(copy)
    for name in SOURCES:
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content + b"#")
        assert of(copy) != before, name
        (copy / name).write_bytes(content)
    assert of(copy) == before
    (copy / "shared" / "seeds.py").rename(copy / "shared" / "seed.py")
    assert of(copy) != before
    (copy / "shared" / "seed.py").rename(copy / "gen" / "seeds.py")
    assert of(copy) != before


def test_a_trainer_that_changes_leaves_sweeps_and_scores(copy: Path) -> None:
    (copy / "train" / "trainer.py").write_text("")
    assert of(copy) == code_digest("evals") and of(copy, "gen") == code_digest("gen")
    assert of(copy, "train") != code_digest("train")


def code_of_copy(folder: Path, module: str) -> str:
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from shared.code import code_of; print(code_of({module!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True).stdout


def test_rows_of_a_measure_are_keyed_by_the_code_that_makes_them(copy: Path) -> None:
    """The report, the study and other measures are no part of it; what its module imports at any remove is."""
    modules = ("evals.measures.forced_choice.cached", "evals.measures.free_text.generations")
    before = [code_of_copy(copy, module) for module in modules]
    assert before[0] != before[1]
    for name in ("report/page.py", "study/plan.py", "bridges/huggingface.py", "measures/activations.py", "results.py"):
        (copy / "evals" / name).write_text("# edited\n")
    assert [code_of_copy(copy, module) for module in modules] == before
    edits = {
        "evals/measures/forced_choice/labels.py": (True, False),
        "evals/conditions.py": (True, True),
        "evals/measures/free_text/__init__.py": (False, True),
        "gen/prompts.py": (True, True),
        "shared/seeds.py": (True, True),
    }
    for name, changed in edits.items():
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content + b"# edited\n")
        assert (
            tuple(code_of_copy(copy, module) != was for module, was in zip(modules, before, strict=True)) == changed
        ), name
        (copy / name).write_bytes(content)


@pytest.mark.parametrize("command", ["gen.extract", "gen.sweep", "train.heal", "evals.score", "evals.report.__main__"])
def test_the_digest_is_of_the_code_that_a_process_started_with(copy: Path, command: str) -> None:
    """What is edited after a command's import and before the first use of the digest is refused: the process may run a mixture."""
    done = edited_in_process(copy, command, "train/trainer.py")  # no part of `gen`
    assert done.stdout.strip() == code_digest("gen"), done.stderr
    done = edited_in_process(copy, command, "gen/rules.py")
    assert not done.stdout and "the code was edited while this process ran" in done.stderr


def test_it_takes_no_time() -> None:
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        of(ROOT)
        taken.append(time.perf_counter() - begin)
    assert min(taken) < 0.05


def test_half_of_a_sweep_or_a_round_by_other_code_is_refused_with_the_way_on(tmp_path: Path) -> None:
    """Which says nothing of the work: a study stops, and does not drop the arm."""
    mine, other = {"code": "new", "seed": "0"}, {"code": "old", "seed": "0"}
    out = tmp_path / "it's a sweep.jsonl"
    opened(out, other).write(0, lines(completion()))
    Unfinished(tmp_path / "healing", other)
    for begin in (lambda: opened(out, mine), lambda: Unfinished(tmp_path / "healing", mine)):
        with pytest.raises(SteerHealError, match="was begun by other code") as caught:
            begin()
        assert caught.value.code == Exit.MACHINE and "code = 'new' (was 'old')" in str(caught.value.given)
        shell = caught.value.next.partition("rm -r ")[2].partition(", then the same command")[0]
        subprocess.run(f"rm -r {shell}", shell=True, check=True)
        begin()  # the command of the error, and then the same one
    assert 0 not in opened(out, mine)
    opened(out, mine).write(0, lines(completion()))
    with pytest.raises(SteerHealError, match="begun with other settings"):
        opened(out, {"code": "old", "seed": "1"})


def test_code_without_sources_has_no_digest(copy: Path, tmp_path: Path) -> None:
    """Of bytecode alone, or in an archive, every version would have the same."""
    archive = shutil.make_archive(str(tmp_path / "packages"), "zip", copy)
    assert compileall.compile_dir(copy / "gen", quiet=1, legacy=True)
    for path in (copy / "gen").rglob("*.py"):
        path.unlink()
    for folder in (copy / "gen", Path(archive) / "gen", copy / "nothing"):
        with pytest.raises(SteerHealError, match="version cannot be told"):
            digest_of_sources([copy / "shared", folder])
