"""`make docs-results RUN=...`: a run's figures, page, tables and quoted numbers put into the documentation by one command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from evals.commandline import docs_results_options
from evals.quoted import BLOCK, RUN, render_blocks
from evals.scored import scored_rounds
from shared.cli import entry
from shared.commands import round_command
from shared.config import resolve_config
from shared.console import say
from shared.errors import SteerHealError
from shared.nearby import no_such_run
from shared.publish import atomic_folder, write_json, write_text
from shared.records import read_record
from shared.report_record import REPORT_RECORD, ReportRecord, verified_results
from shared.run import Run
from shared.traits import load_trait


def facts(run: Run) -> dict[str, Any]:
    """The facts of a run that its results do not hold: model, trait, machine, time. Raises SteerHealError where a round is missing or edited."""
    rounds = scored_rounds(run, "round")
    manifests = [manifest for r in rounds for stage, manifest in r.manifests.items() if stage != "score-full"]
    hardware = manifests[-1].hardware
    return {
        "version": 1,
        "model": run.config.model.name,
        "trait": load_trait(run.config.scored_trait).name,
        "read_for": rounds[0].scores.read_for is not None,
        "rounds": len(rounds),
        "seed": run.config.seed,
        "divergence": run.config.train.divergence,
        "items": len(rounds[0].scores.items),
        "prompts": len({row.prompt_id for rows in rounds[0].generations.values() for row in rows}),
        "minutes": round(sum(manifest.seconds for manifest in manifests) / 60, 1),
        "peak_gib": round(max((manifest.peak_memory_gib or 0.0) for manifest in manifests), 1),
        "commit": (manifests[-1].commit or "unknown")[:12],
        **{name: hardware.get(name) for name in ("cores", "processor", "instruction_set", "gpu")},
    }


def publish_docs(run: Run, out: Path, pages: list[Path]) -> list[Path]:
    """Put a run's report into the documentation, and its numbers into the blocks of pages.

    Args:
        run: with a report of all that is scored.
        out: folder, replaced whole.
        pages: Markdown files with blocks.

    Returns:
        The pages that changed.

    Raises:
        SteerHealError: the run has no report or another one than its scores have, or a page cannot be read.
    """
    again = round_command(run.folder, target="report")
    if verified_results(run, again) is None:
        raise SteerHealError("a run has no report", given=run.folder, expected="RUN/report", next=again)
    report = run.folder / "report"
    record = read_record(
        report / REPORT_RECORD, ReportRecord, what="the record of a report could not be read", next=again
    )
    run_facts = facts(run)
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    ours = (
        [path.name for path in out.iterdir()] if (out / RUN).is_file() else []
    )  # another version's report has other files
    with atomic_folder(out, names=(*record.outputs, *ours, RUN)) as folder:
        for name in record.outputs:
            shutil.copyfile(report / name, folder / name)
        write_json(folder / RUN, run_facts)
        for page, text in texts.items():  # refuses a page before anything is replaced
            render_blocks(text, page, folder)
    changed = []
    for page, text in texts.items():
        new = render_blocks(text, page, out)
        if new != text:
            write_text(page, new)
            changed.append(page)
    return changed


def main() -> None:
    arguments = docs_results_options().parse_args()
    if not (arguments.run / "config.toml").is_file():
        raise no_such_run(arguments.run, round_command(arguments.run, 2))
    run = Run(arguments.run, resolve_config(arguments.run / "config.toml")[0])
    pages = [page for page in arguments.page if BLOCK.search(page.read_text(encoding="utf-8"))]
    changed = publish_docs(run, arguments.out, pages)
    say(f"wrote {arguments.out}")
    for page in pages:
        say(f"{page}: {'rewritten' if page in changed else 'as it was'}")


if __name__ == "__main__":
    entry(main)
