"""The report of a run from its files: results.json, .md and .csv, run.tex, a PNG a figure, and index.html in RUN/report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from evals.commandline import report_options
from evals.ending import show_ending
from evals.paper import paper
from evals.report import cause
from evals.report.lineage import difference, run_provenance, stages
from evals.report.published import selectivity
from evals.report.quality import coherence
from evals.report.reading import grouped_reading, run_reading
from evals.report.tables import (
    agreement_table,
    healing,
    levels_table,
    overview_table,
    rejections,
    results_csv,
    shifts_table,
    survivors,
    sweep_table,
    times,
)
from evals.report.verdicts import verdicts_table
from evals.results import results_of
from evals.round import Round
from evals.scored import STEP, scored_rounds
from evals.table import Table, markdown
from evals.tracking import track
from shared.cli import entry, parse_arguments
from shared.console import print_table, say
from shared.errors import SteerHealError
from shared.locks import held
from shared.publish import atomic_folder, digest, write_json
from shared.records import data_file
from shared.report_record import REPORT_RECORD, write_report_record
from shared.run import Run
from shared.traits import load_trait

FILES = ("index.html", "results.json", "results.csv", "results.md", "run.tex")


def grouped_tables(run: Run, rounds: Sequence[Round], results: dict[str, Any], mode: str) -> dict[str, list[Table]]:
    """Every table of the report by the group of the page that it stands in."""
    rows, extra = results["rows"], results["extra"]
    return {
        "results": [
            verdicts_table(rows),
            levels_table(rows),
            shifts_table(rows),
            coherence(rows),
            *(
                [
                    levels_table(extra, "Other doses, draws and gates"),
                    shifts_table(extra, "Other doses, draws and gates, against base"),
                ]
                if extra
                else []
            ),
            *cause.tables(rows, extra),
            *selectivity(rows, extra),
        ],
        "measures": [
            table
            for measure in rounds[0].measures
            for table in measure.tables(rows, [(r.number, r.data[measure.name]) for r in rounds])
        ],
        "training": [
            sweep_table(rounds),
            survivors(rounds),
            rejections(rounds),
            healing(rounds),
            agreement_table(rounds),
        ],
        "record": [
            times(rounds, mode),
            stages((f"{r.number} {name}", manifest) for r in rounds for name, manifest in r.manifests.items()),
            difference(run),
            run_provenance(run, rounds),
        ],
    }


def tables_of(run: Run, rounds: Sequence[Round], results: dict[str, Any], mode: str) -> list[Table]:
    """Every table of the report, in its order."""
    return [table for tables in grouped_tables(run, rounds, results, mode).values() for table in tables]


def publish_report(run: Run, rounds: Sequence[Round], results: dict[str, Any], mode: str) -> Path:
    """Write RUN/report as one whole; returns the path of index.html. Raises SteerHealError where it holds files of somebody else."""
    # matplotlib takes seconds to import, which a refusal does not wait for
    from evals.report.figures.base import Shown
    from evals.report.figures.registry import FIGURES, panels_of, pngs
    from evals.report.page import page

    folder = run.folder / "report"
    rows, extra = results["rows"], results["extra"]
    scores, config = rounds[0].scores, run.config
    extent = "round 1" if len(rounds) == 1 else f"rounds 1 to {len(rounds)}"
    title = f"{config.model.name}, {config.train.divergence}, {extent}: did it work?"
    described = f"{config.model.name}, {config.train.divergence}, seed {config.seed}, {extent}, {len(scores.items)} items, {scores.debias}"
    subtitle = f"steer-heal, seed {config.seed}, {len(scores.items)} items, {scores.debias}. {trait_said(run, rounds)}"
    tables = grouped_tables(run, rounds, results, mode)
    sentences = run_reading(rows, extra, rounds)
    frozen = (run.folder / "config.toml").read_text(encoding="utf-8")
    manifests = [run.manifest(r.number, STEP[mode]) for r in rounds]
    files = (*FILES, *(f"{figure.file}.png" for figure in FIGURES), REPORT_RECORD)
    with held(folder), atomic_folder(folder, names=files) as out:
        drawn = Shown(rows, extra, rounds)
        panels = panels_of(drawn)
        figures = pngs(drawn, panels)
        write_json(out / "results.json", results)
        (out / "run.tex").write_text(paper(rows, f"{described}."), encoding="utf-8")
        (out / "results.csv").write_text(results_csv(rows, extra), encoding="utf-8")
        for name, png in figures.items():
            (out / f"{name}.png").write_bytes(png)
        listed = [table for of_group in tables.values() for table in of_group]
        (out / "results.md").write_text(as_markdown(title, listed, sentences, list(figures)), encoding="utf-8")
        (out / "index.html").write_text(
            page(title, subtitle, tables, grouped_reading(rows, extra, rounds), drawn, panels, frozen), encoding="utf-8"
        )
        write_report_record(run, manifests, out)
    return folder / "index.html"


def trait_said(run: Run, rounds: Sequence[Round]) -> str:
    """The trait in its own words, where its file is still the one that the vector was made from."""
    path = data_file(run.config.vector.trait, "trait.json")
    manifest = rounds[0].manifests.get("extract")
    recorded = manifest.inputs.get("trait") if manifest else None
    if not path.is_file() or (recorded is not None and digest(path) != recorded):
        return f"The trait is that of {run.config.vector.trait} as it was when the run was begun."
    return f"The trait: “{load_trait(run.config.vector.trait).trait}”"


def as_markdown(title: str, tables: Sequence[Table], sentences: Sequence[str], figures: Sequence[str]) -> str:
    """results.md. figures: names of the PNGs beside it, the first on top."""
    bullets = "\n".join(f"- {escape(line, quote=False)}" for line in sentences)
    first, *others = [f"![{name}]({name}.png)" for name in figures]
    return "\n\n".join(
        [
            f"# {escape(title, quote=False)}",
            first,
            markdown(tables[0]).rstrip("\n"),
            f"## Reading\n\n{bullets}",
            *others,
            "\n".join(markdown(table) for table in tables[1:]),
        ]
    )


def main() -> None:
    options = report_options()
    arguments, run = parse_arguments(options, in_round=False, begins=False)
    if run is None:
        raise SteerHealError(
            "no run is named", given="no --run", expected="--run DIR", next="python -m evals.report --run runs/smollm2"
        )
    rounds = scored_rounds(run, arguments.eval, getattr(arguments, "round", None))
    results = results_of(run, rounds)
    path = publish_report(run, rounds, results, arguments.eval)
    for table in (overview_table(results["rows"]), verdicts_table(results["rows"]), times(rounds, arguments.eval)):
        print_table(table.title, table.columns, table.rows)
    say(f"report {path}")
    track(run, rounds, results["rows"], path)
    show_ending(run, results["rows"], path, arguments.eval, read_for=rounds[0].scores.read_for is not None)


if __name__ == "__main__":
    entry(main)
