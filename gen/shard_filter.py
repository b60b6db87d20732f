"""The filter over a folder of shards, on all cores, in memory bounded by a row group each and by the measures of the unsteered completions.

Kept and rejected rows are folders of shards again, in the order of the sweep. Rows are judged from what Python reads of them, and written
as Arrow has them: no row is serialised again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gen.columns import schema
from gen.outcome import FilterOutcome, Starved, print_reasons, print_sweep, refuse_starvation
from gen.processes import process_pool
from gen.rules import Yardstick, rules_of
from gen.shards import Shard, is_sharded, read_manifest_of, verified, write_manifest
from shared.console import say
from shared.errors import SteerHealError
from shared.filter_record import FILTER_RECORD
from shared.lines import problem_of
from shared.machine import cores
from shared.publish import atomic_folder, digest
from shared.reasons import Reason
from shared.records import Completion, iterate_jsonl
from shared.schema import FilterConfig
from shared.tables import present

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

MADE_BY = "python -m gen.sweep --help"
KEPT, REJECTED = "kept", "rejected"
BATCH = 256  # rows that Python holds
MANY = 50_000  # rows from which on processes are worth their start


def filter_shards(sweep: Path, unsteered: Path, config: FilterConfig, trait: str, out: Path) -> FilterOutcome:
    """Write out/kept and out/rejected, folders of shards, and out/filter.json; the whole folder appears at once.

    Rows at coefficient 0 are the yardstick and are in neither, unless they are the source. Rows of another source than filter.source are
    in neither.

    Args:
        sweep: a folder of shards.
        unsteered: a folder of shards or a JSONL file with the original model's rows at coefficient 0; may be the sweep.
        config, trait: of the filter.
        out: a new folder, or one that a filter has made.

    Raises:
        Starved: too few rows are kept. The rejected ones appear, to be read, and no kept ones.
    """
    if unsteered != sweep and config.source == "unsteered":
        raise SteerHealError(
            "the rows to keep are in another file than the sweep",
            given=f"filter.source = unsteered, --unsteered {unsteered}",
            expected="candidates among the rows of --in",
            next=f"--in {unsteered} without --unsteered",
        )
    result = FilterOutcome(Yardstick(unsteered_rows(unsteered)).limits(config))
    if unsteered != sweep:  # a control from another file
        reasons_of = rules_of(result.limits, config, trait)
        for row in unsteered_rows(unsteered):
            result.add(row, reasons_of(row), candidate=False)
    starved: Starved | None = None
    refuse_other_files(out)
    same_file = unsteered == sweep  # then its shards are verified by now
    manifest = read_manifest_of(sweep, MADE_BY)
    paths = [sweep / shard.name for shard in manifest.shards] if same_file else list(verified(sweep, MADE_BY))
    with atomic_folder(out) as folder, ExitStack() as stack:
        shards: dict[str, list[Shard]] = {KEPT: [], REJECTED: []}
        for name in shards:
            (folder / name).mkdir()
        task = Task(folder, result.limits, config, trait, same_file)
        each: Callable[[Task, list[Path]], Iterable[tuple[FilterOutcome, dict[str, list[Shard]]]]] = map
        if (processes := min(cores(), len(paths))) > 1 and manifest.rows >= MANY:
            each = stack.enter_context(process_pool(processes)).map
        for part, partial in each(task, paths):  # in their order, so that sums do not depend on the processes
            result.merge(part)
            for name, shard in partial.items():
                shards[name] += shard
        print_sweep(result.tally, result.limits, config, None)
        print_reasons(result)
        for name, output_shards in shards.items():
            write_manifest(folder / name, output_shards)
        try:
            refuse_starvation(result, config)
            result.write(folder / FILTER_RECORD, None)
        except Starved as error:
            starved = error
            for file in (folder / KEPT).iterdir():
                file.unlink()
            (folder / KEPT).rmdir()
    if starved:
        say(f"wrote {out / REJECTED}: every rejected row with its reasons")
        raise starved
    return result


@dataclass(frozen=True)
class Task:
    """Filters one shard, in any process.

    Args:
        folder: holds the folders of kept and of rejected rows.
        limits, config, trait: what rows are judged by.
        own: whether the shard's rows at coefficient 0 are the control; they are passed over where another file has these.
    """

    folder: Path
    limits: dict[str, float]
    config: FilterConfig
    trait: str
    own: bool

    def __call__(self, path: Path) -> tuple[FilterOutcome, dict[str, list[Shard]]]:
        """The counts of a shard, and the shards of its kept and its rejected rows."""
        result = FilterOutcome(self.limits)
        reasons_of = rules_of(self.limits, self.config, self.trait)
        writers = {name: Writer(self.folder / name / path.name) for name in (KEPT, REJECTED)}
        for table in row_groups(path):
            reasons: list[list[Reason] | None] = []  # of candidates; None for another row
            for row in shard_rows(table, path):
                passed_over = row.source == "unsteered" and not self.own
                reasons.append(None if passed_over else result.judge(row, self.config.source, reasons_of))
            writers[KEPT].write(table, [why == [] for why in reasons], reasons)
            writers[REJECTED].write(table, [bool(why) for why in reasons], reasons)
        return result, {name: writer.close() for name, writer in writers.items()}


def unsteered_rows(path: Path) -> Iterator[Completion]:
    """The rows at coefficient 0 of a folder of shards or of a JSONL file; of shards no other row is read by Python."""
    import pyarrow.compute

    if not is_sharded(path):
        yield from (row for row in iterate_jsonl(path, Completion, made_by=MADE_BY) if row.source == "unsteered")
        return
    for shard in verified(path, MADE_BY):
        for table in row_groups(shard):
            at_zero = shard_rows(table.filter(pyarrow.compute.equal(table.column("coefficient"), 0.0)), shard)
            yield from (row for row in at_zero if row.source == "unsteered")


def row_groups(path: Path) -> Iterator[pyarrow.Table]:
    """The row groups of a shard, one in memory at a time: those of a sweep are its windows."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            for field in schema():
                if field.name not in table.schema.names:  # shards of an earlier version
                    table = table.append_column(field, pyarrow.nulls(len(table), field.type))
            yield table.select(schema().names)


def shard_rows(table: pyarrow.Table, path: Path) -> Iterator[Completion]:
    """The rows of a table, a few in memory. Raises SteerHealError for one that is no completion. path: of the table, for the error."""
    for batch in table.to_batches(max_chunksize=BATCH):
        for values in batch.to_pylist():
            try:
                yield Completion.model_validate(present(values, Completion))
            except ValueError as error:
                raise SteerHealError(
                    "a row of a shard is no completion",
                    given=f"{path}, key {values.get('key')!r}: {problem_of(error)}",
                    expected="rows of a sweep",
                    next=f"make the folder again: {MADE_BY}",
                ) from None


class Writer:
    """One shard in the making: no file where no row is chosen."""

    def __init__(self, path: Path):
        self.path, self.rows = path, 0
        self._writer: pyarrow.parquet.ParquetWriter | None = None

    def write(self, table: pyarrow.Table, chosen: Sequence[bool], reasons: Sequence[list[Reason] | None]) -> None:
        """Add the chosen rows of a table, with their reasons."""
        import pyarrow
        import pyarrow.parquet

        if not any(chosen):
            return
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self.path, schema(), compression="zstd")
        column = [[why.model_dump() for why in reasons[place] or []] for place, take in enumerate(chosen) if take]
        index = table.schema.get_field_index("reasons")
        rows = table.filter(pyarrow.array(chosen))
        field = schema().field("reasons")
        self._writer.write_table(rows.set_column(index, field, pyarrow.array(column, field.type)))
        self.rows += len(rows)

    def close(self) -> list[Shard]:
        """The shard that is written; none where no row was chosen."""
        if self._writer is None:
            return []
        self._writer.close()
        return [Shard(name=self.path.name, rows=self.rows, sha256=digest(self.path))]


def refuse_other_files(out: Path) -> None:
    """Raise SteerHealError for a folder that holds anything but what a filter of shards writes: it is replaced whole."""
    other = (
        [path.name for path in out.iterdir() if path.name not in (KEPT, REJECTED, FILTER_RECORD)]
        if out.is_dir()
        else []
    )
    if other or out.is_file() or any((out / name).is_dir() and not is_sharded(out / name) for name in (KEPT, REJECTED)):
        raise SteerHealError(
            "a folder holds other files than the ones that would replace it",
            given=f"{out}{f': {sorted(other)[0]}' if other else ''}",
            expected=f"a new folder, or one of {KEPT}, {REJECTED} and {FILTER_RECORD}",
            next="name another --out",
        )
