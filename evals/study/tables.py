"""The tables of a study: every arm and round, the arms at one shift, the controls, what stopped; as text, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evals.statistics import Estimate, show
from evals.study.collect import Outcome, Row
from evals.study.drive import reason
from evals.study.matched import Axis, Matched
from evals.tables import Table, label, ranged, yes_no
from shared.console import number

PRICE = {"authority": "answer mass lost", "trait_llr": "ln of perplexity / base's"}


def by_round(outcomes: Sequence[Outcome]) -> Table:
    """base -> steered -> healed of every cell."""
    columns = ["arm, seed, row", "auth_nats", "care_nats", "coherence", "perplexity", "trait_llr", "coh_cost", "retain", "surgical", "verdict", "kept", "dose kept / sweep's"]  # fmt: skip
    lines, told = [], set()
    for outcome in outcomes:
        for row in outcome.rows:
            if row["round"] == 0:  # of the original model, the same under every arm
                if (row["seed"], row["stage"]) in told:
                    continue
                told.add((row["seed"], row["stage"]))
            steered = row["stage"] == "steered"
            counts = f"{row['n_kept']} of {row['n_kept'] + row['n_rejected']}" if steered else ""
            doses = f"{number(row['dose_kept'])} / {number(row['dose_sweep'])}" if steered else ""
            lines.append(
                [
                    f"{row['arm'] if row['round'] else 'all'}, {row['seed']}, {label(row)}",
                    ranged(row, "auth_nats", "auth_ci"),
                    number(row["care_nats"]),
                    number(row["coherence"]),
                    ranged(row, "perplexity", "perplexity_ci", 2),
                    ranged(row, "trait_llr", "trait_llr_ci", 3, signed=True),
                    number(row["coh_cost"]),
                    number(row["retain"], 2),
                    yes_no(row["surgical"]),
                    number(row["verdict"]),
                    counts,
                    doses,
                ]
            )
    return Table(
        "Every arm, round by round",
        columns,
        lines,
        "Brackets are 95 % bootstrap intervals within a seed. Dose: mean relative dose of the kept rows beside that of the sweep.",
    )


def summary(outcomes: Sequence[Outcome]) -> Table:
    """The last healed row of every arm over its seeds: mean, and each seed as a point."""
    lines = []
    for arm in dict.fromkeys(outcome.cell.arm.name for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.cell.arm.name == arm]
        ends = [(o, row) for o in mine if (row := last(o)) is not None]
        reached = ", ".join(f"{len(o.rounds)} of {o.cell.rounds}" for o in mine)
        cells = [over_seeds([row[key] for _, row in ends], digits) for key, digits in _SUMMARY]
        lines.append(
            [
                arm,
                mine[0].cell.arm.role,
                reached,
                *cells,
                ", ".join(number(row["verdict"]) for _, row in ends) or number(None),
            ]
        )
    return Table(
        "The last round of every arm",
        ["arm", "role", "rounds", *[key for key, _ in _SUMMARY], "verdict"],
        lines,
        "Healed student of the last scored round: mean over the seeds, the seeds in parentheses. d_: against the same seed's base.",
    )


_SUMMARY = (("d_auth", 3), ("d_care", 3), ("coherence", 2), ("perplexity", 2), ("d_trait_llr", 3), ("coh_cost", 2), ("retain", 2))  # fmt: skip


def last(outcome: Outcome) -> Row | None:
    return outcome.at(len(outcome.rounds), "healed") if outcome.rounds else None


def over_seeds(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return number(None)
    mean = number(float(np.mean(known)), digits)
    return mean if len(values) == 1 else f"{mean} ({', '.join(number(value, digits) for value in values)})"


def cyclic(outcomes: Sequence[Outcome]) -> Table:
    """The last round in seven orders."""
    columns = [
        "arm, seed, row",
        "auth_nats",
        "d_auth",
        "d_care",
        "d_coh",
        "informedness",
        "position, left by reversal",
        "surgical_care",
    ]
    lines = [
        [
            f"{row['arm']}, {row['seed']}, {label(row)}",
            ranged(row, "auth_nats", "auth_ci"),
            ranged(row, "d_auth", "d_auth_ci", 3, signed=True),
            ranged(row, "d_care", "d_care_ci", 3, signed=True),
            ranged(row, "d_coh", "d_coh_ci", 4, signed=True),
            ranged(row, "informedness", "informedness_ci", 2, signed=True),
            ranged(row, "left_by_reversal", "left_by_reversal_ci", 2, signed=True),
            yes_no(row["surgical_care"]),
        ]
        for outcome in outcomes
        for row in outcome.full
    ]
    return Table(
        "The last round in seven cyclic orders",
        columns,
        lines,
        "Free of the options' positions; the headline where a model has an axis.",
    )


def at_one_shift(axis: Axis, target: float, found: Sequence[Matched], reference: str) -> Table:
    seeds = list(dict.fromkeys(seed for arm in found for seed in arm.seeds))

    def cell(estimate: Estimate | None) -> str:
        return number(None) if estimate is None else show(estimate)

    return Table(
        "Arms at one shift",
        ["arm", PRICE[axis], *[f"seed {seed}" for seed in seeds], f"less {reference}'s"],
        [
            [arm.arm, cell(arm.price), *[number(arm.seeds.get(seed)) for seed in seeds], cell(arm.against)]
            for arm in found
        ],
        f"The price of a shift of {target:.3f} along {axis}, interpolated along each arm's path of dialled gates; intervals over "
        f"{'items' if axis == 'authority' else 'prompts'}, paired between arms; {number(None)} was never reached.",
    )


def stopped(outcomes: Sequence[Outcome]) -> Table:
    lines = [
        [
            f"{o.cell.arm.name}, {o.cell.seed}",
            f"{o.stopped['round']} {o.stopped['stage']}",
            reason(o.stopped["said"]),
        ]
        for o in outcomes
        if o.stopped
    ]
    return Table("Cells that stopped", ["arm, seed", "at", "because"], lines, "" if lines else "None.", prose=True)


def arms(outcomes: Sequence[Outcome]) -> Table:
    seen: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        seen.setdefault(outcome.cell.arm.name, []).append(outcome)
    return Table(
        "Arms",
        ["arm", "role", "settings", "seeds", "rounds", "what for"],
        [
            [
                name,
                o[0].cell.arm.role,
                o[0].cell.arm.set or "as configured",
                ", ".join(str(one.cell.seed) for one in o),
                str(o[0].cell.rounds),
                o[0].cell.arm.says,
            ]
            for name, o in seen.items()
        ],
        prose=True,
    )


ESCAPES = str.maketrans({"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "–": "--", "‖": r"\textbardbl{}"})  # fmt: skip


def latex(table: Table) -> str:
    """A booktabs tabular with its caption; needs \\usepackage{booktabs}."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(ESCAPES) for cell in cells) + r" \\"

    columns = ("l" if table.prose else "r") * (len(table.columns) - 1)
    body = "\n".join(map(line, table.rows))
    return (
        f"\\begin{{table}}\n\\caption{{{table.title.translate(ESCAPES)}. {table.note.translate(ESCAPES)}}}\n\\begin{{tabular}}{{l{columns}}}\n"
        f"\\toprule\n{line(table.columns)}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )
