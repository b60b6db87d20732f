"""Templates of cards and pages: found from an installed package, complete, and safe from what a model is called."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from conftest import ROOT
from jinja2 import UndefinedError

from shared import jinja
from shared.adapter_card import write_round_card
from shared.adapters import Base


def test_every_folder_of_templates_is_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = settings["tool"]["setuptools"]["package-data"]
    folders = [path for name in ("shared", "gen", "train", "evals") for path in (ROOT / name).rglob("templates")]
    assert len(folders) == 4
    for folder in folders:
        assert "templates/*" in declared[".".join(folder.parent.relative_to(ROOT).parts)], folder


def test_every_template_parses() -> None:
    for folder in (ROOT / "shared" / "templates", ROOT / "gen" / "templates", ROOT / "train" / "templates"):
        environment = jinja.environment(folder)
        assert environment.list_templates()
        for name in environment.list_templates():
            environment.get_template(name)


def test_a_value_that_is_missing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("{{ name }}\n")
    assert jinja.fill_card(tmp_path, "x.md", name="<a> & {{ b }}") == "<a> & {{ b }}\n", "text of a card is text"
    with pytest.raises(UndefinedError):
        jinja.fill_card(tmp_path, "x.md")
    (tmp_path / "x.html").write_text("{{ name }}")
    assert jinja.environment(tmp_path).get_template("x.html").render(name="<a>") == "&lt;a&gt;"


def test_a_model_s_name_stays_in_its_cell(tmp_path: Path) -> None:
    write_round_card(tmp_path, Base(model="a | b\n{{ c }}", fingerprint="0" * 64, round=1))
    rows = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| weights")]
    assert rows == [r"| weights | `a \| b {{ c }}` |"]
