"""Scored rounds of a run, read back from their files and checked."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from evals.agree import refuse_mixed_rounds, refuse_other_counts, refuse_unrecorded
from evals.measures.forced_choice.answers import refuse_answers
from evals.measures.registry import measures_of
from evals.round import Round
from evals.rows import ONCE, Heldout, LogRow, Scores, TokenRow, TrainingStep
from shared.commands import round_command, stage_command
from shared.errors import SteerHealError
from shared.filter_record import FILTER_RECORD, FilterRecord, read_filter_record
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
            "filter": ("filter", FILTER_RECORD),
            "kept": ("filter", "kept.jsonl"),
            "history": ("heal", "history"),
        }
        for step in STEP.values()
    },
}


def scored_rounds(run: Run, mode: str, up_to: int | None = None) -> list[Round]:
    """Rounds 1 to the last scored one, or to up_to. Raises SteerHealError for a missing, edited or outdated round."""
    numbers = run.rounds(STEP[mode])
    last = up_to or max(numbers, default=1)
    if missing := [number for number in range(1, last + 1) if number not in numbers]:
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
        history = before.manifests[STEP[mode]].inputs.get("history")
        for stage, label in [
            ("extract", "history"),
            ("sweep", "history"),
            ("heal", "history"),
            (STEP[mode], "history before"),
        ]:
            if (used := after.manifests[stage].inputs.get(label)) != history:
                raise SteerHealError(
                    f"{stage} of round {after.number} was made on another round {before.number}",
                    given=f"history {used} against {history}",
                    expected="rounds that build on each other",
                    next=stage_command(run.folder, after.number, stage, rebuild=True),
                )
    refuse_mixed_rounds(run, rounds, STEP[mode])
    return rounds


def _without_base(round_: Round) -> Round:
    """A later round without the original model's rows, which EVAL=full scores again in each so that one alone can be read."""
    lines = [line for line in round_.scores.conditions if line.stage not in ONCE]
    return replace(round_, scores=round_.scores.model_copy(update={"conditions": lines}))


def read_round(run: Run, number: int, mode: str) -> Round:
    """The files of a scored round. mode: EVAL, `round` or `full`. Raises SteerHealError for a missing, edited or outdated one."""
    again = stage_command(run.folder, number, STEP[mode], rebuild=True)
    folder = run.round(number) / FOLDER[mode]
    manifests = {
        stage: run.verify(number, stage)
        for stage in (*STAGES, STEP[mode])
        if stage != STEP["round"] or mode == "round" or run.manifest(number, stage).is_file()
    }
    _one_chain(run, number, manifests, STEP[mode])
    refuse_unrecorded(run, number, manifests, STEP[mode])
    name = folder.relative_to(run.folder).as_posix()
    if name not in manifests[STEP[mode]].outputs:
        raise SteerHealError(
            "scores are not those of their manifest",
            given=folder,
            expected=f"{name} among what the stage records",
            next=again,
        )
    scores = _of(folder / "scores.json", Scores, again)
    measures = measures_of(run.config.eval)
    data = {measure.name: measure.read(folder, scores, again) for measure in measures}
    scored = Round(
        number,
        scores,
        measures,
        data,
        read_jsonl(run.round(number) / "kept.jsonl", Completion, made_by=again, may_be_empty=True),
        read_jsonl(run.round(number) / "rejected.jsonl", Completion, made_by=again, may_be_empty=True),
        *_log(run.round(number) / "train.jsonl", again),
        _of(run.round(number) / "training.json", Training, again),
        read_jsonl(run.round(number) / "kl_tokens.jsonl", TokenRow, made_by=again),
        manifests,
        _filter_record(run, number, manifests["filter"], again),
    )
    refuse_other_counts(run, scored, STEP[mode])
    return scored


def _filter_record(run: Run, number: int, manifest: Manifest, again: str) -> FilterRecord | None:
    """What the filter of a round recorded; None for one of an earlier version."""
    path = run.round(number) / FILTER_RECORD
    if path.relative_to(run.folder).as_posix() not in manifest.outputs:
        return None
    return read_filter_record(path, again)


def _one_chain(run: Run, number: int, manifests: dict[str, Manifest], step: str) -> None:
    """Raise SteerHealError for a stage up to this step of scoring that was made from other files than the stages before it record."""
    for stage in (*STAGES[:-1], step):
        manifest = manifests[stage]
        for label, (maker, name) in READ.get(stage, {}).items():
            digest_made = manifests[maker].outputs.get((run.round(number) / name).relative_to(run.folder).as_posix())
            if digest_made is None and label == "filter" and label not in manifest.inputs:
                continue  # the filter and the scores of an earlier version
            if digest_made is None or manifest.inputs.get(label) != digest_made:
                raise SteerHealError(
                    f"round {number} {stage} was made from another {name}",
                    given=f"{(manifest.inputs.get(label) or 'none')[:12]} against {(digest_made or 'none')[:12]} of {maker}",
                    expected="stages that build on each other",
                    next=stage_command(run.folder, number, stage, rebuild=True),
                )


def _log(path: Path, again: str) -> tuple[list[TrainingStep], list[Heldout]]:
    """Rows of logging steps and of held-out cross-entropy."""
    rows = read_jsonl(path, LogRow, made_by=again)
    try:
        steps = [TrainingStep.model_validate(row.model_dump()) for row in rows if row.heldout_ce is None]
        return steps, [Heldout.model_validate(row.model_dump()) for row in rows if row.heldout_ce is not None]
    except ValidationError as error:
        raise refuse_answers(path, problem_of(error), "the log of a training", again) from None


def _of(path: Path, kind: type[Row], again: str) -> Row:
    return read_record(path, kind, what="a file of a round could not be read", next=again)
