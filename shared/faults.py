"""Where a process crashed, out of the report that Python's faulthandler writes on its stderr."""

from __future__ import annotations

from collections.abc import Sequence


def crashed_frames(lines: Sequence[str]) -> list[str]:
    """Lines of Python of the thread that crashed, innermost first, without the import system's; empty without a report.

    The report has all threads, and the one that crashed is not always its first.
    """
    starts = [index for index, line in enumerate(lines) if line.startswith("Current thread ")]
    frames = []
    for line in lines[starts[-1] + 1 :] if starts else lines:
        if line.strip().startswith("File "):
            frames.append(line.strip())
        elif frames and starts:  # an empty line, another thread
            break
    return [frame for frame in frames if "<frozen importlib" not in frame]
