"""Which rows of a sweep record log-probabilities token by token, and how the student's are taken.

The trainer compares them with its own before its first step (train/agreement.py). A fault that this catches is in every row, so a
sample of them is enough: ROWS at most, the same share of every coefficient, at even distances over the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gen.plan import Planned
from shared.logprobs import DIGITS, Logprobs, digest_of

if TYPE_CHECKING:
    from gen.engine.engine import Engine

ROWS = 24  # of a sweep, but at least one a coefficient


def recorded(prompts: int, coefficients: Sequence[float], samples: int) -> Callable[[Planned], bool]:
    """Whether a planned row records log-probabilities: a function of its place in the plan alone, whatever the windows are."""
    cells = prompts * samples
    each = min(max(ROWS // len(coefficients), 1), cells)
    chosen = {
        # every coefficient begins at another place, so that few prompts are taken twice
        (coefficient, int((turn + place / len(coefficients)) * cells / each))
        for place, coefficient in enumerate(coefficients)
        for turn in range(each)
    }
    return lambda row: (row.coefficient, row.index * samples + row.sample) in chosen


def unsteered_logprobs(
    engine: Engine, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], chosen: Sequence[int]
) -> dict[int, np.ndarray]:
    """Log-probabilities [tokens], nats, of the chosen completions after their prompts, at coefficient 0, under what the engine serves."""
    from gen.engine.sampling import Request

    engine.reset_cache()  # the last digits depend on what it holds, as in gen/scoring.py
    outputs = engine.run(
        [Request([*prompts[place], *completions[place]], tail=len(completions[place])) for place in chosen]
    )
    found = {place: output.prompt_logprobs for place, output in zip(chosen, outputs, strict=True)}
    return {place: value for place, value in found.items() if value is not None}


def record(
    prompt: Sequence[int], completion: Sequence[int], student: np.ndarray | None, original: np.ndarray | None
) -> Logprobs | None:
    """What a row keeps of log-probabilities [tokens]; None where one is not finite."""
    if student is None or original is None or not (np.isfinite(student).all() and np.isfinite(original).all()):
        return None
    return Logprobs(
        ids=digest_of(prompt, completion),
        student=np.round(student, DIGITS).tolist(),
        original=np.round(original, DIGITS).tolist(),
    )
