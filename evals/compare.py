"""Two conditions on plain files: what moved from one score file to another, with intervals; several files a side are seeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from evals.commandline import compare_options
from evals.costs import cost, surgical, surgical_care
from evals.measures.forced_choice.answers import answers
from evals.measures.forced_choice.moved import LEVEL, detectable, shifts
from evals.measures.forced_choice.rows import ScoreRow
from evals.statistics import Answers, deltas, levels, pair, same_setting, show
from evals.verdict import broken
from shared.cli import entry
from shared.console import console, table
from shared.errors import SteerHealError
from shared.publish import write_json
from shared.records import read_jsonl
from shared.tables import read_parquet

MADE_BY = "python -m evals.score --help"


def split(given: str) -> tuple[Path, str]:
    """The path and the name, '' for none, that FILE or FILE:NAME means."""
    path = Path(given)
    if not path.exists() and ":" in given:
        return Path(given.rpartition(":")[0]), given.rpartition(":")[2]
    return path, ""


def load(given: str) -> Answers:
    """The rows of one condition: FILE, or FILE:NAME where a file holds several. Raises SteerHealError unless it is one."""
    path, name = split(given)
    rows = (read_parquet if path.suffix == ".parquet" else read_jsonl)(path, ScoreRow, made_by=MADE_BY)
    names = list(dict.fromkeys(row.name for row in rows if row.name is not None))
    if name:
        rows = [row for row in rows if row.name == name]
    elif len(names) > 1:
        raise SteerHealError(
            "a score file holds several conditions",
            given=f"{path}: {', '.join(names)}",
            expected=f"the name of one behind the file, as {path}:{names[0]}",
            next=f"python -m evals.compare --base {path}:{names[0]} --other {path}:{names[1]}",
        )
    if not rows:
        raise SteerHealError(
            "a score file does not hold a condition",
            given=given,
            expected=f"one of {', '.join(names) or 'none, its rows have no names'}",
            next=f"--other {path}{f':{names[-1]}' if names else ''}",
        )
    return answers(rows, path, MADE_BY)


def compare(base: Answers, other: Answers, count: int, seed: int) -> dict[str, Any]:
    """The deltas of other against base, as they stand in results.json."""
    change = deltas(base, other, count, seed)
    moved = shifts(base, other, count, seed)
    level, unscorable = levels(other, 1, seed), int((~other.scorable).sum())  # whether defined, no interval
    undefined = [name for name in ("auth_nats", "p_ans_any") if level[name] is None]
    problem = broken(undefined, unscorable, len(other.truth), change["coherence"])
    coh_cost, slope = cost(change["d_coh"], change["d_auth"], problem is not None)
    is_surgical = surgical(base, other, count, seed)
    rows = [pair(key, f"{key}_ci", value) for key, value in change.items() if key != "d_care_90"]
    return {
        **{name: value for row in rows for name, value in row.items()},
        "unscorable": unscorable,
        "broken": problem,
        "coh_cost": coh_cost,
        "coh_slope": slope,
        "surgical": is_surgical,
        "surgical_care": surgical_care(is_surgical, change["d_auth"], change["d_care_90"]),
        "moved": None if moved is None else {line.foundation: [line.change.value, line.p_holm] for line in moved},
        "detectable": detectable(base, other, count, seed),
        "shown": {key: show(value) if value else None for key, value in change.items()},
    }


def main() -> None:
    options = compare_options()
    arguments = options.parse_args()
    if len(arguments.base) != len(arguments.other):
        raise SteerHealError(
            "the two sides have different numbers of files",
            given=f"{len(arguments.base)} against {len(arguments.other)}",
            expected="a file of --other for each of --base",
            next="name the seeds of both sides in the same order",
        )
    others = [f"{os.path.realpath(path)}:{name}" for path, name in map(split, arguments.other)]
    if twice := [given for given, other in zip(arguments.other, others, strict=True) if others.count(other) > 1]:
        raise SteerHealError(
            "one condition stands for two seeds",
            given=f"--other {twice[0]} twice",
            expected="a file of its own, or a name of its own in a file, for every seed",
            next="leave it out on both sides",
        )
    if arguments.bootstrap < 100:
        raise SteerHealError(
            "too few resamples for an interval",
            given=arguments.bootstrap,
            expected="at least 100",
            next="--bootstrap 2000",
        )
    sides = [(load(base), load(other)) for base, other in zip(arguments.base, arguments.other, strict=True)]
    for base, _ in sides[1:]:
        same_setting(sides[0][0].setting, base.setting)  # seeds are points of one thing
    if any((base.setting.template is None) != (other.setting.template is None) for base, other in sides):
        console.print(
            "[yellow]one side's rows are from before the chat template's arguments were written into them: taken as the other side's[/]"
        )
    seeds = [compare(base, other, arguments.bootstrap, arguments.seed) for base, other in sides]
    names = [Path(given).stem if Path(given).exists() else given.rpartition(":")[2] for given in arguments.other]
    keys = ("d_auth", "d_care", "d_coh", "coherence")
    lines: list[list[Any]] = [[key, *[seed["shown"][key] for seed in seeds]] for key in keys]
    lines += [
        [key, *[seed[key] for seed in seeds]]
        for key in ("unscorable", "broken", "coh_cost", "coh_slope", "surgical", "surgical_care", "detectable")
    ]
    lines.append(
        [
            "moved (Holm)",
            *[
                None
                if seed["moved"] is None
                else ", ".join(name for name, (_, p) in seed["moved"].items() if p < LEVEL) or "none"
                for seed in seeds
            ],
        ]
    )
    table("against base, paired over the items, nats", ["", *names], lines)
    if len(seeds) > 1:
        points = [seed["d_auth"] for seed in seeds if seed["d_auth"] is not None]
        console.print(
            f"d_auth over {len(points)} seeds: mean {np.mean(points):+.3f}, from {min(points):+.3f} to {max(points):+.3f}"
        )
    if any(seed["d_auth"] is not None and seed["d_auth_ci"] is None for seed in seeds):
        console.print("no intervals: no foundation has two items scorable in both; score more, as with --items 28")
    if arguments.out:
        write_json(
            arguments.out, {"version": 1, "seeds": [{k: v for k, v in seed.items() if k != "shown"} for seed in seeds]}
        )


if __name__ == "__main__":
    entry(main)
