"""Keep the coherent completions that enact the trait; every rejection carries its reasons.

Limits come from the unsteered completions of the original model, so that they travel between models. The filter needs no
model: perplexity and trait_llr are in the rows. These are gone through twice and never held: once for the limits and for where
each lies, once by key to be judged and written. filter.json says what was decided and by what limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from gen.commandline import Outputs, filter_options, named_after
from gen.rules import Group, Tally, Yardstick, judge
from gen.starvation import Starved, refuse_starvation
from shared.cli import configured, entry, need, parse
from shared.commands import round_command
from shared.console import console, number, say, table
from shared.errors import SteerHealError
from shared.filter_record import NAME
from shared.lines import placed_jsonl
from shared.locks import hold
from shared.publish import write_json
from shared.records import VERSION, Completion, data_file, iterate_jsonl, writing_jsonl
from shared.run import Run
from shared.schema import FilterConfig
from shared.stage import Stage
from shared.strict import parse as parse_json
from shared.traits import load_trait
from shared.vectors import Vector, load_vector


@dataclass(frozen=True)
class Source:
    """A file of sweep rows, and the command that makes it, for errors."""

    path: Path
    made_by: str


@dataclass(frozen=True)
class Split:
    """What became of the candidates: how many there are and how many were kept by coefficient, and how often each rule rejected.

    tally is of the whole sweep, with the control.
    """

    limits: dict[str, float]
    tally: Tally = field(default_factory=Tally)
    per: Counter[float] = field(default_factory=Counter)
    alive: Counter[float] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        return self.alive.total()

    @property
    def rejected(self) -> int:
        return self.per.total() - self.kept

    def write(self, path: Path, vector: Vector | None) -> None:
        """Write filter.json, as shared.filter_record.FilterRecord reads it."""
        record = {
            "version": VERSION,
            "limits": self.limits,
            "lines": self.tally.lines(vector),
            "causes": dict(self.causes.most_common()),
            "kept": self.kept,
            "rejected": self.rejected,
        }
        write_json(path, record)


class Places:
    """Where rows lie in their files. In memory are a key and a place of each, some 200 bytes, and no row but the one at hand."""

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
def split(
    sweep: Source, unsteered: Source, config: FilterConfig, trait: str, outputs: Outputs, vector: Vector | None = None
) -> Iterator[Split]:
    """Write the kept and the rejected rows, each file sorted by key, and filter.json; all appear when the context ends, and none where it
    raises.

    Where it raises Starved the rejected rows appear, to be read, and kept rows and the record of an earlier filter are removed: they would
    be taken for this one's.

    Rows at coefficient 0 are the yardstick and are in neither, unless they are the source: then no others are.
    """
    yardstick, places = Yardstick(), Places()
    for source in dict.fromkeys([sweep, unsteered]):
        for _, begin, row in placed_jsonl(source.path, Completion, made_by=source.made_by):
            if source == (sweep if row.coefficient else unsteered):
                places.add(row.key, source.path, begin)
                if not row.coefficient:
                    yardstick.add(row)
    result, steered = Split(yardstick.limits(config)), config.source == "steered"
    reasons_of = judge(result.limits, config, trait)
    starved: Starved | None = None
    with writing_jsonl(outputs.rejected) as reject:
        try:
            with writing_jsonl(outputs.kept) as keep:
                for row in places:
                    if row.coefficient and not steered:
                        result.tally.add(row, False)
                        continue
                    reasons = reasons_of(row)
                    result.tally.add(row, not reasons)
                    if bool(row.coefficient) == steered:
                        result.per[row.coefficient] += 1
                        result.alive[row.coefficient] += not reasons
                        result.causes.update(reason.rule for reason in reasons)
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
    sweep: Source, unsteered: Source, config: FilterConfig, trait: str, outputs: Outputs, vector: Vector | None = None
) -> Split:
    """`split`, shown at the terminal. Raises Starved when too few rows are kept."""
    with split(sweep, unsteered, config, trait, outputs, vector) as result:
        print_sweep(result.tally, result.limits, config, vector)
        print_reasons(result)
        refuse_starvation(result.per, result.alive, result.causes, config)
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
    """
    reasons_of, result = judge(limits, config, trait), Tally()
    result.groups[0.0] = Group()
    for row in unsteered:
        result.add(row, not reasons_of(row))
    for row in rows:
        if row.coefficient != 0:
            result.add(row, config.source == "steered" and not reasons_of(row))
    return result


def print_sweep(judged: Tally, limits: dict[str, float], config: FilterConfig, vector: Vector | None) -> None:
    """The sweep's table at the terminal."""
    names = ["n", "kept", "perplexity", "distinct_3", "trait_llr", "relative_dose"]
    role = "what is trained on, as a control" if config.source == "unsteered" else "a control and is never trained on"
    table(
        f"sweep (limits: perplexity ≤ {limits['perplexity']:.1f}, trait_llr ≥ {limits['trait_llr']:+.3f}{', the filter is off' if config.off else ''}; coefficient 0 is {role})",
        ["coefficient", "n", "kept", "perplexity", "distinct-3", "trait_llr", "relative dose"],
        [[f"{line['coefficient']:g}", *[line[name] for name in names]] for line in judged.lines(vector)],
    )


def print_reasons(result: Split) -> None:
    """How many are kept, what the others were rejected for, and the mean doses, at the terminal."""
    console.print(
        f"kept {result.kept} of {result.per.total()}; rejected for "
        + (", ".join(f"{name} {count}" for name, count in result.causes.most_common()) or "nothing")
    )
    if result.kept:
        kept, every = (sum(c * n for c, n in counts.items()) / counts.total() for counts in (result.alive, result.per))
        console.print(f"mean coefficient of the kept {number(kept)}, of the sweep {number(every)}")


def swept(run: Run, index: int) -> Source:
    return Source(run.round(index) / "sweep.jsonl", round_command(run.folder, index))


def unsteered_in(path: Path, made_by: str) -> Iterator[Completion]:
    """The rows of a sweep at coefficient 0, read as they are asked for."""
    return (row for row in iterate_jsonl(path, Completion, made_by=made_by) if row.coefficient == 0)


def stage(run: Run, index: int, rebuild: bool) -> None:
    folder, config = run.round(index), run.config.filter
    outputs = Outputs(folder / "kept.jsonl", folder / "rejected.jsonl", folder / NAME)
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
        result = separate(swept(run, index), swept(run, 1), config, run.config.vector.trait, outputs, vector)
    except Starved:
        job.path.unlink(missing_ok=True)  # the manifest of an earlier filter, whose kept rows are gone
        raise
    job.finish(vector.origin, kept=result.kept, rejected=result.rejected, reasons=dict(result.causes))


def main() -> None:
    options = filter_options()
    arguments, run = parse(options)
    if run:
        stage(run, arguments.round, arguments.rebuild)
        return
    need(options, arguments, "in_", "out")
    outputs = named_after(arguments.out)
    config = configured(arguments)
    sweep = unsteered = Source(arguments.in_, "python -m gen.sweep --help")
    if arguments.unsteered:
        unsteered = Source(arguments.unsteered, "python -m gen.sweep --coefficients 0 ...")
    load_trait(config.vector.trait)
    for source in (sweep, unsteered):
        next(iterate_jsonl(source.path, Completion, made_by=source.made_by))  # before a lock makes the output's folder
    for path in outputs:
        hold(path)
    separate(sweep, unsteered, config.filter, config.vector.trait, outputs)
    say(f"wrote {outputs.kept}, {outputs.rejected} and {outputs.record}")


if __name__ == "__main__":
    entry(main)
