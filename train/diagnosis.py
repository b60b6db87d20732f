"""What a training's figures say, by rule and in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.divergences import has_barrier
from shared.quarters import first_quarter, last_quarter
from shared.records import Finding
from shared.schema import TrainConfig

DOMINATING = 3.0  # barrier gradient over cross-entropy gradient
LEARNED = 0.005  # a cross-entropy that fell by a smaller share has not learned
STUCK = 0.02  # a cross-entropy that fell by a smaller share has not moved
RISE = 0.01  # so much above its best is a rise of the held-out cross-entropy


def quarters(steps: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Mean of a figure over the first and over the last quarter of the logged steps."""
    parts = steps[first_quarter(len(steps))], steps[last_quarter(len(steps))]
    early, late = (float(np.mean([row[name] for row in part])) for part in parts)
    return early, late


def diagnose(rows: Sequence[Mapping[str, Any]], start: Mapping[str, float], train: TrainConfig) -> list[Finding]:
    """The rules that apply to a training, the most important first; never empty.

    Args:
        rows: of the log: steps, and held-out cross-entropy.
        start: D to each reference before the first step, nats.
        train: the settings of the training.

    Early and late are the first and last quarter of the steps; after an early stop, of the steps up to the adapter that was kept.
    """
    scored = [row for row in rows if "heldout_ce" in row]
    kept = min(scored, key=lambda row: float(row["heldout_ce"]))["step"] if train.early_stop and scored else None
    steps = [row for row in rows if "ce" in row and (not kept or row["step"] <= kept)]
    heldout = [float(row["heldout_ce"]) for row in rows if "heldout_ce" in row]

    def late(name: str) -> float:
        return quarters(steps, name)[1]

    def d(kind: str) -> str:
        return f"kl_{train.reference}_{kind}"

    first, last = quarters(steps, "ce")
    fell = 1 - last / first
    curve = f"cross-entropy {first:.3f} to {last:.3f}"
    causes = []
    if has_barrier(train.divergence):
        if not any(row["gradient_ratio"] for row in steps):
            highest = max(row[d(train.aggregate)] for row in steps)
            inert = f"D never passed tau = {train.tau:g}" if train.lam else "lambda is 0"
            mend = f"Lower train.tau below {highest:.2g}, the highest D logged," if train.lam else "Raise train.lam"
            mend = (
                f"{mend} to make the barrier count."
                if highest or not train.lam
                else "The student has not moved at all."
            )
            causes.append(Finding(name="barrier inert", sentence=f"{inert}: this round is plain cross-entropy. {mend}"))
        if late("gradient_ratio") > DOMINATING and fell < STUCK:
            causes.append(Finding(name="barrier dominating", sentence=f"the barrier's gradient is {late('gradient_ratio'):.1f} times that of the cross-entropy, which is stuck ({curve}). Lower train.lam, or raise train.tau."))  # fmt: skip
        if train.aggregate == "mean" and late(d("mean")) < train.tau < late(d("p95")):
            causes.append(Finding(name="mean diluted", sentence=f"the mean divergence ({late(d('mean')):.3f} nats) is under tau = {train.tau:g}, its 95th percentile ({late(d('p95')):.3f}) above: the barrier does not see the worst tokens. Use train.aggregate=rmse."))  # fmt: skip
        if train.reference == "base" and start["base"] > train.tau:
            causes.append(Finding(name="history eroding", sentence=f"D to the original is {start['base']:.3f} nats before the first step, past tau = {train.tau:g}: the barrier pulls back what earlier rounds installed. Consider train.reference=previous."))  # fmt: skip
    if len(heldout) > 1 and heldout[-1] > min(heldout) * (1 + RISE) and fell > 0:
        best = int(np.argmin(heldout))
        then = "; the adapter kept is that of the best" if train.early_stop else ". Lower train.epochs, or set train.early_stop=1"  # fmt: skip
        causes.append(Finding(name="overfit", sentence=f"the held-out cross-entropy rises from {heldout[best]:.3f} after epoch {best} to {heldout[-1]:.3f}, while that of the training rows falls ({curve}){then}."))  # fmt: skip
    unlearned = 1 - min(heldout[1:]) / heldout[0] < LEARNED if len(heldout) > 1 else fell < LEARNED
    if unlearned:
        change = f"held out {heldout[0]:.3f} before, {min(heldout[1:]):.3f} at best" if len(heldout) > 1 else curve
        causes.append(Finding(name="nothing learned", sentence=f"the cross-entropy did not fall ({change}). Raise train.learning_rate or train.epochs, or lower train.lam."))  # fmt: skip
    if not causes:
        rest = f", held out {heldout[0]:.3f} to {heldout[-1]:.3f}" if heldout else ""
        causes.append(Finding(name="nothing stands out", sentence=f"{curve}{rest}; late D {late(d(train.aggregate)):.3f} nats against tau = {train.tau:g}."))  # fmt: skip
    return causes
