"""Scored rounds of a run, read back from their files and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from evals.instrument import FOUNDATIONS, orders
from evals.rows import Generation, Heldout, LogRow, Manifest, ScoreRow, Scores, Step, TokenRow, Training
from evals.statistics import Answers, Setting, Texts
from shared.errors import SteerHealError
from shared.publish import digest
from shared.records import Completion, Record, problem_of, read_jsonl
from shared.run import STAGES, Run

STEP = {"round": "score", "full": "score-full"}
FOLDER = {"round": "scores", "full": "scores-full"}
Row = TypeVar("Row", bound=Record)


@dataclass(frozen=True)
class Round:
    """A scored round. answers and generations by condition name; manifests by stage, those there are."""

    number: int
    scores: Scores
    answers: dict[str, Answers]
    generations: dict[str, list[Generation]]
    rejected: list[Completion]
    steps: list[Step]
    heldout: list[Heldout]
    training: Training
    tokens: list[TokenRow]
    manifests: dict[str, Manifest]


def scored_rounds(run: Run, mode: str, up_to: int | None = None) -> list[Round]:
    """Rounds 1 to the last scored one, or to up_to. Raises SteerHealError for a missing, edited or outdated round."""
    found = run.rounds(STEP[mode])
    last = up_to or max(found, default=1)
    if missing := [number for number in range(1, last + 1) if number not in found]:
        healed = mode == "full" and missing[0] in run.rounds("heal")
        raise SteerHealError(
            f"round {missing[0]} has no scores",
            given=run.round(missing[0]) / FOLDER[mode],
            expected="the scores of every round up to the last",
            next=f"make report EVAL=full RUN={run.folder}" if healed else f"make round N={missing[0]} RUN={run.folder}",
        )
    rounds = [_round(run, number, mode) for number in range(1, last + 1)]
    for before, after in pairwise(rounds):
        built, used = (
            before.manifests[STEP[mode]].inputs.get("history"),
            after.manifests[STEP[mode]].inputs.get("history before"),
        )
        if built != used:
            raise SteerHealError(
                f"round {after.number} was scored on another round {before.number}",
                given=f"history {used} against {built}",
                expected="rounds that build on each other",
                next=f"make round N={after.number} RUN={run.folder} REBUILD=1",
            )
    return rounds


def _round(run: Run, number: int, mode: str) -> Round:
    again = f"make round N={number} RUN={run.folder} REBUILD=1"
    folder = run.round(number) / FOLDER[mode]
    manifests = {
        stage: _json(run.manifest(number, stage), Manifest, again)
        for stage in (*STAGES, STEP[mode])
        if run.manifest(number, stage).is_file()
    }
    name = folder.relative_to(run.folder).as_posix()
    recorded = manifests[STEP[mode]].outputs.get(name)
    if not folder.is_dir() or digest(folder) != recorded:
        raise SteerHealError(
            "scores are not those of their manifest", given=folder, expected=f"digest {recorded}", next=again
        )
    scores = _json(folder / "scores.json", Scores, again)
    setting = Setting(
        tuple(scores.items), scores.debias, scores.orders, scores.think, scores.instrument, scores.vignettes
    )
    answers = {line.name: _answers(setting, scores, folder / f"{line.name}.jsonl", again) for line in scores.conditions}
    generations: dict[str, list[Generation]] = {line.name: [] for line in scores.conditions}
    for row in read_jsonl(folder / "generations.jsonl", Generation, made_by=again):
        if row.name not in generations:
            raise _refuse(
                folder / "generations.jsonl", f"condition {row.name}", f"one of {', '.join(generations)}", again
            )
        generations[row.name].append(row)
    return Round(
        number,
        scores,
        answers,
        generations,
        _rows(run.round(number) / "rejected.jsonl", Completion, again),
        *_log(run.round(number) / "train.jsonl", again),
        _json(run.round(number) / "training.json", Training, again),
        read_jsonl(run.round(number) / "kl_tokens.jsonl", TokenRow, made_by=again),
        manifests,
    )


def _log(path: Path, again: str) -> tuple[list[Step], list[Heldout]]:
    """Rows of logging steps and of held-out cross-entropy."""
    rows = read_jsonl(path, LogRow, made_by=again)
    try:
        steps = [Step.model_validate(row.model_dump()) for row in rows if row.heldout_ce is None]
        return steps, [Heldout.model_validate(row.model_dump()) for row in rows if row.heldout_ce is not None]
    except ValidationError as error:
        raise _refuse(path, problem_of(error), "the log of a training", again) from None


def _answers(setting: Setting, scores: Scores, path: Path, again: str) -> Answers:
    rows = read_jsonl(path, ScoreRow, made_by=again)
    if [row.id for row in rows] != scores.items:
        raise _refuse(path, f"{len(rows)} items", f"the {len(scores.items)} items of scores.json, in its order", again)
    size = len(FOUNDATIONS)
    unknown = [float("nan")] * size
    lp = [row.lp for row in rows]
    shape = (len(rows), scores.orders, len(lp[0][0]) if lp[0] else 0, size)
    try:
        values = np.array(lp, dtype=float)
    except ValueError:  # ragged
        values = np.empty(0)
    if values.shape != shape or scores.orders != len(orders(scores.debias)) or tuple(scores.foundations) != FOUNDATIONS:
        raise _refuse(
            path,
            f"lp of shape {values.shape}, foundations {', '.join(scores.foundations)}",
            f"[items, orders, samples, {size}] in canonical order",
            again,
        )
    return Answers(
        setting,
        np.array([_foundation(row.foundation, path, again) for row in rows]),
        np.array([row.p or unknown for row in rows]),
        np.array([row.score or unknown for row in rows]),
        np.array([np.nan if row.pmass_allowed is None else row.pmass_allowed for row in rows]),
        values,
    )


def _foundation(label: str, path: Path, again: str) -> int:
    """Index of a label such as 'Authority' or 'Social Norms'."""
    for index, name in enumerate(FOUNDATIONS):
        if label.lower().startswith(name):
            return index
    raise _refuse(path, f"foundation {label!r}", f"one of {', '.join(FOUNDATIONS)}", again)


def texts_of(rows: Sequence[Generation]) -> Texts:
    def values(name: str) -> np.ndarray:
        return np.array([np.nan if (value := getattr(row, name)) is None else value for row in rows], dtype=float)

    return Texts(
        [row.prompt_id for row in rows], values("nll"), values("tokens"), values("trait_llr"), values("distinct_3")
    )


def _rows(path: Path, row: type[Row], again: str) -> list[Row]:
    """Rows of a file that may rightly be empty."""
    return [] if path.is_file() and not path.stat().st_size else read_jsonl(path, row, made_by=again)


def _json(path: Path, kind: type[Row], again: str) -> Row:
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise _refuse(path, problem_of(error), f"a {kind.__name__} file, version 1", again) from None


def _refuse(path: Path, given: str, expected: str, again: str) -> SteerHealError:
    return SteerHealError(
        "a file of a round could not be used", given=f"{path}: {given}", expected=expected, next=again
    )
