"""Free text as a measure: completions of the held-out prompts, scored under the original model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.coherence import LOOPS
from evals.conditions import Weights
from evals.measures.free_text.generations import Generations, of_generations
from evals.measures.free_text.rows import Generation
from evals.measures.free_text.texts import (
    Llr,
    Texts,
    pooled_distinct_3,
    stock_openings,
    text_delta,
    text_levels,
    texts_of,
)
from evals.measures.measure import Columns, Compared, Measure, Scoring, Session
from evals.statistics import pair
from evals.table import Table, label, ranged
from gen.ahead import fit_heldout
from gen.prompts import PromptRenderer
from shared.console import format_number
from shared.prompts import load_heldout
from shared.records import write_jsonl
from shared.run import Run
from shared.schema import Config
from shared.sets import input_of, revisions_of

SHIFTS: tuple[Llr, ...] = ("trait_llr", "llr_opposite", "llr_mundane")


class FreeTextSession(Session):
    """Texts are sampled group by group, and scored together once the engine serves the original model."""

    def __init__(self, scoring: Scoring):
        super().__init__()
        self.scoring = scoring
        self.prompted = PromptRenderer(scoring.chat, scoring.trait)
        self.heldout = load_heldout(scoring.config.eval.heldout)
        fit_heldout(self.heldout, self.prompted, scoring.config)
        self.texts: Generations | None = None
        self.judged: list[dict[str, Any]] = []

    def ask(self, engine: Any, group: Weights) -> None:
        scoring, config = self.scoring, self.scoring.config
        self.texts = self.texts or Generations(engine, self.prompted, self.heldout, config)
        cache = None
        if scoring.cached:
            judge = (scoring.origin.fingerprint, config.model.dtype)
            weights = scoring.weights(group)
            cache = of_generations(
                weights, judge, self.prompted, self.heldout, config, scoring.vectors, fresh=scoring.fresh
            )
        conditions = [condition for condition in group.conditions if FreeText().takes(condition)]
        self.texts.sample(group.label, conditions, cache)
        self.taken += cache.taken if cache else 0

    def judge(self, engine: Any) -> None:
        assert self.texts is not None  # a scoring has at least one group
        self.judged = self.texts.judged()
        self.counts = {"generations": len(self.judged), "tokens": self.texts.tokens}

    def write(self, folder: Path) -> Mapping[str, Any]:
        write_jsonl(folder / "generations.jsonl", self.judged)
        return {}


class FreeText(Measure):
    name = "free_text"
    row = Generation
    columns = (
        "perplexity", "perplexity_ci", "distinct_1", "distinct_2", "distinct_3", "looping", "trait_llr", "trait_llr_ci", "d_trait_llr", "d_trait_llr_ci",
        "n_generations", "n_empty", "llr_opposite", "llr_opposite_ci", "d_llr_opposite", "d_llr_opposite_ci", "llr_mundane", "llr_mundane_ci",
        "d_llr_mundane", "d_llr_mundane_ci", "entropy", "entropy_ci", "kl_on_policy", "kl_on_policy_ci", "relevance", "relevance_ci",
        "distinct_3_across", "stock_openings",
    )  # fmt: skip

    @property
    def file(self) -> str:
        return "generations.jsonl"

    def inputs(self, run: Run, number: int, config: Config) -> Mapping[str, Path]:
        return input_of("heldout", config.eval.heldout)

    def revisions(self, config: Config) -> Mapping[str, str]:
        return revisions_of(heldout=config.eval.heldout)

    def begin(self, scoring: Scoring) -> FreeTextSession:
        return FreeTextSession(scoring)

    def refuse_unpaired(self, base: Sequence[Generation], other: Sequence[Generation]) -> None:
        """text_delta compares prompt by prompt, and evals.agree prompts and samples."""

    def compare(self, base: Sequence[Generation], other: Sequence[Generation], resamples: int, seed: int) -> Compared:
        texts = texts_of(other)
        level = text_levels(texts, resamples, seed)
        was = texts_of(base)
        deltas = {f"d_{name}": text_delta(was, texts, name) if other else None for name in SHIFTS}
        columns = {
            **pair("perplexity", "perplexity_ci", level["perplexity"]),
            "distinct_1": mean_of_known(texts.distinct_1),
            "distinct_2": mean_of_known(texts.distinct_2),
            "distinct_3": mean_of_known(texts.distinct_3),
            "looping": looping(texts),
            **pair("trait_llr", "trait_llr_ci", level["trait_llr"]),
            **{key: value for name, delta in deltas.items() for key, value in pair(name, f"{name}_ci", delta).items()},
            "n_generations": len(texts.prompt),
            "n_empty": int((texts.tokens == 0).sum()),
            **{
                key: value
                for name in ("llr_opposite", "llr_mundane", "entropy", "kl_on_policy", "relevance")
                for key, value in pair(name, f"{name}_ci", level[name]).items()
            },
            "distinct_3_across": pooled_distinct_3(texts),
            "stock_openings": stock_openings(texts),
        }
        return Compared(columns, {**level, **deltas})

    def tables(self, rows: Sequence[Columns], read: Sequence[tuple[int, Any]]) -> list[Table]:
        return [free_text_table(rows)] if any(row["llr_opposite"] is not None for row in rows) else []

    def sentences(self, base: Columns, by_stage: Mapping[str, Columns], extra: Sequence[Columns]) -> list[str]:
        return _text(base, by_stage)


def free_text_table(rows: Sequence[Columns]) -> Table:
    """The trait in free text, and what the text is worth, by condition."""
    return Table(
        "Free text",
        ["round, stage", "llr_opposite", "d_llr_opposite", "share of prompted", "d_llr_mundane", "entropy", "kl_on_policy", "relevance", "distinct-3 across", "stock openings"],
        [
            [
                label(row),
                ranged(row, "llr_opposite", "llr_opposite_ci", 3, signed=True),
                ranged(row, "d_llr_opposite", "d_llr_opposite_ci", 3, signed=True),
                ranged(row, "share_of_prompted", "share_of_prompted_ci", 2),
                ranged(row, "d_llr_mundane", "d_llr_mundane_ci", 3, signed=True),
                ranged(row, "entropy", "entropy_ci"),
                ranged(row, "kl_on_policy", "kl_on_policy_ci"),
                ranged(row, "relevance", "relevance_ci"),
                format_number(row["distinct_3_across"]),
                format_number(row["stock_openings"]),
            ]
            for row in rows
            if row["perplexity"] is not None
        ],
        "Nats per token. llr_opposite: of held-out paraphrases of the trait against those of its opposite. d_llr_mundane: its shift on mundane prompts, where it is leakage. "
        "entropy + kl_on_policy = ln of perplexity. relevance: how much likelier a text is behind its own prompt than behind others.",
    )  # fmt: skip


def mean_of_known(values: np.ndarray) -> float | None:
    """The mean of the finite values; None where no value is finite."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def looping(texts: Texts) -> float | None:
    """Share of the texts with tokens that loop."""
    finite = texts.loop_share[np.isfinite(texts.loop_share)]
    return float((finite > LOOPS).mean()) if len(finite) else None


def _text(base: Columns, by_stage: Mapping[str, Columns]) -> list[str]:
    lines = []
    steered, healed = by_stage["steered"], by_stage["healed"]
    name = "d_trait_llr" if healed["d_llr_opposite"] is None else "d_llr_opposite"  # of rows of an earlier version
    if healed[name] is not None and healed["perplexity"] is not None:
        ends = healed[f"{name}_ci"]
        sure = (
            "more trait than base"
            if ends and ends[0] > 0
            else "less trait than base"
            if ends and ends[1] < 0
            else "no trait that its interval can tell from base's"
        )
        against = [
            f"{stage} {row['perplexity']:.2f}"
            for stage, row in (("steered", steered), ("base", base))
            if row["perplexity"] is not None
        ]
        shift = ranged(healed, name, f"{name}_ci", 3, signed=True)
        lines.append(
            f"the healed student's free text shows {sure} ({name} {shift}), at perplexity {healed['perplexity']:.2f} ({', '.join(against)})."
        )
    if healed["perplexity"] is not None and base["perplexity"] is not None and healed["coherence"] is not None:
        ratio = healed["perplexity"] / base["perplexity"]
        if healed["coherence"] >= 0.95 and ratio > 2:
            lines.append(
                f"coherence is {healed['coherence']:.2f} while the free text's perplexity is {ratio:.1f} times base's: the forced prefill flatters, trust the perplexity."
            )
    leaked = healed["d_llr_mundane_ci"]
    if leaked and leaked[0] > 0:
        change = ranged(healed, "d_llr_mundane", "d_llr_mundane_ci", 3, signed=True)
        lines.append(f"the trait shows on mundane prompts too (d_llr_mundane {change}): it leaks.")
    for stage, row in by_stage.items():
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
