"""Keep the coherent completions that enact the trait; every rejection carries its reasons.

Limits come from the unsteered completions of the original model, so that they travel between models. The filter needs no
model: perplexity and trait_llr are in the rows. These are gone through twice and never held: once for the limits and for where
each lies, once by key to be judged and written. filter.json says what was decided and by what limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from gen.commandline import Outputs, filter_options, named_after
from gen.outcome import FilterOutcome, Starved, print_reasons, print_sweep, refuse_starvation
from gen.plan import Job
from gen.rules import Yardstick, rules_of
from gen.shard_filter import filter_shards
from gen.shards import is_sharded
from shared.cli import configured, entry, need, parse_arguments
from shared.commands import round_command
from shared.console import console, say
from shared.errors import SteerHealError
from shared.filter_record import FILTER_RECORD
from shared.lines import placed_jsonl
from shared.locks import hold
from shared.records import Completion, data_file, iterate_jsonl, writing_jsonl
from shared.run import Run
from shared.schema import FilterConfig
from shared.stage import Stage
from shared.strict import parse_json
from shared.tally import CoefficientSums, Tally
from shared.traits import load_trait
from shared.vectors import Vector, load_vector


@dataclass(frozen=True)
class SweepFile:
    """A file of sweep rows, and the command that makes it, for errors."""

    path: Path
    made_by: str


class Places:
    """Where rows lie in their files. Memory holds a key and a place of each, some 200 bytes, and only the current row."""

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._places: list[tuple[str, int, int]] = []

    def add(self, key: str, path: Path, begin: int) -> None:
        """A row of a file, and the byte that it begins at."""
        if path not in self._files:
            self._files.append(path)
        self._places.append((key, self._files.index(path), begin))

    def __iter__(self) -> Iterator[Completion]:
        """The rows sorted by key, those of one key in the order of their files.

        Raises SteerHealError for a file that changed, and for two rows of one key in a file.
        """
        self._places.sort()
        for (key, file, _), (after, other, _) in pairwise(self._places):
            if (key, file) == (after, other):
                raise SteerHealError(
                    "a row is there twice",
                    given=f"{self._files[file]}: key {key!r}",
                    expected="one row of each key",
                    next="leave one out, or make the file again: python -m gen.sweep --help",
                )
        with ExitStack() as stack:
            handles = [stack.enter_context(open(path, "rb")) for path in self._files]
            for key, file, begin in self._places:
                yield _read(handles[file], begin, key)


def _read(handle: BinaryIO, begin: int, key: str) -> Completion:
    handle.seek(begin)
    try:
        row = Completion.model_validate(parse_json(handle.readline()))
    except ValueError:
        row = None
    if row is None or row.key != key:
        raise SteerHealError(
            "a file changed while it was read",
            given=f"{handle.name}: another row than {key!r} at byte {begin}",
            expected="a file that stays as it is",
            next="the same command again",
        )
    return row


@contextmanager
def split_rows(
    sweep: SweepFile,
    unsteered: SweepFile,
    config: FilterConfig,
    trait: str,
    outputs: Outputs,
    vector: Vector | None = None,
) -> Iterator[FilterOutcome]:
    """Write the kept and the rejected rows, each file sorted by key, and filter.json; all appear when the context ends, and none where it
    raises.

    Where it raises Starved the rejected rows appear, to be read, and kept rows and the record of an earlier filter are removed: they would
    be taken for this one's.

    Rows at coefficient 0 are the yardstick and are in neither, unless they are the source. Rows of another source than filter.source are
    in neither.

    Args:
        sweep: rows to filter.
        unsteered: rows of the original model at coefficient 0, which limits come from.
        config: of the filter.
        trait: name or folder of the trait, whose patterns of narration count.
        outputs: the three files to write.
        vector: for the relative doses of the tables; None leaves them out.
    """
    yardstick, places = Yardstick(), Places()
    for source in dict.fromkeys([sweep, unsteered]):
        for _, begin, row in placed_jsonl(source.path, Completion, made_by=source.made_by):
            if source == (unsteered if row.source == "unsteered" else sweep):
                places.add(row.key, source.path, begin)
                if row.source == "unsteered":
                    yardstick.add(row)
    result = FilterOutcome(yardstick.limits(config))
    reasons_of = rules_of(result.limits, config, trait)
    starved: Starved | None = None
    with writing_jsonl(outputs.rejected) as reject:
        try:
            with writing_jsonl(outputs.kept) as keep:
                for row in places:
                    reasons = result.judge(row, config.source, reasons_of)
                    if reasons is not None:
                        (reject if reasons else keep)(row.model_copy(update={"reasons": reasons}))
                yield result
            result.write(outputs.record, vector)
        except Starved as error:
            starved = error
            outputs.record.unlink(missing_ok=True)
            if outputs.kept.exists():
                outputs.kept.unlink()
                say(f"removed {outputs.kept}, the kept rows of an earlier filter")
    if starved:
        say(f"wrote {outputs.rejected}: every rejected row with its reasons")
        raise starved


def separate(
    sweep: SweepFile,
    unsteered: SweepFile,
    config: FilterConfig,
    trait: str,
    outputs: Outputs,
    vector: Vector | None = None,
) -> FilterOutcome:
    """`split_rows`, shown at the terminal. Raises Starved when too few rows are kept."""
    with split_rows(sweep, unsteered, config, trait, outputs, vector) as result:
        print_sweep(result.tally, result.limits, config, vector)
        print_reasons(result)
        refuse_starvation(result, config)
    return result


def tally(
    rows: Iterable[Completion],
    unsteered: Iterable[Completion],
    limits: dict[str, float],
    config: FilterConfig,
    trait: str,
) -> Tally:
    """A sweep judged and not written, each iterable gone through once.

    Coefficient 0 stands for the unsteered completions; its kept says what the filter would pass, as a control. Where these are the
    source, nothing else is kept.

    Args:
        rows: of the sweep.
        unsteered: rows of the original model at coefficient 0.
        limits: of every bound, by the rule's name.
        config: of the filter.
        trait: name or folder of the trait.
    """
    reasons_of, result = rules_of(limits, config, trait), Tally()
    result.groups[0.0, False] = CoefficientSums()
    for row in unsteered:
        result.add(row, not reasons_of(row))
    for row in rows:
        if row.source != "unsteered":
            result.add(row, row.source == config.source and not reasons_of(row))
    return result


def print_filtered(job: Job, yardstick: Yardstick) -> None:
    """Print which of a sweep's published rows the filter would keep, as a table. yardstick: of the unsteered rows."""
    if not len(yardstick):
        console.print(
            "no completions at coefficient 0, so no filter limits: sample with 0 among the coefficients to see what would be kept"
        )
        return
    config, again = job.config.filter, "the same command"
    unsteered = job.frozen() if job.frozen else unsteered_in(job.out, again)
    limits = yardstick.limits(config)
    rows = iterate_jsonl(job.out, Completion, made_by=again)
    print_sweep(tally(rows, unsteered, limits, config, job.config.vector.trait), limits, config, job.vector)


def swept_files(run: Run, index: int) -> SweepFile:
    """The published rows of a round's sweep, with the command that makes them."""
    return SweepFile(run.round(index) / "sweep.jsonl", round_command(run.folder, index))


def unsteered_in(path: Path, made_by: str) -> Iterator[Completion]:
    """The original model's rows of a sweep at coefficient 0, read as they are asked for."""
    return (row for row in iterate_jsonl(path, Completion, made_by=made_by) if row.source == "unsteered")


def stage(run: Run, index: int, rebuild: bool) -> None:
    folder, config = run.round(index), run.config.filter
    outputs = Outputs(folder / "kept.jsonl", folder / "rejected.jsonl", folder / FILTER_RECORD)
    job = Stage(
        run,
        index,
        "filter",
        settings={"filter": config.model_dump()},
        outputs=list(outputs),
        rebuild=rebuild,
        inputs={
            "sweep": folder / "sweep.jsonl",
            "unsteered": run.round(1) / "sweep.jsonl",
            "vector": folder / "vector.safetensors",
            "trait": data_file(run.config.vector.trait, "trait.json"),
        },
    )
    if job.done():
        return
    vector = load_vector(folder / "vector.safetensors")
    try:
        result = separate(
            swept_files(run, index), swept_files(run, 1), config, run.config.vector.trait, outputs, vector
        )
    except Starved:
        job.path.unlink(missing_ok=True)  # the manifest of an earlier filter, whose kept rows are gone
        raise
    job.finish(vector.origin, kept=result.kept, rejected=result.rejected)


def main() -> None:
    options = filter_options()
    arguments, run = parse_arguments(options)
    if run:
        stage(run, arguments.round, arguments.rebuild)
        return
    need(options, arguments, "in_", "out")
    config = configured(arguments)
    if is_sharded(arguments.in_):
        load_trait(config.vector.trait)
        hold(arguments.out)
        filter_shards(
            arguments.in_, arguments.unsteered or arguments.in_, config.filter, config.vector.trait, arguments.out
        )
        say(f"wrote {arguments.out}: kept, rejected and {FILTER_RECORD}")
        return
    if arguments.in_.is_dir():
        raise SteerHealError(
            "a folder of shards is not whole",
            given=f"{arguments.in_} without manifest.json",
            expected="the folder of a sweep that has ended, or a file of rows",
            next="the command of the sweep again, which goes on",
        )
    outputs = named_after(arguments.out)
    sweep = unsteered = SweepFile(arguments.in_, "python -m gen.sweep --help")
    if arguments.unsteered:
        unsteered = SweepFile(arguments.unsteered, "python -m gen.sweep --coefficients 0 ...")
    load_trait(config.vector.trait)
    for source in (sweep, unsteered):
        next(iterate_jsonl(source.path, Completion, made_by=source.made_by))  # before a lock makes the output's folder
    for path in outputs:
        hold(path)
    separate(sweep, unsteered, config.filter, config.vector.trait, outputs)
    say(f"wrote {outputs.kept}, {outputs.rejected} and {outputs.record}")


if __name__ == "__main__":
    entry(main)
