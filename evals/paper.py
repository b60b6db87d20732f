"""A run's results for a paper: one portrait booktabs table and the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.study.latex import ESCAPES
from evals.table import label, trait_column
from shared.console import format_number

Row = Mapping[str, Any]
PREAMBLE = "% In the preamble: \\usepackage{booktabs,graphicx}. Fits a page's text width in portrait; in two columns use table* and figure*."


def paper(rows: Sequence[Row], caption: str, figure: str = "trajectory.png") -> str:
    """LaTeX with a table of every headline condition and the figure, each in a float.

    Args:
        rows: of results.json.
        caption: what was run, as plain text.
        figure: the image's file, as LaTeX finds it.
    """
    column = trait_column(rows)
    names = {"llr_opposite": r"Trait (llr\_opposite)", "trait_llr": r"Trait (trait\_llr)"}
    head = ["Condition", names[column], "Perplexity", "Authority (nats)", "Verdict"]
    body = "\n".join(
        " & ".join(
            [
                _text(label(dict(row))),
                _ranged(row, column, f"{column}_ci", 3, True),
                _ranged(row, "perplexity", "perplexity_ci", 2),
                _ranged(row, "auth_nats", "auth_ci", 2),
                _text(format_number(row["text_verdict"])),
            ]
        )
        + r" \\"
        for row in rows
    )
    caption_text = _text(caption)
    return f"""{PREAMBLE}
\\begin{{table}}[t]
\\centering\\small
\\setlength{{\\tabcolsep}}{{4pt}}
\\caption{{{caption_text} Brackets are 95\\,\\% intervals over prompts (trait, perplexity) or items (authority). The verdict is that on free text.}}
\\label{{tab:run}}
\\begin{{tabular}}{{lrrrl}}
\\toprule
{" & ".join(head)} \\\\
\\midrule
{body}
\\bottomrule
\\end{{tabular}}
\\end{{table}}

\\begin{{figure}}[t]
\\centering
\\includegraphics[width=0.6\\linewidth]{{{figure}}}
\\caption{{{caption_text} Trait and price over the rounds.}}
\\label{{fig:run}}
\\end{{figure}}
"""


def _text(text: str) -> str:
    return " ".join(text.split()).translate(ESCAPES)


def _ranged(row: Row, name: str, interval: str, digits: int, signed: bool = False) -> str:
    """A number with its interval in a smaller size after it, in mathematical minus signs."""
    value, ends = row.get(name), row.get(interval)
    if value is None:
        return "--"
    figure = f"${format_number(value, digits, signed)}$"
    if ends is None:
        return figure
    low, high = (format_number(end, digits, signed) for end in ends)
    return f"{figure} {{\\scriptsize $[{low}, {high}]$}}"
