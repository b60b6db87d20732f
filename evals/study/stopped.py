"""stopped.json: why a cell of a study had to stop."""

from __future__ import annotations

from shared.records import Record

STOPPED = "stopped.json"


class Stopped(Record):
    """stopped.json: the round and stage at which a cell ended, and what the stage said on stderr."""

    round: int
    stage: str
    said: str


def reason(stderr: str) -> str:
    """The last error on a stage's stderr, in one line: our error with what it was given, or else the last line."""
    lines = stderr.splitlines()
    begin = next((index for index in reversed(range(len(lines))) if lines[index].startswith("error: ")), len(lines) - 1)
    return "; ".join(" ".join(line.split()) for line in lines[begin : begin + 2]).removeprefix("error: ")
