"""results.json: one row per arm, seed, round and stage of a run; other doses and draws beside them as extra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from evals.coherence import verdict as coherence_verdict
from evals.evidence import target_of
from evals.judging import Case, Judging, mean_of_known
from evals.measures.forced_choice.moved import Shift, detectable, shifts
from evals.measures.forced_choice.positions import left_by_reversal, order_effect, position_effect, reliability
from evals.measures.free_text.texts import text_delta
from evals.rows import ONCE
from evals.scored import Round
from evals.statistics import pair
from shared.commands import round_command
from shared.errors import SteerHealError
from shared.run import Run

VERSION = 1


def results_of(run: Run, rounds: Sequence[Round]) -> dict[str, Any]:
    """The rows and extra of results.json, of the rounds that are given."""
    base = _base(run, rounds[0])
    found: dict[str, list[dict[str, Any]]] = {"rows": [], "extra": []}
    before: Case | None = None
    for round_ in rounds:
        cases = [
            Case(
                0 if line.stage in ONCE else round_.number,
                line,
                round_.answers[line.name],
                round_.generations[line.name],
            )
            for line in round_.scores.conditions
        ]
        steered = _one(run, cases, "steered", round_.number)
        healed = _one(run, cases, "healed", round_.number)
        if round_ is rounds[0]:
            prompted = next((case for case in cases if case.line.stage == "prompted"), None)
            # doses on the original's weights; where round 1 is not among the rounds there are none
            doses = [case for case in cases if case.line.stage == "steered"] if round_.number == 1 else []
        judging = Judging(
            base,
            steered,
            healed,
            draws=[case for case in cases if case.line.stage == "random"],
            before=before,
            prompted=prompted,
            doses=doses,
            target=target_of(round_.scores.read_for),
            count=run.config.eval.bootstrap,
            seed=run.config.seed,
        )
        for case in cases:
            row = _row(run, case, judging)
            found["rows" if case.line.headline else "extra"].append(row)
        before = healed
    keys = [(row["round"], row["stage"]) for row in found["rows"]]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise _refuse(run, f"two headline rows of round {twice[0][0]}, {twice[0][1]}", "one per round and stage")
    return {"version": VERSION, **found}


def _base(run: Run, first: Round) -> Case:
    lines = [line for line in first.scores.conditions if line.stage == "base"]
    if len(lines) != 1:
        raise _refuse(run, f"{len(lines)} base conditions in round 1", "one")
    return Case(0, lines[0], first.answers[lines[0].name], first.generations[lines[0].name])


def _one(run: Run, cases: Sequence[Case], stage: str, number: int) -> Case:
    headline = [case for case in cases if case.line.stage == stage and case.line.headline]
    if len(headline) != 1:
        raise _refuse(run, f"{len(headline)} headline conditions {stage} in round {number}", "one")
    return headline[0]


def _row(run: Run, case: Case, judging: Judging) -> dict[str, Any]:
    stage, base, texts = case.line.stage, judging.base, case.texts
    figures = judging.figures(case)
    text = judging.text(case)
    problem = judging.broken(case)
    found = judging.parts(case)
    state, why = coherence_verdict(found)
    compared = stage != "base"
    judged = judging.verdicts(case)
    kept = judging.retained if stage == "healed" else None
    moved = shifts(base.answers, case.answers) if compared else None
    seed, count = run.config.seed, run.config.eval.bootstrap
    return {
        "arm": run.config.train.divergence,
        "seed": seed,
        "round": case.number,
        "stage": stage,
        "name": case.line.name,
        "draw": case.line.draw,
        "gate": case.line.gate,
        "coefficient": case.line.coefficient if stage in ("steered", "random") else 0.0,
        **figures.columns(problem, is_base=not compared),
        **pair("perplexity", "perplexity_ci", text["perplexity"]),
        "distinct_1": mean_of_known(texts.distinct_1),
        "distinct_2": mean_of_known(texts.distinct_2),
        "distinct_3": case.measures.distinct_3,
        "looping": case.measures.looping,
        **pair("trait_llr", "trait_llr_ci", text["trait_llr"]),
        **pair("d_trait_llr", "d_trait_llr_ci", text_delta(base.texts, texts) if case.generations else None),
        "n_generations": len(texts.prompt),
        "n_empty": int((texts.tokens == 0).sum()),
        **pair("informedness", "informedness_ci", figures.level["informedness"]),
        "informedness_against": "raters" if case.answers.rated else "foundations",
        "order_effect": order_effect(case.answers),
        "position_effect": position_effect(case.answers),
        **pair("left_by_reversal", "left_by_reversal_ci", left_by_reversal(case.answers)),
        **pair("reliability", "reliability_ci", reliability(case.answers, count, seed)),
        **pair("nll_prefill", "nll_prefill_ci", figures.level["nll_prefill"]),
        **pair("json_valid", "json_valid_ci", figures.level["valid"]),
        "coherence_verdict": state,
        "coherence_reason": why,
        "coherence_parts": [asdict(part) for part in found],
        "shifts": None if moved is None else [_shift(line) for line in moved],
        "detectable": detectable(base.answers, case.answers) if compared else None,
        **pair("over_random", "over_random_ci", judging.over_random if case is judging.steered else None),
        "random_rank_p": judging.rank if case is judging.steered else None,
        "random_draws": len(judging.draws),
        **pair("increment", "increment_ci", judging.increment(case)),
        # over a steered shift of nothing, as of an unsteered control, the share is noise
        **pair("retain", "retain_ci", kept),
        **pair("price_less_steering", "price_less_steering_ci", judged.price.less if judged.price else None),
        "price": judged.price.name if judged.price else None,
        "verdict": judged.verdict,
        "verdict_reason": judged.reason,
        "text_verdict": judged.text_verdict,
        "text_verdict_reason": judged.text_reason,
    }


def _shift(line: Shift) -> dict[str, Any]:
    return {
        "foundation": line.foundation,
        **pair("change", "ci", line.change),
        "p": line.p,
        "p_holm": line.p_holm,
        "moved": line.moved,
    }


def _refuse(run: Run, given: str, expected: str) -> SteerHealError:
    return SteerHealError(
        "scores do not make a results table",
        given=given,
        expected=expected,
        next=round_command(run.folder, 1, rebuild=True),
    )
