"""The trainer's benchmark: ratios to the naive trainer and to plain SFT on one machine, into docs/bench.json."""

from __future__ import annotations

import json
import time

from shared.cli import entry
from shared.ratios import all_cores, closing, file, refuse_foreign
from train.commandline import bench_options


def main() -> None:
    options = bench_options()
    arguments = options.parse_args()
    refuse_foreign(arguments.out)
    from train.measures import loss, losses, memories, peak, step_times

    all_cores()
    if arguments.memory:
        side, *numbers = arguments.memory
        print(json.dumps(peak(loss(side, *map(int, numbers)))))
        return
    begin = time.monotonic()
    if arguments.shape:
        from train.speed import of_name

        file(arguments.out, of_name(arguments.shape, arguments.quick))
        closing(arguments.out, begin)
        return
    rounds, repeats = (2, 1) if arguments.quick else (15, 5)
    ratios = {**step_times(rounds), **losses(rounds), **memories(repeats)}
    file(arguments.out, ratios)
    closing(arguments.out, begin)


if __name__ == "__main__":
    entry(main)
