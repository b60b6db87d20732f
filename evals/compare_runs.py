"""`steer-heal compare RUN RUN`: settings that differ, both verdicts, figures and texts side by side; runs scored differently are refused."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from evals.agree import OF_A_ROUND
from evals.compare_page import PromptTexts, compare_page
from evals.evidence import AUTHORITY_FALLS, shift
from evals.measures.free_text.texts import Llr, text_delta, texts_of
from evals.measures.registry import MEASURES
from evals.overlay import Dot, overlay
from evals.round import Round
from evals.scored import STEP
from evals.side import ScoredRun, read_side
from evals.statistics import Estimate
from evals.table import Table, ranged, trait_column
from shared.commands import command_of, round_command
from shared.config import NOT_IN_RESULTS, flatten_config
from shared.console import format_number, print_table, say
from shared.errors import SteerHealError
from shared.options import Options
from shared.publish import write_text

# settings of the scoring that no score file holds; two runs must have them in common
SCORING = ("eval.stop", "eval.generation_samples", "eval.generation_tokens", "model.dtype", "model.chat_template_kwargs", "sweep.temperature", "sweep.top_p")  # fmt: skip
OF_SCORES = ("instrument", "vignettes", "debias", "think", "items", "read_for")
# columns of a healed row, with their intervals, digits and whether they are signed
FIGURES = (
    ("perplexity", "perplexity_ci", 2, False),
    *((column, f"{column}_ci", digits, signed) for measure in MEASURES for column, digits, signed in measure.headlines),
    ("coherence", "coherence_ci", 3, False),
    ("auth_nats", "auth_ci", 3, False),
    ("d_auth", "d_auth_ci", 3, True),
    ("retain", "retain_ci", 2, True),
    ("share_of_prompted", "share_of_prompted_ci", 2, True),
    ("price_less_steering", "price_less_steering_ci", 3, True),
)
OF_STEERED = ("perplexity", "coherence", "auth_nats")


def refuse_incomparable(one: ScoredRun, other: ScoredRun, mode: str) -> None:
    """Raise SteerHealError, by name, for what the two runs were scored by and do not have in common."""
    if one.run.folder.resolve() == other.run.folder.resolve():
        raise SteerHealError(
            "a run is compared with itself",
            given=one.name,
            expected="two runs",
            next=command_of("shared.status", "--run", one.run.folder.parent),
        )
    if differing := list(_differing(one, other, mode)):
        raise SteerHealError(
            "the runs were scored differently, so that their figures are of different things",
            given="; ".join(differing),
            expected=f"the same in {one.name} and {other.name}",
            next=_again(one, other),
        )


def _again(one: ScoredRun, other: ScoredRun) -> str:
    """The command that makes the second run once more, beside itself, scored as the first one is."""
    ours, yours = flatten_config(one.run.config), flatten_config(other.run.config)
    if ours["model.name"] != yours["model.name"]:
        return f"compare runs of one model: {command_of('shared.status', '--run', one.run.folder.parent)}"
    settings_ = {**ours, "eval.trait": one.run.config.scored_trait}
    keys = [key for key in yours if (key.startswith("eval.") or key in SCORING) and settings_[key] not in (None, yours[key])]  # fmt: skip
    chosen = " ".join(shlex.quote(f"{key}={_toml(settings_[key])}") for key in keys)
    return round_command(
        f"{other.name}-2", len(other.rounds), config=other.run.folder / "config.toml", overrides=chosen
    )


def _toml(value: Any) -> str:
    """A value of a configuration as SET takes it: text as it stands, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _differing(one: ScoredRun, other: ScoredRun, mode: str) -> Iterator[str]:
    first, second = one.at(1), other.at(1)
    for name in OF_SCORES:
        first_value, second_value = getattr(first.scores, name), getattr(second.scores, name)
        if first_value != second_value:
            what = (
                f"{len(first_value)} and {len(second_value)}"
                if name == "items"
                else f"{_brief(first_value)} and {_brief(second_value)}"
            )
            yield f"{name}: {what}"
    ours, yours = flatten_config(one.run.config), flatten_config(other.run.config)
    for key in SCORING:
        if ours[key] != yours[key]:
            yield f"{key}: {_brief(ours[key])} and {_brief(yours[key])}"
    a, b = first.manifests[STEP[mode]].model, second.manifests[STEP[mode]].model
    if a and b and a.fingerprint != b.fingerprint:  # manifests of the first version have none
        yield f"model: {a.name} ({a.fingerprint[:12]}) and {b.name} ({b.fingerprint[:12]})"
    first_value, second_value = _inputs(first, mode), _inputs(second, mode)
    for label in sorted(first_value.keys() & second_value.keys()):
        if first_value[label] != second_value[label]:
            yield f"{label} file: {first_value[label][:12]} and {second_value[label][:12]}"
    prompts = [{(row.prompt_id, row.prompt) for row in side.texts(0, "base")} for side in (one, other)]
    if prompts[0] != prompts[1]:
        yield f"held-out prompts: {len(prompts[0])} and {len(prompts[1])}, {len(prompts[0] & prompts[1])} in common"


def _inputs(first: Round, mode: str) -> Mapping[str, str]:
    """Digests of the files that a scoring reads and that are not the round's own; a trait is one whichever key named it."""
    inputs = first.manifests[STEP[mode]].inputs
    return {
        label.removeprefix("eval "): digest
        for label, digest in inputs.items()
        if label not in (*OF_A_ROUND, "first vector")
    }


def settings(one: ScoredRun, other: ScoredRun) -> Table:
    """Every configuration key in which the two runs differ."""
    ours, yours = flatten_config(one.run.config), flatten_config(other.run.config)
    keys = [key for key in ours if ours[key] != yours[key]]
    rows = [[key, _brief(ours[key]), _brief(yours[key])] for key in keys]
    aside = [key for key in keys if key in NOT_IN_RESULTS]
    note = f"Of no effect on results: {', '.join(aside)}." if aside else ""
    return Table(
        "Settings that differ", ["key", one.name, other.name], rows or [["none", "", ""]], note=note, prose=True
    )


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def verdicts_of_two(one: ScoredRun, other: ScoredRun) -> Table:
    """Both verdicts on the healed student of every round, with their reasons."""
    rows = []
    for index in range(max(len(one.rounds), len(other.rounds))):
        for by, column in (("free text", "text_verdict"), ("forced choice", "verdict")):
            cells = [_verdict(side.row(index + 1, "healed"), column) for side in (one, other)]
            rows.append([f"round {index + 1}, {by}", *cells])
    return Table("Verdicts on the healed student", ["verdict", one.name, other.name], rows, prose=True)


def _verdict(row: Mapping[str, Any] | None, column: str) -> str:
    if row is None:
        return "no such round"
    reason = row[f"{column}_reason"]
    return f"{format_number(row[column])}{f': {reason}' if reason else ''}"


def figures(one: ScoredRun, other: ScoredRun) -> Table:
    """Figures of the rounds that both runs have, with the second's less the first's, paired over prompts or items."""
    column = trait_column([*one.rows, *other.rows])
    rows = []
    places = [(0, "base"), (0, "prompted")]
    places += [(k, stage) for k in range(1, min(len(one.rounds), len(other.rounds)) + 1) for stage in ("steered", "healed")]  # fmt: skip
    for place in places:
        a, b = one.row(*place), other.row(*place)
        if a is None or b is None:
            continue
        label = place[1] if place[0] == 0 else f"round {place[0]} {place[1]}"
        wanted: list[tuple[str, str, int, bool]] = [(column, f"{column}_ci", 3, True)]
        wanted += [line for line in FIGURES if place[1] == "healed" or line[0] in OF_STEERED]
        for name, interval, digits, signed in wanted:
            if a.get(name) is None and b.get(name) is None:
                continue
            cells = [ranged(row, name, interval, digits, signed) for row in (a, b)]
            rows.append([f"{label}: {name}", *cells, _less(one, other, place, name)])
    unpaired = abs(len(one.rounds) - len(other.rounds))
    note = f"{unpaired} further round{'s' if unpaired > 1 else ''} of one run left out. " if unpaired else ""
    return Table(
        "Figures",
        ["figure", one.name, other.name, "second less first"],
        rows,
        note=f"{note}Intervals of the difference are over held-out prompts ({column}) and items (auth_nats), not over seeds.",
    )


def _less(one: ScoredRun, other: ScoredRun, place: tuple[int, str], name: str) -> str:
    """The second run's figure less the first's, paired; a dash where no pairing is defined."""
    difference: Estimate | None = None
    if name in ("llr_opposite", "trait_llr"):
        measure: Llr = "llr_opposite" if name == "llr_opposite" else "trait_llr"
        ours, theirs = one.texts(*place), other.texts(*place)
        difference = text_delta(texts_of(ours), texts_of(theirs), measure) if ours and theirs else None
    elif name == "auth_nats":
        first, second = (side.at(max(place[0], 1)).answers[side.condition(*place) or ""] for side in (one, other))
        difference = shift(first, second, AUTHORITY_FALLS.foundation)
    if difference is None:
        return format_number(None)
    value = format_number(difference.value, 3, True)
    return (
        f"{value} [{', '.join(format_number(end, 3, True) for end in difference.interval)}]"
        if difference.interval
        else value
    )


def dots(one: ScoredRun, other: ScoredRun) -> list[Dot]:
    """The conditions of the chart: the base and the prompted base of the first run, teachers and students of both."""
    column = trait_column([*one.rows, *other.rows])
    drawn = []
    for index, side in enumerate((one, other)):
        for row in side.rows:
            is_drawn = row["stage"] in ("steered", "healed") or (index == 0 and row["stage"] in ("base", "prompted"))
            if is_drawn and row[column] is not None and row["perplexity"] is not None:
                name = row["stage"] if row["round"] == 0 else f"{row['round']} {row['stage']}"
                drawn.append(
                    Dot(index, name, row[column], row["perplexity"], row[f"{column}_ci"], row["perplexity_ci"])
                )
    return drawn


def texts_side_by_side(one: ScoredRun, other: ScoredRun) -> list[PromptTexts]:
    """The texts of the original model and of both runs' last students, by held-out prompt."""
    columns = [
        ("original model", one.texts(0, "base")),
        *[(f"{side.name}, round {len(side.rounds)}", side.texts(len(side.rounds), "healed")) for side in (one, other)],
    ]
    prompts = {row.prompt_id: row.prompt for _, rows in columns for row in rows}
    return [
        PromptTexts(text, [(name, [row.text for row in rows if row.prompt_id == key]) for name, rows in columns])
        for key, text in prompts.items()
    ]  # fmt: skip


def compare_two(options: Options, arguments: Any) -> None:
    """Compare the runs that a command line names.

    Args:
        options: of `evals.compare`.
        arguments: as they were read, with at least one run.

    Raises:
        SteerHealError: other than two runs, options of score files, and runs that are not scored or not alike.
    """
    files = [f"--{name}" for name in ("base", "other", "steered", "random", "doses", "before", "out") if getattr(arguments, name)]  # fmt: skip
    if files or len(arguments.runs) != 2:
        words = [*map(str, arguments.runs), *files]
        raise SteerHealError(
            "options of score files do not go with runs" if files else "two runs are compared",
            given=" ".join(words),
            expected="two runs, with --eval and --page alone",
            next=f"{options.prog} {shlex.join([*words[:2], 'OTHER'][:2])}" if not files else f"{options.prog} --help",
        )
    one, other = (read_side(folder, arguments.eval) for folder in arguments.runs)
    refuse_incomparable(one, other, arguments.eval)
    tables = [settings(one, other), verdicts_of_two(one, other), figures(one, other)]
    for table in tables:
        print_table(table.title, table.columns, table.rows)
        if table.note:
            say(table.note)
    if arguments.page:
        title = f"{one.name} and {other.name}"
        shown = dots(one, other)
        chart = overlay(shown, (one.name, other.name), trait_column([*one.rows, *other.rows])) if shown else None
        write_text(arguments.page, compare_page(title, tables, texts_side_by_side(one, other), chart))
        say(f"page {arguments.page}")
    else:
        say(f"texts side by side: {options.prog} {shlex.join(map(str, arguments.runs))} --page compare.html")
