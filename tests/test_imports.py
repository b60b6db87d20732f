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
