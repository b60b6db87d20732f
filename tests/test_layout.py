"""The layout in CONTRIBUTING.md names every module there is, and none that is gone."""

from __future__ import annotations

import re

from conftest import ROOT

PACKAGES = ("shared", "gen", "train", "evals")
LAYOUT = (ROOT / "CONTRIBUTING.md").read_text().partition("## Layout")[2].split("```")[1]


def test_every_module_is_named() -> None:
    words = set(re.findall(r"[\w]+", LAYOUT))
    modules = {
        path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not path.stem.startswith("__")
    }
    assert [str(path.relative_to(ROOT)) for path in sorted(modules) if not {path.stem, path.parent.name} <= words] == []


def test_no_module_is_named_that_is_gone() -> None:
    stems = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert sorted({name for name in re.findall(r"\w+\.py", LAYOUT) if name not in stems}) == []
