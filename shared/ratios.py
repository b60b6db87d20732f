"""Benchmarks as ratios: two sides timed in turn on one machine, a median with its interval, and the file that keeps them.

A ratio is taken per round, over two times of the same round, so that a machine that slows down slows both. Stored are the
median over the rounds and a 95 % percentile-bootstrap interval of that median, or under five rounds their range. A bound is met when
the median is within it: by the interval's near end, a measurement would pass more easily the noisier it is.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shared.console import console, print_table, progress, say
from shared.errors import SteerHealError
from shared.machine import hardware
from shared.provenance import versions
from shared.publish import write_json
from shared.strict import parse_json

SAME = ("processor", "cores", "gpu")  # by which two machines are told apart
UNKNOWN = "not recorded"  # the instruction set of a file from before it was recorded
FEW = 5  # values, below which a bootstrap says no more than the range


@dataclass
class Side:
    """One side of a comparison. run is timed and returns completions, prepare is not.

    first: the rounds it takes part in. share: of the work that run does, where the work is a sum of equal parts; its time is
    scaled up to the whole.
    """

    run: Callable[[], list[list[int]]]
    prepare: Callable[[], Any] = lambda: None
    first: int | None = None
    share: float = 1.0
    seconds: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)  # mean completion length of each round


def warm(sides: dict[str, Side]) -> None:
    """Run each side once, untimed: allocators, kernels and lazily built state."""
    for name, side in sides.items():
        with console.status(f"warming up: {name}"):
            side.prepare()
            side.run()


def interleave(title: str, sides: dict[str, Side], rounds: int) -> None:
    """Time the sides in turn, each round beginning with the next one; a line shows the side at work."""
    with progress("side") as bar:
        total = sum(min(rounds, side.first or rounds) for side in sides.values())
        task = bar.add_task(title, total=total, side="")
        for turn in range(rounds):
            order = list(sides)[turn % len(sides) :] + list(sides)[: turn % len(sides)]
            for name in order:
                side = sides[name]
                if side.first is not None and turn >= side.first:
                    continue
                bar.update(task, side=name)
                side.prepare()
                gc.collect()
                settle()
                begin = time.perf_counter()
                completions = side.run()
                settle()
                side.seconds.append((time.perf_counter() - begin) / side.share)
                side.tokens.append(statistics.mean(map(len, completions)))
                bar.advance(task)


def settle() -> None:
    """Wait for a GPU, which is still at work when a call returns."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Ends of the 95 % percentile-bootstrap interval of the median; the range of too few values; None for a single one."""
    from scipy.stats import bootstrap

    if len(values) < 2:
        return None, None
    if len(values) < FEW:
        return min(values), max(values)
    resampled = bootstrap(
        (values,), np.median, confidence_level=0.95, method="percentile", rng=np.random.default_rng(0)
    )
    return float(resampled.confidence_interval.low), float(resampled.confidence_interval.high)


def met(median: float, bound: float | None, faster: bool) -> bool | None:
    """Whether a bound stands, by the module's rule; None without a bound.

    Args:
        median: of the ratios.
        bound: the worst median that is good enough.
        faster: whether a higher median is better.
    """
    if bound is None:
        return None
    return median >= bound if faster else median <= bound


def ratio_of_times(
    ours: Side, reference: Side, what: str, *, bound: float | None = None, faster: bool = False
) -> dict[str, Any]:
    """The record of one comparison: time of ours over the reference's, or with faster the reference's over ours.

    Args:
        ours: measured already.
        reference: measured in turn with ours.
        what: the ratio in words, for the record.
        bound: the worst median that is good enough; None for none.
        faster: put the reference's time over ours.
    """
    # a side may take part in the first rounds alone
    pairs = list(zip(ours.seconds, reference.seconds, strict=False))
    sides = {"ours": ours, "reference": reference}
    return {
        **ratio_of_pairs(pairs, what, bound=bound, faster=faster),
        "seconds": {name: statistics.median(side.seconds) for name, side in sides.items()},
        "mean_completion_tokens": {name: statistics.mean(side.tokens) for name, side in sides.items()},
    }


def ratio_of_pairs(
    pairs: Sequence[tuple[float, float]], what: str, *, bound: float | None = None, faster: bool = False
) -> dict[str, Any]:
    """A ratio of ours over theirs, or with faster theirs over ours, of pairs (ours, theirs) of any one unit.

    Args:
        pairs: (ours, theirs), of any one unit.
        what: the ratio in words, for the record.
        bound: the worst median that is good enough; None for none.
        faster: put theirs over ours.
    """
    values = [theirs / own if faster else own / theirs for own, theirs in pairs]
    low, high = interval(values)
    return {
        "median": statistics.median(values),
        "low": low,
        "high": high,
        "n": len(values),
        "what": what,
        "bound": bound,
        "met": met(statistics.median(values), bound, faster),
    }


def merge_ratios(out: Path, ratios: dict[str, Any], machine: dict[str, Any], installed: dict[str, str]) -> None:
    """Put ratios into a benchmark file: other benchmarks' stay, and versions become this run's.

    A ratio carries the instruction set it was measured with, and beneath `others` its latest record of every other one; `machines`
    has the machine of each. A version that this run did not see stays too: of what another benchmark compared with. Raises
    SteerHealError where the other ratios of this instruction set are of another machine.
    """
    old = read_ratios(out) if out.exists() else {"versions": {}, "ratios": {}}
    kind = machine.get("instruction_set", UNKNOWN)
    before = old.get("machine") or machine
    machines = {before.get("instruction_set", UNKNOWN): before, **old.get("machines", {})}
    ours, theirs = ([entry.get(name) for name in SAME] for entry in (machine, machines.get(kind, machine)))
    kept = [name for name, row in old["ratios"].items() if name not in ratios and kind in _by_set(row)]
    if ours != theirs and kept:
        raise SteerHealError(
            "a benchmark file is of another machine",
            given=f"{out}: {theirs}, and here {ours}",
            expected="for each instruction set, results of one machine",
            next="write to another file with --out NAME.json, or remove that file and run make bench",
        )
    merged = dict(old["ratios"])
    for name, row in ratios.items():
        others = {other: record for other, record in _by_set(merged.get(name)).items() if other != kind}
        merged[name] = {**row, "instruction_set": kind, **({"others": others} if others else {})}
    versions = {**old["versions"], **installed}
    write_json(
        out, {"machine": machine, "machines": {**machines, kind: machine}, "versions": versions, "ratios": merged}
    )


def _by_set(row: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The records of a ratio by instruction set."""
    if row is None:
        return {}
    own = {key: value for key, value in row.items() if key not in ("instruction_set", "others")}
    return {row.get("instruction_set", UNKNOWN): own, **row.get("others", {})}


def all_cores() -> None:
    """Let every side use every core, vLLM, Unsloth and Hugging Face alike."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))


def file(out: Path, ratios: dict[str, Any], **peers: str) -> None:
    """Merge ratios with this machine and the installed versions; peers: versions of what was compared with."""
    import torch

    merge_ratios(out, ratios, {**hardware(), "threads": torch.get_num_threads()}, {**versions(), **peers})


def closing(out: Path, begin: float) -> None:
    """Print the table of the ratios so far, and the seconds since begin, a reading of time.monotonic()."""
    show_ratios(out)
    say(f"wrote {out} in {(time.monotonic() - begin) / 60:.1f} min")


def refuse_foreign(out: Path) -> None:
    """Raise SteerHealError for a file that ratios cannot be put into, before anything is measured."""
    if out.exists():
        read_ratios(out)


def read_ratios(out: Path) -> dict[str, Any]:
    """A benchmark file, read. Raises SteerHealError for another file."""
    try:
        document = parse_json(out.read_bytes())
        if isinstance(document["ratios"], dict) and isinstance(document["versions"], dict):
            return dict(document)
        problem = "ratios or versions is no object"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = repr(error)
    raise SteerHealError(
        "a benchmark file could not be read",
        given=f"{out}: {problem}",
        expected="an object with machine, versions and ratios",
        next=f"remove {out}; the benchmarks make it again",
    )


def show_ratios(out: Path) -> None:
    """Print the table of a benchmark file."""
    rows = []
    for name, row in read_ratios(out)["ratios"].items():
        ends = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        verdict = {True: "yes", False: "no", None: None}[row.get("met")]
        rows.append(
            [name, f"{row['median']:.3f}{ends}", row.get("bound"), verdict, row.get("instruction_set"), row["what"]]
        )
    print_table("benchmark", ["ratio", "median [95 %]", "bound", "met", "instruction set", "what"], rows)
