"""The layout in CONTRIBUTING.md names every module there is, and none that is gone."""

from __future__ import annotations

import re

import pytest
from conftest import ENGINE, ROOT, SHARING

PACKAGES = ("shared", "gen", "train", "evals")
LAYOUT = (ROOT / "CONTRIBUTING.md").read_text().partition("## Layout")[2].split("```")[1]


def test_every_module_is_named() -> None:
    words = set(re.findall(r"[\w]+", LAYOUT))
    modules = {
        path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not path.stem.startswith("__")
    }
    assert [
        str(path.relative_to(ROOT)) for path in sorted(modules) if not {path.stem, path.parent.name} <= words
    ] == [], "name it under ## Layout in CONTRIBUTING.md"


def test_no_module_is_named_that_is_gone() -> None:
    stems = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert sorted({name for name in re.findall(r"\w+\.py", LAYOUT) if name not in stems}) == []


def test_files_that_share_an_engine_are_listed(pytestconfig: pytest.Config) -> None:
    """Of the files collected: in `make test`, all of them. One that is not listed would start an engine of its own."""
    sharing = pytestconfig.stash[SHARING]
    assert {file for file, shares in sharing.items() if shares} == set(ENGINE) & sharing.keys()
