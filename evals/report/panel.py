"""One panel of a figure, drawn once by matplotlib: as SVG with ids for the page, and side by side with others as PNG for results.md."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evals.report.looks import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, png, styled

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# by name in the page's style, so that dark mode has its own
COLOURS = {
    BLACK: "currentColor",
    BLUE: "var(--blue)",
    SKY: "var(--sky)",
    PINK: "var(--pink)",
    ORANGE: "var(--orange)",
    GREY: "var(--grey)",
    GREEN: "var(--green)",
    "#ffffff": "var(--paper)",
    **dict.fromkeys(("#333333", "#444444", "#555555"), "var(--faint)"),
}
MARGINS = (
    0.68,
    0.32,
    0.48,
    0.08,
)  # inches left, right, below and above: a layout that is computed takes twice the time
ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)


@dataclass(frozen=True)
class Mark:
    """What an element of a panel stands for. data: its data- attributes on the page. tooltip: what the page shows over the point."""

    data: Mapping[str, str]
    tooltip: str = ""


class Plot:
    """Axes, and the marks drawn on them by their ids in the SVG."""

    def __init__(self, axes: Axes):
        self.axes = axes
        self.marks: dict[str, Mark] = {}

    def add(self, mark: Mark) -> str:
        """The id for an element that stands for a mark."""
        name = f"mark-{len(self.marks)}"
        self.marks[name] = mark
        return name

    def point(
        self,
        x: float,
        y: float,
        *,
        marker: str,
        colour: str,
        mark: Mark,
        hollow: bool = False,
        x_interval: Sequence[float] | None = None,
        y_interval: Sequence[float] | None = None,
    ) -> None:
        """A point that says its figures, with its intervals where it is not hollow."""
        bars = Mark({**mark.data, "bar": "1"})
        for across, up in ((x_interval, [y, y]), ([x, x], y_interval)):
            if across is not None and up is not None and not hollow:
                self.axes.plot(across, up, color=colour, linewidth=1.2, alpha=0.6, gid=self.add(bars))
        size, fill = (11 if marker == "*" else 6.5), ("none" if hollow else colour)
        self.axes.plot(
            x, y, marker, color=colour, markerfacecolor=fill, markersize=size if not hollow else 5, zorder=3,
            gid=self.add(mark),
        )  # fmt: skip

    def path(self, x: Sequence[float], y: Sequence[float], *, colour: str, mark: Mark, line: str = "-") -> None:
        """A line that joins points."""
        self.axes.plot(x, y, line, color=colour, linewidth=1.1, zorder=1, gid=self.add(mark))


@dataclass(frozen=True)
class Panel:
    """One chart. title names it, finding says in a sentence what it shows, with numbers; size in inches."""

    title: str
    finding: str
    draw: Callable[[Plot], None]
    size: tuple[float, float] = (4.4, 2.9)


def svg(panel: Panel, name: str) -> Markup:
    """A panel as an SVG element for an HTML page. Equal panels give equal text.

    Args:
        panel: the chart to draw.
        name: unique on the page. Every id begins with it, and the element with the id `{name}-caption` is its label.
    """
    figure = Figure(figsize=panel.size)
    left, right, below, above = MARGINS
    width, height = panel.size
    edges = {"left": left / width, "right": 1 - right / width, "bottom": below / height, "top": 1 - above / height}
    plot = Plot(figure.subplots(gridspec_kw=edges))
    panel.draw(plot)
    styled(plot.axes, size=8)
    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return for_page(buffer.getvalue(), name, plot.marks)


def for_page(drawn: bytes, name: str, marks: Mapping[str, Mark] | None = None) -> Markup:
    """matplotlib's SVG as an element of the page.

    Every id begins with `name`; colours follow the style of the page; points get the texts of their marks.
    """
    root = ET.fromstring(drawn)
    for element in (*root.findall(f"{{{SVG}}}metadata"), *_styles(root)):
        root.remove(element)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    has_words = bool(marks and any(mark.tooltip for mark in marks.values()))
    root.attrib |= {"class": "panel", "role": "group" if has_words else "img", "aria-labelledby": f"{name}-caption"}
    content = _used(root, marks or {})
    first = True
    for element in root.iter():
        mark = (marks or {}).get(element.get("id", ""))
        if mark is None:
            continue
        element.attrib |= {f"data-{key}": value for key, value in mark.data.items()}
        element.set("class", "pt" if mark.tooltip else "path")
        if mark.tooltip:
            element.attrib |= {"role": "img", "tabindex": "0" if first else "-1"}
            title = ET.Element(f"{{{SVG}}}title")
            title.text = mark.tooltip
            element.insert(0, title)
            first = False
    for element in root.iter():
        if (element_id := element.get("id")) is not None:
            if element_id in content:
                element.set("id", f"{name}-{element_id}")
            else:
                del element.attrib["id"]
        for attribute, value in element.attrib.items():
            if attribute.endswith("href"):
                element.set(attribute, value.replace("#", f"#{name}-", 1))
            elif attribute in ("style", "clip-path"):
                element.set(attribute, _coloured(value.replace("url(#", f"url(#{name}-")))
    return Markup(ET.tostring(root, encoding="unicode"))


def _styles(root: ET.Element) -> list[ET.Element]:
    """Definitions with a style sheet, which would hold for the whole page."""
    return [element for element in root.findall(f"{{{SVG}}}defs") if element.find(f"{{{SVG}}}style") is not None]


def _used(root: ET.Element, marks: Mapping[str, Mark]) -> set[str]:
    """Ids that something refers to."""
    names = set(marks)
    for element in root.iter():
        for attribute, value in element.attrib.items():
            if attribute.endswith("href"):
                names.add(value.removeprefix("#"))
            names |= set(re.findall(r"url\(#([^)]+)\)", value))
    return names


def _coloured(style: str) -> str:
    for colour, name in COLOURS.items():
        style = style.replace(colour, name)
    return style


def panels_png(panels: Sequence[Panel], columns: int, legend: Mapping[str, tuple[str, str]] | None = None) -> bytes:
    """A PNG of the panels in a grid of `columns` columns, each under its title. legend: colour and marker by what they stand for."""
    rows = -(-len(panels) // columns)
    width = max(panel.size[0] for panel in panels) * (1 if columns > 1 else 1.2)
    height = sum(
        max(panel.size[1] for panel in panels[start : start + columns]) for start in range(0, len(panels), columns)
    )
    figure = Figure(figsize=(width * columns, height + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        panel.draw(Plot(axes))
        axes.set_title(panel.title, loc="left", fontsize=9)
        styled(axes, size=8)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if legend:
        handles = [
            grid[0].plot([], [], marker, color=colour, label=name)[0] for name, (colour, marker) in legend.items()
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 4), fontsize=8, frameon=False)  # fmt: skip
    return png(figure, 160)
