"""The tables of a study: every arm and round, the arms at one shift, the controls, what stopped; as text, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from evals.measures.free_text.rows import Generation
from evals.measures.free_text.texts import text_delta, texts_of
from evals.measures.registry import headlines_of
from evals.report.lineage import computed, distinct, identified
from evals.routes import PRICE, TAIL, Axis
from evals.statistics import Estimate, interval_text
from evals.study.collect import CellOutcome, Row, trait_measure
from evals.study.matched import Comparison
from evals.study.plan import STEERING
from evals.study.stopped import reason
from evals.table import Table, TraitMeasure, label, ranged, yes_no
from shared.console import format_number


def by_round(outcomes: Sequence[CellOutcome]) -> list[Table]:
    """base -> steered -> healed of every cell, a table per seed."""
    trait = trait_measure(outcomes)
    return [
        _by_round(seed, [outcome for outcome in outcomes if outcome.cell.seed == seed], trait)
        for seed in dict.fromkeys(outcome.cell.seed for outcome in outcomes)
    ]


def _by_round(seed: int, outcomes: Sequence[CellOutcome], trait: TraitMeasure) -> Table:
    columns = ["arm, row", "verdict", f"d_{trait}", trait, "perplexity", "coherence as a whole", "auth_nats", "care_nats", "coherence", "coh_cost", "retain", "surgical", "kept", "dose kept / sweep's"]  # fmt: skip
    lines, reported = [], set()
    for outcome in outcomes:
        for row in outcome.rows:
            if row["round"] == 0:  # of the original model, the same under every arm
                if row["stage"] in reported:
                    continue
                reported.add(row["stage"])
            steered = row["stage"] == "steered"
            counts = f"{row['n_kept']} of {row['n_kept'] + row['n_rejected']}" if steered else ""
            doses = f"{format_number(row['dose_kept'])} / {format_number(row['dose_sweep'])}" if steered else ""
            lines.append(
                [
                    f"{row['arm'] if row['round'] else 'all'}, {label(row)}",
                    format_number(row["verdict"]),
                    ranged(row, f"d_{trait}", f"d_{trait}_ci", 3, signed=True),
                    format_number(row[trait], 3, True),
                    ranged(row, "perplexity", "perplexity_ci", 2),
                    row["coherence_verdict"],
                    ranged(row, "auth_nats", "auth_ci"),
                    format_number(row["care_nats"]),
                    format_number(row["coherence"]),
                    format_number(row["coh_cost"]),
                    format_number(row["retain"], 2),
                    yes_no(row["surgical"]),
                    counts,
                    doses,
                ]
            )
    return Table(
        f"Every arm, round by round, seed {seed}",
        columns,
        lines,
        "Brackets are 95 % intervals within the seed; d_: against the base. Dose: mean relative dose of the kept rows beside that of the sweep.",
    )


def against_controls(outcomes: Sequence[CellOutcome]) -> Table:
    """Round 1 of every arm, control and the prompted base, each less the controls of its seed."""
    lines, trait = [], trait_measure(outcomes)
    seeds = dict.fromkeys(
        outcome.cell.seed for outcome in outcomes if outcome.cell.arm.role == "control" and outcome.rounds
    )
    names = list(
        dict.fromkeys(
            outcome.cell.arm.name for outcome in outcomes if outcome.cell.arm.role == "control" and outcome.rounds
        )
    )
    for seed in seeds:
        seed_outcomes = [outcome for outcome in outcomes if outcome.cell.seed == seed and outcome.rounds]
        controls = {outcome.cell.arm.name: outcome for outcome in seed_outcomes if outcome.cell.arm.role == "control"}
        compared: list[tuple[str, Row, CellOutcome | None]]
        compared = [("prompted", row, None) for row in [seed_outcomes[0].at(0, "prompted")] if row is not None]
        compared += [
            (outcome.cell.arm.name, row, outcome)
            for outcome in seed_outcomes
            if (row := outcome.at(1, "healed")) is not None
        ]
        for name, row, outcome in compared:
            differences = []
            for control in names:
                if outcome is None or control not in controls or controls[control] is outcome:
                    differences.append("")
                    continue
                gap = text_delta(texts_of(_healed(controls[control])), texts_of(_healed(outcome)), trait)
                differences.append(format_number(None) if gap is None else interval_text(gap))
            first = outcome.rounds[0] if outcome is not None else None
            lines.append(
                [
                    name if len(seeds) == 1 else f"{name}, {seed}",
                    "base" if outcome is None else outcome.cell.arm.role,
                    "" if first is None else f"{first.training.examples}, {max(step.step for step in first.steps)}",
                    ranged(row, f"d_{trait}", f"d_{trait}_ci", 3, signed=True),
                    ranged(row, "perplexity", "perplexity_ci", 2),
                    ranged(row, "d_auth", "d_auth_ci", 3, signed=True),
                    format_number(row["coherence"], 2),
                    *differences,
                ]
            )
    return Table(
        "Round 1 against the controls",
        [
            "healed",
            "role",
            "rows, steps",
            f"d_{trait}",
            "perplexity",
            "d_auth",
            "coherence",
            *[f"{trait} less {name}'s" for name in names],
        ],
        lines,
        "Intervals over prompts (items for d_auth), paired; of these training runs, not over seeds. Rows, steps: what was trained on, and for how long; an arm and a control that differ in these differ in more than their data. prompted: the original model under the trait's system prompt."
        if lines
        else "No control was scored.",
    )


def _healed(outcome: CellOutcome) -> Sequence[Generation]:
    first = outcome.rounds[0]
    return first.generations[first.healed]


def cyclic(outcomes: Sequence[CellOutcome]) -> Table:
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


def other_measures(outcomes: Sequence[CellOutcome]) -> Table | None:
    """The headlines of the measures that a round need not have, of every scored student; None where no cell has one."""
    lines = [row for outcome in outcomes for row in outcome.rows if row["stage"] == "healed"]
    headlines = headlines_of(lines)
    if not headlines:
        return None
    return Table(
        "Other measures",
        ["arm, seed, row", *(headline.column for headline in headlines)],
        [
            [
                f"{row['arm']}, {row['seed']}, {label(row)}",
                *(headline.cell(row) for headline in headlines),
            ]
            for row in lines
        ],
        "Their full tables are in the reports of the cells.",
    )


def at_one_shift(axis: Axis, reference: str, comparisons: Sequence[Comparison]) -> Table:
    """Every arm at each of the shifts, with the round and gate at which its path crosses it.

    Args:
        axis: along which the shift is measured.
        reference: the arm that the others are compared with.
        comparisons: one a shift.
    """
    seeds = list(dict.fromkeys(seed for comparison in comparisons for arm in comparison.arms for seed in arm.seeds))

    def cell(estimate: Estimate | None) -> str:
        return format_number(None) if estimate is None else interval_text(estimate)

    lines = []
    for comparison in comparisons:
        for arm in comparison.arms:
            is_reference = arm.arm == reference
            students = [arm.places.get(seed) for seed in seeds]
            lines.append(
                [
                    f"{arm.arm} at {format_number(arm.target)}",
                    f"{comparison.share:g}",
                    cell(arm.price),
                    *[format_number(arm.seeds.get(seed)) for seed in seeds],
                    "" if is_reference else cell(arm.against),
                    *["" if is_reference else format_number(arm.gaps.get(seed), 3, True) for seed in seeds],
                    "" if is_reference else cell(arm.area),
                    *[
                        format_number(None)
                        if place is None
                        else f"{'dose' if arm.arm == STEERING else f'round {place[0]}, gate'} {place[1]:.2f}"
                        for place in students
                    ],
                    format_number(None) if arm.arrived is None else f"{arm.arrived:.1%}",
                    arm.note,
                ]
            )
    if not any(arm.set_by for comparison in comparisons for arm in comparison.arms):
        lines = []
        ends = dict.fromkeys(
            f"{arm.arm}: {arm.note}" for comparison in comparisons for arm in comparison.arms if arm.note
        )
        note = f"No arm moved along {axis} by its interval: there is no shift to compare at. {'. '.join(ends)}"
    else:
        note = (
            f"The price of a shift along {axis}, each arm with {reference} at shares of what the lesser of the two reached. "
            f"{STEERING}: the original model steered by round 1's vector, along its dose. area: mean difference of the two prices over all shifts that both reach. "
            f"Interpolated along the dialled gates of each round by monotone cubics. Intervals over {'items' if axis == 'authority' else 'prompts'}, paired between arms, of the mean over seeds that both "
            f"arms have: they hold for {'the one training run' if len(seeds) == 1 else f'the {len(seeds)} training runs'} of each arm, and what other seeds would give is not in them; the shift is not drawn again. crossed: where the path first gets there. arrive: share of resamples that reach the shift in all seeds; "
            f"{format_number(None)}: never reached, or no interval since over {TAIL:.1%} of the resamples do not arrive."
        )
    return Table(
        "Arms at one shift",
        [
            "arm, shift",
            "share",
            PRICE[axis],
            *[f"seed {seed}" for seed in seeds],
            f"less {reference}'s",
            *[f"less, seed {seed}" for seed in seeds],
            f"area, less {reference}'s",
            *[f"crossed, seed {seed}" for seed in seeds],
            "arrive",
            "note",
        ],
        lines,
        note,
    )


def study_provenance(outcomes: Sequence[CellOutcome]) -> Table:
    """The table of what was measured, with its commits, machines and versions; more than one commit is pointed out."""
    scored = [outcome for outcome in outcomes if outcome.rounds]
    manifests = [manifest for outcome in scored for manifest in outcome.manifests.values()]
    commits = distinct(manifest.commit for manifest in manifests)
    several = " (the arms were not all made by one version of the code)" if ";" in commits else ""
    hours = sum(manifest.seconds for manifest in manifests) / 3600
    return Table(
        "Provenance",
        ["what", "value"],
        [
            *identified(scored[0].cell.config, scored[0].rounds[0].scores, manifests),
            ["commit", commits + several],
            *computed(manifests),
            ["wall time", f"{hours:.1f} hours of stages, those taken from another cell counted in each"],
        ],
        prose=True,
    )


def stopped(outcomes: Sequence[CellOutcome]) -> Table:
    """The cells that a study left, with the stage and its error."""
    lines = [
        [
            f"{outcome.cell.arm.name}, {outcome.cell.seed}",
            f"{outcome.stopped.round} {outcome.stopped.stage}",
            reason(outcome.stopped.said),
        ]
        for outcome in outcomes
        if outcome.stopped
    ]
    return Table("Cells that stopped", ["arm, seed", "at", "because"], lines, "" if lines else "None.", prose=True)


def _settings(of_arm: Sequence[CellOutcome]) -> str:
    """The overrides of an arm, and by seed the tau that it has from another."""
    cells = [outcome.cell for outcome in of_arm]
    if not cells[0].arm.tau:
        return cells[0].arm.set or "as configured"
    taus = ", ".join(format_number(None) if cell.waits else f"{cell.config.train.tau:g}" for cell in cells)
    return f"{cells[0].arm.set} tau = {cells[0].arm.tau} ({taus})".strip()


def arms(outcomes: Sequence[CellOutcome]) -> Table:
    """The arms of a study: role, settings, seeds and rounds."""
    by_arm: dict[str, list[CellOutcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.cell.arm.name, []).append(outcome)
    return Table(
        "Arms",
        ["arm", "role", "settings", "seeds", "rounds", "what for"],
        [
            [
                name,
                members[0].cell.arm.role,
                _settings(members),
                ", ".join(str(member.cell.seed) for member in members),
                str(members[0].cell.rounds),
                members[0].cell.arm.says,
            ]
            for name, members in by_arm.items()
        ],
        prose=True,
    )
