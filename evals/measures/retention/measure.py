"""Retention as a measure: what a condition costs on text that has nothing to do with the trait.

The texts are frozen and read teacher-forced, nothing is sampled: short passages of plain prose, arithmetic, lists and code, and the
original model's own unsteered answers to the mundane prompts of round 1. Per token, in nats,

    ret_nll = mean over tokens of [-ln p(t) + ln p_base(t)]
    ret_kl  = mean over tokens of KL(p_base || p), over the full vocabulary

Units of the intervals are the texts. The engine gives log-probabilities of single tokens and no distribution over the vocabulary, so both
come from plain forwards in fp32, with the vector added by hooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from evals.cache import text_digest
from evals.conditions import Condition, Weights
from evals.measures.measure import ByCondition, Columns, Compared, Damage, Headline, Measure, Scoring
from evals.statistics import Estimate, estimate, interval_text, pair, resample
from evals.table import Table, label, ranged
from gen.extract import in_fp32
from gen.prompts import open_round
from shared.chat import neutral_for
from shared.commands import round_command, setting
from shared.console import counting, format_number
from shared.errors import SteerHealError
from shared.publish import digest
from shared.records import Completion, Count, Nats, Positive, Record, iterate_jsonl
from shared.run import Run
from shared.schema import Config
from shared.sets import input_of, revisions_of
from shared.sources import open_rows

EMBEDDED = Path(__file__).with_name("passages.jsonl")
ANSWER = "answer"  # the kind of the original model's own answers
SUBJECT = "neutral text"
# nats of ret_kl: degraded where its interval reaches above the first, broken where all of it is above the second
DEGRADED, BROKEN = 0.05, 0.3


class Passage(Record):
    """A text of the frozen set."""

    known_by = ("id",)
    id: str
    text: str = Field(min_length=1)
    kind: str = "text"


class RetentionRow(Record):
    """One text under one condition: sums over its tokens, nats; null where a logit is not finite."""

    known_by = ("name", "id")
    name: str
    id: str
    kind: str
    tokens: Annotated[Count, Field(ge=1)]
    nll: Positive | None
    nll_base: Positive | None
    kl: Nats | None


@dataclass(frozen=True)
class Text:
    """Token ids of a text, of which those from begin on are predicted; the vector acts from `start` where it acts on what is generated."""

    id: str
    kind: str
    ids: list[int]
    begin: int
    start: int


class RetentionSession(ByCondition):
    def __init__(self, measure: Retention, scoring: Scoring):
        super().__init__(measure, scoring)
        self._base: Any = None  # the original network, while groups are asked
        self.texts = [*self._passages(measure.passages()), *self._answers()]
        longest, limit = max(self.texts, key=lambda text: len(text.ids)), scoring.config.model.max_model_len
        if len(longest.ids) > limit:
            raise SteerHealError(
                "a text of the retention set is too long",
                given=f"{longest.id}: {len(longest.ids)} tokens",
                expected=f"at most model.max_model_len = {limit}",
                next=f"cut it, or {setting(f'model.max_model_len={len(longest.ids)}')}",
            )

    def _passages(self, passages: Sequence[Passage]) -> list[Text]:
        """Plain text, after BOS where the model has one; else its first token is given and not predicted."""
        chat = self.scoring.chat
        front = [] if chat.bos_id is None else [chat.bos_id]
        texts = [Text(row.id, row.kind, [*front, *chat.plain(row.text)], 1, 0) for row in passages]
        return [text for text in texts if len(text.ids) > 1]

    def _answers(self) -> list[Text]:
        """The unsteered completions that round 1 sampled of the mundane prompts, after their prompts."""
        scoring = self.scoring
        path = first_sweep_rows(scoring.run)
        if not scoring.config.sweep.n_mundane or not path.is_file():
            return []
        with open_round(scoring.config.sweep.model_copy(update={"n_dilemmas": 0})) as prompts:
            mundane = {
                tuple(scoring.chat.ids(prompt.turns, neutral_for(prompt.turns, scoring.trait.neutral)))
                for _, prompt in prompts
            }
        again = round_command(scoring.run.folder, 1)
        return [
            Text(row.key, ANSWER, [*row.prompt_ids, *row.completion_ids], size := len(row.prompt_ids), size - 1)
            for row in iterate_jsonl(path, Completion, made_by=again)
            if row.source == "unsteered" and row.completion_ids and tuple(row.prompt_ids) in mundane
        ]

    def depends(self) -> Mapping[str, Any]:
        return {"original": self.scoring.origin.fingerprint}

    def prompts(self, condition: Condition) -> str:
        return text_digest(repr([(text.id, text.kind, text.ids, text.begin, text.start) for text in self.texts]))

    def weights(self, group: Weights) -> tuple[str, str]:
        """Not the served checkpoint, which is rounded to the model's dtype, but the exact student."""
        origin = self.scoring.origin.fingerprint
        return (f"{origin} + {digest(group.history)}" if group.history else origin), "float32"

    def before_engine(self, groups: Sequence[Weights]) -> None:
        for group in groups:
            self.collect(None, group)
        self._base = None
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the engine takes its share of what is free

    def ask(self, engine: Any, group: Weights) -> None:
        """Nothing: the engine has no distribution over the vocabulary."""

    def make(self, engine: Any, group: Weights, conditions: Sequence[Condition]) -> dict[str, list[dict[str, Any]]]:
        from gen.forward import distance, logits_of, steered

        scoring, origin = self.scoring, self.scoring.origin
        base = self._base = self._base or in_fp32(origin, None)
        network = in_fp32(origin, group.history) if group.history else base
        rows: dict[str, list[dict[str, Any]]] = {condition.name: [] for condition in conditions}
        with counting(f"retention, {group.label}", len(self.texts) * len(conditions)) as advance:
            for text in self.texts:
                reference = logits_of(base, text.ids, text.begin)
                for condition in conditions:
                    vector = None if condition.vector is None else scoring.vectors[condition.vector]
                    start = text.start if condition.positions == "generated" else 0
                    with steered(network, origin.depth, vector, condition.coefficient, start):
                        logits = logits_of(network, text.ids, text.begin)
                    cost = distance(reference, logits, text.ids[text.begin :])
                    sums = {"tokens": cost.tokens, "nll": cost.nll, "nll_base": cost.nll_base, "kl": cost.kl}
                    rows[condition.name].append({"version": 1, "id": text.id, "kind": text.kind, **sums})
                    advance()
        return rows

    def check(self, rows: Sequence[dict[str, Any]]) -> None:
        super().check(rows)
        if [(row["id"], row["tokens"]) for row in rows] != [(t.id, len(t.ids) - t.begin) for t in self.texts]:
            raise ValueError("other texts than asked")


class Retention(Measure):
    name = "retention"
    takes_source = True
    row = RetentionRow
    columns = ("ret_nll", "ret_nll_ci", "ret_kl", "ret_kl_ci", "ret_state", "ret_by_kind")
    headlines = (Headline("ret_kl", 4, False),)

    def passages(self) -> list[Passage]:
        """The frozen passages. Raises SteerHealError where they cannot be read, or two have one id."""
        source = str(EMBEDDED) if self.source == "embedded" else self.source
        made_by = "write a JSON Lines, CSV or Parquet file with id and text in every row, or name a data set"
        with open_rows(source, what="the texts of retention could not be loaded", made_by=made_by) as opened:
            rows = [row for _, row in opened.rows(Passage)]
        if len({row.id for row in rows}) < len(rows):
            raise SteerHealError("texts of retention share an id", given=source, expected="an id each", next=made_by)
        return rows

    def check(self) -> None:
        self.passages()

    def inputs(self, run: Run, number: int, config: Config) -> Mapping[str, Path]:
        path = str(EMBEDDED) if self.source == "embedded" else self.source
        return {**input_of("retention", path), **input_of("mundane", config.sweep.mundane)}

    def revisions(self, config: Config) -> Mapping[str, str]:
        return revisions_of(retention=self.source, mundane=config.sweep.mundane)

    def asks(self, stage: str) -> bool:
        """Whether a stage is measured: not the prompted ones, since a plain text has no system prompt."""
        return not stage.startswith("prompted")

    def begin(self, scoring: Scoring) -> RetentionSession:
        return RetentionSession(self, scoring)

    def compare(
        self, base: Sequence[RetentionRow], other: Sequence[RetentionRow], resamples: int, seed: int
    ) -> Compared:
        tokens = np.array([row.tokens for row in other], dtype=float)
        nll = _column([None if row.nll is None or row.nll_base is None else row.nll - row.nll_base for row in other])
        kl = _column([row.kl for row in other])
        weights = resample(np.zeros(len(other)), resamples, seed)
        ret_nll, ret_kl = (
            estimate(lambda w, sums=sums: (w @ sums) / (w @ tokens), weights)  # type: ignore[misc]
            for sums in (nll, kl)
        )
        kinds = list(dict.fromkeys(row.kind for row in other))
        by_kind = []
        for kind in kinds:
            of_kind = np.array([row.kind == kind for row in other])
            value = float(kl[of_kind].sum() / tokens[of_kind].sum())
            by_kind.append({"kind": kind, "ret_kl": value if np.isfinite(value) else None})
        columns = {
            **pair("ret_nll", "ret_nll_ci", ret_nll),
            **pair("ret_kl", "ret_kl_ci", ret_kl),
            "ret_state": (damage := damage_of(ret_kl)).state,
            "ret_by_kind": by_kind,
        }
        return Compared(columns, {"ret_nll": ret_nll, "ret_kl": ret_kl}, damage)

    def tables(self, rows: Sequence[Columns], read: Sequence[tuple[int, Any]]) -> list[Table]:
        taken = [row for row in rows if row["ret_by_kind"] is not None]
        kinds = [part["kind"] for part in taken[0]["ret_by_kind"]] if taken else []
        return [
            Table(
                "Retention",
                ["round, stage", "ret_nll", "ret_kl", *kinds],
                [
                    [
                        label(row),
                        ranged(row, "ret_nll", "ret_nll_ci", 4, signed=True),
                        ranged(row, "ret_kl", "ret_kl_ci", 4),
                        *[format_number(part["ret_kl"], 4) for part in row["ret_by_kind"]],
                    ]
                    for row in taken
                ],
                "On frozen neutral texts, nats per token: the change of the tokens' negative log-probability, KL(base || condition) over the full vocabulary, and the "
                "same KL by kind of text. Brackets are 95 % bootstrap intervals over texts.",
            )
        ]

    def sentences(self, base: Columns, by_stage: Mapping[str, Columns], extra: Sequence[Columns]) -> list[str]:
        lines = []
        for stage in ("steered", "healed"):
            row = by_stage.get(stage)
            if row is None or row["ret_state"] is None:
                continue
            kl = f"{ranged(row, 'ret_kl', 'ret_kl_ci', 3)} nats per token from the base"
            where = "has logits that are not finite" if row["ret_kl"] is None else f"is {kl}"
            state = "kept" if row["ret_state"] == "coherent" else row["ret_state"]
            lines.append(
                f"on {SUBJECT} the {stage} model {where}: {state} (degraded where the interval reaches above {DEGRADED}, broken where all of it is above {BROKEN})."
            )
        return lines


def damage_of(ret_kl: Estimate | None) -> Damage:
    """What a distance from the base means, by its interval.

    Args:
        ret_kl: nats per token; None where a logit is not finite, which is no distance at all.
    """
    if ret_kl is None:
        return Damage(SUBJECT, "broken", f"KL from the base on {SUBJECT} is not finite")
    low, high = ret_kl.interval or (ret_kl.value, ret_kl.value)
    distance = f"KL from the base on {SUBJECT} is {interval_text(ret_kl)} nats per token"
    if low > BROKEN:
        return Damage(SUBJECT, "broken", f"{distance}, above {BROKEN}")
    if high > DEGRADED:
        return Damage(SUBJECT, "degraded", f"{distance}, and may be above {DEGRADED}")
    return Damage(SUBJECT, "coherent", f"{distance}, at most {DEGRADED}")


def first_sweep_rows(run: Run) -> Path:
    """The rows of round 1's sweep, of which those at coefficient 0 are the original model's."""
    return run.round(1) / "sweep.jsonl"


def _column(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
