"""Links between the documents lead somewhere, and the README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text()
    for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", re.sub(r"(?s)```.*?```", "", text)):
        if re.match(r"\w+:", target):
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            titles = re.findall(r"(?m)^#+ (.*)$", file.read_text())
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, f"{page.name}: {target}#{heading}"


def test_the_readme_is_read_in_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
