"""Conditions on plain files: what moved from one score file to another, with intervals and a verdict; several files a side are seeds."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.commandline import compare_options
from evals.compare_runs import compare_two
from evals.costs import SMALLEST_SHIFT, retain
from evals.evidence import AUTHORITY_FALLS, forced_choice_evidence, rank_among, shift
from evals.intervals import crossed
from evals.ladder import Price, verdict_of
from evals.measures.forced_choice.figures import Figures
from evals.measures.forced_choice.moved import LEVEL, detectable, foundation_shifts
from evals.measures.registry import ALWAYS, MEASURES
from evals.routes import by_item, less_steering
from evals.score_files import Sides, sides_of
from evals.statistics import interval_text, pair, same_setting
from shared.cli import entry
from shared.console import console, print_table
from shared.errors import SteerHealError
from shared.publish import write_json

# columns of results.json that answers alone do not fill
OTHER_COLUMNS = ("arm", "seed", "round", "stage", "coefficient", "perplexity", "perplexity_ci", "distinct_3", "trait_llr", "trait_llr_ci", "entropy", "kl_on_policy", "llr_opposite", "llr_opposite_ci", "share_of_prompted", "relevance", "text_verdict", *(column for measure in MEASURES if measure.name not in ALWAYS for column in measure.columns))  # fmt: skip


def compare_sides(sides: Sides, count: int, seed: int) -> dict[str, Any]:
    """The columns of results.json that answers fill, of other against base; the verdict where there is a steered side."""
    base, other = sides.base, sides.other
    for side in sides.all:
        same_setting(base.setting, side.setting)
    figures = Figures(base, other, count, seed)
    problem = figures.broken()
    moved = foundation_shifts(base, other)
    kept = None
    if sides.steered is not None and (steered := shift(base, sides.steered)) and abs(steered.value) >= SMALLEST_SHIFT:
        kept = retain(base, sides.steered, other)
    price = _price(sides, count, seed)
    verdict: tuple[str | None, str | None] = (None, None)
    if sides.steered is not None:
        verdict = verdict_of(
            forced_choice_evidence(
                base, sides.steered, other, draws=sides.draws, before=sides.before, broken=problem,
                coherence=figures.delta["coherence"], price=price,
            )
        )  # fmt: skip
    deltas = {**figures.delta, "specific_shift": figures.specific}
    return {
        **figures.columns,
        **figures.costs(problem),
        **dict.fromkeys(OTHER_COLUMNS),
        "informedness": figures.level["informedness"].value if figures.level["informedness"] else None,
        "broken": problem,
        "random_rank_p": rank_among(base, sides.steered or other, sides.draws, AUTHORITY_FALLS),
        **pair("increment", "increment_ci", shift(sides.before, other) if sides.before else None),
        **pair("retain", "retain_ci", kept),
        **pair("price_less_steering", "price_less_steering_ci", price.less if price else None),
        "moved": None if moved is None else {line.foundation: [line.change.value, line.p_holm] for line in moved},
        "detectable": detectable(base, other),
        "verdict": verdict[0],
        "verdict_reason": verdict[1],
        "shown": {key: interval_text(value) if value else None for key, value in deltas.items()},
    }


def _price(sides: Sides, count: int, seed: int) -> Price | None:
    """The answer mass that other lost less what plain steering loses at the same shift."""
    if not sides.doses:
        return None
    doses = sorted(sides.doses, key=lambda dose: dose[0])
    points = [sides.base, *[dose for _, dose in doses], sides.other]
    keep = np.logical_and.reduce([point.scorable for point in points])
    moved, paid = by_item(points, count, seed, keep, AUTHORITY_FALLS)
    difference = less_steering([coefficient for coefficient, _ in doses], moved, paid)
    return None if difference is None else Price("answer mass lost", difference)


def main() -> None:
    options = compare_options()
    arguments = options.parse_args()
    if arguments.runs:
        compare_two(options, arguments)
        return
    if missing := [f"--{name}" for name in ("base", "other") if not getattr(arguments, name)]:
        raise SteerHealError(
            "options are missing",
            given=shlex.join(sys.argv[1:]) or "none",
            expected=f"two runs, or score files: {' '.join(missing)}",
            next=f"{options.prog} --help",
        )
    if arguments.bootstrap < 100:
        raise SteerHealError(
            "too few resamples for an interval",
            given=arguments.bootstrap,
            expected="at least 100",
            next="--bootstrap 2000",
        )
    by_seed = sides_of(arguments)
    for sides in by_seed[1:]:
        same_setting(by_seed[0].base.setting, sides.base.setting)  # seeds are points of one thing
    if any(
        (sides.setting.template is None) != (side.base.setting.template is None)
        for side in by_seed
        for sides in side.all
    ):
        console.print(
            "[yellow]one side's rows are from before the chat template's arguments were written into them: taken as the other side's[/]"
        )
    seeds = [compare_sides(sides, arguments.bootstrap, arguments.seed) for sides in by_seed]
    names = [
        Path(argument).stem if Path(argument).exists() else argument.rpartition(":")[2] for argument in arguments.other
    ]
    _show(seeds, names)
    if len(seeds) > 1:
        _over_seeds(by_seed, seeds)
    if any(seed["d_auth"] is not None and seed["d_auth_ci"] is None for seed in seeds):
        console.print("no intervals: no foundation has two items scorable in both; score more, as with --items 28")
    if arguments.out:
        write_json(
            arguments.out, {"version": 1, "seeds": [{k: v for k, v in seed.items() if k != "shown"} for seed in seeds]}
        )


def _show(seeds: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    lines: list[list[Any]] = [[key, *[seed["shown"][key] for seed in seeds]] for key in seeds[0]["shown"]]
    keys = ["p_not_wrong", "authority_contrast", "unscorable", "broken", "coh_cost", "coh_slope", "surgical", "surgical_care", "detectable"]  # fmt: skip
    if any(seed["verdict"] for seed in seeds):
        keys += ["random_rank_p", "retain", "verdict"]
    lines += [[key, *[seed[key] for seed in seeds]] for key in keys]
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
    print_table("against base, paired over the items, nats", ["", *names], lines)
    for name, seed in zip(names, seeds, strict=True):
        if seed["verdict"]:
            console.print(f"{name}: {seed['verdict']}: {seed['verdict_reason']}", markup=False)


def _over_seeds(by_seed: Sequence[Sides], seeds: Sequence[dict[str, Any]]) -> None:
    """Each seed is a point; the interval is for a new seed and new items."""
    points = [seed["d_auth"] for seed in seeds if seed["d_auth"] is not None]
    if not points:
        return
    console.print(
        f"d_auth over {len(points)} seeds: mean {np.mean(points):+.3f}, from {min(points):+.3f} to {max(points):+.3f}"
    )
    keep = np.logical_and.reduce([sides.base.scorable & sides.other.scorable for sides in by_seed])
    if keep.any():
        shifts_ = [by_influence(sides, keep) for sides in by_seed]
        if over := crossed(np.array(shifts_)):
            console.print(f"for a new seed and new items: {interval_text(over)}, n_seeds {len(by_seed)}")


def by_influence(sides: Sides, keep: np.ndarray) -> np.ndarray:
    """The influence [items] of each item on d_auth, nats; its mean is the shift."""
    p, q = (side.p[keep, AUTHORITY_FALLS.foundation] for side in (sides.base, sides.other))
    value = float(np.log(q.mean() / p.mean()))
    return np.asarray(value + q / q.mean() - p / p.mean())


if __name__ == "__main__":
    entry(main)
