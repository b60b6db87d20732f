"""A question read at its answer slot: the log-probabilities of a few labels after a prefill, without a thought before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.conditions import Condition, Weights
from shared.chat import Chat
from shared.console import counting


@dataclass(frozen=True)
class Slot:
    """Where questions are read.

    Args:
        prefill: how the assistant's answer begins, up to the label.
        labels: of which each is one token after the prefill, and another one.
    """

    chat: Chat
    prefill: str
    labels: Sequence[str]

    def prompt(self, question: str, system: str | None) -> list[int]:
        """Token ids of a user's question up to the assistant's turn."""
        return self.chat.ids([{"role": "user", "content": question}], system)

    def read(
        self, engine: Any, what: str, group: Weights, conditions: Sequence[Condition], questions: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Log-probabilities [questions, labels] by the names of conditions, nats over the full vocabulary; NaN where not finite.

        All of them are one batch. what: for the progress bar.
        """
        from gen.engine.sampling import Request

        before = self.chat.plain(self.prefill)
        label_ids = self.chat.label_ids(self.labels, self.prefill)
        requests = []
        for condition in conditions:
            for question in questions:
                ids = self.prompt(question, condition.system)
                requests.append(Request([*ids, *before], label_ids=label_ids, **condition.steering(len(ids) - 1)))
        with counting(f"{what}, {group.label}", len(requests)) as advance:
            outputs = engine.run(requests, on_done=lambda *_: advance())
        read = np.array([output.label_logprobs for output in outputs], dtype=float)
        read = read.reshape(len(conditions), len(questions), len(self.labels))
        return {condition.name: values for condition, values in zip(conditions, read, strict=True)}


def finite_or_null(values: np.ndarray) -> list[float | None]:
    """Numbers of a row of JSON: null where one is not finite."""
    return [float(value) if np.isfinite(value) else None for value in values]
