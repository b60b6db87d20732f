"""Is the network that is about to be trained the one that sampled? Their log-probabilities, token by token, before the first step.

The sweep records, for a sample of its rows, the log-probabilities of the student that it served and of the original model, both
unsteered (gen/recording.py). Here the trainer computes its own for the kept ones of these rows. What can make the two differ, and
where in the code, is listed in docs/agreement.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from shared.chat import Chat
from shared.commands import command_of
from shared.console import say
from shared.errors import SteerHealError
from shared.logprobs import Agreement, Difference, digest_of
from shared.schema import Config
from train.data import Example
from train.objective import per_position
from train.reference import completion_states
from train.unsloth_model import HISTORY, TrainedStudent

PAGE = "docs/agreement.md"
TRIED = 4  # rows on which a supposed cause is tried out
DATE = re.compile(r"\b\d{1,2} [A-Z][a-z]{2,8} \d{4}\b|\b\d{4}-\d{2}-\d{2}\b")


class Tolerance(NamedTuple):
    """How far apart log-probabilities of one model may be under two implementations, nats."""

    mean: float
    largest: float


# Measured figures and reasons: docs/agreement.md. On a GPU float32 attention may multiply in TF32, which has float16's mantissa.
BOUNDS = {"float32": Tolerance(1e-4, 1e-2), "float16": Tolerance(0.02, 0.5), "bfloat16": Tolerance(0.1, 2.0)}


class Series(NamedTuple):
    """Log-probabilities of the completion tokens of some rows, one after the other [tokens], nats."""

    student: np.ndarray
    original: np.ndarray


@dataclass(frozen=True)
class SamplerAndTrainer:
    """The rows whose log-probabilities are recorded, under the sampler and under the trainer."""

    rows: list[Example]
    sampler: Series
    trainer: Series

    @property
    def effect(self) -> Series:
        """The change of each token's log-probability that the history makes, nats.

        The field `student` holds the change under the sampler, the field `original` that under the trainer.
        """
        return Series(self.sampler.student - self.sampler.original, self.trainer.student - self.trainer.original)


def agree(
    student: TrainedStudent,
    examples: Sequence[Example],
    chat: Any,
    config: Config,
    again: str | None,
    others: Callable[[], Sequence[Example]] = tuple,
) -> Agreement:
    """Compare, say what was found, and return it.

    Args:
        student: before its first step, so that this round's adapter adds nothing.
        examples: all rows of the round, held out or not.
        chat: of the model, or its tokenizer alone.
        again: the command that makes the rows again; None names the stage's help.
        others: recorded rows of the same sweep that are not trained on, for where none of the examples is recorded.

    Raises SteerHealError, naming the row, the token and the likely cause, where a row no longer has the token ids that were scored,
    where a difference is beyond the bound of the dtype, or where it is most of what the history does.
    """
    chat, again = Chat.of(chat), again or command_of("gen.sweep", "--help")
    rows = [row for row in examples if row.logprobs is not None]
    if not rows and (rows := list(others())):
        say(
            "none of the rows that hold the sampler's log-probabilities is trained on: it is compared on those that were left out"
        )
    if not rows:
        agreement = Agreement(rows=0, tokens=0, note="no row holds the sampler's log-probabilities, kept or rejected: they are not a sweep's, or an earlier version's, or the file of the rejected ones is not beside them")  # fmt: skip
        say(f"sampler and trainer: {agreement.sentence()}")
        return agreement
    _unchanged(rows, chat, again)
    compared = both_sides(student, rows, config)
    bound = None if config.train.load_in_4bit else _bound(student, config.model.dtype)
    agreement = Agreement(
        rows=len(rows),
        tokens=len(compared.sampler.student),
        student=_difference(compared.sampler.student, compared.trainer.student, rows, chat.tokenizer),
        original=_difference(compared.sampler.original, compared.trainer.original, rows, chat.tokenizer),
        effect=float(np.abs(compared.effect.original).mean()),
        mean_bound=bound and bound.mean,
        largest_bound=bound and bound.largest,
        note=None if bound else "no bound: the trainer's base is in 4 bits, the sampler's is not",
    )
    if bound:
        _refuse(agreement, compared, bound, student, config, again)
    say(
        f"sampler and trainer agree, {agreement.sentence()}"
        if bound
        else f"sampler and trainer, {agreement.sentence()}"
    )
    return agreement


def both_sides(student: TrainedStudent, rows: Sequence[Example], config: Config) -> SamplerAndTrainer:
    """The log-probabilities of sampler and trainer for rows that record the sampler's."""
    ours = logprobs(student, rows, config)
    original = ours
    if HISTORY in student.adapters:
        with student.only():
            original = logprobs(student, rows, config)
    theirs = [row.logprobs for row in rows if row.logprobs is not None]
    sampler = Series(np.concatenate([one.student for one in theirs]), np.concatenate([one.original for one in theirs]))
    return SamplerAndTrainer(list(rows), sampler, Series(ours, original))


def logprobs(student: TrainedStudent, rows: Sequence[Example], config: Config) -> np.ndarray:
    """Log-probabilities [completion tokens of all rows] under the active adapters, by the path that the loss takes; nats."""
    summed = []
    with torch.no_grad():
        for row, states in zip(rows, completion_states(student, rows, config.train.batch_size), strict=True):
            targets = torch.tensor(row.completion, device=states.device)
            ce = per_position(states, targets, [], student.head, "nll", config.train.chunk).ce
            summed.append(-ce.double().cpu().numpy())
    return np.concatenate(summed)


def _bound(student: TrainedStudent, dtype: str) -> Tolerance:
    return BOUNDS["float16" if dtype == "float32" and student.device.type == "cuda" else dtype]


def _difference(sampler: np.ndarray, trainer: np.ndarray, rows: Sequence[Example], tokenizer: Any) -> Difference:
    apart = np.abs(sampler - trainer)
    place = int(np.argmax(apart))
    for row in rows:
        if place < len(row.completion):
            break
        place -= len(row.completion)
    return Difference(mean=float(apart.mean()), largest=float(apart.max()), key=row.key, position=place, token=tokenizer.decode([row.completion[place]]))  # fmt: skip


def _unchanged(rows: Sequence[Example], chat: Chat, again: str) -> None:
    """Raise SteerHealError for a row whose token ids are not those that the sampler scored."""
    for row in rows:
        recorded = row.logprobs
        assert recorded is not None
        if recorded.ids == digest_of(row.prompt, row.completion) and len(recorded.student) == len(row.completion):
            continue
        if (cause := _tokens(row, recorded.ids, chat)) is not None:
            position, words = cause
            token = row.prompt[position] if position < len(row.prompt) else row.completion[0]
            where = f"token {position} of its prompt, {chat.tokenizer.decode([token])!r}"
        else:
            where, words = "a token of its prompt or completion", "the prompt was rendered again, with another template, system prompt or template arguments, or the row was edited"  # fmt: skip
            if date := DATE.search(chat.tokenizer.decode(row.prompt)):
                words = f"the prompt was rendered again by a template that prints the date (it says {date[0]}), or the row was edited"  # fmt: skip
        raise SteerHealError(
            "a row does not hold the tokens that the sampler scored",
            given=f"row {row.key}, {where}: {words}",
            expected="the token ids of the sweep, carried from the sampler to the trainer; of rows that you edited on purpose, remove the field logprobs",
            next=again,
        )


def _tokens(row: Example, ids: str, chat: Chat) -> tuple[int, str] | None:
    """A cause that turns the row's token ids into the scored ones, with the place in the prompt; None where none does."""
    if digest_of(row.prompt[1:], row.completion) == ids:
        return 0, "one token too many at the start of the prompt: a double BOS"
    before = {row.prompt[0]} if chat.bos_id is None else {row.prompt[0], chat.bos_id}
    if any(digest_of([bos, *row.prompt], row.completion) == ids for bos in before):
        return 0, "the BOS before it is missing"
    return None


def _refuse(agreement: Agreement, compared: SamplerAndTrainer, bound: Tolerance, student: TrainedStudent, config: Config, again: str) -> None:  # fmt: skip
    """Raise SteerHealError where a difference is too large."""
    assert agreement.student is not None and agreement.original is not None
    original = agreement.original
    limit = f"a mean difference of at most {bound.mean:g} and none above {bound.largest:g} nats in {config.model.dtype}"
    effect = max(float(np.abs(part).mean()) for part in compared.effect)
    if original.mean > bound.mean or original.largest > bound.largest:
        name, worst, causes = "original", original, _original(compared, bound, student, config, again)
        pair = compared.sampler.original, compared.trainer.original
    elif (
        agreement.student.mean > bound.mean
        or agreement.student.largest > bound.largest
        or agreement.student.mean > max(3 * original.mean, 0.75 * effect)
    ):
        name, worst, causes = "student", agreement.student, _adapter(compared, again, HISTORY in student.adapters)
        pair = compared.sampler.student, compared.trainer.student
        limit += f", and less than three quarters of what the history does to a token, {effect:.2g}" if effect else ""
    else:
        return
    place = int(np.argmax(np.abs(pair[0] - pair[1])))
    cause, command = causes
    raise SteerHealError(
        f"the sampler's {name} and the trainer's are not one model",
        given=f"row {worst.key}, token {worst.position} of its completion, {worst.token!r}: {pair[0][place]:.4g} nats under the sampler and {pair[1][place]:.4g} under the trainer; "
        f"over {agreement.tokens} tokens of {agreement.rows} rows the mean difference is {worst.mean:.2g}, the largest {worst.largest:.2g}. Likely cause: {cause}",
        expected=f"{limit}; every known cause: {PAGE}",
        next=command,
    )


def _adapter(compared: SamplerAndTrainer, again: str, history: bool) -> tuple[str, str]:
    """Why students differ whose originals agree, and the command that mends it: told by what the history does on either side."""
    sampler, trainer = compared.effect
    if not history:
        return (
            "the trainer has no history, and the sampler's student had one: a lost adapter",
            "give the rounds before with --history",
        )
    if np.abs(trainer).mean() < 0.1 * np.abs(sampler).mean():
        return (
            "the history adds nothing in the trainer: a lost adapter",
            "compare the installed versions with requirements/: make doctor",
        )
    share = float((sampler * trainer).sum() / (trainer * trainer).sum())
    if abs(share) < 0.1:
        return f"the sampler's student is its original, without the history: a lost adapter (it has {share:.0%} of the history's effect)", again  # fmt: skip
    return f"the sampler's student has {share:.0%} of the history's effect: a stale merge, of another history or other gates, or a merge rounded to its dtype", again  # fmt: skip


def _original(compared: SamplerAndTrainer, bound: Tolerance, student: TrainedStudent, config: Config, again: str) -> tuple[str, str]:  # fmt: skip
    """Why originals differ, and the command that mends it: a supposed BOS too many or too few is tried on a few rows."""
    rows = compared.rows[:TRIED]
    expected = compared.sampler.original[: sum(len(row.completion) for row in rows)]
    tried: dict[str, Callable[[list[int]], list[int]]] = {
        "the sampler scored the prompt without its first token: it has no BOS, or the trainer a double BOS": lambda ids: (
            ids[1:]
        ),
        "the sampler scored the prompt after a second BOS: a double BOS": lambda ids: [ids[0], *ids],
    }
    for words, change in tried.items():
        changed = [Example(change(row.prompt), row.completion, row.key) for row in rows]
        with student.only():
            apart = np.abs(logprobs(student, changed, config) - expected)
        if apart.mean() <= bound.mean and apart.max() <= bound.largest:
            return words, again
    return "other original weights (another revision or dtype), or numerics of this model that one side lacks", "make verify, and compare model.name and model.revision with the sweep's manifest"  # fmt: skip
