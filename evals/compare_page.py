"""Two runs on one page: the tables of `compare RUN RUN`, and what each model said to every held-out prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from evals.table import Table

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 0 auto; padding: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
figure { margin: 1rem 0; max-width: 46rem; } svg { width: 100%; height: auto; }
.said { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
.said > div { background: var(--soft); padding: .5rem .8rem; border-radius: .4rem; }
.said p { white-space: pre-wrap; overflow-wrap: anywhere; }
.said h4 { margin: .2rem 0; overflow-wrap: anywhere; }
a.skip { position: absolute; left: -999px; } a.skip:focus { position: static; }
"""


@dataclass(frozen=True)
class PromptTexts:
    """A held-out prompt with what each model said to it, sample by sample."""

    text: str
    said: Sequence[tuple[str, Sequence[str]]]


def compare_page(title: str, tables: Sequence[Table], prompts: Sequence[PromptTexts], chart: str = "") -> str:
    """The page as HTML: no script, nothing from elsewhere, every text escaped.

    Args:
        title: of the page.
        tables: in their order.
        prompts: with what each model said.
        chart: SVG, as `evals.overlay` makes it; goes between the tables and the texts.
    """
    parts = [*(_table(table) for table in tables), chart]
    if prompts:
        parts.append('<h2 id="texts">Texts side by side</h2>')
        parts += [_prompt(prompt) for prompt in prompts]
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">to the content</a>
<main id="main">
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in table.rows
    )
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(table.title)}"><table><caption>{escape(table.title)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{note}"
    )


def _prompt(prompt: PromptTexts) -> str:
    said = "".join(
        f"<div><h4>{escape(name)}</h4>" + "".join(f"<p>{escape(text)}</p>" for text in texts) + "</div>"
        for name, texts in prompt.said
    )
    return f'<section><h3>{escape(prompt.text)}</h3>\n<div class="said">{said}</div></section>'
