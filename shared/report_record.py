"""RUN/report/report.json: the digests of a report's files and of the scores they show, so that a card repeats no edited or outdated number."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shared.errors import SteerHealError
from shared.publish import digest, write_json
from shared.records import Inside, Record, read_record
from shared.run import Run

REPORT_RECORD = "report.json"


class ReportRecord(Record):
    """inputs: sha256 of the manifests of the scores by path in the run; outputs: sha256 of the report's files by name."""

    inputs: dict[Inside, str]
    outputs: dict[Inside, str]


def write_report_record(run: Run, manifests: Iterable[Path], folder: Path) -> None:
    """Record a report that lies complete in a folder. manifests: of the scores it shows."""
    write_json(
        folder / REPORT_RECORD,
        {
            "version": 1,
            "inputs": {path.relative_to(run.folder).as_posix(): digest(path) for path in manifests},
            "outputs": {path.name: digest(path) for path in sorted(folder.iterdir())},
        },
    )


def verified_results(run: Run, again: str) -> Path | None:
    """The path of results.json; None where the run has no report.

    Raises SteerHealError where results.json was edited, or a score was made after the report. again: the command that writes a report.
    """
    folder = run.folder / "report"
    path = folder / "results.json"
    if not path.is_file():
        return None
    record = read_record(
        folder / REPORT_RECORD, ReportRecord, what="the record of a report could not be read", next=again
    )
    problems = [
        f"{name} was made again" for name, recorded in record.inputs.items() if _digest(run.folder / name) != recorded
    ]
    for stage in {Path(name).stem for name in record.inputs}:
        manifests = (run.manifest(number, stage).relative_to(run.folder).as_posix() for number in run.rounds(stage))
        problems += [f"{name} is not in it" for name in manifests if name not in record.inputs]
    if record.outputs.get(path.name) != digest(path):
        problems.insert(0, f"{path} was edited")
    if problems:
        raise SteerHealError(
            "the report is not of the scores that the run has now", given="; ".join(problems), expected=f"what {folder / REPORT_RECORD} records", next=again
        )  # fmt: skip
    return path


def _digest(path: Path) -> str | None:
    return digest(path) if path.is_file() else None
