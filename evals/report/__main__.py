"""The report of a run from its files: results.json, .md and .csv, run.tex, trajectory.png, training.png, profile.png and index.html in RUN/report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as html
from pathlib import Path
from typing import Any

from evals.commandline import report_options
from evals.ending import show_ending
from evals.paper import paper
from evals.report.lineage import difference, provenance, stages
from evals.report.quality import coherence
from evals.report.reading import reading
from evals.report.tables import (
    agreement,
    comma_separated,
    healing,
    levels,
    overview,
    rejections,
    shifts,
    survivors,
    sweep,
    times,
)
from evals.report.verdicts import verdicts
from evals.results import results_of
from evals.round import Round
from evals.scored import STEP, scored_rounds
from evals.table import Table, markdown
from evals.tracking import track
from shared.cli import entry, parse
from shared.console import say
from shared.console import table as show
from shared.errors import SteerHealError
from shared.locks import held
from shared.publish import atomic_folder, write_json
from shared.report_record import NAME, write_report_record
from shared.run import Run

FILES = (
    "index.html",
    "results.json",
    "results.csv",
    "results.md",
    "trajectory.png",
    "training.png",
    "profile.png",
    "run.tex",
)


def tables_of(run: Run, rounds: Sequence[Round], found: dict[str, Any], mode: str) -> list[Table]:
    """Every table of the report, in its order."""
    rows, extra = found["rows"], found["extra"]
    return [
        verdicts(rows),
        levels(rows),
        shifts(rows),
        coherence(rows),
        *[
            table
            for measure in rounds[0].measures
            for table in measure.tables(rows, [(r.number, r.data[measure.name]) for r in rounds])
        ],
        *(
            [levels(extra, "Other doses, draws and gates"), shifts(extra, "Other doses, draws and gates, against base")]
            if extra
            else []
        ),
        sweep(rounds),
        survivors(rounds),
        rejections(rounds),
        healing(rounds),
        agreement(rounds),
        times(rounds, mode),
        stages((f"{r.number} {name}", manifest) for r in rounds for name, manifest in r.manifests.items()),
        difference(run),
        provenance(run, rounds),
    ]


def publish(run: Run, rounds: Sequence[Round], found: dict[str, Any], mode: str) -> Path:
    """Write RUN/report as one whole; returns the path of index.html. Raises SteerHealError where it holds files of somebody else."""
    from evals.report.figure import trajectory  # matplotlib takes seconds to import, which a refusal does not wait for
    from evals.report.page import page
    from evals.report.profile import bars, profiles
    from evals.report.training import curves

    folder = run.folder / "report"
    rows, extra = found["rows"], found["extra"]
    scores, config = rounds[0].scores, run.config
    title = f"steer-heal: {config.model.name}, {config.train.divergence}, seed {config.seed}, {'round 1' if len(rounds) == 1 else f'rounds 1 to {len(rounds)}'}, {len(scores.items)} items, {scores.debias}"
    tables = tables_of(run, rounds, found, mode)
    sentences = reading(rows, extra, rounds)
    last, first = rounds[-1], rounds[0]
    frozen = (run.folder / "config.toml").read_text(encoding="utf-8")
    chosen = {"base": first.answers["base"], "steered": last.answers["steered"], "healed": last.answers["healed"]}
    manifests = [run.manifest(r.number, STEP[mode]) for r in rounds]
    with held(folder), atomic_folder(folder, of=(*FILES, NAME)) as out:
        figures = {
            "trajectory": trajectory(rows, extra),
            "training": curves(rounds),
            "profile": bars(profiles(chosen)),
        }
        write_json(out / "results.json", found)
        (out / "run.tex").write_text(paper(rows, f"{title[len('steer-heal: ') :]}."), encoding="utf-8")
        (out / "results.csv").write_text(comma_separated(rows, extra), encoding="utf-8")
        for name, png in figures.items():
            (out / f"{name}.png").write_bytes(png)
        (out / "results.md").write_text(as_markdown(title, tables, sentences), encoding="utf-8")
        (out / "index.html").write_text(
            page(title, tables, sentences, figures, rounds, rows, extra, frozen), encoding="utf-8"
        )
        write_report_record(run, manifests, out)
    return folder / "index.html"


def as_markdown(title: str, tables: Sequence[Table], sentences: Sequence[str]) -> str:
    bullets = "\n".join(f"- {html(line, quote=False)}" for line in sentences)
    return (
        f"# {html(title, quote=False)}\n\n![trajectory](trajectory.png)\n\n{markdown(tables[0])}\n## Reading\n\n{bullets}\n\n![profile](profile.png)\n\n![training](training.png)\n\n"
        + "\n".join(markdown(table) for table in tables[1:])
    )


def main() -> None:
    options = report_options()
    arguments, run = parse(options, in_round=False, begins=False)
    if run is None:
        raise SteerHealError(
            "no run is named", given="no --run", expected="--run DIR", next="python -m evals.report --run runs/smollm2"
        )
    rounds = scored_rounds(run, arguments.eval, getattr(arguments, "round", None))
    found = results_of(run, rounds)
    path = publish(run, rounds, found, arguments.eval)
    for table in (overview(found["rows"]), verdicts(found["rows"]), times(rounds, arguments.eval)):
        show(table.title, table.columns, table.rows)
    say(f"report {path}")
    track(run, rounds, found["rows"], path)
    show_ending(run, found["rows"], path, arguments.eval, read_for=rounds[0].scores.read_for is not None)


if __name__ == "__main__":
    entry(main)
