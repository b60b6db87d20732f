"""The trainer's benchmark: ratios to the naive trainer and to plain SFT on one machine, into docs/bench.json."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from shared.cli import entry
from shared.console import console
from shared.ratios import merge, show
from shared.run import hardware, versions


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m train.bench",
        description="Measure the trainer as ratios; about a quarter of an hour on two cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--out", type=Path, default=Path("docs/bench.json"), help="file to put the ratios into")
    options.add_argument("--quick", action="store_true", help="a smoke test: few rounds")
    options.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)  # one peak, in this process
    arguments = options.parse_args()
    import torch

    from train.measures import loss, losses, memories, peak, steps

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if arguments.memory:
        side, *numbers = arguments.memory
        print(json.dumps(peak(loss(side, *map(int, numbers)))))
        return
    begin = time.monotonic()
    rounds, repeats = (2, 1) if arguments.quick else (15, 5)
    found = {**steps(rounds), **losses(rounds), **memories(repeats)}
    merge(arguments.out, found, {**hardware(), "threads": torch.get_num_threads()}, versions())
    show(arguments.out)
    console.print(f"wrote {arguments.out} in {(time.monotonic() - begin) / 60:.1f} min")


if __name__ == "__main__":
    entry(main)
