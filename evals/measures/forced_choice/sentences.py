"""What the report says of the forced choice, by rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evals.costs import SMALLEST_SHIFT
from evals.ladder import DRAWS
from evals.measures.measure import Columns
from evals.table import ranged


def about(base: Columns, rows: Sequence[Columns], debias: str) -> list[str]:
    """Sentences on the instrument: the base's informedness, its axis, and the effect of the options' order."""
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


def over_random(by_stage: Mapping[str, Columns]) -> list[str]:
    """Whether the steered shift of auth_nats differs from that of the random direction, by the paired interval."""
    lines = []
    steered = by_stage["steered"]
    if "random" in by_stage and (ends := steered["over_random_ci"]):
        both = f"{ranged(steered, 'd_auth', 'd_auth_ci', 3, signed=True)} against {ranged(by_stage['random'], 'd_auth', 'd_auth_ci', 3, signed=True)}"
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
    return lines


def over_decoy(by_stage: Mapping[str, Columns]) -> list[str]:
    """The steered shift beside that of another persona's vector, where one was scored."""
    steered = by_stage["steered"]
    if steered.get("over_decoy_ci") is None:
        return []
    gap = ranged(steered, "over_decoy", "over_decoy_ci", 3, signed=True)
    return [f"the steered shift of auth_nats less that of a decoy persona's vector of equal norm is {gap}."]


def among_draws(by_stage: Mapping[str, Columns], draws: Sequence[Columns]) -> list[str]:
    """The number of random directions that move auth_nats at least as far as the steering; nothing with fewer than two."""
    deltas = [
        row["d_auth"] for row in [by_stage.get("random"), *draws] if row is not None and row["d_auth"] is not None
    ]
    if len(deltas) < 2 or by_stage["steered"]["d_auth"] is None:
        return []
    far = sum(abs(value) >= abs(by_stage["steered"]["d_auth"]) for value in deltas)
    spread = f"{min(deltas):+.3f} to {max(deltas):+.3f}"
    return [f"of {len(deltas)} random directions {far} move auth_nats at least as far as the steering does ({spread})."]


def ranked(by_stage: Mapping[str, Columns]) -> list[str]:
    """The steered shift among those of random directions, and what this round's student adds to the one before."""
    steered, healed, lines = by_stage["steered"], by_stage["healed"], []
    if steered["random_rank_p"] is not None:
        few = "" if steered["random_draws"] >= DRAWS else f", too few to count (needs {DRAWS})"
        lines.append(
            f"among {steered['random_draws']} random directions of equal norm{few}, the steered shift has rank p {steered['random_rank_p']:.2f}."
        )
    if healed["increment"] is not None:
        lines.append(
            f"over the student of the round before, the healed student moves auth_nats by {ranged(healed, 'increment', 'increment_ci', 3, signed=True)}."
        )
    return lines


def not_wrong(by_stage: Mapping[str, Columns]) -> list[str]:
    """A shift of "nothing is morally wrong here", which moves every foundation without any of them being meant."""
    lines = []
    for stage in ("steered", "healed"):
        row = by_stage[stage]
        shift = row["shifts"][-1] if row["shifts"] else None
        if shift is None or not shift["moved"] or abs(shift["change"]) < SMALLEST_SHIFT:
            continue
        ends = ranged(shift, "change", "ci", 2, signed=True)
        away = ranged(row, "d_auth_moral", "d_auth_moral_ci", 2, signed=True)
        lines.append(
            f'the {stage} model says "not morally wrong" {"more" if shift["change"] > 0 else "less"} often, by {ends} nats (p {row["p_not_wrong"]:.3f}). Apart from it, authority\'s share of what is called wrong moves by {away} nats.'
        )
    return lines
