"""Score the forced choice and the free generations of every condition of a round, or conditions of one model on plain files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.cache import of_answers, of_generations
from evals.checks import fits
from evals.commandline import score_options
from evals.conditions import (
    after_training,
    answered,
    before_training,
    by_weights,
    described,
    free_of,
    randoms,
    refuse_duplicate_conditions,
)
from evals.forced_choice import Read
from evals.generations import Generations
from evals.instrument import Renderer, load_instrument
from evals.internalised import states, student_vector
from evals.moralmaps import installed_revision
from gen.extract import contexts_of
from gen.prompts import Renderer as PromptRenderer
from gen.students import Student
from gen.students import student as student_of
from shared.chat import Chat, neutral_for
from shared.cli import entry, need, parse
from shared.commands import round_command
from shared.filter_record import NAME as FILTER_RECORD
from shared.filter_record import read_filter_record
from shared.instrument import FOUNDATIONS
from shared.models import Model
from shared.models import resolve as resolve_model
from shared.prompts import load_heldout
from shared.publish import atomic_folder, write_json
from shared.records import Completion, data_file, read_jsonl, write_jsonl
from shared.run import Run
from shared.schema import EvalConfig
from shared.sets import input_of, revisions_of
from shared.stage import Stage
from shared.tables import write_parquet
from shared.traits import load_trait
from shared.vectors import Vector, load_vector
from shared.vignettes import load_vignettes


def of_mode(config: EvalConfig, mode: str) -> EvalConfig:
    """The evaluation of a round, or the full one: all items unless eval.full_items says how many, cyclic orders."""
    every = config.full_items or 10**9
    return config if mode == "round" else config.model_copy(update={"items": every, "debias": "cyclic"})


def inputs_of(run: Run, number: int, settings: EvalConfig) -> dict[str, Path]:
    """The files and folders that a round's scores are made from, by label."""
    folder, before, after, vector = run.round(number), run.history(number - 1), run.history(number), run.config.vector
    assert after is not None
    return {
        "vector": folder / "vector.safetensors",
        "first vector": run.round(1) / "vector.safetensors",
        "filter": folder / FILTER_RECORD,
        "kept": folder / "kept.jsonl",
        "history": after,
        "trait": data_file(vector.trait, "trait.json"),
        **input_of("contexts", vector.contexts),
        **({"history before": before} if before else {}),
        **input_of("vignettes", settings.vignettes),
        **input_of("instrument", settings.instrument, ".json", installed=("moralmaps",)),
        **input_of("heldout", settings.heldout),
    }


def job_of(run: Run, number: int, mode: str, origin: Model, rebuild: bool = False) -> Stage:
    """The scoring of a round as a stage: its settings, inputs and output."""
    config, settings = run.config, of_mode(run.config.eval, mode)
    name, folder = ("score", "scores") if mode == "round" else ("score-full", "scores-full")
    return Stage(
        run,
        number,
        name,
        settings={
            "model": origin.fingerprint,
            "dtype": config.model.dtype,
            "student": config.model.student,
            **config.model.rendering,
            "eval": settings.model_dump(),
            "sampling": [config.sweep.temperature, config.sweep.top_p],
            "seed": config.seed,
        },
        inputs=inputs_of(run, number, settings),
        revisions={
            **revisions_of(vignettes=settings.vignettes, heldout=settings.heldout, contexts=config.vector.contexts),
            **({"instrument": installed_revision()} if settings.instrument == "moralmaps" else {}),
        },
        outputs=[run.round(number) / folder],
        rebuild=rebuild,
    )


def stage(run: Run, number: int, mode: str, rebuild: bool, cached: bool) -> None:
    config, folder = run.config, run.round(number)
    settings = of_mode(config.eval, mode)
    origin = resolve_model(config.model.name, config.model.revision)
    job = job_of(run, number, mode, origin, rebuild)
    (out,) = job.outputs
    before_path, after_path = run.history(number - 1), run.history(number)
    assert after_path is not None
    if job.done():
        return
    from gen.engine.engine import engine

    chat = Chat.load(origin.folder, config.model.chat_template_kwargs, run.day)
    trait = load_trait(config.vector.trait)
    vector, first = (load_vector(run.round(r) / "vector.safetensors") for r in (number, 1))
    vector.check(folder / "vector.safetensors", hidden=origin.hidden, depth=origin.depth)
    kept = read_jsonl(folder / "kept.jsonl", Completion, made_by=round_command(run.folder, number))
    judged_sweep = read_filter_record(folder / FILTER_RECORD, round_command(run.folder, number, rebuild=True))
    dose = float(np.mean([row.coefficient for row in kept]))
    vignettes = load_vignettes(settings.vignettes, settings.items)
    heldout = load_heldout(settings.heldout)
    read, free = (
        Read(settings.debias, settings.think, seed=config.seed, stop=settings.stop),
        free_of(settings.free_tokens),
    )
    renderer = Renderer(chat, load_instrument(settings.instrument))
    fits(renderer, vignettes, read, free, config.model.max_model_len, [None, trait.trait])

    def served(history: Path | None) -> Student:
        return student_of(origin, history, run.students, config.model.dtype, config.model.student)

    neutral = [
        chat.ids(context.turns, neutral_for(context.turns, trait.neutral))
        for context in contexts_of(config.vector, settings.contexts)
    ]
    student_layers = _student_layers(run, number, origin, neutral, vector, first) if neutral else []
    start = served(before_path)
    asked = before_training(
        number == 1 or mode == "full", dose, vector.metadata.get("positions", "all"), trait.trait, settings
    )
    groups = [
        *by_weights(asked, Student(origin.folder, fingerprint=origin.fingerprint), start),
        *after_training(number, after_path, settings.gates, run.students, served),
    ]
    refuse_duplicate_conditions(condition for group in groups for condition in group.conditions)
    vectors = {"trait": vector, **randoms(vector, settings.random_draws, config.seed + number)}
    scored: dict[str, list[dict[str, Any]]] = {}
    taken = 0
    judge = (origin.fingerprint, config.model.dtype)
    with engine(
        groups[0].student.folder,
        layers=sorted(vector.layers),
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        gpu_memory=config.model.gpu_memory,
        slots=len(vectors),
        seed=config.seed,
        students=[group.student for group in groups],
    ) as model:
        for label, loaded in vectors.items():
            model.load(label, loaded)
        prompted = PromptRenderer(chat, trait)
        texts = Generations(model, prompted, heldout, config)
        for group in groups:
            model.serve(group.student)
            weights = (group.student.fingerprint, config.model.dtype)
            answers = of_answers(weights, renderer, vignettes, read, free, vectors, fresh=rebuild)
            scored.update(
                answered(model, renderer, vignettes, group, read, chat.tokenizer, free, answers if cached else None)
            )
            written = of_generations(weights, judge, prompted, heldout, config, vectors, fresh=rebuild)
            texts.sample(group.label, group.conditions, written if cached else None)
            taken += answers.taken + written.taken
        model.serve(Student(origin.folder))
        judged = texts.judged()
    with atomic_folder(out) as temporary:
        scored = signed(scored, model=origin.fingerprint, dtype=config.model.dtype)
        for condition, rows in scored.items():
            write_jsonl(temporary / f"{condition}.jsonl", rows)
        write_parquet(temporary / "samples.parquet", [row for rows in scored.values() for row in rows])
        write_jsonl(temporary / "generations.jsonl", judged)
        write_json(
            temporary / "scores.json",
            {
                "version": 1,
                "round": number,
                "instrument": settings.instrument,
                "vignettes": settings.vignettes,
                "debias": settings.debias,
                "think": settings.think,
                "items": [vignette.id for vignette in vignettes],
                "foundations": list(FOUNDATIONS),
                "conditions": [described(condition) for group in groups for condition in group.conditions],
                "sweep": judged_sweep.by_coefficient,
                "student": student_layers,
            },
        )
    job.finish(
        origin.identity,
        items=len(vignettes),
        conditions=len(scored),
        generations=len(judged),
        tokens=texts.tokens,
        taken_from_cache=taken,
        exact=not taken,
    )


def signed(scored: dict[str, list[dict[str, Any]]], **made: str) -> dict[str, list[dict[str, Any]]]:
    """Rows by condition, each with its condition's name and what it was made with, so that no file can stand for another."""
    return {name: [{"name": name, **row, **made} for row in rows] for name, rows in scored.items()}


def _student_layers(
    run: Run, number: int, origin: Model, prompts: Sequence[Sequence[int]], vector: Vector, first: Vector
) -> list[dict[str, Any]]:
    """The student's own shift over contexts under the neutral prompt, by the layers of the vector."""
    config = run.config

    def at(history: Path | None) -> dict[int, np.ndarray]:
        return states(origin, history, sorted(vector.layers), prompts, config.vector.batch_size)

    base = at(None)
    before = base if number == 1 else at(run.history(number - 1))
    return student_vector(base, before, at(run.history(number)), vector, first)


def main() -> None:
    options = score_options()
    arguments, run = parse(options)
    if run:
        stage(run, arguments.round, arguments.eval, arguments.rebuild, arguments.cache)
        return
    need(options, arguments, "model", "out", *(["coefficient"] if arguments.vector else []))
    from evals.alone import score

    score(arguments)


if __name__ == "__main__":
    entry(main)
