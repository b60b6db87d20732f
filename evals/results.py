"""results.json: one row per arm, seed, round and stage of a run; other doses and draws beside them as extra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from evals.coherence import LOOPS, Measures, parts
from evals.coherence import verdict as coherence_verdict
from evals.costs import SMALLEST_SHIFT, cost, retain, surgical, surgical_care
from evals.measures.forced_choice.moved import Shift, detectable, shifts
from evals.measures.forced_choice.positions import left_by_reversal, order_effect, position_effect, reliability
from evals.measures.free_text.texts import Texts, text_delta, text_levels
from evals.rows import ONCE, ConditionLine, Generation
from evals.scored import Round, texts_of
from evals.statistics import Answers, Estimate, deltas, levels, pair
from evals.verdict import broken, preflight, verdict
from shared.commands import round_command
from shared.errors import SteerHealError
from shared.run import Run

VERSION = 1


@dataclass(frozen=True)
class Case:
    """One condition of a round with all that its row needs."""

    number: int
    line: ConditionLine
    answers: Answers
    generations: Sequence[Generation]

    @cached_property
    def texts(self) -> Texts:
        return texts_of(self.generations)

    @cached_property
    def measures(self) -> Measures:
        """What the coherence verdict compares: point estimates over the texts with tokens."""
        keep, texts = self.answers.scorable, self.texts
        tokens, nll = float(texts.tokens.sum()), float(texts.nll.sum())
        return Measures(
            perplexity=float(np.exp(nll / tokens)) if tokens and np.isfinite(nll) else None,
            distinct_3=_mean(texts.distinct_3),
            looping=_looping(texts),
            valid=_mean(self.answers.valid),
            empty=float((texts.tokens == 0).mean()) if len(texts.tokens) else None,
            unscorable=float((~keep).mean()),
        )


def results_of(run: Run, rounds: Sequence[Round]) -> dict[str, Any]:
    base = _base(run, rounds[0])
    count, seed = run.config.eval.bootstrap, run.config.seed
    no_axis = preflight(base.answers, levels(base.answers, count, seed)["informedness"])
    found: dict[str, list[dict[str, Any]]] = {"rows": [], "extra": []}
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
        d_steered = deltas(base.answers, steered.answers, count, seed)["d_auth"]
        random = next((case for case in cases if case.line.stage == "random" and case.line.headline), None)
        over = deltas(random.answers, steered.answers, count, seed)["d_auth"] if random else None
        _one(run, cases, "healed", round_.number)
        for case in cases:
            row = _row(run, base, case, d_steered, no_axis)
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
    return Case(0, lines[0], first.answers[lines[0].name], first.generations[lines[0].name])


def _one(run: Run, cases: Sequence[Case], stage: str, number: int) -> Case:
    headline = [case for case in cases if case.line.stage == stage and case.line.headline]
    if len(headline) != 1:
        raise _refuse(run, f"{len(headline)} headline conditions {stage} in round {number}", "one")
    return headline[0]


def _row(run: Run, base: Case, case: Case, steered: Estimate | None, no_axis: str | None) -> dict[str, Any]:
    count, seed = run.config.eval.bootstrap, run.config.seed
    stage = case.line.stage
    level, delta = levels(case.answers, count, seed), deltas(base.answers, case.answers, count, seed)
    texts = case.texts
    text = text_levels(texts, count, seed)
    unscorable, items = int((~case.answers.scorable).sum()), len(case.answers.truth)
    must = {
        "auth_nats": level["auth_nats"],
        "p_ans_any": level["p_ans_any"],
        **({"perplexity": text["perplexity"]} if case.generations else {}),
    }
    problem = broken([name for name, found in must.items() if found is None], unscorable, items, delta["coherence"])
    coh_cost, coh_slope = cost(delta["d_coh"], delta["d_auth"], problem is not None)
    kept = retain(delta["d_auth"], steered) if stage == "healed" else None
    judged: tuple[str | None, str | None] = (None, None)
    if stage == "healed":
        judged = verdict(problem, no_axis, steered, kept, delta["coherence"])
    elif problem is not None:
        judged = "broken", problem
    elif stage == "base" and no_axis is not None:
        judged = "no_axis", no_axis
    is_surgical = None if stage == "base" else surgical(base.answers, case.answers, count, seed)
    moved = None if stage == "base" else shifts(base.answers, case.answers, count, seed)
    found = parts(base.measures, case.measures, delta["coherence"])
    state, why = coherence_verdict(found)
    return {
        "arm": run.config.train.divergence,
        "seed": seed,
        "round": case.number,
        "stage": stage,
        "name": case.line.name,
        "draw": case.line.draw,
        "gate": case.line.gate,
        "coefficient": case.line.coefficient if stage in ("steered", "random") else 0.0,
        **pair("auth_nats", "auth_ci", level["auth_nats"]),
        **pair("care_nats", "care_ci", level["care_nats"]),
        **pair("p_ans_any", "p_ans_any_ci", level["p_ans_any"]),
        **pair("coherence", "coherence_ci", delta["coherence"]),
        **pair("perplexity", "perplexity_ci", text["perplexity"]),
        "distinct_1": _mean(texts.distinct_1),
        "distinct_2": _mean(texts.distinct_2),
        "distinct_3": case.measures.distinct_3,
        "looping": case.measures.looping,
        **pair("trait_llr", "trait_llr_ci", text["trait_llr"]),
        **pair(
            "d_trait_llr",
            "d_trait_llr_ci",
            text_delta(base.texts, texts, count, seed) if case.generations else None,
        ),
        "n_items": items,
        "n_paired": int((base.answers.scorable & case.answers.scorable).sum()),
        "unscorable": unscorable,
        "n_generations": len(texts.prompt),
        "n_empty": int((texts.tokens == 0).sum()),
        **pair("informedness", "informedness_ci", level["informedness"]),
        "informedness_against": "raters" if case.answers.rated else "foundations",
        "order_effect": order_effect(case.answers),
        "position_effect": position_effect(case.answers),
        **pair("left_by_reversal", "left_by_reversal_ci", left_by_reversal(case.answers, count, seed)),
        **pair("reliability", "reliability_ci", reliability(case.answers, count, seed)),
        **pair("nll_prefill", "nll_prefill_ci", level["nll_prefill"]),
        **pair("json_valid", "json_valid_ci", level["valid"]),
        "coherence_verdict": state,
        "coherence_reason": why,
        "coherence_parts": [asdict(part) for part in found],
        "shifts": None if moved is None else [_shift(line) for line in moved],
        "detectable": None if stage == "base" else detectable(base.answers, case.answers, count, seed),
        **pair("d_auth", "d_auth_ci", delta["d_auth"]),
        **pair("d_care", "d_care_ci", delta["d_care"]),
        **pair("d_coh", "d_coh_ci", delta["d_coh"]),
        "coh_cost": coh_cost,
        "coh_slope": coh_slope,
        # over a steered shift of nothing, as of an unsteered control, the share is noise
        "retain": kept if steered is not None and abs(steered.value) >= SMALLEST_SHIFT else None,
        "surgical": is_surgical,
        "surgical_care": surgical_care(is_surgical, delta["d_auth"], delta["d_care_90"]),
        "verdict": judged[0],
        "verdict_reason": judged[1],
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _looping(texts: Texts) -> float | None:
    known = texts.loop_share[np.isfinite(texts.loop_share)]
    return float((known > LOOPS).mean()) if len(known) else None


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
