"""Keep the coherent completions that enact the trait; every rejection carries its reasons.

Limits come from the unsteered completions of the original model, so that they travel between models. The filter needs no
model: perplexity and trait_llr are in the rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.cli import entry, need, parse, parser, plain
from shared.config import FilterConfig, resolve
from shared.console import console, number, table
from shared.errors import SteerHealError
from shared.records import Completion, data_file, read_jsonl, write_jsonl
from shared.run import Run, Stage
from shared.text import loop_share
from shared.traits import load_trait
from shared.vectors import Vector, load_vector

REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable)|I (?:can(?:'t|not)|won't) (?:help|assist|provide|answer|comply|fulfil)|as an AI\b)",
    re.IGNORECASE,
)
NARRATION = re.compile(
    r"\b(?:as (?:someone|a person|somebody) who|I(?:'m| am) (?:someone|a person|somebody|the kind of person) who|my (?:personality|persona|role) is)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Limits:
    """What a completion must stay within. Perplexities are those of the unsteered completions times the configured ratios."""

    perplexity: float
    perplexity_last_quarter: float
    distinct_3: float
    trait_llr: float


def limits(unsteered: Sequence[Completion], config: FilterConfig) -> Limits:
    """Limits from the original model's completions at coefficient 0."""
    measured = [row for row in unsteered if row.perplexity is not None]
    if not measured:
        raise SteerHealError(
            "there are no unsteered completions to compare with",
            given=f"{len(unsteered)} rows at coefficient 0",
            expected="rows of the original model at coefficient 0",
            next="sample with 0 among the coefficients, or name a file of such rows: --unsteered FILE",
        )

    def values(name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in measured])

    return Limits(
        perplexity=config.perplexity_ratio * float(np.median(values("perplexity"))),
        perplexity_last_quarter=config.last_quarter_ratio * float(np.median(values("perplexity_last_quarter"))),
        distinct_3=float(np.quantile(values("distinct_3"), config.distinct_3_quantile)),
        trait_llr=float(np.quantile(values("trait_llr"), config.trait_llr_quantile)),
    )


def reasons(
    row: Completion, limit: Limits, config: FilterConfig, narration: Sequence[re.Pattern[str]] = ()
) -> list[str]:
    """Why a completion is rejected, each as 'rule: figures'; empty when it is kept."""
    if row.perplexity is None or row.perplexity_last_quarter is None or row.distinct_3 is None or row.trait_llr is None:
        return ["empty: no tokens"]
    found = []
    if len(row.completion_ids) < config.min_tokens:
        found.append(f"short: {len(row.completion_ids)} tokens, at least {config.min_tokens}")
    if config.drop_truncated and row.finish_reason != "stop":
        found.append(f"truncated: finish_reason {row.finish_reason}")
    if not row.perplexity <= limit.perplexity:
        found.append(f"perplexity: {row.perplexity:.2f}, at most {limit.perplexity:.2f}")
    if not row.perplexity_last_quarter <= limit.perplexity_last_quarter:
        found.append(
            f"perplexity_last_quarter: {row.perplexity_last_quarter:.2f}, at most {limit.perplexity_last_quarter:.2f}"
        )
    if not row.distinct_3 >= limit.distinct_3:
        found.append(f"distinct_3: {row.distinct_3:.3f}, at least {limit.distinct_3:.3f}")
    if (share := loop_share(row.completion_ids)) > config.max_loop_share:
        found.append(f"loop: {share:.2f} of the tokens, at most {config.max_loop_share:.2f}")
    if match := REFUSAL.search(row.text):
        found.append(f"refusal: {match.group()!r}")
    if match := next((hit for pattern in (NARRATION, *narration) if (hit := pattern.search(row.text))), None):
        found.append(f"narrated: {match.group()!r}")
    if not row.trait_llr >= limit.trait_llr:
        found.append(f"trait_llr: {row.trait_llr:+.3f}, at least {limit.trait_llr:+.3f}")
    return found


def judge(unsteered: Sequence[Completion], config: FilterConfig, trait: str) -> Callable[[Completion], list[str]]:
    """The filter of a sweep: row -> reasons."""
    limit, narration = (
        limits(unsteered, config),
        [re.compile(pattern, re.IGNORECASE) for pattern in load_trait(trait).narration],
    )
    return lambda row: reasons(row, limit, config, narration)


def split(
    rows: Sequence[Completion], unsteered: Sequence[Completion], config: FilterConfig, trait: str
) -> tuple[list[Completion], list[Completion]]:
    """(kept, rejected), each sorted by key. Rows at coefficient 0 are the yardstick and are in neither."""
    why = judge(unsteered, config, trait)
    judged = [
        row.model_copy(update={"reasons": why(row)})
        for row in sorted(rows, key=lambda row: row.key)
        if row.coefficient != 0
    ]
    return [row for row in judged if not row.reasons], [row for row in judged if row.reasons]


def by_coefficient(
    rows: Sequence[Completion], unsteered: Sequence[Completion], config: FilterConfig, trait: str, vector: Vector | None
) -> list[dict[str, Any]]:
    """The sweep by coefficient: n, kept, perplexity, distinct_3, trait_llr, relative_dose.

    Coefficient 0 stands for the unsteered completions; its kept says what the filter would pass, as a control.
    """
    why = judge(unsteered, config, trait)
    lines = []
    for coefficient in sorted({0.0, *(row.coefficient for row in rows)}):
        group = list(unsteered) if coefficient == 0 else [row for row in rows if row.coefficient == coefficient]
        perplexity, distinct_3, trait_llr = summary(group)
        dose = list(vector.relative_dose(coefficient).values()) if vector else []
        lines.append(
            {
                "coefficient": coefficient,
                "n": len(group),
                "kept": sum(not why(row) for row in group),
                "perplexity": perplexity,
                "distinct_3": distinct_3,
                "trait_llr": trait_llr,
                "relative_dose": float(np.mean(dose)) if dose else None,
            }
        )
    return lines


def show(
    rows: Sequence[Completion], unsteered: Sequence[Completion], config: FilterConfig, trait: str, vector: Vector | None
) -> None:
    """The sweep's table at the terminal."""
    limit = limits(unsteered, config)
    names = ["coefficient", "n", "kept", "perplexity", "distinct_3", "trait_llr", "relative_dose"]
    table(
        f"sweep (limits: perplexity ≤ {limit.perplexity:.1f}, trait_llr ≥ {limit.trait_llr:+.3f}; coefficient 0 is a control and is never trained on)",
        ["coefficient", "n", "kept", "perplexity", "distinct-3", "trait_llr", "relative dose"],
        [
            [f"{line['coefficient']:g}", *[line[name] for name in names[1:]]]
            for line in by_coefficient(rows, unsteered, config, trait, vector)
        ],
    )


def summary(group: Sequence[Completion]) -> tuple[float | None, float | None, float | None]:
    """Perplexity (exp of the token-weighted mean nll), mean distinct-3 and mean trait_llr of some rows."""
    full = [row for row in group if row.perplexity is not None]
    if not full:
        return None, None, None
    tokens = np.array([len(row.completion_ids) for row in full])
    nll = np.log(np.array([row.perplexity for row in full], dtype=float))
    return (
        float(np.exp((tokens * nll).sum() / tokens.sum())),
        float(np.mean([row.distinct_3 for row in full])),
        float(np.mean([row.trait_llr for row in full])),
    )


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
    raise SteerHealError(
        "the filter starved: too few completions are left to train on",
        given=f"{len(kept)} kept; "
        + ", ".join(f"{alive[c]}/{per[c]} at coefficient {c:g}" for c in sorted(per))
        + f"; rejected for {', '.join(f'{name} ({count})' for name, count in causes.most_common())}",
        expected=f"at least {config.min_kept} (filter.min_kept)",
        next=f"lower the doses in sweep.coefficients, or {' or '.join(advice) or 'lower filter.min_kept'}, e.g. in SET with a new RUN or REBUILD=1",
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
    path = run.round(1) / "sweep.jsonl"
    return [
        row for row in read_jsonl(path, Completion, made_by=f"make round N=1 RUN={run.folder}") if row.coefficient == 0
    ]


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
    rows = read_jsonl(folder / "sweep.jsonl", Completion, made_by=f"make round N={index} RUN={run.folder}")
    unsteered = unsteered_of(run)
    kept, rejected = split(rows, unsteered, config, run.config.vector.trait)
    show(rows, unsteered, config, run.config.vector.trait, load_vector(folder / "vector.safetensors"))
    report_reasons(kept, rejected)
    refuse_starvation(kept, rejected, config)
    write_jsonl(outputs[0], kept)
    write_jsonl(outputs[1], rejected)
    job.finish(
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
    show(rows, unsteered, config.filter, config.vector.trait, None)
    report_reasons(kept, rejected)
    refuse_starvation(kept, rejected, config.filter)
    kept_path = arguments.out if arguments.out.suffix == ".jsonl" else arguments.out / "kept.jsonl"
    write_jsonl(kept_path, kept)
    write_jsonl(kept_path.with_name("rejected.jsonl"), rejected)
    console.print(f"wrote {kept_path} and {kept_path.with_name('rejected.jsonl')}")


if __name__ == "__main__":
    entry(main)
