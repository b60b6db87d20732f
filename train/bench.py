"""The trainer's benchmark: ratios to the naive trainer and to plain SFT on one machine, into docs/bench.json."""

from __future__ import annotations

import argparse
import json
import time

from shared.cli import entry
from shared.ratios import all_cores, closing, command_line, file


def main() -> None:
    options = command_line(
        "train.bench", "Measure the trainer as ratios; about a quarter of an hour on two cores.", "few rounds"
    )
    options.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)  # one peak, in this process
    arguments = options.parse_args()
    from train.measures import loss, losses, memories, peak, steps

    all_cores()
    if arguments.memory:
        side, *numbers = arguments.memory
        print(json.dumps(peak(loss(side, *map(int, numbers)))))
        return
    begin = time.monotonic()
    rounds, repeats = (2, 1) if arguments.quick else (15, 5)
    found = {**steps(rounds), **losses(rounds), **memories(repeats)}
    file(arguments.out, found)
    closing(arguments.out, begin)


if __name__ == "__main__":
    entry(main)
