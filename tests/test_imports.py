"""One direction of imports, and light ones: proven in fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_downwards_only(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for top in {name.partition(".")[0] for name in names} & set(ALLOWED):
                assert top == package or top in ALLOWED[package], f"{path} imports {top}"


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
    found = set()
    for module in MODULES:
        path = ROOT / Path(*module.split(".")).with_suffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            if any(imported.partition(".")[0] == name for imported in names):
                found.add(module)
    return found


def test_vllm_in_one_folder_and_unsloth_in_one_file() -> None:
    assert all(module.startswith("gen.engine.") for module in importers("vllm"))
    assert len(importers("unsloth") | importers("unsloth_zoo")) == 1


def evals_graph() -> dict[str, set[str]]:
    """Module of evals -> those of evals that it imports, anywhere in its text; a package stands for its __init__."""
    paths = {
        ".".join((path.parent if path.stem == "__init__" else path.with_suffix("")).relative_to(ROOT).parts): path
        for path in (ROOT / "evals").rglob("*.py")
    }
    graph: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                named = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for one in named:
                parts = one.split(".")
                graph[name] |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & (paths.keys() - {name})
    return graph


def test_evals_has_no_import_circle() -> None:
    """Nor one in an import that waits for a call or for a type checker."""
    graph = evals_graph()
    assert {"evals.score", "evals.measures.registry", "evals.report.__main__"} <= graph.keys()
    while leaves := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph
