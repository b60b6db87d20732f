"""`make study`: run a study's cells, then its tables, figures and results; or only the latter, from finished cells."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from evals.commandline import study_options
from evals.report.tables import results_csv
from evals.routes import Axis, Route, along, dose_points, path, scorable
from evals.study import FORMATS
from evals.study.collect import CellOutcome, collect, document, trait_measure
from evals.study.drive import drive
from evals.study.ends import arm_differences, summary_table
from evals.study.figures import STUDY_FIGURES
from evals.study.latex import latex
from evals.study.matched import SHARES, Comparison, matched
from evals.study.plan import STEERING, Plan, read_plan
from evals.study.reading import study_reading
from evals.study.stopped import reason
from evals.study.tables import (
    against_controls,
    arms,
    at_one_shift,
    by_round,
    cyclic,
    other_measures,
    stopped,
    study_provenance,
)
from evals.table import markdown
from shared.cli import entry
from shared.console import print_table, say
from shared.errors import SteerHealError
from shared.locks import held
from shared.publish import atomic_folder, replaceable, write_json

CONTENT = (
    *("results.json", "results.csv", "results.md", "tables.tex", "index.html"),
    *(f"{figure.name}.{kind}" for figure in STUDY_FIGURES for kind in FORMATS),
)


def axis_of(outcomes: Sequence[CellOutcome]) -> Axis:
    """authority where every base passes the preflight, else what free text is read for."""
    bases = [row for outcome in outcomes if (row := outcome.at(0, "base")) is not None]
    return "authority" if bases and all(row["verdict"] is None for row in bases) else trait_measure(outcomes)


def compare_arms(outcomes: Sequence[CellOutcome], axis: Axis) -> tuple[str, list[Comparison]] | None:
    """(reference arm, the arms at each of SHARES); None with fewer than two arms to compare. Arms of a seed count the same items."""
    arm_outcomes = [outcome for outcome in outcomes if outcome.cell.arm.role == "arm" and outcome.rounds]
    paths: dict[str, dict[int, Route]] = {}
    keep = {
        seed: np.logical_and.reduce(
            [scorable(outcome.rounds, outcome.broken(axis)) for outcome in arm_outcomes if outcome.cell.seed == seed]
        )
        for seed in {outcome.cell.seed for outcome in arm_outcomes}
    }
    for outcome in arm_outcomes:
        seed, count = outcome.cell.seed, outcome.cell.config.eval.bootstrap
        walk = path(outcome.rounds, axis, count, 0, broken=outcome.broken(axis), keep=keep[seed])
        paths.setdefault(outcome.cell.arm.name, {})[seed] = walk
    if not paths:
        return None
    reference = next(iter(paths))
    steering = {}
    for (
        outcome
    ) in arm_outcomes:  # arms of a seed are steered by one round-1 vector: the first that has doses speaks for them
        doses = dose_points(outcome.rounds[0])
        if outcome.cell.seed in steering or len(doses) < 3:
            continue
        dead = outcome.broken_doses(axis)
        alive = [answers.scorable for dose, answers, _ in doses if dose not in dead]
        items = np.logical_and.reduce([keep[outcome.cell.seed], *alive])
        steering[outcome.cell.seed] = along(doses, axis, outcome.cell.config.eval.bootstrap, 0, dead, items)
    if steering:
        paths[STEERING] = steering
    if len(paths) < 2:
        return None
    return reference, [matched(paths, reference, share) for share in SHARES]


def publish_study(plan: Plan, out: Path) -> None:
    """Tables, figures and results into out, as one whole."""
    # matplotlib takes seconds to import, which a refusal does not wait for
    from evals.study.page import study_page

    outcomes = collect(plan)
    if not any(outcome.rounds for outcome in outcomes):
        raise SteerHealError(
            "a study has nothing to show",
            given=plan.folder,
            expected="a cell with a scored round",
            next=f"look into log.txt of its cells, then {plan.command()}",
        )
    axis = axis_of(outcomes)
    compared = compare_arms(outcomes, axis)
    results = document(plan, outcomes)
    apart = arm_differences(outcomes, axis)
    grouped = {
        "results": [summary_table(outcomes), *apart],
        "measures": [cyclic(outcomes), *([measured] if (measured := other_measures(outcomes)) else [])],
        "record": [arms(outcomes), stopped(outcomes), study_provenance(outcomes)],
    }
    if any(outcome.cell.arm.role == "control" for outcome in outcomes):
        grouped["results"].append(against_controls(outcomes))
    if compared is not None:
        reference, comparisons = compared
        grouped["results"].append(at_one_shift(axis, reference, comparisons))
        results["at_one_shift"] = {
            "axis": axis,
            "reference": reference,
            "shares": [asdict(shown_table) for shown_table in comparisons],
        }
    grouped["results"] += by_round(outcomes)
    tables = [shown_table for group in grouped.values() for shown_table in group]
    sentences = study_reading(outcomes, axis, compared)
    figures = {figure.name: figure.draw(outcomes, axis) for figure in STUDY_FIGURES}
    with held(out), atomic_folder(out, names=CONTENT) as folder:
        write_json(folder / "results.json", results)
        (folder / "results.csv").write_text(results_csv(results["rows"], results["extra"]), encoding="utf-8")
        (folder / "tables.tex").write_text("\n".join(map(latex, tables)), encoding="utf-8")
        for name, kinds in figures.items():
            for kind, content in kinds.items():
                (folder / f"{name}.{kind}").write_bytes(content)
        page = study_page(plan, outcomes, results["rows"], grouped, sentences, figures)
        (folder / "index.html").write_text(page, encoding="utf-8")
        heading = f"# {html.escape(plan.study.title, quote=False)}\n\n![trait, incoherence and their trade](study.png)\n\n![dose-response](doses.png)\n\n![training](training.png)\n\n## Reading\n\n"
        heading += "".join(f"- {html.escape(line, quote=False)}\n" for line in sentences)
        (folder / "results.md").write_text("\n".join([heading, *map(markdown, tables)]), encoding="utf-8")
    for shown_table in (grouped["results"][0], *apart):
        print_table(shown_table.title, shown_table.columns, shown_table.rows)
    say(f"wrote {out / 'results.md'}")


def main() -> None:
    options = study_options()
    arguments = options.parse_args()
    plan = read_plan(arguments.config, arguments.run, arguments.out)
    replaceable(arguments.out, CONTENT)  # now, not after hours
    stopped = {} if arguments.report else drive(plan)
    if any(cell.waits for cell in plan.cells):  # by now settled, where the arm that tau is taken from is trained
        plan = read_plan(arguments.config, arguments.run, arguments.out)
    publish_study(plan, arguments.out)
    if stopped:
        raise SteerHealError(
            "the study is not complete: " + (f"{len(stopped)} cells stopped" if len(stopped) > 1 else "a cell stopped"),
            given="; ".join(f"{name}: {reason(message)}" for name, message in stopped.items()),
            expected="every cell at its last round; the results have the finished cells",
            next=f"look into {arguments.run}/CELL/log.txt; the same command tries the cells that stopped again: {plan.command()}",
        )


if __name__ == "__main__":
    entry(main)
