"""What a study's results say in plain words, produced by rule."""

from __future__ import annotations

from collections.abc import Sequence

from evals.measures.free_text.rows import Generation
from evals.measures.free_text.texts import text_delta, texts_of
from evals.routes import PRICE, Axis
from evals.statistics import Estimate, interval_text
from evals.study.collect import CellOutcome, Row
from evals.study.ends import over_seeds
from evals.study.matched import Comparison
from evals.study.plan import STEERING
from evals.study.stopped import reason

MIDDLE = 0.75  # the share of the lesser reach at which prices are read out


def study_reading(
    outcomes: Sequence[CellOutcome], axis: Axis, compared: tuple[str, list[Comparison]] | None
) -> list[str]:
    """Sentences: how far the study is, every arm in its last round, prompting, the arms at one shift, controls, cells that stopped."""
    return [
        _extent(outcomes, axis),
        *[_arm(name, arm_outcomes) for name, arm_outcomes in _by_arm(outcomes, "arm").items()],
        *_prompted(outcomes),
        *_at_one_shift(axis, compared),
        *_controls(outcomes),
        *[f"{outcome.cell.name} stopped in round {outcome.stopped.round}, {outcome.stopped.stage}: {reason(outcome.stopped.said)}." for outcome in outcomes if outcome.stopped],
    ]  # fmt: skip


def _by_arm(outcomes: Sequence[CellOutcome], role: str) -> dict[str, list[CellOutcome]]:
    by_arm: dict[str, list[CellOutcome]] = {}
    for outcome in outcomes:
        if outcome.rounds and outcome.cell.arm.role == role:
            by_arm.setdefault(outcome.cell.arm.name, []).append(outcome)
    return by_arm


def _extent(outcomes: Sequence[CellOutcome], axis: Axis) -> str:
    complete = sum(len(outcome.rounds) == outcome.cell.rounds for outcome in outcomes)
    arms = {outcome.cell.arm.name for outcome in outcomes if outcome.cell.arm.role == "arm"}
    seeds = {outcome.cell.seed for outcome in outcomes}
    why = (
        "the base passes the preflight of the forced choice"
        if axis == "authority"
        else "the forced choice says nothing of this base"
    )
    return (
        f"{len(arms)} arms and {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}; {complete} of {len(outcomes)} cells reached their last round. "
        f"Arms are compared along {axis}, since {why}."
    )


def _arm(name: str, mine: Sequence[CellOutcome]) -> str:
    common = min(len(o.rounds) for o in mine)
    rows = [row for o in mine if (row := o.at(common, "healed")) is not None]
    llr = "d_llr_opposite" if all(row.get("d_llr_opposite") is not None for row in rows) else "d_trait_llr"
    return (
        f"{name}, round {common}: verdict {_counted([row['verdict'] for row in rows])} by the forced choice, {_counted([row['text_verdict'] for row in rows])} by free text; "
        f"{llr} {over_seeds([row[llr] for row in rows], 3)}, perplexity {over_seeds([row['perplexity'] for row in rows], 2)}, d_auth {over_seeds([row['d_auth'] for row in rows], 3)}."
    )


def _counted(verdicts: Sequence[str | None]) -> str:
    words = dict.fromkeys(verdict or "not given" for verdict in verdicts)
    if len(words) == 1:
        return next(iter(words))
    return ", ".join(f"{word} in {sum((verdict or 'not given') == word for verdict in verdicts)}" for word in words)


def _prompted(outcomes: Sequence[CellOutcome]) -> list[str]:
    rows = [row for o in outcomes if (row := o.at(0, "prompted")) is not None]
    first: dict[int, Row] = {}
    for row in rows:
        first.setdefault(row["seed"], row)
    if not first:
        return []
    moved = over_seeds([row["d_trait_llr"] for row in first.values()], 3)
    price = over_seeds([row["perplexity"] for row in first.values()], 2)
    return [f"The trait prompt alone moves trait_llr by {moved}, at perplexity {price}."]


def _at_one_shift(axis: Axis, compared: tuple[str, list[Comparison]] | None) -> list[str]:
    if compared is None:
        return []
    reference, comparisons = compared
    middle = next((comparison for comparison in comparisons if comparison.share == MIDDLE), comparisons[0])
    lines, same = [], []
    for arm in middle.arms:
        if arm.arm == reference or arm.against is None:
            continue
        name = "plain steering" if arm.arm == STEERING else arm.arm
        if _apart(arm.against):
            word = "more" if arm.against.value > 0 else "less"
            lines.append(f"At {middle.share:g} of the lesser reach {name} pays {word} than {reference}: {interval_text(arm.against)} ({PRICE[axis]}).")  # fmt: skip
        else:
            same.append(name)
    if same:
        lines.append(
            f"Not told apart from {reference} at {middle.share:g} of the lesser reach by their intervals: {', '.join(same)}."
        )
    return lines or [f"No arm has a price to compare with that of {reference} at {middle.share:g} of the lesser reach."]


def _apart(estimate: Estimate) -> bool:
    return estimate.interval is not None and (estimate.interval[0] > 0 or estimate.interval[1] < 0)


def _controls(outcomes: Sequence[CellOutcome]) -> list[str]:
    """How the arms of round 1 stand to each control of their seed, by trait_llr paired over prompts."""
    lines = []
    for control, theirs in _by_arm(outcomes, "control").items():
        above: list[str] = []
        not_above: list[str] = []
        for name, arm_outcomes in _by_arm(outcomes, "arm").items():
            pairs = [(outcome, c) for outcome in arm_outcomes for c in theirs if outcome.cell.seed == c.cell.seed]
            gaps = [text_delta(texts_of(_healed(c)), texts_of(_healed(outcome))) for outcome, c in pairs]
            defined = [gap for gap in gaps if gap is not None and gap.interval is not None]
            if defined:
                all_positive = all(gap.interval is not None and gap.interval[0] > 0 for gap in defined)
                (above if all_positive else not_above).append(name)
        if above:
            lines.append(
                f"In round 1 the trait_llr of {', '.join(above)} lies above that of the control {control} in every seed."
            )
        if not_above:
            lines.append(
                f"In round 1 the trait_llr of {', '.join(not_above)} is not shown to lie above that of the control {control}."
            )
    return lines


def _healed(outcome: CellOutcome) -> Sequence[Generation]:
    first = outcome.rounds[0]
    return first.generations[first.healed]
