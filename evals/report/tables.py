"""The report's tables as text cells, rendered alike at the terminal, in results.md and on the page."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from evals.round import Round
from evals.rows import TrainingStep
from evals.scored import STEP
from evals.table import Table, label, ranged, yes_no
from shared.console import format_number
from shared.divergences import DIVERGENCES
from shared.filter_record import SweepLine
from shared.quarters import last_quarter
from shared.run import STAGES


def overview_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The shortest table of a run's headline rows, as the terminal shows it."""
    return Table(
        "results",
        ["round, stage", "verdict", "trait_llr", "perplexity", "auth_nats [95 %]", "care_nats", "coherence"],
        [
            [
                label(row),
                format_number(row["verdict"]),
                format_number(row["trait_llr"], 3, signed=True),
                format_number(row["perplexity"], 2),
                ranged(row, "auth_nats", "auth_ci"),
                format_number(row["care_nats"]),
                format_number(row["coherence"]),
            ]
            for row in rows
        ],
    )


def levels_table(rows: Sequence[dict[str, Any]], title: str = "Levels") -> Table:
    """The measures of every condition, as levels."""
    return Table(
        title,
        [
            "round, stage",
            "trait_llr",
            "perplexity",
            "auth_nats",
            "care_nats",
            "coherence",
            "p_ans_any",
            "distinct-3",
            "items",
            "unscorable",
        ],
        [
            [
                label(row),
                ranged(row, "trait_llr", "trait_llr_ci", 3, signed=True),
                ranged(row, "perplexity", "perplexity_ci", 2),
                ranged(row, "auth_nats", "auth_ci"),
                ranged(row, "care_nats", "care_ci"),
                ranged(row, "coherence", "coherence_ci"),
                format_number(row["p_ans_any"], 4),
                format_number(row["distinct_3"]),
                str(row["n_items"]),
                str(row["unscorable"]),
            ]
            for row in rows
        ],
        "Brackets are 95 % intervals: delta method over items within foundations, Student's t over prompts, and a bootstrap over prompts for perplexity. auth_nats, care_nats and trait_llr are in nats.",
    )


def shifts_table(rows: Sequence[dict[str, Any]], title: str = "Against base") -> Table:
    """The changes of every condition against the base."""
    return Table(
        title,
        [
            "round, stage",
            "verdict",
            "d_trait_llr",
            "d_auth",
            "retain",
            "specific_shift",
            "d_auth_moral",
            "d_care",
            "p_not_wrong",
            "d_coh",
            "coh_cost",
            "coh_slope",
            "surgical",
            "surgical_care",
        ],
        [
            [
                label(row),
                format_number(row["verdict"]),
                ranged(row, "d_trait_llr", "d_trait_llr_ci", 3, signed=True),
                ranged(row, "d_auth", "d_auth_ci", 3, signed=True),
                ranged(row, "retain", "retain_ci", 2),
                ranged(row, "specific_shift", "specific_shift_ci", 3, signed=True),
                ranged(row, "d_auth_moral", "d_auth_moral_ci", 3, signed=True),
                ranged(row, "d_care", "d_care_ci", 3, signed=True),
                format_number(row["p_not_wrong"], 3),
                ranged(row, "d_coh", "d_coh_ci", 4, signed=True),
                format_number(row["coh_cost"]),
                format_number(row["coh_slope"], 3, signed=True),
                yes_no(row["surgical"]),
                yes_no(row["surgical_care"]),
            ]
            for row in rows
            if row["stage"] != "base"
        ],
        f"Paired with base on the same items or prompts. coh_cost is |d_coh| / |d_auth|; {format_number(None)} is undefined.",
    )


def sweep_table(rounds: Sequence[Round]) -> Table:
    """The sweep by round and coefficient: rows, kept rows and mean measures."""
    return Table(
        "Sweep",
        ["round, coefficient", "n", "kept", "perplexity", "distinct-3", "trait_llr", "relative dose"],
        [
            [
                f"{r.number} {'under the trait prompt' if line.prompted else f'at {line.coefficient:g}'}",
                str(line.n),
                str(line.kept),
                format_number(line.perplexity, 2),
                format_number(line.distinct_3),
                format_number(line.trait_llr, 3, signed=True),
                format_number(line.relative_dose),
            ]
            for r in rounds
            for line in r.scores.sweep
        ],
        "Coefficient 0 is the original model's: what the filter would keep of it is a control, never trained on. Relative dose: |c| ‖v‖ / mean ‖h‖, averaged over the band.",
    )


def dose(lines: Iterable[SweepLine], field: str, kept: bool) -> float | None:
    """Mean coefficient or relative_dose of the steered completions, or of those kept.

    Args:
        lines: of the sweep, by coefficient.
        field: `coefficient` or `relative_dose`.
        kept: weigh by the kept rows instead of all.
    """
    steered = [line for line in lines if line.coefficient != 0 and getattr(line, field) is not None]
    weights = [line.kept if kept else line.n for line in steered]
    return float(np.average([getattr(line, field) for line in steered], weights=weights)) if sum(weights) else None


def survivors(rounds: Sequence[Round]) -> Table:
    """Kept of the steered rows, and the mean dose of the kept rows beside the sweep's."""
    rows = []
    for r in rounds:
        steered = [line for line in r.scores.sweep if line.coefficient != 0]
        kept, total = sum(line.kept for line in steered), sum(line.n for line in steered)
        doses = [
            format_number(dose(steered, field, kept_only))
            for field in ("coefficient", "relative_dose")
            for kept_only in (True, False)
        ]
        rows.append([str(r.number), f"{kept} of {total}", *doses])
    return Table(
        "Survivors", ["round", "kept", "mean coefficient, kept", "sweep's", "mean relative dose, kept", "sweep's"], rows
    )


def rejections(rounds: Sequence[Round]) -> Table:
    """Rejected rows by rule and round."""
    counts = {r.number: r.causes for r in rounds}
    rules = [rule for rule, _ in sum(counts.values(), Counter()).most_common()]
    rows = [[rule, *[str(counts[r.number][rule]) for r in rounds]] for rule in rules]
    return Table(
        "Rejections",
        ["reason", *[f"round {r.number}" for r in rounds]],
        [*rows, ["completions rejected", *[str(len(r.rejected)) for r in rounds]]],
        "A completion can have several reasons.",
    )


def last_quarter_mean(steps: Sequence[TrainingStep], field: str) -> float | None:
    """Mean of a field over the last quarter of the steps."""
    values = [value for step in steps[last_quarter(len(steps))] if (value := getattr(step, field)) is not None]
    return float(np.mean(values)) if values else None


def healing(rounds: Sequence[Round]) -> Table:
    """The training of every round: rows, steps, cross-entropy, divergence and barrier; means over the last quarter of the steps."""
    kinds = ("mean", "rmse", "p95", "max")

    def divergences(r: Round) -> list[str]:
        return [format_number(last_quarter_mean(r.steps, f"kl_{r.training.reference}_{kind}")) for kind in kinds]

    def held_out(r: Round) -> list[str]:
        return (
            [format_number(r.heldout[0].heldout_ce), format_number(r.heldout[-1].heldout_ce)]
            if r.heldout
            else [format_number(None)] * 2
        )

    symbol = DIVERGENCES[rounds[0].training.divergence].symbol  # one configuration, one divergence
    columns = ["round", "rows", "steps", "first ce", "ce", "held out, first", "held out, last", *[f"{symbol} {kind}" for kind in kinds], "D to base at the start", "fired", "gradient ratio"]  # fmt: skip
    rows = [
        [
            str(r.number), str(r.training.examples), str(r.steps[-1].step), format_number(r.steps[0].ce), format_number(last_quarter_mean(r.steps, "ce")), *held_out(r), *divergences(r),
            format_number(r.training.start.base), f"{100 * float(np.mean([step.fired for step in r.steps])):.0f} %", format_number(last_quarter_mean(r.steps, "gradient_ratio"), 2),
        ]
        for r in rounds
    ]  # fmt: skip
    return Table(
        "Healing",
        columns,
        rows,
        f"Means over the last quarter of the optimiser steps, nats; {symbol} to the barrier's reference; fired: share of all steps at which the barrier was on; gradient ratio: norm of the barrier's gradient over the cross-entropy's, at the final hidden states.",
    )


def agreement_table(rounds: Sequence[Round]) -> Table:
    """Log-probabilities of the sampler against the trainer's before the first step, by round."""

    def line(r: Round) -> str:
        figures = r.training.agreement
        return figures.sentence() if figures else "nothing was compared: made by an earlier version"

    return Table(
        "Sampler and trainer",
        ["round", "log-probabilities of the rows kept, before the first step"],
        [[str(r.number), line(r)] for r in rounds],
        "Absolute differences between the weights that sampled, in vLLM, and those that were trained. docs/agreement.md lists what can make them differ.",
        prose=True,
    )


def times(rounds: Sequence[Round], mode: str) -> Table:
    """Wall seconds of every stage by round. mode: EVAL, `round` or `full`."""
    stages = [*STAGES, *([STEP[mode]] if STEP[mode] not in STAGES else [])]
    rows = []
    for r in rounds:
        seconds = [r.manifests[stage].seconds if stage in r.manifests else None for stage in stages]
        rows.append(
            [
                str(r.number),
                *[format_number(value, 1) for value in seconds],
                format_number(float(sum(value for value in seconds if value is not None)), 1),
            ]
        )
    return Table("Wall seconds", ["round", *stages, "total"], rows)


def results_csv(rows: Sequence[dict[str, Any]], extra: Sequence[dict[str, Any]]) -> str:
    """results.csv: an interval takes two columns, an undefined number is empty, a list is JSON; headline is 1 for rows, 0 for extra."""
    handle = io.StringIO()
    writer: Any = None
    for headline, row in [*((1, row) for row in rows), *((0, row) for row in extra)]:
        flat: dict[str, Any] = {"headline": headline}
        for key, value in row.items():
            if key.endswith("_ci"):
                flat[f"{key}_low"], flat[f"{key}_high"] = value or (None, None)
            elif isinstance(value, list):
                flat[key] = json.dumps(value)
            else:
                flat[key] = value
        if writer is None:
            writer = csv.DictWriter(handle, list(flat), lineterminator="\n")
            writer.writeheader()
        writer.writerow(flat)
    return handle.getvalue()
