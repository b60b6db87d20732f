"""Keep the coherent completions that enact the trait; every rejection carries its reasons.

Limits come from the unsteered completions of the original model, so that they travel between models. The filter needs no
model: perplexity and trait_llr are in the rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gen.rules import Limits, judge, limits
from shared.cli import entry, need, parse, parser, plain
from shared.config import FilterConfig, resolve
from shared.console import console, number, table
from shared.errors import SteerHealError
from shared.records import Completion, data_file, iterate_jsonl, read_jsonl, write_jsonl
from shared.run import Run, Stage
from shared.vectors import Vector, load_vector


def split(
    rows: Sequence[Completion], unsteered: Sequence[Completion], config: FilterConfig, trait: str
) -> tuple[list[Completion], list[Completion]]:
    """(kept, rejected), each sorted by key. Rows at coefficient 0 are the yardstick and are in neither, unless they are the source."""
    why = judge(limits(unsteered, config), config, trait)
    candidates = unsteered if config.source == "unsteered" else [row for row in rows if row.coefficient != 0]
    judged = [row.model_copy(update={"reasons": why(row)}) for row in sorted(candidates, key=lambda row: row.key)]
    return [row for row in judged if not row.reasons], [row for row in judged if row.reasons]


@dataclass
class Group:
    """Sums over the completions of one coefficient; full are those with tokens, nll is in nats."""

    n: int = 0
    kept: int = 0
    full: int = 0
    tokens: int = 0
    nll: float = 0.0
    distinct_3: float = 0.0
    trait_llr: float = 0.0


class Tally:
    """A sweep by coefficient: a few sums each, however many rows."""

    def __init__(self) -> None:
        self.groups: dict[float, Group] = {}

    def add(self, row: Completion, kept: bool) -> None:
        group = self.groups.setdefault(row.coefficient, Group())
        group.n += 1
        group.kept += kept
        if row.perplexity is not None and row.distinct_3 is not None and row.trait_llr is not None:
            group.full += 1
            group.tokens += len(row.completion_ids)
            group.nll += len(row.completion_ids) * math.log(row.perplexity)
            group.distinct_3 += row.distinct_3
            group.trait_llr += row.trait_llr

    def lines(self, vector: Vector | None = None) -> list[dict[str, Any]]:
        """By coefficient: n, kept, perplexity (exp of the token-weighted mean nll), mean distinct_3 and trait_llr, relative_dose."""
        lines = []
        for coefficient, group in sorted(self.groups.items()):
            dose = list(vector.relative_dose(coefficient).values()) if vector else []
            lines.append(
                {
                    "coefficient": coefficient,
                    "n": group.n,
                    "kept": group.kept,
                    "perplexity": math.exp(group.nll / group.tokens) if group.full else None,
                    "distinct_3": group.distinct_3 / group.full if group.full else None,
                    "trait_llr": group.trait_llr / group.full if group.full else None,
                    "relative_dose": float(np.mean(dose)) if dose else None,
                }
            )
        return lines


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


def by_coefficient(
    rows: Iterable[Completion],
    unsteered: Sequence[Completion],
    config: FilterConfig,
    trait: str,
    vector: Vector | None,
) -> list[dict[str, Any]]:
    """The lines of a sweep's tally."""
    return tally(rows, unsteered, limits(unsteered, config), config, trait).lines(vector)


def show(
    rows: Iterable[Completion],
    unsteered: Iterable[Completion],
    limit: Limits,
    config: FilterConfig,
    trait: str,
    vector: Vector | None,
) -> Tally:
    """The sweep's table at the terminal, each iterable gone through once; returns what it shows."""
    found = tally(rows, unsteered, limit, config, trait)
    names = ["n", "kept", "perplexity", "distinct_3", "trait_llr", "relative_dose"]
    role = "what is trained on, as a control" if config.source == "unsteered" else "a control and is never trained on"
    table(
        f"sweep (limits: perplexity ≤ {limit.perplexity:.1f}, trait_llr ≥ {limit.trait_llr:+.3f}{', the filter is off' if config.off else ''}; coefficient 0 is {role})",
        ["coefficient", "n", "kept", "perplexity", "distinct-3", "trait_llr", "relative dose"],
        [[f"{line['coefficient']:g}", *[line[name] for name in names]] for line in found.lines(vector)],
    )
    return found


def refuse_starvation(kept: Sequence[Completion], rejected: Sequence[Completion], config: FilterConfig) -> None:
    """Raise when too few rows are left to train on, with the counts and what to lower."""
    if len(kept) >= config.min_kept:
        return
    per = Counter(row.coefficient for row in [*kept, *rejected])
    alive = Counter(row.coefficient for row in kept)
    causes = Counter(reason.partition(":")[0] for row in rejected for reason in row.reasons)
    knob = {
        "perplexity": "raise filter.perplexity_ratio",
        "perplexity_last_quarter": "raise filter.last_quarter_ratio",
        "trait_llr": "lower filter.trait_llr_quantile",
        "truncated": "raise sweep.max_tokens or set filter.drop_truncated=false",
        "distinct_3": "lower filter.distinct_3_quantile",
        "loop": "raise filter.max_loop_share",
    }
    advice = [knob[cause] for cause, _ in causes.most_common() if cause in knob][:2]
    few = sum(per.values()) < config.min_kept  # even keeping all of them would not do
    more = "sample more (more prompts, sweep.samples) or lower filter.min_kept; " if few else ""
    raise SteerHealError(
        "the filter starved: too few completions are left to train on",
        given=f"{len(kept)} kept; "
        + ", ".join(f"{alive[c]}/{per[c]} at coefficient {c:g}" for c in sorted(per))
        + f"; rejected for {', '.join(f'{name} ({count})' for name, count in causes.most_common())}",
        expected=f"at least {config.min_kept} (filter.min_kept)",
        next=f"{more}lower the doses in sweep.coefficients (sweep.dose=walk finds one), or {' or '.join(advice) or 'lower filter.min_kept'}; in a run by SET with a new RUN or REBUILD=1, on plain files by --set",
    )


def report_reasons(kept: Sequence[Completion], rejected: Sequence[Completion]) -> None:
    causes = Counter(reason.partition(":")[0] for row in rejected for reason in row.reasons)
    console.print(
        f"kept {len(kept)} of {len(kept) + len(rejected)}; rejected for "
        + (", ".join(f"{name} {count}" for name, count in causes.most_common()) or "nothing")
    )
    if kept:
        console.print(
            f"mean coefficient of the kept {number(float(np.mean([row.coefficient for row in kept])))}, of the sweep {number(float(np.mean([row.coefficient for row in [*kept, *rejected]])))}"
        )


def unsteered_of(run: Run) -> list[Completion]:
    """The original model's completions at coefficient 0, sampled once in round 1."""
    return list(unsteered_in(run.round(1) / "sweep.jsonl", f"make round N=1 RUN={run.folder}"))


def unsteered_in(path: Path, made_by: str) -> Iterator[Completion]:
    """The rows of a sweep at coefficient 0, read as they are asked for."""
    return (row for row in iterate_jsonl(path, Completion, made_by=made_by) if row.coefficient == 0)


def stage(run: Run, index: int, rebuild: bool) -> None:
    folder, config = run.round(index), run.config.filter
    outputs = [folder / "kept.jsonl", folder / "rejected.jsonl"]
    job = Stage(
        run,
        index,
        "filter",
        settings={"filter": config.model_dump()},
        outputs=outputs,
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
    rows = read_jsonl(folder / "sweep.jsonl", Completion, made_by=f"make round N={index} RUN={run.folder}")
    unsteered = unsteered_of(run)
    kept, rejected = split(rows, unsteered, config, run.config.vector.trait)
    show(rows, unsteered, limits(unsteered, config), config, run.config.vector.trait, vector)
    report_reasons(kept, rejected)
    refuse_starvation(kept, rejected, config)
    write_jsonl(outputs[0], kept)
    write_jsonl(outputs[1], rejected)
    job.finish(
        original,
        kept=len(kept),
        rejected=len(rejected),
        reasons=dict(Counter(reason.partition(":")[0] for row in rejected for reason in row.reasons)),
    )


def main() -> None:
    options = parser("gen.filter", "Keep the coherent completions that enact the trait.")
    files = plain(options)
    files.add_argument("--in", dest="in_", type=Path, metavar="FILE", help="sweep rows, JSONL")
    files.add_argument(
        "--out",
        type=Path,
        help="folder for kept.jsonl and rejected.jsonl, or the file of the kept rows (the rejected go beside it)",
    )
    files.add_argument(
        "--unsteered",
        type=Path,
        metavar="FILE",
        help="rows of the original model at coefficient 0; by default those of --in",
    )
    arguments, run = parse(options)
    if run:
        stage(run, arguments.round, arguments.rebuild)
        return
    need(options, arguments, "in_", "out")
    config = resolve(getattr(arguments, "config", None), getattr(arguments, "set", ""))[0]
    rows = read_jsonl(arguments.in_, Completion, made_by="python -m gen.sweep --help")
    yardstick = (
        rows
        if arguments.unsteered is None
        else read_jsonl(arguments.unsteered, Completion, made_by="python -m gen.sweep --coefficients 0 ...")
    )
    unsteered = [row for row in yardstick if row.coefficient == 0]
    kept, rejected = split(rows, unsteered, config.filter, config.vector.trait)
    show(rows, unsteered, limits(unsteered, config.filter), config.filter, config.vector.trait, None)
    report_reasons(kept, rejected)
    refuse_starvation(kept, rejected, config.filter)
    kept_path = arguments.out if arguments.out.suffix == ".jsonl" else arguments.out / "kept.jsonl"
    write_jsonl(kept_path, kept)
    write_jsonl(kept_path.with_name("rejected.jsonl"), rejected)
    console.print(f"wrote {kept_path} and {kept_path.with_name('rejected.jsonl')}")


if __name__ == "__main__":
    entry(main)
