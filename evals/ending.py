"""The last lines of a report at the terminal: what the last round came to, beside prompting, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.table import ranged, trait_column
from shared.commands import command_of, round_command
from shared.console import console, number, say
from shared.errors import SteerHealError
from shared.run import Run
from shared.traits import load_trait

Row = Mapping[str, Any]


def answer(rows: Sequence[Row], *, read_for: bool) -> list[tuple[str, str]]:
    """The answer of a run, as labels with their texts.

    Args:
        rows: of results.json, of one arm and seed.
        read_for: whether the forced choice is read for this trait at all.
    """
    at = {(row["round"], row["stage"]): row for row in rows}
    last = max(row["round"] for row in rows)
    base, steered, healed, prompted = at[0, "base"], at[last, "steered"], at[last, "healed"], at.get((0, "prompted"))
    column = trait_column(rows)

    def trait(row: Row) -> str:
        return ranged(dict(row), column, f"{column}_ci", 3, signed=True)

    def price(row: Row) -> str:
        return ranged(dict(row), "perplexity", "perplexity_ci", 2)

    lines = [("trait", "no free text was sampled"), ("price", "no free text was sampled")]
    if healed[column] is not None:
        lines = [
            ("trait", f"{column} {trait(healed)}; base {number(base[column], 3, True)}, steered {number(steered[column], 3, True)}"),
            ("price", f"perplexity {price(healed)}; base {number(base['perplexity'], 2)}, steered {number(steered['perplexity'], 2)}"),
        ]  # fmt: skip
    if healed.get("ret_kl") is not None:
        lines.append(("", f"KL on neutral text {ranged(dict(healed), 'ret_kl', 'ret_kl_ci', 3)} nats a token"))
    if healed["text_verdict"] is not None:
        lines.append(("free text", f"{healed['text_verdict']}: {healed['text_verdict_reason']}"))
    elif healed["text_verdict_reason"] is not None:
        lines.append(("free text", f"no verdict: {healed['text_verdict_reason']}"))
    if healed["verdict"] is not None:
        lines.append(("forced choice", f"{healed['verdict']}: {healed['verdict_reason']}"))
    elif not read_for:
        lines.append(("forced choice", "no verdict: the trait is about no foundation that it asks for"))
    if prompted is not None and prompted[column] is not None:
        lines.append(("prompting", _against_prompting(healed, prompted, column)))
    return lines


def _against_prompting(healed: Row, prompted: Row, column: str) -> str:
    """The student beside the trait in the system prompt of the original model, which costs no training."""
    said = f"the trait in the system prompt alone: {column} {number(prompted[column], 3, True)}, perplexity {number(prompted['perplexity'], 2)}"
    share, ends = healed["share_of_prompted"], healed["share_of_prompted_ci"]
    if share is None or ends is None:
        return said
    told = "less than prompting" if ends[1] < 1 else "more than prompting" if ends[0] > 1 else "not told apart from prompting"  # fmt: skip
    return f"{said}; the student has {share:.0%} of its shift [{ends[0]:.0%}, {ends[1]:.0%}]: {told}"


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
    _aligned(answer(rows, read_for=read_for))
    say("next", "bold")
    _aligned(next_commands(run, last, page, mode))


def _aligned(lines: Sequence[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in lines) + 2
    for label, text in lines:
        say(f"  {label:<{width}}{text}")
