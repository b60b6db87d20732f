"""Score every condition of a round by the measures of its configuration, or conditions of one model on plain files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evals.commandline import score_options
from evals.conditions import (
    Weights,
    after_training,
    before_training,
    by_weights,
    condition_line,
    randoms,
    refuse_duplicate_conditions,
)
from evals.decoys import decoy_vectors, personas
from evals.measures.measure import Scoring, Session
from evals.measures.registry import ALWAYS, measures_of
from evals.student_vector import student_vectors
from gen.ahead import refuse_overflow
from gen.students import ServedStudent, adapter_room, served_student
from shared.chat import Chat
from shared.cli import entry, need, parse_arguments
from shared.commands import round_command
from shared.filter_record import FILTER_RECORD, read_filter_record
from shared.models import Model, resolve_model
from shared.publish import atomic_folder, write_json
from shared.records import Completion, data_file, read_jsonl
from shared.run import Run
from shared.schema import Config, EvalConfig
from shared.stage import Stage
from shared.traits import load_trait
from shared.vectors import load_vector


def of_mode(config: EvalConfig, mode: str) -> EvalConfig:
    """The evaluation of a round, or the full one: all items unless eval.full_items says how many, cyclic orders."""
    every = config.full_items or 10**9
    return config if mode == "round" else config.model_copy(update={"items": every, "debias": "cyclic"})


def inputs_of(run: Run, number: int, config: Config) -> dict[str, Path]:
    """The files and folders that a round's scores are made from, by label."""
    folder, before, after = run.round(number), run.history(number - 1), run.history(number)
    assert after is not None
    return {
        "vector": folder / "vector.safetensors",
        "first vector": run.round(1) / "vector.safetensors",
        "filter": folder / FILTER_RECORD,
        "kept": folder / "kept.jsonl",
        "history": after,
        "trait" if config.eval.trait is None else "eval trait": data_file(config.scored_trait, "trait.json"),
        **({"history before": before} if before else {}),
        **({"vector trait": data_file(config.vector.trait, "trait.json")} if config.eval.decoy_vectors else {}),
        **{label: path for m in measures_of(config.eval) for label, path in m.inputs(run, number, config).items()},
    }


def job_of(run: Run, number: int, mode: str, origin: Model, rebuild: bool = False) -> Stage:
    """The scoring of a round as a stage: its settings, inputs and output.

    Args:
        run: of the round.
        number: of the round.
        mode: EVAL, `round` or `full`.
        origin: the original model.
        rebuild: make it again where its settings or inputs changed.
    """
    config = run.config.model_copy(update={"eval": of_mode(run.config.eval, mode)})
    name, folder = ("score", "scores") if mode == "round" else ("score-full", "scores-full")
    revisions = [measure.revisions(config) for measure in measures_of(config.eval)]
    return Stage(
        run,
        number,
        name,
        settings={
            "model": origin.fingerprint,
            "dtype": config.model.dtype,
            "student": config.model.student,
            **config.model.rendering,
            "eval": config.eval.determining(),
            **({"decoys": [config.vector.n_contexts, config.vector.contrast]} if config.eval.decoy_vectors else {}),
            "sampling": [config.sweep.temperature, config.sweep.top_p],
            "seed": config.seed,
        },
        inputs=inputs_of(run, number, config),
        revisions={label: revision for listed in revisions for label, revision in listed.items()},
        outputs=[run.round(number) / folder],
        rebuild=rebuild,
    )


def stage(run: Run, number: int, mode: str, rebuild: bool, cached: bool) -> None:
    """Score every condition of a round by every measure of the configuration."""
    origin = resolve_model(run.config.model.name, run.config.model.revision)
    job = job_of(run, number, mode, origin, rebuild)
    (out,) = job.outputs
    if job.done():
        return
    scoring = scoring_of(run, number, mode, origin, rebuild, cached)
    measures = measures_of(scoring.config.eval)
    sessions = [measure.begin(scoring) for measure in measures]
    add_vectors(scoring)
    groups = groups_of(scoring, mode)
    for session in sessions:
        session.before_engine(groups)
    ask_engine(scoring, sessions, groups)
    conditions = [condition for group in groups for condition in group.conditions]
    with atomic_folder(out) as temporary:
        fields = {measure.name: session.write(temporary) for measure, session in zip(measures, sessions, strict=True)}
        added = {name: of_one for name, of_one in fields.items() if name not in ALWAYS and of_one}
        write_json(
            temporary / "scores.json",
            {
                "version": 1,
                "round": number,
                "conditions": [condition_line(condition) for condition in conditions],
                "sweep": read_filter_record(
                    run.round(number) / FILTER_RECORD, round_command(run.folder, number, rebuild=True)
                ).by_coefficient,
                **{key: value for name in ALWAYS for key, value in fields[name].items()},
                **({"measures": added} if added else {}),
            },
        )
    from_cache = sum(session.taken for session in sessions)
    job.finish(
        origin.identity,
        conditions=len(conditions),
        **{name: count for session in sessions for name, count in session.counts.items()},
        taken_from_cache=from_cache,
        exact=not from_cache,
    )


def scoring_of(run: Run, number: int, mode: str, origin: Model, fresh: bool, cached: bool) -> Scoring:
    """The inputs that all measures of a round's scoring have in common.

    Args:
        run: of the round.
        number: of the round.
        mode: EVAL, `round` or `full`.
        origin: the original model.
        fresh: take nothing from the cache.
        cached: keep rows in the cache.
    """
    config = run.config.model_copy(update={"eval": of_mode(run.config.eval, mode)})
    vector, first = (load_vector(run.round(r) / "vector.safetensors") for r in (number, 1))
    if config.eval.decoy_vectors:
        personas(config)
    vector.check(run.round(number) / "vector.safetensors", hidden=origin.hidden, depth=origin.depth)
    return Scoring(
        run,
        config,
        number,
        origin,
        Chat.load(origin.folder, config.model.chat_template_kwargs, run.day),
        load_trait(config.scored_trait),
        {"trait": vector, **randoms(vector, config.eval.random_draws, config.seed + number)},
        first,
        cached,
        fresh,
    )


def add_vectors(scoring: Scoring) -> None:
    """Put the vectors of decoys, and the student's own, among those of a scoring, where eval.decoy_vectors and eval.student_vector ask for them."""
    config, before = scoring.config, scoring.run.history(scoring.number - 1)
    if config.eval.decoy_vectors:
        scoring.vectors.update(decoy_vectors(config, scoring.origin, before, scoring.chat, scoring.vectors["trait"]))
    if config.eval.student_vector:
        scoring.vectors.update(student_vectors(scoring))


def groups_of(scoring: Scoring, mode: str) -> list[Weights]:
    """The conditions of a round, by the weights that they share."""
    run, number, origin, config = scoring.run, scoring.number, scoring.origin, scoring.config
    kept = read_jsonl(run.round(number) / "kept.jsonl", Completion, made_by=round_command(run.folder, number))
    dose = float(np.mean([row.coefficient for row in kept]))
    before, after = run.history(number - 1), run.history(number)
    assert after is not None

    def served(history: Path | None) -> ServedStudent:
        return served_student(origin, history, run.students, config.model.dtype, config.model.student)

    positions = scoring.vectors["trait"].metadata.get("positions", "all")
    conditions = before_training(
        number == 1 or mode == "full",
        dose,
        positions,
        scoring.trait,
        config.eval,
        sum(name.startswith("decoy-") for name in scoring.vectors),
    )
    groups = [
        *by_weights(conditions, ServedStudent(origin.folder, fingerprint=origin.fingerprint), served(before), before),
        *after_training(
            number, after, config.eval.gates, run.students, served, positions if config.eval.student_vector else None
        ),
    ]
    for condition in (condition for group in groups for condition in group.conditions if condition.vector):
        steered = scoring.vectors[str(condition.vector)]
        refuse_overflow([steered], [(condition.name, condition.coefficient)], origin, config.model.dtype)
    refuse_duplicate_conditions(condition for group in groups for condition in group.conditions)
    return groups


def ask_engine(scoring: Scoring, sessions: Sequence[Session], groups: Sequence[Weights]) -> None:
    """Start an engine, put every session's requests to it group by group, and last those to the original model.

    Args:
        scoring: what the measures have in common.
        sessions: one a measure.
        groups: weights with their conditions.
    """
    from gen.engine.engine import engine

    config, students = scoring.config, [group.student for group in groups]
    with engine(
        groups[0].student.folder,
        layers=sorted(scoring.vectors["trait"].layers),
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        gpu_memory=config.model.gpu_memory,
        tensor_parallel=config.model.tensor_parallel,
        slots=len(scoring.vectors),
        seed=config.seed,
        students=students,
        room=adapter_room(config, scoring.origin, students),
        window=config.sweep.window,
    ) as model:
        for label, vector in scoring.vectors.items():
            model.load(label, vector)
        for group in groups:
            model.serve(group.student)
            for session in sessions:
                session.ask(model, group)
        model.serve(ServedStudent(scoring.origin.folder))
        for session in sessions:
            session.judge(model)


def main() -> None:
    options = score_options()
    arguments, run = parse_arguments(options)
    if run:
        stage(run, arguments.round, arguments.eval, arguments.rebuild, arguments.cache)
        return
    need(options, arguments, "model", "out", *(["coefficient"] if arguments.vector else []))
    from evals.alone import score_files

    score_files(arguments)


if __name__ == "__main__":
    entry(main)
