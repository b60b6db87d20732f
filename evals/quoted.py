"""Blocks of the documentation that are made from a run's committed results, so that no quoted number can go stale.

A block of a Markdown page stands between `<!-- results: NAME -->` and `<!-- /results -->`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.answer import card_of
from evals.table import label, ranged, trait_column
from shared.console import format_number
from shared.errors import SteerHealError
from shared.strict import parse_json

BLOCK = re.compile(r"(<!-- results: ([\w-]+) -->\n)(.*?)(<!-- /results -->)", re.DOTALL)
OPEN = re.compile(r"<!-- results: ")
RUN = "run.json"
SHORT = ("base", "prompted", "steered", "healed")


@dataclass(frozen=True)
class Quoted:
    """The committed results of a run. where: their folder as a page links to it."""

    rows: Sequence[Mapping[str, Any]]
    run: Mapping[str, Any]
    reading: Sequence[str]
    where: str


def read_quoted(folder: Path, page: Path) -> Quoted:
    """The results in a folder, for a page that quotes them. Raises SteerHealError for a folder that `make docs-results` has not made."""
    try:
        rows = parse_json((folder / "results.json").read_bytes())["rows"]
        run = parse_json((folder / RUN).read_bytes())
        text = (folder / "results.md").read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        raise SteerHealError(
            "no results are committed there",
            given=f"{folder}: {error}",
            expected=f"results.json, results.md and {RUN} of a run",
            next="make docs-results RUN=runs/smollm2",
        ) from None
    section = text.partition("## Reading\n\n")[2].partition("\n\n")[0]
    where = os.path.relpath(folder, page.parent)
    return Quoted(rows, run, section.splitlines(), Path(where).as_posix())


def run_sentence(quoted: Quoted) -> str:
    """A sentence on the run: model, rounds, machine and time."""
    run = quoted.run
    rounds = "Round 1" if run["rounds"] == 1 else f"Rounds 1 to {run['rounds']}"
    place = run["gpu"] or f"{run['cores']} cores of {run['processor']} ({run['instruction_set']})"
    return (
        f"{rounds} of the model `{run['model']}` with the trait *{run['trait']}*, seed {run['seed']}, {run['items']} vignettes, {run['prompts']} held-out "
        f"prompts, barrier {run['divergence']}: {run['minutes']:.0f} minutes and at most {run['peak_gib']:.1f} GiB on {place}, at commit `{run['commit']}`.\n"
    )


def finding(quoted: Quoted) -> str:
    """One sentence for the figure's alternative text."""
    column = trait_column(quoted.rows)
    last = max(row["round"] for row in quoted.rows)
    by_condition = {(row["round"], row["stage"]): row for row in quoted.rows}
    parts = [
        f"{name} has {column} {format_number(row[column], 3, True)} at perplexity {format_number(row['perplexity'], 2)}"
        for name, row in (("the base", by_condition[0, "base"]), (f"round {last} steered", by_condition[last, "steered"]), (f"round {last} healed", by_condition[last, "healed"]))
    ]  # fmt: skip
    return "Trait against price: " + ", ".join(parts)


def figure(quoted: Quoted) -> str:
    """The run's figure as Markdown, with its finding as the alternative text."""
    return f"![{finding(quoted)}]({quoted.where}/trajectory.png)\n"


def table_block(quoted: Quoted) -> str:
    """Trait and perplexity of the base, prompted and not, and of every round's teacher and student."""
    return _levels(quoted, [row for row in quoted.rows if row["stage"] in SHORT])


def all_levels(quoted: Quoted) -> str:
    """The same of every headline condition, with the controls."""
    return _levels(quoted, quoted.rows)


def _levels(quoted: Quoted, rows: Sequence[Mapping[str, Any]]) -> str:
    column = trait_column(quoted.rows)
    lines = [f"| condition | {column} [95 %] | perplexity [95 %] | verdict on free text |", "|---|---:|---:|---|"]
    lines += [
        f"| {label(dict(row))} | {ranged(dict(row), column, f'{column}_ci', 3, True)} | {ranged(dict(row), 'perplexity', 'perplexity_ci', 2)} | {row['text_verdict'] or ''} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def conclusion(quoted: Quoted) -> str:
    """The answer of the last round, as the terminal ends with it."""
    card = card_of(quoted.rows, read_for=quoted.run["read_for"])
    return "\n".join(f"- **{line.name}**: {line.text}" for line in (card.headline, *card.lines)) + "\n"


def reading_block(quoted: Quoted) -> str:
    """The reading of the results in sentences, as the report has it."""
    return "\n".join(quoted.reading) + "\n"


def files(quoted: Quoted) -> str:
    """Links to the files of the published report."""
    names = {"index.html": "the page", "results.md": "every table", "results.csv": "as CSV", "run.tex": "as LaTeX"}
    return " · ".join(f"[{words}]({quoted.where}/{name})" for name, words in names.items()) + "\n"


def summary_block(quoted: Quoted) -> str:
    """The summary for a README: the figure, a sentence on the run, the short table, the answer."""
    return "\n".join(part(quoted) for part in (figure, run_sentence, table_block, conclusion))


BLOCKS: dict[str, Callable[[Quoted], str]] = {
    "sentence": run_sentence,
    "figure": figure,
    "table": table_block,
    "levels": all_levels,
    "summary": summary_block,
    "answer": conclusion,
    "reading": reading_block,
    "files": files,
}


def render_blocks(text: str, page: Path, folder: Path) -> str:
    """The text of a page with its blocks made from a folder's results.

    Args:
        text: of the page.
        page: where it is, for links.
        folder: that `make docs-results` has made.

    Raises:
        SteerHealError: a block has an unknown name or no end, or there are no results.
    """
    blocks = BLOCK.findall(text)
    unknown = [name for _, name, _, _ in blocks if name not in BLOCKS]
    if unknown or len(blocks) != len(OPEN.findall(text)) or any(OPEN.search(body) for _, _, body, _ in blocks):
        raise SteerHealError(
            "a block of results could not be read",
            given=f"{page}: {unknown[0] if unknown else 'one has no end'}",
            expected=f"<!-- results: NAME --> to <!-- /results -->, NAME one of {', '.join(BLOCKS)}",
            next=f"mend {page}",
        )
    quoted = read_quoted(folder, page)
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]](quoted)}{match[4]}", text)
