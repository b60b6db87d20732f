"""Which tokens the barrier punishes: cross-entropy and KL of every token of a few completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from train.data import Example
from train.objective import Positions, per_position
from train.reference import States, completion_states
from train.unsloth_model import TrainedStudent

VERSION = 1
SHOWN = (0.0, 0.1, 0.5, 1.0)  # places in the ranking by highest KL, from the most punished to the least


def divergence_token_rows(
    student: TrainedStudent,
    examples: Sequence[Example],
    references: Mapping[str, States],
    tokenizer: Any,
    divergence: str,
    batch_size: int,
    chunk: int,
) -> list[dict[str, Any]]:
    """Rows for kl_tokens.jsonl: key, prompt, tokens as text, and per token ce, kl_base and kl_previous, nats.

    The completions shown run from the one with the highest KL at a token, to the barrier's reference, to the one with the lowest.

    Args:
        student: as it was trained.
        examples: whose completions are looked at.
        references: final hidden states by name, the barrier's reference first.
        tokenizer: of the model.
        divergence: its name.
        batch_size: examples of one forward.
        chunk: positions whose logits are held at once.
    """
    positions: list[Positions] = []
    with torch.no_grad():
        for row, states in enumerate(completion_states(student, examples, batch_size)):
            others = [reference.of([row]).to(states.device) for reference in references.values()]
            targets = torch.tensor(examples[row].completion, device=states.device)
            positions.append(per_position(states, targets, others, student.head, divergence, chunk))
    ranked = sorted(range(len(positions)), key=lambda row: -float(positions[row].kl[0].max()))
    chosen = dict.fromkeys(ranked[round(place * (len(ranked) - 1))] for place in SHOWN)
    rows = []
    for row in chosen:
        kl = dict(zip(references, positions[row].kl.tolist(), strict=True))
        rows.append(
            {
                "version": VERSION,
                "key": examples[row].key,
                "prompt": tokenizer.decode(examples[row].prompt),
                "tokens": _pieces(tokenizer, examples[row].completion),
                "ce": positions[row].ce.tolist(),
                **{f"kl_{name}": kl.get(name, positions[row].kl[0].tolist()) for name in ("base", "previous")},
            }
        )
    return rows


def _pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; a character of several tokens stands at its last one."""
    pieces, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        is_whole = not text.endswith("\ufffd")
        pieces.append(text[len(before) :] if is_whole else "")
        before = text if is_whole else before
    return pieces
