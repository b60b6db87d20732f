"""Two runs on one page: the tables of `compare RUN RUN`, and what each model said to every held-out prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evals.table import Table

if TYPE_CHECKING:
    from evals.report.panel import Panel


@dataclass(frozen=True)
class PromptTexts:
    """A held-out prompt with what each model said to it, sample by sample."""

    text: str
    texts_by_model: Sequence[tuple[str, Sequence[str]]]


def compare_page(
    title: str, tables: Sequence[Table], prompts: Sequence[PromptTexts], chart: Panel | None = None
) -> str:
    """The page as HTML: no script, nothing from elsewhere, every text escaped.

    Args:
        title: of the page.
        tables: in their order.
        prompts: with what each model said.
        chart: as `evals.overlay` makes it; goes between the tables and the texts.
    """
    from evals.report.html import charts, render  # with matplotlib, which a refusal does not wait for

    drawn = charts("chart", [chart], wide=True) if chart else ""
    return str(render("compare.html", title=title, tables=tables, prompts=prompts, chart=drawn))
