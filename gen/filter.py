"""Keep the coherent completions that enact the trait; every rejection carries its reasons.

Limits come from the unsteered completions of the original model, so that they travel between models. The filter needs no
model: perplexity and trait_llr are in the rows. These are gone through twice and never held: once for the limits and for where
each lies, once by key to be judged and written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gen.commandline import filter_options, named_after
from gen.places import Places
from gen.rules import Limits, Yardstick, judge, limits
from gen.tally import Group, Tally
from shared.cli import configured, entry, need, parse
from shared.commands import command_of, round_command, setting
from shared.console import console, number, say, table
from shared.errors import SteerHealError
from shared.lines import placed_jsonl
from shared.locks import hold
from shared.records import Completion, data_file, iterate_jsonl, writing_jsonl
from shared.run import Run
from shared.schema import FilterConfig
from shared.stage import Stage
from shared.traits import load_trait
from shared.vectors import Vector, load_vector


def tally(
    rows: Iterable[Completion], unsteered: Iterable[Completion], limit: Limits, config: FilterConfig, trait: str
) -> Tally:
    """A sweep judged, each iterable gone through once.

    Coefficient 0 stands for the unsteered completions; its kept says what the filter would pass, as a control. Where these are the
    source, nothing else is kept.
    """
    why, found = judge(limit, config, trait), Tally()
    found.groups[0.0] = Group()
    for row in unsteered:
        found.add(row, not why(row))
    for row in rows:
        if row.coefficient != 0:
            found.add(row, config.source == "steered" and not why(row))
    return found


def show(found: Tally, limit: Limits, config: FilterConfig, vector: Vector | None) -> None:
    """The sweep's table at the terminal."""
    names = ["n", "kept", "perplexity", "distinct_3", "trait_llr", "relative_dose"]
    role = "what is trained on, as a control" if config.source == "unsteered" else "a control and is never trained on"
    table(
        f"sweep (limits: perplexity ≤ {limit.perplexity:.1f}, trait_llr ≥ {limit.trait_llr:+.3f}{', the filter is off' if config.off else ''}; coefficient 0 is {role})",
        ["coefficient", "n", "kept", "perplexity", "distinct-3", "trait_llr", "relative dose"],
        [[f"{line['coefficient']:g}", *[line[name] for name in names]] for line in found.lines(vector)],
    )


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

    limit: Limits
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


class Starved(SteerHealError):
    """Too few rows are kept to train on."""


@contextmanager
def split(
    sweep: Source, unsteered: Source, config: FilterConfig, trait: str, outputs: tuple[Path, Path]
) -> Iterator[Split]:
    """Write the kept and the rejected rows, each file sorted by key; both appear when the context ends, and neither where it raises.

    Where it raises Starved the rejected rows appear, to be read, and kept rows of an earlier filter are removed: they would be trained
    on as if they were this one's.

    Rows at coefficient 0 are the yardstick and are in neither, unless they are the source: then no others are.
    """
    yardstick, places = Yardstick(), Places()
    for source in dict.fromkeys([sweep, unsteered]):
        for _, begin, row in placed_jsonl(source.path, Completion, made_by=source.made_by):
            if source == (sweep if row.coefficient else unsteered):
                places.add(row.key, source.path, begin)
                if not row.coefficient:
                    yardstick.add(row)
    found, steered = Split(yardstick.limits(config)), config.source == "steered"
    why = judge(found.limit, config, trait)
    starved: Starved | None = None
    with writing_jsonl(outputs[1]) as reject:
        try:
            with writing_jsonl(outputs[0]) as keep:
                for row in places:
                    if row.coefficient and not steered:
                        found.tally.add(row, False)
                        continue
                    reasons = why(row)
                    found.tally.add(row, not reasons)
                    if bool(row.coefficient) == steered:
                        found.per[row.coefficient] += 1
                        found.alive[row.coefficient] += not reasons
                        found.causes.update(reason.partition(":")[0] for reason in reasons)
                        (reject if reasons else keep)(row.model_copy(update={"reasons": reasons}))
                yield found
        except Starved as error:
            starved = error
            if outputs[0].exists():
                outputs[0].unlink()
                say(f"removed {outputs[0]}, the kept rows of an earlier filter")
    if starved:
        say(f"wrote {outputs[1]}: every rejected row with its reasons")
        raise starved


def refuse_starvation(found: Split, config: FilterConfig) -> None:
    """Raise Starved when too few rows are left to train on, with the counts and what to lower."""
    if found.kept >= config.min_kept:
        return
    per, causes = found.per, found.causes
    if not per:
        steered = config.source == "steered"
        raise Starved(
            "the filter starved: there are no candidates",
            given=f"rows at {'coefficient 0 alone' if steered else 'coefficients other than 0 alone'}, filter.source = {config.source}",
            expected="rows at other coefficients, which are the candidates; those at 0 are what they are compared with"
            if steered
            else "rows at coefficient 0, which are the candidates",
            next=f"sample some, as with --coefficients 0 1: {command_of('gen.sweep', '--help')}"
            if steered
            else setting("filter.source=steered"),
        )
    knob = {
        "perplexity": "raise filter.perplexity_ratio",
        "perplexity_last_quarter": "raise filter.last_quarter_ratio",
        "trait_llr": "lower filter.trait_llr_quantile",
        "truncated": "raise sweep.max_tokens or set filter.drop_truncated=false",
        "distinct_3": "lower filter.distinct_3_quantile",
        "loop": "raise filter.max_loop_share",
    }
    advice = [knob[cause] for cause, _ in causes.most_common() if cause in knob][:2]
    few = per.total() < config.min_kept  # even keeping all of them would not do
    more = "sample more (more prompts, sweep.samples) or lower filter.min_kept; " if few else ""
    raise Starved(
        "the filter starved: too few completions are left to train on",
        given=f"{found.kept} kept; "
        + ", ".join(f"{found.alive[c]}/{per[c]} at coefficient {c:g}" for c in sorted(per))
        + f"; rejected for {', '.join(f'{name} ({count})' for name, count in causes.most_common())}",
        expected=f"at least {config.min_kept} (filter.min_kept)",
        next=f"{more}lower the doses in sweep.coefficients (sweep.dose=walk finds one), or {' or '.join(advice) or 'lower filter.min_kept'}; in a run by SET with a new RUN or REBUILD=1, on plain files by --set",
    )


def report_reasons(found: Split) -> None:
    console.print(
        f"kept {found.kept} of {found.per.total()}; rejected for "
        + (", ".join(f"{name} {count}" for name, count in found.causes.most_common()) or "nothing")
    )
    if found.kept:
        kept, every = (sum(c * n for c, n in counts.items()) / counts.total() for counts in (found.alive, found.per))
        console.print(f"mean coefficient of the kept {number(kept)}, of the sweep {number(every)}")


def separate(
    sweep: Source,
    unsteered: Source,
    config: FilterConfig,
    trait: str,
    outputs: tuple[Path, Path],
    vector: Vector | None = None,
) -> Split:
    """`split`, shown at the terminal. Raises Starved when too few rows are kept."""
    with split(sweep, unsteered, config, trait, outputs) as found:
        show(found.tally, found.limit, config, vector)
        report_reasons(found)
        refuse_starvation(found, config)
    return found


def swept(run: Run, index: int) -> Source:
    return Source(run.round(index) / "sweep.jsonl", round_command(run.folder, index))


def limits_of(run: Run) -> Limits:
    """From the original model's completions at coefficient 0, sampled once in round 1."""
    source = swept(run, 1)
    return limits(unsteered_in(source.path, source.made_by), run.config.filter)


def by_coefficient(run: Run, index: int, vector: Vector | None) -> list[dict[str, Any]]:
    """The lines of the tally of a round's sweep, whose files are gone through and not held."""
    mine, first, config = swept(run, index), swept(run, 1), run.config
    rows = iterate_jsonl(mine.path, Completion, made_by=mine.made_by)
    unsteered = unsteered_in(first.path, first.made_by)
    return tally(rows, unsteered, limits_of(run), config.filter, config.vector.trait).lines(vector)


def unsteered_in(path: Path, made_by: str) -> Iterator[Completion]:
    """The rows of a sweep at coefficient 0, read as they are asked for."""
    return (row for row in iterate_jsonl(path, Completion, made_by=made_by) if row.coefficient == 0)


def stage(run: Run, index: int, rebuild: bool) -> None:
    folder, config = run.round(index), run.config.filter
    outputs = (folder / "kept.jsonl", folder / "rejected.jsonl")
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
            "trait": data_file(run.config.vector.trait, "trait.json"),
        },
    )
    if job.done():
        return
    vector = load_vector(folder / "vector.safetensors")
    original = vector.origin
    try:
        found = separate(swept(run, index), swept(run, 1), config, run.config.vector.trait, outputs, vector)
    except Starved:
        job.path.unlink(missing_ok=True)  # the manifest of an earlier filter, whose kept rows are gone
        raise
    job.finish(original, kept=found.kept, rejected=found.rejected, reasons=dict(found.causes))


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
    say(f"wrote {outputs[0]} and {outputs[1]}")


if __name__ == "__main__":
    entry(main)
