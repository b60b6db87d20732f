"""The last lines of a report at the terminal: the answer, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.answer import AnswerLine, State, card_of
from shared.commands import command_of, round_command
from shared.console import console, say
from shared.errors import SteerHealError
from shared.run import Run
from shared.traits import load_trait

Row = Mapping[str, Any]


COLOURS: Mapping[State, str | None] = {"good": "green", "unsure": "yellow", "bad": "red", "unknown": None}


def next_commands(run: Run, last: int, page: Path, mode: str) -> list[tuple[str, str]]:
    """What to type after a report, as labels with commands. last: the last round of it. mode: EVAL, `round` or `full`."""
    out = Path("exports") / f"{run.folder.name}-{last}"
    lines = [
        ("open the report", str(page)),
        ("use the student", command_of("train.export", "--run", run.folder, "--round", last, "--as", "merged", "--out", out)),
        ("talk to it", command_of("gen.play", "--run", run.folder)),
    ]  # fmt: skip
    if mode == "round":
        lines.append(("another round", round_command(run.folder, last + 1)))
        lines.append(("score all items", round_command(run.folder, mode="full", target="report")))
    return lines


def trait_name(run: Run) -> str:
    """The trait's own name; that of its file where the file has gone since."""
    try:
        return load_trait(run.config.scored_trait).name
    except SteerHealError:
        return Path(run.config.scored_trait).stem


def show_ending(run: Run, rows: Sequence[Row], page: Path, mode: str, *, read_for: bool) -> None:
    """Print the answer of a run and what to type next."""
    last = max(row["round"] for row in rows)
    console.print()
    say(f"{trait_name(run)}, round {last} of {run.config.model.name}, healed", "bold")
    card = card_of(rows, read_for=read_for)
    _aligned([_shown(line) for line in (card.headline, *card.lines)])
    say("next", "bold")
    _aligned([(label, text, None) for label, text in next_commands(run, last, page, mode)])


def _shown(line: AnswerLine) -> tuple[str, str, str | None]:
    return f"{line.symbol} {line.name}", line.text, COLOURS[line.state]


def _aligned(lines: Sequence[tuple[str, str, str | None]]) -> None:
    """Print labels with their texts, each in its colour."""
    width = max(len(label) for label, _, _ in lines) + 2
    for label, text, colour in lines:
        say(f"  {label:<{width}}{text}", colour)
