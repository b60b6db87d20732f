"""A name of the code means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict

from conftest import ROOT


def test_no_two_public_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for package in ("shared", "gen", "train", "evals"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(str(path.relative_to(ROOT)))
    assert len(places) > 200
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


# One thing in every module that has it: a command's or a stage's entry, a package's options, a plugin's entry, and what other programs call by name.
INTERFACES = {"main", "stage", "register", "panels", "gpu_options", "bench_options", "extract", "sweep", "informedness", "forced_choice", "auth_nats", "care_nats", "answer_mass", "unscorable"}  # fmt: skip


def test_no_two_public_functions_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for package in ("shared", "gen", "train", "evals"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                    places[node.name].append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in places.items() if len(paths) > 1 and name not in INTERFACES}
    assert len(places) > 800 and not twice
