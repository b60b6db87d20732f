"""docs/cli.md and docs/settings.md are what the code says."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from conftest import ROOT, command

from shared.commands import COMMANDS
from shared.config import described_keys, flatten_config
from shared.reference import pages
from shared.schema import Config
from shared.subcommands import options_of


@pytest.mark.parametrize("name", ["cli.md", "settings.md"])
def test_the_committed_page_is_not_stale(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == pages()[name], "type: make docs"


def test_every_key_has_its_row_with_its_meaning() -> None:
    page = pages()["settings.md"]
    rows = dict(re.findall(r"(?m)^\| `([\w.]+)` \|(.*)$", page))
    assert rows.keys() == flatten_config(Config()).keys()
    assert all(meaning.split()[0].replace("<", "&lt;") in rows[key] for key, meaning in described_keys())
    assert "`0.9` | share of a GPU" in rows["model.gpu_memory"] and "above 0, at most 1" in rows["model.gpu_memory"]


def test_every_option_has_its_row() -> None:
    sections = dict(re.findall(r"(?ms)^## steer-heal ([\w ]+)\n(.*?)(?=^## |\Z)", pages()["cli.md"]))
    assert sections.keys() == COMMANDS.keys()
    for name, text in sections.items():
        shown = [action for action in options_of(name)._actions if action.help != argparse.SUPPRESS]
        wanted = [option for action in shown for option in action.option_strings if option not in ("-h", "--help")]
        assert [option for option in wanted if not re.search(rf"[`\s]{re.escape(option)}[`,\s]", text)] == [], name


def test_a_page_does_not_depend_on_how_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("STEER_HEAL_FORM", "make")
    monkeypatch.setenv("STEER_HEAL_PROGRAM", "/somewhere/bin/steer-heal")
    done = command("shared.reference", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == pages()
