"""A panel is drawn once: on the page its ids are its own, its marks say what they are, and one of them is a tab stop."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from typing import Any

from conftest import ROOT

from evals.report.figures import trade
from evals.report.figures.base import Shown
from evals.report.figures.registry import FIGURES, panels_of
from evals.report.html import anchor, charts, grid, meaning_of, number_and_interval, table_csv
from evals.report.looks import GREEN, ORANGE
from evals.report.page import GROUPS
from evals.report.panel import SVG, Mark, Panel, Plot, panels_png, svg
from evals.table import Table
from shared.glossary import definition

NASTY = "<b>&\"'</b>"


def panel() -> Panel:
    def draw(plot: Plot) -> None:
        plot.path([0, 1], [0, 1], colour=GREEN, mark=Mark({"arm": NASTY}))
        for x in (0, 1):
            mark = Mark({"stage": "healed", "key": f"{NASTY}{x}"}, f"point {x} {NASTY}")
            plot.point(x, x, marker="o", colour=ORANGE, mark=mark, y_interval=[x - 0.1, x + 0.1])

    return Panel("A title", "It rises.", draw)


def test_marks_say_what_they_are_and_one_is_a_tab_stop() -> None:
    root = ET.fromstring(svg(panel(), "one"))
    points = [element for element in root.iter() if element.get("class") == "pt"]
    assert [point.get("tabindex") for point in points] == ["0", "-1"]
    assert [point.findtext(f"{{{SVG}}}title") for point in points] == [f"point {x} {NASTY}" for x in (0, 1)]
    assert points[1].get("data-key") == f"{NASTY}1" and root.get("aria-labelledby") == "one-caption"
    bars = [element for element in root.iter() if element.get("data-bar")]
    assert len(bars) == 2 and all(bar.get("class") == "path" for bar in bars)


def test_two_panels_on_one_page_share_no_id_and_no_style() -> None:
    page = charts("a", [panel(), panel()]) + charts("b", [panel()])
    ids = Counter(re.findall(r' id="([^"]+)"', page))
    assert ids and max(ids.values()) == 1
    referred = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert referred and referred <= set(ids)
    assert "<style" not in page and "<metadata" not in page and ORANGE not in page and "var(--orange)" in page
    assert svg(panel(), "a") == svg(panel(), "a")


def test_panels_stand_side_by_side_in_a_png() -> None:
    assert panels_png([panel()] * 3, 2, {"healed": (ORANGE, "o")}).startswith(b"\x89PNG")


def test_a_figure_without_figures_is_left_out() -> None:
    row = {"arm": "nll", "seed": 0, "round": 0, "stage": "base", "perplexity": None, "trait_llr": None, "llr_opposite": None,
        "auth_nats": None, "care_nats": None, "coherence": None}  # fmt: skip
    assert trade.panels(Shown([row], [])) == [] and panels_of(Shown([row], [])) == {}
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)


def test_cells_are_escaped_and_intervals_stand_under_their_figure() -> None:
    table = Table(NASTY, ["round, stage", "d_auth", NASTY], [[NASTY, "-0.379 [-0.542, -0.216]", NASTY], ["x", "–", "a, b"]])  # fmt: skip
    html = grid(table)
    assert "<b>" not in html and "<td>-0.379<small>[-0.542, -0.216]</small></td>" in html
    assert '<abbr title="change of auth_nats' in html
    assert table_csv(table).splitlines()[1:] == [
        '"<b>&""\'</b>",-0.379,-0.542,-0.216,"<b>&""\'</b>"',
        'x,,,,"a, b"',
    ]
    assert number_and_interval("0.1 [0.0, 0.2]*") == ("0.1", "[0.0, 0.2]", "*")
    assert number_and_interval("a word [1]") == ("a word [1]", "", "") and anchor("Other doses, draws") == "other-doses-draws"  # fmt: skip


def test_a_difference_has_the_meaning_of_what_it_is_of() -> None:
    assert meaning_of("d_auth") == definition("d_auth") is not None
    assert meaning_of("-d_auth less nll's") == f"{definition('d_auth')}; with the opposite sign; less nll's"
    assert meaning_of("no such column") is None


def test_every_figure_has_a_place_on_the_page() -> None:
    assert {figure.group for figure in FIGURES} <= {*GROUPS, "answer"}


def test_the_example_of_the_docs_is_a_figure() -> None:
    code = (ROOT / "docs" / "report.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    row = {"arm": "nll", "seed": 0, "draw": None, "gate": None, "coefficient": 0.0, "verdict": None, **dict.fromkeys(
        ("auth_nats", "auth_ci", "care_nats", "care_ci", "coherence", "coherence_ci", "perplexity", "perplexity_ci", "trait_llr", "trait_llr_ci")
    )}  # fmt: skip
    rows = [
        {**row, "round": 0, "stage": "base", "looping": 0.0},
        {**row, "round": 1, "stage": "healed", "looping": 0.25},
    ]
    (drawn,) = names["LOOPING"].panels(Shown(rows, []))
    assert drawn.finding == "Looping: base 0.000, healed 0.250."
    assert names["panels"].__doc__ and names["LOOPING"].group in GROUPS
    assert names["LOOPING"].panels(Shown([row | {"round": 0, "stage": "base"}], [])) == [], "a run without the column"
    assert svg(drawn, "looping").count('class="pt"') == 2
