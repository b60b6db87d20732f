"""results.json: one row per arm, seed, round and stage of a run; other doses and draws beside them as extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evals.coherence import coherence_verdict
from evals.evidence import target_of
from evals.judging import Case, Judging
from evals.measures.forced_choice import selectivity
from evals.measures.forced_choice.figures import Figures
from evals.measures.measure import Damage
from evals.measures.registry import MEASURES
from evals.round import Round
from evals.rows import OF_THE_STUDENT, ONCE, ConditionLine
from evals.statistics import Estimate, pair
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
    "d_care", "d_care_ci", "d_auth_moral", "d_auth_moral_ci", "specific_shift", "specific_shift_ci", "d_coh", "d_coh_ci", "coh_cost", "coh_slope", "retain",
    "retain_ci", "surgical", "surgical_care", "verdict", "verdict_reason",
    "text_verdict", "text_verdict_reason",
)  # fmt: skip


def _case(round_: Round, line: ConditionLine, base: Mapping[str, Any] | None, count: int, seed: int) -> Case:
    """base: the base's data by measure, None for the base itself."""
    data = {
        m.name: round_.data[m.name][line.name]
        for m in round_.measures
        if m.columns and m.asks(line.stage) and line.name in round_.data[m.name]
    }
    reference = data if base is None or line.stage == "base" else base
    columns: dict[str, Any] = {}
    estimates: dict[str, Estimate | None] = {}
    damages: list[Damage] = []
    for measure in round_.measures:
        if measure.name in data and measure.name in reference:
            measure.refuse_unpaired(reference[measure.name], data[measure.name])
            comparison = measure.compare(reference[measure.name], data[measure.name], count, seed)
            columns.update(comparison.columns)
            estimates.update(comparison.estimates)
            damages += [comparison.damage] if comparison.damage else []
    return Case(0 if line.stage in ONCE else round_.number, line, data, columns, estimates, damages)


def results_of(run: Run, rounds: Sequence[Round]) -> dict[str, Any]:
    """The rows and extra of results.json, of the rounds that are given."""
    count, seed = run.config.eval.bootstrap, run.config.seed
    base = _base(run, rounds[0])
    results: dict[str, list[dict[str, Any]]] = {"rows": [], "extra": []}
    before: Case | None = None
    prompted: Case | None = None
    decoy: Case | None = None
    doses: list[Case] = []
    for round_ in rounds:
        cases = [_case(round_, line, base.data, count, seed) for line in round_.scores.conditions]
        if round_ is rounds[0]:
            prompted, decoy = (
                next((case for case in cases if case.line.stage == stage and case.line.headline), None)
                for stage in ("prompted", "prompted_decoy")
            )
            # doses on the original's weights; where round 1 is not among the rounds there are none
            doses = [case for case in cases if case.line.stage == "steered"] if round_.number == 1 else []
        judging = Judging(
            base,
            _one(run, cases, "steered", round_.number),
            _one(run, cases, "healed", round_.number),
            draws=[case for case in cases if case.line.stage == "random"],
            decoys=[case for case in cases if case.line.stage == "decoy"],
            before=before,
            prompted=prompted,
            decoy=decoy,
            doses=doses,
            target=target_of(round_.scores.read_for),
            count=count,
            seed=seed,
        )
        for case in cases:
            row = _row(run, case, judging, _mirror(case, cases))
            results["rows" if case.line.headline else "extra"].append(row)
        before = judging.healed
    keys = [(row["round"], row["stage"]) for row in results["rows"]]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise _refuse(run, f"two headline rows of round {twice[0][0]}, {twice[0][1]}", "one per round and stage")
    return {"version": VERSION, **results}


def _base(run: Run, first: Round) -> Case:
    lines = [line for line in first.scores.conditions if line.stage == "base"]
    if len(lines) != 1:
        raise _refuse(run, f"{len(lines)} base conditions in round 1", "one")
    return _case(first, lines[0], None, run.config.eval.bootstrap, run.config.seed)


def _one(run: Run, cases: Sequence[Case], stage: str, number: int) -> Case:
    headline = [case for case in cases if case.line.stage == stage and case.line.headline]
    if len(headline) != 1:
        raise _refuse(run, f"{len(headline)} headline conditions {stage} in round {number}", "one")
    return headline[0]


def _mirror(case: Case, cases: Sequence[Case]) -> Case | None:
    """The steered condition of the same round at the opposite coefficient, where there is one."""
    if case.line.stage != "steered" or not case.line.coefficient:
        return None
    wanted = f"{-case.line.coefficient:g}"
    same = (one for one in cases if one.line.stage == "steered" and one.line.coefficient is not None)
    return next((one for one in same if f"{one.line.coefficient:g}" == wanted), None)


def _row(run: Run, case: Case, judging: Judging, mirror: Case | None) -> dict[str, Any]:
    """A row of results.json: which condition it is, the columns of each measure, and what is judged over all of them."""
    row: dict[str, Any] = {
        "arm": run.config.train.divergence,
        "seed": run.config.seed,
        "round": case.number,
        "stage": case.line.stage,
        "name": case.line.name,
        "draw": case.line.draw,
        "gate": case.line.gate,
        "coefficient": case.line.coefficient
        if case.line.stage in ("steered", "random", "decoy", *OF_THE_STUDENT)
        else 0.0,
        **dict.fromkeys(column for measure in MEASURES for column in measure.columns),
        **case.columns,
        **selectivity.columns(
            judging.base.answers,
            case.answers,
            mirror.answers if mirror else None,
            {judging.target.foundation: judging.target.sign} if judging.target else None,
            judging.count,
            judging.seed,
        ),
        **_judged(case, judging),
    }
    return {key: row[key] for key in (*(key for key in ORDER if key in row), *(key for key in row if key not in ORDER))}


def _judged(case: Case, judging: Judging) -> dict[str, Any]:
    """What is said over several measures and conditions: costs, ranks, increments, both verdicts."""
    compared, is_steered = case.line.stage != "base", case is judging.steered
    costs = Figures(judging.base.answers, case.answers, judging.count, judging.seed).costs(case.broken)
    judged, parts = judging.verdicts(case), judging.parts(case)
    state, why = coherence_verdict(parts)
    return {
        **(costs if compared else dict.fromkeys(costs)),
        "coherence_verdict": state,
        "coherence_reason": why,
        "coherence_parts": [asdict(part) for part in parts],
        "damages": [asdict(damage) for damage in case.damages],
        **pair("over_random", "over_random_ci", judging.over_random if is_steered else None),
        **pair("over_decoy", "over_decoy_ci", judging.over_decoy if is_steered else None),
        **pair("over_decoy_llr", "over_decoy_llr_ci", judging.over_decoy_llr if is_steered else None),
        "random_rank_p": judging.rank if is_steered else None,
        "random_draws": len(judging.draws),
        **pair("increment", "increment_ci", judging.increment(case)),
        **pair("retain", "retain_ci", judging.retained if case is judging.healed else None),
        **pair("share_of_student", "share_of_student_ci", judging.share_of_student(case)),
        **pair("auth_share_of_student", "auth_share_of_student_ci", judging.auth_share_of_student(case)),
        **pair("share_of_prompted", "share_of_prompted_ci", judging.share_of_prompted(case)),
        "price": judged.price.name if judged.price else None,
        **pair("price_less_steering", "price_less_steering_ci", judged.price.less if judged.price else None),
        "text_price": judged.text_price.name if judged.text_price else None,
        **pair(
            "text_price_less_steering",
            "text_price_less_steering_ci",
            judged.text_price.less if judged.text_price else None,
        ),
        "verdict": judged.verdict,
        "verdict_reason": judged.reason,
        "text_verdict": judged.text_verdict,
        "text_verdict_reason": judged.text_reason,
    }


def _refuse(run: Run, given: str, expected: str) -> SteerHealError:
    return SteerHealError(
        "scores do not make a results table",
        given=given,
        expected=expected,
        next=round_command(run.folder, 1, rebuild=True),
    )
