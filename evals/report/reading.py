"""What the results say in plain words, produced by rule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from evals.report import cause
from evals.report.tables import dose
from evals.round import Round
from evals.table import ranged

Row = dict[str, Any]


def run_reading(rows: Sequence[Row], extra: Sequence[Row], rounds: Sequence[Round]) -> list[str]:
    """Sentences, the general ones first, then round by round."""
    general, *by_round = grouped_reading(rows, extra, rounds)
    return [*general[1], *[f"{title}: {sentence}" for title, sentences in by_round for sentence in sentences]]


def grouped_reading(rows: Sequence[Row], extra: Sequence[Row], rounds: Sequence[Round]) -> list[tuple[str, list[str]]]:
    """(title, sentences): on the measures and the base, then of each round."""
    by_condition = {(row["round"], row["stage"]): row for row in rows}
    base = by_condition[0, "base"]
    scores, measures = rounds[0].scores, rounds[0].measures
    lines = [sentence for measure in measures for sentence in measure.about(base, rows, scores)]
    if (0, "prompted") in by_condition:
        prompted = by_condition[0, "prompted"]
        shift, llr = (
            ranged(prompted, "d_auth", "d_auth_ci", 3, signed=True),
            ranged(prompted, "d_trait_llr", "d_trait_llr_ci", 3, signed=True),
        )
        lines.append(
            f"The trait prompt alone, without steering or training, moves auth_nats by {shift} and trait_llr by {llr}."
        )
    titled = [("The base and the measures", [*lines, *_starvation(rounds)])]
    for r in rounds:
        by_stage = {
            stage: by_condition[r.number, stage]
            for stage in ("steered", "random", "healed")
            if (r.number, stage) in by_condition
        }
        others = [row for row in extra if row["round"] == r.number]
        sentences = [
            *_verdict(by_stage),
            *_coherent(by_stage),
            *[sentence for measure in measures for sentence in measure.sentences(base, by_stage, others)],
            *cause.sentences(others),
            *_survivors(r),
            *_training(r),
        ]
        titled.append((f"Round {r.number}", sentences))
    return titled


def _verdict(by_stage: dict[str, Row]) -> list[str]:
    healed = by_stage["healed"]
    lines = [f"the verdict on the healed student is {healed['verdict'] or 'not given'}: {healed['verdict_reason']}."]
    if healed["text_verdict"] is not None:
        lines.append(f"the verdict on its free text is {healed['text_verdict']}: {healed['text_verdict_reason']}.")
    return lines


def _coherent(by_stage: dict[str, Row]) -> list[str]:
    healed = by_stage["healed"]
    return [f"the healed student is {healed['coherence_verdict']}: {healed['coherence_reason']}."]


def _survivors(r: Round) -> list[str]:
    kept, offered = dose(r.scores.sweep, "coefficient", True), dose(r.scores.sweep, "coefficient", False)
    if kept is None or offered is None:
        return []
    if abs(kept) < 0.8 * abs(offered):
        return [
            f"mostly low doses survive the filter: mean coefficient {kept:.2f} of the kept, {offered:.2f} of the sweep."
        ]
    return [f"the kept completions' mean coefficient is {kept:.2f}, the sweep's {offered:.2f}."]


def _training(r: Round) -> list[str]:
    return [f"training, {finding.name}: {finding.sentence}" for finding in r.training.findings]


def _starvation(rounds: Sequence[Round]) -> list[str]:
    kept = [sum(line.kept for line in r.scores.sweep if line.coefficient != 0) for r in rounds]
    falling = kept[-1] < 0.75 * kept[0] and all(after < before for before, after in pairwise(kept))
    return (
        [
            f"Kept completions fall round by round ({', '.join(map(str, kept))}): the filter will starve; lower the doses."
        ]
        if falling
        else []
    )
