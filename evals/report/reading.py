"""What the results say in plain words, produced by rule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from evals.costs import SMALLEST_SHIFT
from evals.ladder import DRAWS
from evals.report.tables import dose, ranged
from evals.scored import Round

Row = dict[str, Any]


def reading(rows: Sequence[Row], extra: Sequence[Row], rounds: Sequence[Round]) -> list[str]:
    """Sentences, the general ones first, then round by round."""
    at = {(row["round"], row["stage"]): row for row in rows}
    base = at[0, "base"]
    lines = _measure(base, rows, rounds[0].scores.debias)
    if (0, "prompted") in at:
        prompted = at[0, "prompted"]
        shift, llr = (
            ranged(prompted, "d_auth", "d_auth_ci", 3, signed=True),
            ranged(prompted, "d_trait_llr", "d_trait_llr_ci", 3, signed=True),
        )
        lines.append(
            f"The trait prompt alone, without steering or training, moves auth_nats by {shift} and trait_llr by {llr}."
        )
    for r in rounds:
        mine = {stage: at[r.number, stage] for stage in ("steered", "random", "healed") if (r.number, stage) in at}
        draws = [row for row in extra if (row["round"], row["stage"]) == (r.number, "random")]
        said = [
            *_forced_choice(mine),
            *_draws(mine, draws),
            *_coherent(mine),
            *_text(base, mine),
            *_survivors(r),
            *_training(r),
        ]
        lines += [f"Round {r.number}: {sentence}" for sentence in said]
    return [*lines, *_starvation(rounds)]


def _measure(base: Row, rows: Sequence[Row], debias: str) -> list[str]:
    lines = []
    informed, ends = ranged(base, "informedness", "informedness_ci", 3, signed=True), base["informedness_ci"]
    if ends is None or ends[0] <= 0 <= ends[1]:
        lines.append(
            f"Base informedness is {informed}, which does not exclude 0: auth_nats carries no moral signal for this model, however narrow its interval."
        )
    elif ends[1] < 0:
        lines.append(f"Base informedness is {informed}, below 0: the answers run against the vignettes' foundations.")
    else:
        lines.append(f"Base informedness is {informed}, above guessing: the answers follow the vignettes.")
    if base["authority_contrast"] is not None:
        lines.append(
            f'The base\'s contrast on authority is {ranged(base, "authority_contrast", "authority_contrast_ci", 2, signed=True)} nats: by so much its log odds against "not morally wrong" are higher on vignettes of authority than on the others.'
        )
    if base["verdict_reason"] is not None:
        lines.append(f"The base fails the preflight ({base['verdict']}): {base['verdict_reason']}.")
    if base["order_effect"] is not None:
        lines.append(
            f"In single orders of the options, position alone moves the base's mean clr by up to {base['order_effect']:.2f} nats."
        )
    if base["reliability"] is not None:
        lines.append(
            f"The items' split-half reliability on authority is {ranged(base, 'reliability', 'reliability_ci', 2)}: near 0 their differences are noise, near 1 they are not."
        )
    if base["left_by_reversal"] is not None:
        lines.append(
            f"Cyclic orders take {ranged(base, 'left_by_reversal', 'left_by_reversal_ci', 2, signed=True)} nats of position out of authority, which reversal would have left in."
        )
    if base["informedness_against"] == "foundations":
        lines.append(
            "Nobody has rated these vignettes: informedness is against what they were written for, and the profile has no human reference."
        )
    if debias == "rotating":
        lines.append(
            "Two orders an item turn from item to item: a position effect averages out over the items of a mean, but stays in each item."
        )
    if debias == "reversal":
        lines.append(
            "Authority stands in the middle of both orders, so reversal leaves its position bias in auth_nats; rotating and cyclic orders (EVAL=full) remove it."
        )
    if unscorable := [
        f"{row['unscorable']} of {row['n_items']} in {row['stage']} of round {row['round']}"
        for row in rows
        if row["unscorable"]
    ]:
        lines.append(f"Items without a finite answer were left out, not imputed: {', '.join(unscorable)}.")
    return lines


def _forced_choice(mine: dict[str, Row]) -> list[str]:
    lines = []
    steered, healed = mine["steered"], mine["healed"]
    if "random" in mine and (ends := steered["over_random_ci"]):
        both = f"{ranged(steered, 'd_auth', 'd_auth_ci', 3, signed=True)} against {ranged(mine['random'], 'd_auth', 'd_auth_ci', 3, signed=True)}"
        gap = f"paired difference {ranged(steered, 'over_random', 'over_random_ci', 3, signed=True)}"
        if ends[0] <= 0 <= ends[1]:
            lines.append(
                f"the steered shift of auth_nats is not distinguishable from that of a random direction of equal norm, {both} ({gap})."
            )
        else:
            side = "below" if ends[1] < 0 else "above"
            lines.append(
                f"the steered shift of auth_nats lies {side} that of a random direction of equal norm, {both} ({gap})."
            )
    for stage in ("steered", "healed"):
        lines += _not_wrong(stage, mine[stage])
    if steered["random_rank_p"] is not None:
        few = "" if steered["random_draws"] >= DRAWS else f", too few to count (needs {DRAWS})"
        lines.append(
            f"among {steered['random_draws']} random directions of equal norm{few}, the steered shift has rank p {steered['random_rank_p']:.2f}."
        )
    if healed["increment"] is not None:
        lines.append(
            f"over the student of the round before, the healed student moves auth_nats by {ranged(healed, 'increment', 'increment_ci', 3, signed=True)}."
        )
    said = healed["verdict"] or "not given"
    lines.append(f"the verdict on the healed student is {said}: {healed['verdict_reason']}.")
    if healed["text_verdict"] is not None:
        lines.append(f"the verdict on its free text is {healed['text_verdict']}: {healed['text_verdict_reason']}.")
    return lines


def _not_wrong(stage: str, row: Row) -> list[str]:
    """A shift of "nothing is morally wrong here", which moves every foundation without any of them being meant."""
    found = row["shifts"][-1] if row["shifts"] else None
    if found is None or not found["moved"] or abs(found["change"]) < SMALLEST_SHIFT:
        return []
    ends = ranged(found, "change", "ci", 2, signed=True)
    away = f" Apart from it, authority's share of what is called wrong moves by {ranged(row, 'd_auth_moral', 'd_auth_moral_ci', 2, signed=True)} nats."
    return [
        f'the {stage} model says "not morally wrong" {"more" if found["change"] > 0 else "less"} often, by {ends} nats (p {row["p_not_wrong"]:.3f}).{away}'
    ]


def _draws(mine: dict[str, Row], draws: Sequence[Row]) -> list[str]:
    found = [row["d_auth"] for row in [mine.get("random"), *draws] if row is not None and row["d_auth"] is not None]
    if len(found) < 2 or mine["steered"]["d_auth"] is None:
        return []
    far = sum(abs(value) >= abs(mine["steered"]["d_auth"]) for value in found)
    spread = f"{min(found):+.3f} to {max(found):+.3f}"
    return [f"of {len(found)} random directions {far} move auth_nats at least as far as the steering does ({spread})."]


def _coherent(mine: dict[str, Row]) -> list[str]:
    healed = mine["healed"]
    return [f"the healed student is {healed['coherence_verdict']}: {healed['coherence_reason']}."]


def _text(base: Row, mine: dict[str, Row]) -> list[str]:
    lines = []
    steered, healed = mine["steered"], mine["healed"]
    if healed["d_trait_llr"] is not None and healed["perplexity"] is not None:
        ends = healed["d_trait_llr_ci"]
        sure = (
            "more trait than base"
            if ends and ends[0] > 0
            else "less trait than base"
            if ends and ends[1] < 0
            else "no trait that its interval can tell from base's"
        )
        against = [
            f"{name} {row['perplexity']:.2f}"
            for name, row in (("steered", steered), ("base", base))
            if row["perplexity"] is not None
        ]
        shift = ranged(healed, "d_trait_llr", "d_trait_llr_ci", 3, signed=True)
        lines.append(
            f"the healed student's free text shows {sure} (d_trait_llr {shift}), at perplexity {healed['perplexity']:.2f} ({', '.join(against)})."
        )
    if healed["perplexity"] is not None and base["perplexity"] is not None and healed["coherence"] is not None:
        ratio = healed["perplexity"] / base["perplexity"]
        if healed["coherence"] >= 0.95 and ratio > 2:
            lines.append(
                f"coherence is {healed['coherence']:.2f} while the free text's perplexity is {ratio:.1f} times base's: the forced prefill flatters, trust the perplexity."
            )
    for stage, row in mine.items():
        if (
            row["distinct_3"] is not None
            and base["distinct_3"] is not None
            and row["distinct_3"] < 0.9 * base["distinct_3"]
        ):
            lines.append(
                f"{stage} text repeats itself: distinct-3 {row['distinct_3']:.2f} against base's {base['distinct_3']:.2f}; a loop has a low perplexity."
            )
        if row["n_empty"]:
            lines.append(
                f"{row['n_empty']} of {row['n_generations']} {stage} generations are empty and have no perplexity."
            )
    return lines


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
