"""Scored rounds of a run, read back from their files and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from evals.agree import counted, one_thing, recorded
from evals.answers import answers as answers_of
from evals.answers import refuse
from evals.rows import ONCE, Generation, Heldout, LogRow, ScoreRow, Scores, TokenRow, TrainingStep
from evals.statistics import Answers
from evals.texts import Texts
from shared.commands import round_command
from shared.errors import SteerHealError
from shared.filter_record import NAME, read_filter_record
from shared.instrument import FOUNDATIONS
from shared.lines import problem_of
from shared.records import Completion, Manifest, Record, Training, read_jsonl, read_record
from shared.run import STAGES, Run

STEP = {"round": "score", "full": "score-full"}
FOLDER = {"round": "scores", "full": "scores-full"}
Row = TypeVar("Row", bound=Record)
# What a stage reads of its own round: input -> the stage that makes it, and the file.
READ = {
    "sweep": {"vector": ("extract", "vector.safetensors")},
    "filter": {"sweep": ("sweep", "sweep.jsonl")},
    "heal": {"kept": ("filter", "kept.jsonl")},
    **{
        step: {
            "vector": ("extract", "vector.safetensors"),
            "filter": ("filter", NAME),
            "kept": ("filter", "kept.jsonl"),
            "history": ("heal", "history"),
        }
        for step in STEP.values()
    },
}


@dataclass(frozen=True)
class Round:
    """A scored round. answers and generations by condition name; manifests by stage, those there are."""

    number: int
    scores: Scores
    answers: dict[str, Answers]
    generations: dict[str, list[Generation]]
    kept: list[Completion]
    rejected: list[Completion]
    steps: list[TrainingStep]
    heldout: list[Heldout]
    training: Training
    tokens: list[TokenRow]
    manifests: dict[str, Manifest]
    limits: dict[str, float]  # of filter.json; empty for a run of an earlier version, which has none

    @property
    def healed(self) -> str:
        """The condition of the whole student, at no dialled gate."""
        return next(line.name for line in self.scores.conditions if line.stage == "healed" and line.headline)


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
            next=round_command(run.folder, mode="full", target="report")
            if healed
            else round_command(run.folder, missing[0]),
        )
    first, *later = (read_round(run, number, mode) for number in range(1, last + 1))
    rounds = [first, *map(_without_base, later)]
    for before, after in pairwise(rounds):
        built = before.manifests[STEP[mode]].inputs.get("history")
        for stage, label in [
            ("extract", "history"),
            ("sweep", "history"),
            ("heal", "history"),
            (STEP[mode], "history before"),
        ]:
            if (used := after.manifests[stage].inputs.get(label)) != built:
                raise SteerHealError(
                    f"{stage} of round {after.number} was made on another round {before.number}",
                    given=f"history {used} against {built}",
                    expected="rounds that build on each other",
                    next=round_command(run.folder, after.number, rebuild=True),
                )
    one_thing(run, rounds, STEP[mode])
    return rounds


def _without_base(round_: Round) -> Round:
    """A later round without the original model's rows, which EVAL=full scores again in each so that one alone can be read."""
    lines = [line for line in round_.scores.conditions if line.stage not in ONCE]
    return replace(round_, scores=round_.scores.model_copy(update={"conditions": lines}))


def read_round(run: Run, number: int, mode: str) -> Round:
    again = round_command(run.folder, number, rebuild=True)
    folder = run.round(number) / FOLDER[mode]
    manifests = {
        stage: run.verify(number, stage)
        for stage in (*STAGES, STEP[mode])
        if stage != STEP["round"] or mode == "round" or run.manifest(number, stage).is_file()
    }
    _one_chain(run, number, manifests, STEP[mode])
    recorded(run, number, manifests, STEP[mode])
    name = folder.relative_to(run.folder).as_posix()
    if name not in manifests[STEP[mode]].outputs:
        raise SteerHealError(
            "scores are not those of their manifest",
            given=folder,
            expected=f"{name} among what the stage records",
            next=again,
        )
    scores = _of(folder / "scores.json", Scores, again)
    answers = {line.name: _answers(scores, folder / f"{line.name}.jsonl", again) for line in scores.conditions}
    generations: dict[str, list[Generation]] = {line.name: [] for line in scores.conditions}
    for row in read_jsonl(folder / "generations.jsonl", Generation, made_by=again):
        if row.name not in generations:
            raise refuse(
                folder / "generations.jsonl", f"condition {row.name}", f"one of {', '.join(generations)}", again
            )
        generations[row.name].append(row)
    found = Round(
        number,
        scores,
        answers,
        generations,
        read_jsonl(run.round(number) / "kept.jsonl", Completion, made_by=again, may_be_empty=True),
        read_jsonl(run.round(number) / "rejected.jsonl", Completion, made_by=again, may_be_empty=True),
        *_log(run.round(number) / "train.jsonl", again),
        _of(run.round(number) / "training.json", Training, again),
        read_jsonl(run.round(number) / "kl_tokens.jsonl", TokenRow, made_by=again),
        manifests,
        _limits(run, number, manifests["filter"], again),
    )
    counted(run, found, STEP[mode])
    return found


def _limits(run: Run, number: int, manifest: Manifest, again: str) -> dict[str, float]:
    path = run.round(number) / NAME
    if path.relative_to(run.folder).as_posix() not in manifest.outputs:
        return {}
    return read_filter_record(path, again).limits


def _one_chain(run: Run, number: int, manifests: dict[str, Manifest], step: str) -> None:
    """Raise SteerHealError for a stage up to this step of scoring that was made from other files than the stages before it record."""
    for stage in (*STAGES[:-1], step):
        manifest = manifests[stage]
        for label, (maker, name) in READ.get(stage, {}).items():
            made = manifests[maker].outputs.get((run.round(number) / name).relative_to(run.folder).as_posix())
            if made is None and label == "filter" and label not in manifest.inputs:
                continue  # the filter and the scores of an earlier version
            if made is None or manifest.inputs.get(label) != made:
                raise SteerHealError(
                    f"round {number} {stage} was made from another {name}",
                    given=f"{(manifest.inputs.get(label) or 'none')[:12]} against {(made or 'none')[:12]} of {maker}",
                    expected="stages that build on each other",
                    next=round_command(run.folder, number, rebuild=True),
                )


def _log(path: Path, again: str) -> tuple[list[TrainingStep], list[Heldout]]:
    """Rows of logging steps and of held-out cross-entropy."""
    rows = read_jsonl(path, LogRow, made_by=again)
    try:
        steps = [TrainingStep.model_validate(row.model_dump()) for row in rows if row.heldout_ce is None]
        return steps, [Heldout.model_validate(row.model_dump()) for row in rows if row.heldout_ce is not None]
    except ValidationError as error:
        raise refuse(path, problem_of(error), "the log of a training", again) from None


def _answers(scores: Scores, path: Path, again: str) -> Answers:
    rows = read_jsonl(path, ScoreRow, made_by=again)
    if [row.id for row in rows] != scores.items or tuple(scores.foundations) != FOUNDATIONS:
        raise refuse(path, f"{len(rows)} items", f"the {len(scores.items)} items of scores.json, in its order", again)
    if strange := next((row.name for row in rows if row.name not in (None, path.stem)), None):
        raise refuse(path, f"rows of {strange}", f"those of {path.stem}", again)
    found = answers_of(rows, path, again)
    if (found.setting.debias, found.setting.think) != (scores.debias, scores.think):
        said = f"{found.setting.debias}, {found.setting.think} think tokens"
        raise refuse(path, said, f"{scores.debias}, {scores.think} as scores.json says", again)
    return found


def texts_of(rows: Sequence[Generation]) -> Texts:
    def values(name: str) -> np.ndarray:
        return np.array([np.nan if (value := getattr(row, name)) is None else value for row in rows], dtype=float)

    return Texts(
        [row.prompt_id for row in rows],
        *[
            values(name)
            for name in ("nll", "tokens", "trait_llr", "distinct_1", "distinct_2", "distinct_3", "loop_share")
        ],
    )


def _of(path: Path, kind: type[Row], again: str) -> Row:
    return read_record(path, kind, what="a file of a round could not be read", next=again)
