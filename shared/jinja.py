"""Jinja2 templates of a package: pages, where all that is put in is escaped, and cards in Markdown, where text stands as it is."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

SHARED = Path(__file__).parent / "templates"


@cache
def environment(folder: Path) -> Environment:
    """The templates of a folder, and those of shared/templates after them. A value that a template lacks is an error."""
    templates = Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["cell"] = cell
    return templates


def fill_card(folder: Path, template: str, **values: Any) -> str:
    """A template in Markdown, filled in, with the line break that ends a file."""
    return environment(folder).get_template(template).render(**values) + "\n"


def cell(text: object) -> str:
    """Text that stays in its cell of a Markdown table, whatever a model or a folder is called."""
    return " ".join(str(text).split()).replace("|", "\\|")
