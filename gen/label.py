"""Rows of a run's filter for a person to judge, blinded, and the filter against what the person says.

The sheet is a CSV with a prompt and a completion a row, half of them kept and half rejected, in an order and under names that say nothing of
either. Which is which stands in a key file beside it. Filled in, the sheet is read back as precision, recall and Cohen's kappa.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gen.commandline import key_file, label_options
from gen.kappa import PersonAgreement, Sampled, filter_agreement
from gen.plan import prompt_key
from gen.prompts import open_round
from gen.sheet import QUESTIONS, Key, Sheet, read_sheet, write_sheet, yes_to_all
from shared.cli import entry, need, parse_arguments
from shared.commands import command_of, round_command
from shared.console import console, format_number, print_table, say
from shared.errors import SteerHealError
from shared.outputs import guard
from shared.publish import digest, write_json
from shared.records import Completion, read_jsonl, read_record
from shared.run import Run
from shared.strata import quotas
from shared.traits import load_trait


def write_label_sheet(run: Run, round_number: int, out: Path, count: int) -> None:
    """Write a sheet of `count` rows and its key file.

    Raises:
        SteerHealError: the round is not filtered, its files were edited, nothing was kept or nothing rejected, or the sheet is there already.
    """
    key = key_file(out)
    if present := [path for path in (out, key) if path.exists()]:
        raise SteerHealError(
            "a sheet is there already, perhaps filled in",
            given=present[0],
            expected="no such file",
            next=f"name another --out, or read it back: {command_of('gen.label', '--in', out)}",
        )
    again = round_command(run.folder, round_number)
    if not run.manifest(round_number, "filter").is_file():
        raise SteerHealError(
            "there is nothing to label",
            given=run.manifest(round_number, "filter"),
            expected="a filtered round",
            next=again,
        )
    run.verify(round_number, "filter")
    sides: dict[bool, list[Completion]] = {}
    files = {side: run.round(round_number) / f"{name}.jsonl" for side, name in ((True, "kept"), (False, "rejected"))}
    for side, path in files.items():
        sides[side] = read_jsonl(path, Completion, made_by=again, may_be_empty=True)
        if not sides[side]:
            raise SteerHealError(
                "the filter cannot be compared with a person",
                given=f"{path}: no rows",
                expected="kept rows and rejected ones",
                next="label a run whose filter kept some and rejected some, as one with filter.off=false",
            )
    share = quotas({side: len(rows) for side, rows in sides.items()}, count)
    seed = run.config.seed
    chosen = [(row, side) for side, rows in sides.items() for row in spread_rows(rows, share[side], seed)]
    names = {row.key: sheet_name(row, seed) for row, _ in chosen}
    chosen.sort(key=lambda pair: names[pair[0].key])
    prompts = prompts_of(run, [row for row, _ in chosen])
    write_json(
        key,
        Sheet(
            what="sheet",
            run=run.folder.name,
            round=round_number,
            kept=len(sides[True]),
            rejected=len(sides[False]),
            files={path.name: digest(path) for path in files.values()},
            rows=[Key(id=names[row.key], key=row.key, kept=kept, coefficient=row.coefficient) for row, kept in chosen],
        ).model_dump(),
    )
    write_sheet(out, ((names[row.key], prompts[row.key], row.text) for row, _ in chosen))
    say(f"wrote {out}, {len(chosen)} rows to judge, and {key}, which is not to be opened before")
    trait = load_trait(run.config.vector.trait).trait
    say(
        "In each row write yes, no or ? (cannot tell):\n"
        "  coherent      is the completion fluent, to the point and free of loops?\n"
        f'  enacts_trait  does it act on this, without announcing it? "{trait}"\n'
        f"then: {command_of('gen.label', '--in', out)}"
    )


def sheet_name(row: Completion, seed: int) -> str:
    """The name of a row on the sheet, which says nothing of it. It begins with a letter: a spreadsheet takes 00123e45 for a number."""
    return "r" + hashlib.sha256(f"{seed}\0{row.key}\0{row.text}".encode()).hexdigest()[:8]


def spread_rows(rows: Sequence[Completion], count: int, seed: int) -> list[Completion]:
    """`count` rows at even distances, ordered by coefficient and within it at random: every coefficient by its share."""
    ordered = sorted(rows, key=lambda row: (row.coefficient, sheet_name(row, seed)))
    return [ordered[(2 * index + 1) * len(ordered) // (2 * count)] for index in range(count)]


def prompts_of(run: Run, rows: Sequence[Completion]) -> dict[str, str]:
    """The prompt that each row answers, by the row's key. Raises SteerHealError where the prompts are others than those of the sweep."""
    texts = {row.key.rsplit("/", 2)[0]: "" for row in rows}
    with open_round(run.config.sweep) as prompts:
        for index, (_, prompt) in enumerate(prompts):
            if (name := prompt_key(index, prompt)) in texts:
                turns = prompt.turns
                texts[name] = (
                    turns[0]["content"]
                    if len(turns) == 1
                    else "\n\n".join(f"[{turn['role']}] {turn['content']}" for turn in turns)
                )
    if missing := [name for name, text in texts.items() if not text]:
        raise SteerHealError(
            "the prompts of a sweep are not there any more",
            given=f"{run.config.sweep.dilemmas}, {run.config.sweep.mundane}: no {missing[0]}",
            expected="the prompts that the sweep was made with",
            next="restore the file of prompts, then the same command",
        )
    return {row.key: texts[row.key.rsplit("/", 2)[0]] for row in rows}


def compare_labels(path: Path, key: Path) -> None:
    """Print the filter against a filled sheet, and write the figures beside it. Raises SteerHealError as `read_sheet` does."""
    sheet = read_record(
        key, Sheet, what="a key file could not be read", next=f"the file that was written beside {path}: --key FILE"
    )
    answers = read_sheet(path, sheet)
    figures: dict[str, dict[str, object]] = {}
    lines = []
    for name, questions in {"both": QUESTIONS, **{question: (question,) for question in QUESTIONS}}.items():
        answers_by_side = {
            side: [yes_to_all(answers[row.id], questions) for row in sheet.rows if row.kept == side]
            for side in (True, False)
        }
        sides = {
            side: Sampled(size, len(sure := [value for value in answers_by_side[side] if value is not None]), sum(sure))
            for side, size in ((True, sheet.kept), (False, sheet.rejected))
        }
        if empty := [word for word, side in (("kept", True), ("rejected", False)) if not sides[side].labelled]:
            raise SteerHealError(
                "a sheet leaves a question unanswered in every row",
                given=f"{path}: {name} is ? in every {empty[0]} row",
                expected="yes or no in some of them",
                next=f"fill it in: {path}",
            )
        result = filter_agreement(sides[True], sides[False])
        figures[name] = {
            **asdict(result),
            "kept": asdict(sides[True]),
            "rejected": asdict(sides[False]),
            "unsure": sum(value is None for values in answers_by_side.values() for value in values),
        }
        lines.append([name.replace("_", " "), *_cells(sides[True], sides[False], result)])
    print_table(
        f"the filter of {sheet.run}, round {sheet.round}, against a person ({sheet.kept} kept, {sheet.rejected} rejected)",
        ["the person says", "of kept", "of rejected", "precision [95 %]", "recall [95 %]", "kappa [95 %]"],
        lines,
    )
    console.print(
        "precision: of the kept, the share with a yes. recall: of all with a yes, the share kept, weighted to the whole sweep. "
        "kappa: agreement beyond chance, 0 for none, 1 for full. One person's view; rows with ? are left out."
    )
    out = path.with_suffix(".json")
    guard([out], [path, key])
    write_json(out, {"version": 1, "run": sheet.run, "round": sheet.round, "figures": figures})
    say(f"wrote {out}")


def _cells(kept: Sampled, rejected: Sampled, result: PersonAgreement) -> list[str]:
    def shown(value: float | None, interval: tuple[float, float]) -> str:
        return f"{format_number(value, 2)} [{format_number(interval[0], 2)}, {format_number(interval[1], 2)}]"

    return [
        *(f"{side.positive}/{side.labelled}" for side in (kept, rejected)),
        shown(result.precision, result.precision_ci),
        shown(result.recall, result.recall_ci),
        shown(result.kappa, result.kappa_ci),
    ]


def main() -> None:
    options = label_options()
    arguments, run = parse_arguments(options, begins=False)
    if run:
        need(options, arguments, "out")
        write_label_sheet(run, arguments.round, arguments.out, arguments.rows)
        return
    need(options, arguments, "in_")
    sheet = arguments.in_
    if sheet.suffix != ".csv":
        raise SteerHealError(
            "a sheet has the wrong suffix",
            given=sheet,
            expected=".csv",
            next=f"{options.prog} --in FILE.csv --key FILE.key.json",
        )
    compare_labels(sheet, arguments.key or key_file(sheet))


if __name__ == "__main__":
    entry(main)
