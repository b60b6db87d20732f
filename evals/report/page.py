"""index.html: the whole report in one file that needs no network; without script it stands still, and is whole."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from evals.measures.free_text.rows import Generation
from evals.report.borderline import hairs
from evals.report.charts import panels
from evals.report.training import strips
from evals.round import Round
from evals.table import Table
from shared.console import number
from shared.records import Completion

PER_REASON = 3
CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: #1b1b1b; background: #fff; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; border-top: 1px solid #ddd; padding-top: 1rem; }
img { display: block; width: 100%; max-width: 34rem; height: auto; }
img.broad { max-width: 60rem; } .strip { overflow-wrap: anywhere; margin-bottom: 0; } .strip .over { outline: 1px solid #a33; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e5e5e5; }
th:first-child, td:first-child, .prose td, .prose th { text-align: left; } .wide th { white-space: normal; } .prose td { white-space: normal; overflow-wrap: break-word; } .prose td:last-child { min-width: 16rem; }
.note, .figures { color: #555; font-size: 0.8rem; } nav { display: flex; flex-wrap: wrap; gap: 0 0.8rem; }
details { margin: 0.6rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); gap: 0.6rem; margin: 0.6rem 0; }
.card { border: 1px solid #ddd; border-top: 4px solid #000; border-radius: 4px; padding: 0.5rem 0.7rem; min-width: 0; }
.card pre { margin: 0.3rem 0; white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; font-size: 0.9rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; } figure { margin: 0; } figcaption { font-size: 0.9rem; font-weight: 600; }
.charts svg { width: 100%; height: auto; font-size: 11px; } .grid { stroke: #eee; } .level { stroke: #444; stroke-dasharray: 4 3; } .path { fill: none; stroke: #009e73; stroke-width: 1.2; }
.bar { stroke-width: 1.2; opacity: 0.6; } .pt { cursor: help; outline: none; } .pt:hover > path, .pt:focus > path, .pt.same > path { stroke: #000; stroke-width: 2; }
.switches label { margin-right: 1rem; font-size: 0.9rem; } #tip { position: absolute; z-index: 1; max-width: 22rem; padding: 0.4rem 0.6rem; background: #1b1b1b; color: #fff; font-size: 0.8rem; white-space: pre-line; border-radius: 4px; pointer-events: none; }
th[data-sort] { cursor: pointer; } th[aria-sort=ascending]::after { content: " \25b4"; } th[aria-sort=descending]::after { content: " \25be"; } th:focus-visible { outline: 2px solid #0072b2; }
pre.config { overflow-x: auto; font-size: 0.8rem; background: #f6f6f6; padding: 0.6rem; }
.steered { border-top-color: #d55e00; } .healed { border-top-color: #009e73; } .rejected { border-top-color: #808080; }
"""


def page(
    title: str,
    tables: Sequence[Table],
    said: Sequence[str],
    figures: Mapping[str, bytes],
    rounds: Sequence[Round],
    rows: Sequence[dict[str, Any]],
    extra: Sequence[dict[str, Any]],
    config: str,
) -> str:
    """tables in the order of the page; said are the sentences of the reading; figures are PNGs: profile and training; rows and extra
    those of results.json; config is the run's config.toml. All text is escaped."""
    last = {"Stages", "Difference from the run before", "Provenance"}
    first = [table for table in tables if table.title == "Verdicts"]
    sections = [
        *[(table.title, grid(table)) for table in first],
        ("Reading", "<ul>" + "".join(f"<li>{text(line)}</li>" for line in said) + "</ul>"),
        (
            "Trajectory",
            panels(rows, extra),
        ),
        (
            "Profile",
            image(
                "Mean mass on each foundation, beside the raters where the vignettes are rated",
                figures["profile"],
                "broad",
            ),
        ),
        *[(table.title, grid(table)) for table in tables if table not in first and table.title not in last],
        (
            "Training",
            image("Cross-entropy, divergence and barrier over the steps of each round", figures["training"], "broad"),
        ),
        ("Divergence by token", strips(rounds)),
        ("Generations", side_by_side(of_rounds(rounds))),
        ("Diary of the highest dose", _diary(rounds)),
        ("Borderline cases", _borderline(rounds)),
        ("Rejected samples", _rejected(rounds)),
        *[(table.title, grid(table)) for table in tables if table.title in last],
        ("Configuration", verbatim(config)),
    ]
    return whole(title, sections)


def whole(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A page of named sections of HTML, with the style and the script of the report."""
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = [("-".join(re.findall(r"\w+", name.lower())), name, body) for name, body in sections]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{allowed}'\">"
        f"<title>{text(title)}</title><style>{CSS}</style></head><body><h1>{text(title)}</h1>\n<nav>"
        + "".join(f'<a href="#{anchor}">{text(name)}</a>' for anchor, name, _ in names)
        + "</nav>\n"
        + "\n".join(f'<h2 id="{anchor}">{text(name)}</h2>\n{body}' for anchor, name, body in names)
        + f'\n<div id="tip" role="status" hidden></div><script>{script}</script></body></html>\n'
    )


def text(value: str) -> str:
    """Escaped; a lone surrogate, which no file can hold, becomes a question mark."""
    return escape(value.encode("utf-8", "replace").decode("utf-8"))


def verbatim(value: str) -> str:
    return f'<pre class="config">{text(value)}</pre>'


def image(alt: str, png: bytes, kind: str = "") -> str:
    return f'<img class="{kind}" alt="{alt}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def grid(table: Table) -> str:
    head = "".join(f'<th scope="col" tabindex="0" data-sort>{text(column)}</th>' for column in table.columns)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
    note = f'<p class="note">{text(table.note)}</p>' if table.note else ""
    kind = "wide prose" if table.prose else "wide"
    return f'<div class="{kind}"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>{note}'


def _card(kind: str, heading: str, body: str, figures: str, tint: float = 0.0) -> str:
    style = f' style="background:rgba(213,94,0,{tint:.2f})"' if tint else ""
    return f'<div class="card {text(kind)}"{style}><strong>{text(heading)}</strong><pre>{text(body)}</pre><div class="figures">{text(figures)}</div></div>'


def _figures(row: Generation | Completion) -> str:
    return f"perplexity {number(row.perplexity, 1)}, trait_llr {number(row.trait_llr, 3, signed=True)}, ended: {row.finish_reason}"


Column = tuple[str, str, Sequence[Generation]]  # stage, heading, one completion a prompt and sample


def of_rounds(rounds: Sequence[Round]) -> list[Column]:
    """base, then each round's steered and healed."""
    found: list[Column] = []
    for r in rounds:
        for line in r.scores.conditions:
            if line.headline and line.stage in ("base", "steered", "healed"):
                dose = f" at {line.coefficient:.2f}" if line.stage == "steered" and line.coefficient is not None else ""
                heading = "base" if line.stage == "base" else f"round {r.number}, {line.stage}{dose}"
                found.append((line.stage, heading, r.generations[line.name]))
    return found


def side_by_side(columns: Sequence[Column]) -> str:
    """Held-out prompts with their completions, the first column's model as the measure: the less coherent the deeper in colour."""
    found = [(stage, heading, {(row.prompt_id, row.sample): row for row in rows}) for stage, heading, rows in columns]
    first = columns[0][2]
    prompts = {row.prompt_id: row.prompt for row in first}
    usual = [math.log(row.perplexity) for row in first if row.perplexity is not None]
    base = sum(usual) / len(usual) if usual else None
    parts = ["<p class='note'>Colour deepens with the perplexity over base's, from equal to five times.</p>"]
    for index, (name, prompt) in enumerate(prompts.items()):
        grids = ""
        for place in ((row.prompt_id, row.sample) for row in first if row.prompt_id == name):
            cards = [
                _card(stage, heading, rows[place].text, _figures(rows[place]), _tint(rows[place], base))
                for stage, heading, rows in found
                if place in rows
            ]
            grids += f'<div class="cards">{"".join(cards)}</div>'
        parts.append(f"<details{' open' if index < 2 else ''}><summary>{text(prompt)}</summary>{grids}</details>")
    return "\n".join(parts)


def _tint(row: Generation, base: float | None) -> float:
    """Opacity, 0 at the base's mean log-perplexity and deepest at five times its perplexity."""
    if base is None or row.perplexity is None:
        return 0.0
    return 0.45 * min(max((math.log(row.perplexity) - base) / math.log(5), 0.0), 1.0)


def _diary(rounds: Sequence[Round]) -> str:
    """The rejected sample of the highest dose, round by round: how the model breaks."""
    cards = []
    for r in rounds:
        if r.rejected:
            row = max(r.rejected, key=lambda row: (row.coefficient, row.perplexity or 0.0, row.key))
            cards.append(_card("rejected", f"round {r.number}, coefficient {row.coefficient:g}", row.text, f"{'; '.join(map(str, row.reasons))}. {_figures(row)}"))  # fmt: skip
    return f'<div class="cards">{"".join(cards)}</div>' if cards else "<p>Nothing was rejected.</p>"


def _borderline(rounds: Sequence[Round]) -> str:
    """What the filter kept or rejected by the least."""
    parts = []
    for r in rounds:
        cards = [
            _card("healed" if kept else "rejected", f"{'kept' if kept else 'rejected'} at coefficient {row.coefficient:g}", row.text, f"{why}. {_figures(row)}")
            for row, kept, why in hairs(r.kept, r.rejected, r.limits, PER_REASON)
        ]  # fmt: skip
        body = f'<div class="cards">{"".join(cards)}</div>' if cards else "<p>None.</p>"
        parts.append(
            f"<details{' open' if r is rounds[-1] else ''}><summary>Round {r.number}</summary>{body}</details>"
        )
    return "\n".join(parts)


def _rejected(rounds: Sequence[Round]) -> str:
    """A few rejected completions per reason, spread over rounds and doses."""
    by_rule: dict[str, list[tuple[int, Completion]]] = {}
    for r in rounds:
        for row in sorted(r.rejected, key=lambda row: (row.coefficient, row.key)):
            for reason in row.reasons:
                by_rule.setdefault(reason.rule, []).append((r.number, row))
    parts = []
    for rule, found in sorted(by_rule.items(), key=lambda item: -len(item[1])):
        chosen = [
            found[round(place * (len(found) - 1) / max(PER_REASON - 1, 1))]
            for place in range(min(PER_REASON, len(found)))
        ]
        cards = "".join(
            _card(
                "rejected",
                f"round {which}, coefficient {row.coefficient:g}",
                row.text,
                f"{'; '.join(map(str, row.reasons))}. {_figures(row)}",
            )
            for which, row in chosen
        )
        parts.append(
            f'<details><summary>{text(rule)} ({len(found)})</summary><div class="cards">{cards}</div></details>'
        )
    return "\n".join(parts) or "<p>None.</p>"
