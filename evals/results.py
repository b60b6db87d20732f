"""results.json: one row per arm, seed, round and stage of a run; other doses and draws beside them as extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from evals.coherence import Measures, parts
from evals.coherence import verdict as coherence_verdict
from evals.costs import SMALLEST_SHIFT, cost, retain, surgical, surgical_care
from evals.measures.free_text.measure import looping, mean_of_known
from evals.measures.free_text.rows import Generation
from evals.measures.free_text.texts import texts_of
from evals.measures.measure import Measure
from evals.measures.registry import MEASURES
from evals.round import Round
from evals.rows import ONCE, ConditionLine
from evals.statistics import Answers, Estimate, deltas, levels, pair
from evals.verdict import broken, preflight, verdict
from shared.commands import round_command
from shared.errors import SteerHealError
from shared.run import Run

VERSION = 1
# The places that columns have had since version 1; those of other measures follow.
ORDER = (
    "arm", "seed", "round", "stage", "name", "draw", "gate", "coefficient", "auth_nats", "auth_ci", "care_nats", "care_ci", "p_ans_any", "p_ans_any_ci",
    "coherence", "coherence_ci", "perplexity", "perplexity_ci", "distinct_1", "distinct_2", "distinct_3", "looping", "trait_llr", "trait_llr_ci",
    "d_trait_llr", "d_trait_llr_ci", "n_items", "n_paired", "unscorable", "n_generations", "n_empty", "informedness", "informedness_ci",
    "informedness_against", "order_effect", "position_effect", "left_by_reversal", "left_by_reversal_ci", "reliability", "reliability_ci", "nll_prefill",
    "nll_prefill_ci", "json_valid", "json_valid_ci", "coherence_verdict", "coherence_reason", "coherence_parts", "shifts", "detectable", "d_auth", "d_auth_ci",
    "d_care", "d_care_ci", "d_coh", "d_coh_ci", "coh_cost", "coh_slope", "retain", "surgical", "surgical_care", "verdict", "verdict_reason",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One condition of a round with all that its row needs: data as each measure reads it, by the measure's name."""

    number: int
    line: ConditionLine
    data: Mapping[str, Any]

    @property
    def answers(self) -> Answers:
        return self.data["forced_choice"]  # type: ignore[no-any-return]

    @property
    def generations(self) -> Sequence[Generation]:
        return self.data["free_text"]  # type: ignore[no-any-return]

    @cached_property
    def coherence(self) -> Measures:
        """What the coherence verdict compares: point estimates over the texts with tokens."""
        texts = texts_of(self.generations)
        tokens, nll = float(texts.tokens.sum()), float(texts.nll.sum())
        return Measures(
            perplexity=float(np.exp(nll / tokens)) if tokens and np.isfinite(nll) else None,
            distinct_3=mean_of_known(texts.distinct_3),
            looping=looping(texts),
            valid=mean_of_known(self.answers.valid),
            empty=float((texts.tokens == 0).mean()) if len(texts.tokens) else None,
            unscorable=float((~self.answers.scorable).mean()),
        )


def _case(round_: Round, line: ConditionLine) -> Case:
    data = {m.name: round_.data[m.name][line.name] for m in round_.measures if m.columns and m.asks(line.stage)}
    return Case(0 if line.stage in ONCE else round_.number, line, data)


def results_of(run: Run, rounds: Sequence[Round]) -> dict[str, Any]:
    base = _base(run, rounds[0])
    count, seed = run.config.eval.bootstrap, run.config.seed
    no_axis = preflight(base.answers, levels(base.answers, count, seed)["informedness"])
    found: dict[str, list[dict[str, Any]]] = {"rows": [], "extra": []}
    for round_ in rounds:
        cases = [_case(round_, line) for line in round_.scores.conditions]
        steered = _one(run, cases, "steered", round_.number)
        d_steered = deltas(base.answers, steered.answers, count, seed)["d_auth"]
        random = next((case for case in cases if case.line.stage == "random" and case.line.headline), None)
        over = deltas(random.answers, steered.answers, count, seed)["d_auth"] if random else None
        _one(run, cases, "healed", round_.number)
        for case in cases:
            row = _row(run, round_.measures, base, case, d_steered, no_axis)
            row.update(pair("over_random", "over_random_ci", over if case is steered else None))
            found["rows" if case.line.headline else "extra"].append(row)
    keys = [(row["round"], row["stage"]) for row in found["rows"]]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise _refuse(run, f"two headline rows of round {twice[0][0]}, {twice[0][1]}", "one per round and stage")
    return {"version": VERSION, **found}


def _base(run: Run, first: Round) -> Case:
    lines = [line for line in first.scores.conditions if line.stage == "base"]
    if len(lines) != 1:
        raise _refuse(run, f"{len(lines)} base conditions in round 1", "one")
    return _case(first, lines[0])


def _one(run: Run, cases: Sequence[Case], stage: str, number: int) -> Case:
    headline = [case for case in cases if case.line.stage == stage and case.line.headline]
    if len(headline) != 1:
        raise _refuse(run, f"{len(headline)} headline conditions {stage} in round {number}", "one")
    return headline[0]


def _row(
    run: Run, measures: Sequence[Measure], base: Case, case: Case, steered: Estimate | None, no_axis: str | None
) -> dict[str, Any]:
    """A row of results.json: which condition it is, the columns of each measure, and what is judged over all of them."""
    count, seed = run.config.eval.bootstrap, run.config.seed
    row: dict[str, Any] = {
        "arm": run.config.train.divergence,
        "seed": seed,
        "round": case.number,
        "stage": case.line.stage,
        "name": case.line.name,
        "draw": case.line.draw,
        "gate": case.line.gate,
        "coefficient": case.line.coefficient if case.line.stage in ("steered", "random") else 0.0,
        **dict.fromkeys(column for measure in MEASURES for column in measure.columns),
    }
    estimates: dict[str, Estimate | None] = {}
    for measure in measures:
        if measure.name in case.data and measure.name in base.data:
            reference = base.data[measure.name]
            found = measure.compare(reference, case.data[measure.name], count, seed)
            row.update(found.columns)
            estimates.update(found.estimates)
    row.update(_judged(run, base, case, estimates, steered, no_axis))
    return {key: row[key] for key in (*(key for key in ORDER if key in row), *(key for key in row if key not in ORDER))}


def _judged(
    run: Run,
    base: Case,
    case: Case,
    estimates: Mapping[str, Estimate | None],
    steered: Estimate | None,
    no_axis: str | None,
) -> dict[str, Any]:
    """What is said over several measures: costs, both verdicts. steered is d_auth of the same round's steered row."""
    stage = case.line.stage
    d_auth, coherence = estimates["d_auth"], estimates["coherence"]
    unscorable = int((~case.answers.scorable).sum())
    must = ["auth_nats", "p_ans_any", *(["perplexity"] if case.generations else [])]
    undefined = [name for name in must if estimates[name] is None]
    problem = broken(undefined, unscorable, len(case.answers.truth), coherence)
    coh_cost, coh_slope = cost(estimates["d_coh"], d_auth, problem is not None)
    kept = retain(d_auth, steered) if stage == "healed" else None
    judged: tuple[str | None, str | None] = (None, None)
    if stage == "healed":
        judged = verdict(problem, no_axis, steered, kept, coherence)
    elif problem is not None:
        judged = "broken", problem
    elif stage == "base" and no_axis is not None:
        judged = "no_axis", no_axis
    count, seed = run.config.eval.bootstrap, run.config.seed
    is_surgical = None if stage == "base" else surgical(base.answers, case.answers, count, seed)
    found = parts(base.coherence, case.coherence, coherence)
    state, why = coherence_verdict(found)
    return {
        "coherence_verdict": state,
        "coherence_reason": why,
        "coherence_parts": [asdict(part) for part in found],
        "coh_cost": coh_cost,
        "coh_slope": coh_slope,
        # over a steered shift of nothing, as of an unsteered control, the share is noise
        "retain": kept if steered is not None and abs(steered.value) >= SMALLEST_SHIFT else None,
        "surgical": is_surgical,
        "surgical_care": surgical_care(is_surgical, d_auth, estimates["d_care_90"]),
        "verdict": judged[0],
        "verdict_reason": judged[1],
    }


def _refuse(run: Run, given: str, expected: str) -> SteerHealError:
    return SteerHealError(
        "scores do not make a results table",
        given=given,
        expected=expected,
        next=round_command(run.folder, 1, rebuild=True),
    )
