"""Which rows of a sweep record log-probabilities token by token, and how the student's are taken.

The trainer compares them with its own before its first step (train/agreement.py). A fault that this catches is in every row, so a
sample of them is enough: ROWS at most, at even distances over the prompts. Most are of the low coefficients, whose rows the filter keeps;
coefficient 0, which is trained on as a control alone, comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from gen.plan import Planned
from shared.logprobs import DIGITS, Logprobs, digest_of

if TYPE_CHECKING:
    from gen.engine.engine import Engine

ROWS = 24  # of a sweep, but at least one a coefficient


def is_recorded(
    prompts: int, coefficients: Sequence[float], samples: int, *, prompted: bool = False
) -> Callable[[Planned], bool]:
    """Whether a planned row records log-probabilities: a function of its place in the plan alone, whatever the windows are.

    Args:
        prompts: their number in the plan.
        coefficients: of every prompt.
        samples: completions of a prompt at a coefficient.
        prompted: as of `gen.plan.planned_rows`. Rows under the trait prompt count like those of one coefficient.
    """
    if prompted:
        steered = sum(coefficient != 0 for coefficient in coefficients)
        others = is_recorded(prompts, [dose for dose in coefficients if dose == 0], samples)
        each = is_recorded(prompts, [0.0], steered * samples)
        return lambda row: each(row) if row.prompted else others(row)
    cells, counts = prompts * samples, _counts(coefficients)
    chosen = {
        # every coefficient begins at another place, so that few prompts are taken twice
        (coefficient, int((turn + place / len(coefficients)) * cells / each))
        for place, coefficient in enumerate(coefficients)
        for each in [min(counts[coefficient], cells)]
        for turn in range(each)
    }
    return lambda row: (row.coefficient, row.index * samples + row.sample) in chosen


def _counts(coefficients: Sequence[float]) -> dict[float, int]:
    """Rows by coefficient: one each, and the rest of ROWS by 1, 1/2, 1/3 ... from the lowest steered coefficient on."""
    order = sorted(set(coefficients), key=lambda coefficient: (coefficient == 0, abs(coefficient), coefficient))
    weights = [1 / rank for rank in range(1, len(order) + 1)]
    remaining = max(ROWS - len(order), 0)
    ends = [round(remaining * total / sum(weights)) for total in accumulate(weights)]
    return {coefficient: 1 + end - begin for coefficient, begin, end in zip(order, [0, *ends], ends, strict=False)}


def unsteered_logprobs(
    engine: Engine, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], chosen: Sequence[int]
) -> dict[int, np.ndarray]:
    """Log-probabilities [tokens], nats, of the chosen completions after their prompts, at coefficient 0, under what the engine serves."""
    from gen.engine.sampling import Request

    engine.reset_cache()  # the last digits depend on what it holds, as in gen/scoring.py
    outputs = engine.run(
        [Request([*prompts[place], *completions[place]], tail=len(completions[place])) for place in chosen]
    )
    by_place = {place: output.prompt_logprobs for place, output in zip(chosen, outputs, strict=True)}
    return {place: value for place, value in by_place.items() if value is not None}


def recorded_logprobs(
    prompt: Sequence[int], completion: Sequence[int], student: np.ndarray | None, original: np.ndarray | None
) -> Logprobs | None:
    """The log-probabilities [tokens] as a row keeps them, nats; None where one is not finite.

    Args:
        prompt, completion: token ids.
        student: log-probabilities [tokens] under the weights that sampled, unsteered; None where they were not taken.
        original: those under the original model.
    """
    if student is None or original is None or not (np.isfinite(student).all() and np.isfinite(original).all()):
        return None
    return Logprobs(
        ids=digest_of(prompt, completion),
        student=np.round(student, DIGITS).tolist(),
        original=np.round(original, DIGITS).tolist(),
    )
