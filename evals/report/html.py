"""The HTML of the report: Jinja2 templates with autoescape, so that a model's text stays text, and one page that needs no network."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from evals.answer import AnswerCard
from evals.report.looks import ARM_SYMBOLS, LOOKS, SYMBOLS
from evals.report.panel import Panel, svg
from evals.table import Table
from shared import jinja
from shared.glossary import GLOSSARY, definition

TEMPLATES = Path(__file__).parent / "templates"
INTERVAL = re.compile(r"^(\S+) (\[[^\[\]]*\])(.*)$", re.DOTALL)
UNDEFINED = "–"


@dataclass(frozen=True)
class PageSection:
    """A part of a group under its own heading."""

    title: str
    body: Markup

    @property
    def anchor(self) -> str:
        """The id of the heading, for links on the page."""
        return anchor(self.title)


@dataclass(frozen=True)
class PageGroup:
    """A group of the page's details; name: its id and its link in the navigation."""

    name: str
    title: str
    sections: Sequence[PageSection]


def anchor(title: str) -> str:
    """An id out of the words of a title."""
    return "-".join(re.findall(r"\w+", title.lower()))


def render(template: str, **values: Any) -> Markup:
    """A template of this folder with its values, all of them escaped unless they are Markup."""
    return Markup(_environment().get_template(template).render(**values))


@cache
def _environment() -> Environment:
    environment = jinja.environment(TEMPLATES)
    environment.filters |= {"number_and_interval": number_and_interval, "anchor": anchor}
    environment.globals |= {"definition": definition, "meaning": meaning_of, "looks": LOOKS, "symbols": SYMBOLS, "arm_symbols": ARM_SYMBOLS, "glossary": GLOSSARY}  # fmt: skip
    return environment


def whole_page(title: str, subtitle: str, answer: Markup, groups: Sequence[PageGroup]) -> str:
    """A whole page. answer: what stands above the groups. A lone surrogate, which no file can hold, becomes a question mark."""
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    content = render(
        "page.html",
        title=title,
        subtitle=subtitle,
        answer=answer,
        groups=[group for group in groups if group.sections],
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return content.encode("utf-8", "replace").decode("utf-8")


def grid(table: Table) -> Markup:
    """A table whose columns can be sorted, with a link to its figures as CSV."""
    data = base64.b64encode(table_csv(table).encode("utf-8", "replace")).decode()
    return render("table.html", table=table, csv=f"data:text/csv;charset=utf-8;base64,{data}")


def number_and_interval(cell: str) -> tuple[str, str, str]:
    """A cell such as `-0.379 [-0.542, -0.216]` as figure, interval and what follows; the last two are empty for any other cell."""
    match = INTERVAL.match(cell)
    return (match[1], match[2], match[3]) if match else (cell, "", "")


def meaning_of(column: str) -> str | None:
    """The definition of a column's head; of a difference, `X less Y's`, the definition of X."""
    if (meaning := definition(column)) is not None:
        return meaning
    first, less, other = column.removeprefix("change of ").partition(" less ")
    negative = first.startswith("-")
    if (meaning := definition(first.removeprefix("-"))) is None:
        return None
    parts = [meaning, *(["with the opposite sign"] if negative else []), *([f"less {other}"] if less else [])]
    return "; ".join(parts)


def table_csv(table: Table) -> str:
    """CSV of a table: an interval takes two further columns, an undefined figure is empty."""
    cells = [[number_and_interval(cell) for cell in row] for row in table.rows]
    ranged = [any(row[column][1].count(",") == 1 for row in cells) for column in range(len(table.columns))]
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow([name for column, wide in zip(table.columns, ranged, strict=True) for name in ([column, f"{column} low", f"{column} high"] if wide else [column])])  # fmt: skip
    for row, texts in zip(cells, table.rows, strict=True):
        line: list[str] = []
        for (figure, interval, rest), text, wide in zip(row, texts, ranged, strict=True):
            split = wide and interval.count(",") == 1 and not rest
            content = figure if split else text
            line.append("" if content == UNDEFINED else content)
            if wide:
                line += [end.strip() for end in interval[1:-1].split(",")] if split else ["", ""]
        writer.writerow(line)
    return handle.getvalue()


def charts(
    name: str, panels: Sequence[Panel], stages: Sequence[str] = (), arms: Sequence[str] = (), wide: bool = False
) -> Markup:
    """Panels side by side, each with its finding.

    Args:
        name: of the figure, in ids.
        stages, arms: that can be hidden.
        wide: one panel takes the whole width.
    """
    drawn = [
        (f"{name}-{index}", panel.title, panel.finding, svg(panel, f"{name}-{index}"))
        for index, panel in enumerate(panels)
    ]
    return render("charts.html", panels=drawn, stages=stages, arms=arms, wide=wide)


def pictures(name: str, drawn: Sequence[tuple[str, str, Markup]]) -> Markup:
    """Figures on the page. drawn: title, finding, and an SVG whose caption has the id `{name}-{index}-caption`."""
    panels = [(f"{name}-{index}", *panel) for index, panel in enumerate(drawn)]
    return render("charts.html", panels=panels, stages=(), arms=(), wide=True)


def answer_cards(cards: Sequence[AnswerCard]) -> Markup:
    """The answers on top of a page, arm by arm."""
    return render("answer.html", arms=cards)


def bullets(lines: Sequence[str]) -> Markup:
    """A list of sentences."""
    return render("bullets.html", lines=lines)


def folded_sections(groups: Sequence[tuple[str, Sequence[str]]]) -> Markup:
    """Sentences under titles that fold, the last of them open."""
    return render("folded.html", said=groups)


def verbatim(text: str) -> Markup:
    """A text as it stands, in a fixed-width block."""
    return render("verbatim.html", text=text)


def glossary() -> PageSection:
    """Every definition, for those who cannot point at a header."""
    return PageSection("Glossary", render("glossary.html"))
