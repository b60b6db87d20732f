"""index.html of a run: the answer first, then the same prompt before and after, then the picture, then the details in five groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from evals.answer import card_of
from evals.report.figures.base import Shown
from evals.report.figures.registry import FIGURES
from evals.report.html import (
    PageGroup,
    PageSection,
    answer_cards,
    charts,
    folded_sections,
    glossary,
    grid,
    render,
    verbatim,
    whole_page,
)
from evals.report.panel import Panel
from evals.report.samples import borderline, diary, of_rounds, rejected, samples_of, searchable
from evals.report.strips import strips
from evals.table import Table

GROUPS = {
    "results": "Results",
    "measures": "Moral choice and other measures",
    "texts": "Texts",
    "training": "Filter and training",
    "record": "How it was made",
}


def page(
    title: str,
    subtitle: str,
    tables: Mapping[str, Sequence[Table]],
    reading: Sequence[tuple[str, Sequence[str]]],
    drawn: Shown,
    panels: Mapping[str, Sequence[Panel]],
    config: str,
) -> str:
    """The page of a run.

    Args:
        tables: by group, in the order of the page.
        reading: sentences under titles.
        drawn: rows and rounds of the run.
        panels: of its figures, by their names.
        config: the run's config.toml.
    """
    rounds = drawn.rounds
    groups = {name: [PageSection(table.title, grid(table)) for table in tables.get(name, ())] for name in GROUPS}
    groups["results"].insert(1, PageSection("Reading", folded_sections(reading)))
    groups["texts"] += [
        PageSection("Generations", searchable(samples_of(of_rounds(rounds)))),
        PageSection("Diary of the highest dose", diary(rounds)),
        PageSection("Borderline cases", borderline(rounds)),
        PageSection("Rejected samples", rejected(rounds)),
    ]
    groups["training"].append(PageSection("Divergence by token", strips(rounds)))
    groups["record"] += [PageSection("Configuration", verbatim(config)), glossary()]
    with_figures(groups, drawn, panels)
    page_groups = [PageGroup(name, GROUPS[name], sections) for name, sections in groups.items()]
    return whole_page(title, subtitle, top_of_page(drawn, panels), page_groups)


def top_of_page(drawn: Shown, panels: Mapping[str, Sequence[Panel]]) -> Markup:
    """The top of the page: the answer card, completions of one prompt before and after the last round, and the main figure."""
    rounds = drawn.rounds
    texts = [column for column in of_rounds(rounds) if column[0] == "base"] + of_rounds(rounds[-1:])
    samples = samples_of([*dict((heading, (stage, heading, generations)) for stage, heading, generations in texts).values()])  # fmt: skip
    parts = [answer_cards([card_of(drawn.rows, read_for=rounds[0].scores.read_for is not None)])]
    if samples:
        parts.append(render("before_after.html", sample=samples[0]))
    parts += [picture(drawn, panels)]
    return Markup("\n").join(parts)


def picture(drawn: Shown, panels: Mapping[str, Sequence[Panel]]) -> Markup:
    """The figures of the group `answer`, each under its title."""
    return Markup("\n").join(
        render("heading.html", title=figure.title)
        + charts(figure.name, panels[figure.name], drawn.stages, drawn.arms, wide=True)
        for figure in FIGURES
        if figure.group == "answer" and figure.name in panels
    )


def with_figures(groups: dict[str, list[PageSection]], drawn: Shown, panels: Mapping[str, Sequence[Panel]]) -> None:
    """Put the other figures into their groups, each before the section it names, or first.

    Args:
        groups: sections by the name of their group; figures are put into them.
        drawn: rows and rounds of the run.
        panels: of the figures, by name.
    """
    for figure in FIGURES:
        if figure.group in groups and figure.name in panels:
            sections = groups[figure.group]
            titles = [section.title for section in sections]
            place = titles.index(figure.before) if figure.before in titles else 0
            sections.insert(
                place,
                PageSection(figure.title, charts(figure.name, panels[figure.name], wide=len(panels[figure.name]) == 1)),
            )
