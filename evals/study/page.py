"""index.html of a study: the reading and a card per arm first, then one prompt under every arm, the picture, and the details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from evals.answer import AnswerCard, card_of, together
from evals.report.figures.base import Shown
from evals.report.figures.registry import panels_of
from evals.report.html import (
    PageGroup,
    PageSection,
    answer_cards,
    bullets,
    glossary,
    grid,
    pictures,
    render,
    verbatim,
    whole_page,
)
from evals.report.lineage import stages
from evals.report.page import GROUPS, picture, with_figures
from evals.report.panel import for_page
from evals.report.samples import Column, samples_of, searchable
from evals.study.collect import CellOutcome, Row
from evals.study.figures import STUDY_FIGURES
from evals.study.plan import Plan
from evals.table import Table


def study_page(
    plan: Plan,
    outcomes: Sequence[CellOutcome],
    rows: Sequence[Row],
    tables: Mapping[str, Sequence[Table]],
    sentences: Sequence[str],
    figures: Mapping[str, Mapping[str, bytes]],
) -> str:
    """The page of a study.

    Args:
        rows: of results.json.
        tables: by group of the page.
        sentences: of the reading.
        figures: by name, the bytes of each format.
    """
    drawn = Shown(base_rows_once(rows), [])
    panels = panels_of(drawn)
    samples = samples_of(last_students(outcomes))
    stage_table = stages(
        (f"{outcome.cell.name} {name}", manifest)
        for outcome in outcomes
        for name, manifest in outcome.manifests.items()
    )
    groups = {name: [PageSection(table.title, grid(table)) for table in tables.get(name, ())] for name in GROUPS}
    groups["texts"].append(PageSection("Generations", searchable(samples)))
    for figure in STUDY_FIGURES:
        drawing = for_page(figures[figure.name]["svg"], f"{figure.name}-0")
        picture_section = PageSection(figure.title, pictures(figure.name, [(figure.title, figure.finding, drawing)]))
        groups[figure.group].append(picture_section)
    configuration = plan.file.read_text(encoding="utf-8")
    groups["record"] += [PageSection(stage_table.title, grid(stage_table)), PageSection("Configuration", verbatim(configuration)), glossary()]  # fmt: skip
    with_figures(groups, drawn, panels)
    top = [
        render("heading.html", title="What the arms came to"),
        bullets(sentences),
        answer_cards(arm_cards(outcomes)),
        *([render("before_after.html", sample=samples[0])] if samples else []),
        picture(drawn, panels),
    ]
    arms = [outcome for outcome in outcomes if outcome.rounds]
    subtitle = f"steer-heal study: {len({outcome.cell.arm.name for outcome in arms})} arms with a scored round, {len({outcome.cell.seed for outcome in arms})} seeds."
    page_groups = [PageGroup(name, GROUPS[name], sections) for name, sections in groups.items()]
    return whole_page(plan.study.title, subtitle, Markup("\n").join(top), page_groups)


def arm_cards(outcomes: Sequence[CellOutcome]) -> list[AnswerCard]:
    """One answer card per arm, for the last healed student of each seed. Controls have none: `reading` compares with them."""
    names = dict.fromkeys(
        outcome.cell.arm.name for outcome in outcomes if outcome.rounds and outcome.cell.arm.role == "arm"
    )
    return [
        together(
            name,
            {
                o.cell.seed: card_of(o.rows, read_for=o.rounds[0].scores.read_for is not None)
                for o in outcomes
                if o.rounds and o.cell.arm.name == name
            },
        )
        for name in names
    ]


def base_rows_once(rows: Sequence[Row]) -> list[Row]:
    """The rows of the original model once a seed, where every arm has them."""
    first = {row["seed"]: row["arm"] for row in reversed(rows)}
    return [row for row in rows if row["round"] or row["arm"] == first[row["seed"]]]


def last_students(outcomes: Sequence[CellOutcome]) -> list[Column]:
    """The base and the last healed student of every arm and control of the first seed that has any."""
    seed = next(outcome.cell.seed for outcome in outcomes if outcome.rounds)
    seed_outcomes = [outcome for outcome in outcomes if outcome.rounds and outcome.cell.seed == seed]
    columns: list[Column] = [("base", "base", seed_outcomes[0].rounds[0].generations["base"])]
    for outcome in seed_outcomes:
        r = outcome.rounds[-1]
        columns.append(("healed", f"{outcome.cell.arm.name}, round {r.number}", r.generations[r.healed]))
    return columns
