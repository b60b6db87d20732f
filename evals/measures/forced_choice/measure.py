"""The forced choice as a measure: seven labels at one answer slot, for every vignette and order of the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.conditions import Weights
from evals.measures.forced_choice.answers import answers, refuse_answers
from evals.measures.forced_choice.ask import Read
from evals.measures.forced_choice.cached import answers_key, cached_or_asked, free_of
from evals.measures.forced_choice.checks import refuse_too_long
from evals.measures.forced_choice.figures import Figures
from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument
from evals.measures.forced_choice.moralmaps import installed_revision
from evals.measures.forced_choice.moved import Shift, detectable, foundation_shifts
from evals.measures.forced_choice.positions import left_by_reversal, order_effect, position_effect, reliability
from evals.measures.forced_choice.rows import ScoreRow
from evals.measures.forced_choice.sentences import about, among_draws, not_wrong, over_decoy, over_random, ranked
from evals.measures.forced_choice.tables import foundations_table, measure_table
from evals.measures.measure import Columns, Compared, Measure, Scoring, Session, with_condition_names
from evals.rows import Scores
from evals.statistics import Answers, pair
from evals.table import Table
from shared.instrument import FOUNDATIONS
from shared.records import read_jsonl, write_jsonl
from shared.run import Run
from shared.schema import Config
from shared.sets import input_of, revisions_of
from shared.tables import write_parquet
from shared.vignettes import load_vignettes


class ForcedChoiceSession(Session):
    """The rows of each condition in a separate file, and all of them in samples.parquet."""

    def __init__(self, scoring: Scoring):
        super().__init__()
        settings = scoring.config.eval
        self.scoring, self.settings = scoring, settings
        self.vignettes = load_vignettes(settings.vignettes, settings.items)
        self.read = Read(settings.debias, settings.think, seed=scoring.config.seed, stop=settings.stop)
        self.free = free_of(settings.free_tokens)
        self.renderer = InstrumentRenderer(scoring.chat, load_instrument(settings.instrument))
        longest = scoring.config.model.max_model_len
        refuse_too_long(self.renderer, self.vignettes, self.read, self.free, longest, [None, scoring.trait.trait])
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.counts["items"] = len(self.vignettes)

    def ask(self, engine: Any, group: Weights) -> None:
        scoring, cache = self.scoring, None
        if scoring.cached:
            cache = answers_key(
                scoring.weights(group),
                self.renderer,
                self.vignettes,
                self.read,
                self.free,
                scoring.vectors,
                fresh=scoring.fresh,
            )
        tokenizer = scoring.chat.tokenizer
        self.rows.update(
            cached_or_asked(engine, self.renderer, self.vignettes, group, self.read, tokenizer, self.free, cache)
        )
        self.taken += cache.taken if cache else 0

    def write(self, folder: Path) -> Mapping[str, Any]:
        lines = with_condition_names(
            self.rows, model=self.scoring.origin.fingerprint, dtype=self.scoring.config.model.dtype
        )
        for condition, rows in lines.items():
            write_jsonl(folder / f"{condition}.jsonl", rows)
        write_parquet(folder / "samples.parquet", [row for rows in lines.values() for row in rows])
        return {
            "instrument": self.settings.instrument,
            "vignettes": self.settings.vignettes,
            "debias": self.settings.debias,
            "think": self.settings.think,
            "items": [vignette.id for vignette in self.vignettes],
            "foundations": list(FOUNDATIONS),
            "read_for": read_for.model_dump(exclude={"version"}) if (read_for := self.scoring.trait.read_for) else None,
        }


class ForcedChoice(Measure):
    name = "forced_choice"
    every_draw = True
    row = ScoreRow
    columns = (
        "auth_nats", "auth_ci", "care_nats", "care_ci", "p_ans_any", "p_ans_any_ci", "coherence", "coherence_ci", "n_items", "n_paired", "unscorable",
        "informedness", "informedness_ci", "informedness_against", "order_effect", "position_effect", "left_by_reversal", "left_by_reversal_ci",
        "reliability", "reliability_ci", "nll_prefill", "nll_prefill_ci", "json_valid", "json_valid_ci", "shifts", "detectable",
        "d_auth", "d_auth_ci", "d_care", "d_care_ci", "d_coh", "d_coh_ci", "auth_moral", "auth_moral_ci", "d_auth_moral", "d_auth_moral_ci", "p_not_wrong",
        "specific_shift", "specific_shift_ci", "authority_contrast", "authority_contrast_ci",
    )  # fmt: skip

    def inputs(self, run: Run, number: int, config: Config) -> Mapping[str, Path]:
        return {
            **input_of("vignettes", config.eval.vignettes),
            **input_of("instrument", config.eval.instrument, ".json", installed=("moralmaps",)),
        }

    def revisions(self, config: Config) -> Mapping[str, str]:
        return {
            **revisions_of(vignettes=config.eval.vignettes),
            **({"instrument": installed_revision()} if config.eval.instrument == "moralmaps" else {}),
        }

    def begin(self, scoring: Scoring) -> ForcedChoiceSession:
        return ForcedChoiceSession(scoring)

    def read(self, folder: Path, scores: Scores, again: str) -> dict[str, Answers]:
        return {line.name: _answers(scores, folder / f"{line.name}.jsonl", again) for line in scores.conditions}

    def refuse_unpaired(self, base: Answers, other: Answers) -> None:
        """The statistics compare settings and items themselves."""

    def compare(self, base: Answers, other: Answers, resamples: int, seed: int) -> Compared:
        figures = Figures(base, other, resamples, seed)
        level = figures.level
        moved = None if other is base else foundation_shifts(base, other)
        columns = {
            **figures.columns,
            **pair("informedness", "informedness_ci", level["informedness"]),
            "informedness_against": "raters" if other.rated else "foundations",
            "order_effect": order_effect(other),
            "position_effect": position_effect(other),
            **pair("left_by_reversal", "left_by_reversal_ci", left_by_reversal(other)),
            **pair("reliability", "reliability_ci", reliability(other, resamples, seed)),
            **pair("nll_prefill", "nll_prefill_ci", level["nll_prefill"]),
            **pair("json_valid", "json_valid_ci", level["valid"]),
            "shifts": None if moved is None else [_shift(line) for line in moved],
            "detectable": None if other is base else detectable(base, other),
        }
        return Compared(columns, {**level, **figures.delta, "specific_shift": figures.specific})

    def tables(self, rows: Sequence[Columns], read: Sequence[tuple[int, Any]]) -> list[Table]:
        return [foundations_table(rows), measure_table(rows)]

    def about(self, base: Columns, rows: Sequence[Columns], scores: Scores) -> list[str]:
        return about(base, rows, scores.debias)

    def sentences(self, base: Columns, by_stage: Mapping[str, Columns], extra: Sequence[Columns]) -> list[str]:
        draws = [row for row in extra if row["stage"] == "random"]
        return [
            *over_random(by_stage),
            *over_decoy(by_stage),
            *among_draws(by_stage, draws),
            *ranked(by_stage),
            *not_wrong(by_stage),
        ]


def _answers(scores: Scores, path: Path, again: str) -> Answers:
    rows = read_jsonl(path, ScoreRow, made_by=again)
    if [row.id for row in rows] != scores.items or tuple(scores.foundations) != FOUNDATIONS:
        raise refuse_answers(
            path, f"{len(rows)} items", f"the {len(scores.items)} items of scores.json, in its order", again
        )
    if strange := next((row.name for row in rows if row.name not in (None, path.stem)), None):
        raise refuse_answers(path, f"rows of {strange}", f"those of {path.stem}", again)
    read = answers(rows, path, again)
    if (read.setting.debias, read.setting.think) != (scores.debias, scores.think):
        setting = f"{read.setting.debias}, {read.setting.think} think tokens"
        raise refuse_answers(path, setting, f"{scores.debias}, {scores.think} as scores.json says", again)
    return read


def _shift(line: Shift) -> dict[str, Any]:
    return {
        "foundation": line.foundation,
        **pair("change", "ci", line.change),
        "p": line.p,
        "p_holm": line.p_holm,
        "moved": line.moved,
    }
