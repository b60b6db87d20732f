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
