"""Sample a sweep of coefficients in windows of one mixed batch each, every completion scored under the original weights.

`stage` and `main` choose the prompts (gen/prompts.py) and make the job (gen/plan.py). The steps of `sweep`, in the order they happen,
each with the files that own it:

1. prompts   all of them rendered and checked, before anything starts (gen/survey.py)
2. crew      who samples: this process or workers (gen/crews.py); the folder of the windows that an earlier try made (gen/windows.py)
3. dose      where it is searched for: by survival (gen/walk.py) or at a KL (gen/iso_kl.py)
4. plan      every row to make, in windows (gen/plan.py), and which of them are recorded for the trainer (gen/recording.py)
5. windows   sampled and scored (gen/sampler.py), kept in the folder, shown (gen/board.py), until enough rows are kept (gen/until.py)
6. rows      of all windows, published in the order of the plan (gen/windows.py, gen/shards.py)
7. tables    the dose, and what the filter would keep (gen/filter.py); the filter itself is the next stage
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from gen.ahead import check_settings, look_ahead
from gen.board import Board
from gen.commandline import settings_of_sweep, sweep_options
from gen.crews import employ
from gen.filter import print_filtered, unsteered_in
from gen.iso_kl import iso_kl_of, print_iso_kl
from gen.plan import Job, check_coefficients, determining, fingerprint, judged, plan, windows
from gen.pool import Item
from gen.prompts import open_round
from gen.recording import is_recorded
from gen.rules import Yardstick
from gen.shards import store_of
from gen.students import ServedStudent, served_student
from gen.survey import RendererRecipe, same_prompts, survey
from gen.until import until_of
from gen.walk import print_walk, walked_dose
from gen.windows import Windows
from shared.cli import configured, entry, need, parse_arguments
from shared.commands import round_command
from shared.console import console, progress, say
from shared.locks import hold
from shared.models import resolve_model
from shared.outputs import guard
from shared.prompts import open_prompts
from shared.records import data_file
from shared.run import Run
from shared.sets import input_of, revisions_of
from shared.stage import Stage
from shared.traits import load_trait
from shared.vectors import load_vector


def sweep(job: Job, *, rebuild: bool = False) -> None:
    """Sample the rows of a job and write them to job.out. An interrupted sweep continues after its finished windows.

    Memory holds the current window, sums over earlier rows, and a few floats for each unsteered row.
    """
    config, samples = job.config, job.config.sweep.samples
    store = store_of(job.out)

    # 1. Prompts
    check_coefficients(job.coefficients)
    day = job.day or (None if rebuild else store.day())
    recipe = RendererRecipe(job.origin.folder, config.model.chat_template_kwargs, day, config.vector.trait)
    renderer = recipe.renderer()
    chat = renderer.chat
    with console.status("reading the prompts"):
        prompts = survey(
            job.prompts, renderer, config.sweep.max_tokens, config.model.max_model_len, replace(recipe, day=chat.day)
        )
        yardstick = Yardstick(job.frozen() if job.frozen else ())
    until = until_of(job, store, yardstick)

    # 2. Crew
    total = prompts.count * (len(job.coefficients) + job.searches) * samples
    count = math.ceil(total / config.sweep.window)
    with ExitStack() as stack:
        crew = stack.enter_context(employ(job, renderer))
        determined_by = fingerprint(job, chat, prompts.digest, yardstick.digest(), crew.made_in())
        store.open(determined_by, rebuild=rebuild, count=count)
        finished = sum(index in store for index in range(count))
        console.print(
            f"{total} rows of {prompts.count} prompts, the longest of {prompts.longest} tokens"
            + (f"; resuming: {finished} of {count} windows are finished" if finished else "")
        )
        # 3. Dose
        # iso-KL's network is gone before an engine takes its memory; the walk asks the engine
        iso_kl = iso_kl_of(job, store, renderer, prompts.count) if job.searches and not job.walks else None
        if finished < count:
            crew.begin()
        walk = walked_dose(job, store, crew, prompts.count, yardstick) if job.walks else None
        coefficients = [*job.coefficients, *[dose.coefficient for dose in (walk, iso_kl) if dose]]

        # 4. Plan
        records = is_recorded(prompts.count, coefficients, samples, prompted=job.prompted)
        rows = plan(same_prompts(job.prompts, prompts), coefficients, samples, job.seed, prompted=job.prompted)
        planned = windows((replace(row, recorded=records(row)) for row in rows), config.sweep.window)

        # 5. Windows
        bar = stack.enter_context(progress("rate", "kept"))
        board = Board(bar, total, yardstick, config, grows=job.frozen is None)
        keys: dict[int, list[str]] = {}  # of the windows at work

        def count_window(index: int, names: list[str], label: str = "") -> None:
            store.show(index, names, board, label)
            # it counts in the order of the plan: a window ahead of others is read again later, not held in memory
            if until:
                until.add(index)

        def missing() -> Iterator[Item]:
            """The windows that are to make. Those that are there count as made."""
            for index, window in enumerate(planned):
                if until and until.last is not None:
                    continue  # to the end of the prompts, which are then compared with those of the survey
                names = [row.key for row in window]
                if index in store:
                    count_window(index, names)
                else:
                    keys[index] = names
                    yield index, window

        for index, window_rows in crew.make(missing(), board.advance):
            store.write(index, window_rows)
            count_window(index, keys.pop(index), f"window {index + 1} of {count}")

    # 6. Rows
    published = count
    if until:
        published = count if until.last is None else until.last + 1
        console.print(until.sentence(count))
    store.publish(published)

    # 7. Tables
    if walk:
        print_walk(walk, config.sweep.survival, config.sweep.dose_ceiling)
    if iso_kl:
        print_iso_kl(iso_kl, job.vector, config.sweep.dose_kl, config.sweep.dose_ceiling)
    if store.is_read_again:
        print_filtered(job, until.yardstick if until else yardstick)
    rows_made, tokens = until.made if until else (total, board.tokens)
    counts = {
        "resumed": finished / count,
        "rows": rows_made,
        "tokens": tokens,
        "prompts": prompts.count,
        "prompts_digest": prompts.digest,
        "workers": crew.about,
    }
    if until:
        counts["until_kept"] = {"windows": published, "of": count, "passed": until.kept}
    searched = {name: dose.as_dict() for name, dose in (("walk", walk), ("iso_kl", iso_kl)) if dose}
    job.finish({**counts, **searched})


def stage(run: Run, number: int, rebuild: bool) -> None:
    config, folder = run.config, run.round(number)
    origin = resolve_model(config.model.name, config.model.revision)
    history = run.history(number - 1)
    out, first = folder / "sweep.jsonl", run.round(1) / "sweep.jsonl"
    searches, filtered = config.searches, judged(config)
    job = Stage(
        run,
        number,
        "sweep",
        settings={
            "model": origin.fingerprint,
            "dtype": config.model.dtype,
            "student": config.model.student,
            **config.model.rendering,
            "sweep": determining(config),
            "seed": config.seed,
            **({"filter": config.filter.model_dump()} if filtered else {}),
            **({"source": "prompted"} if config.filter.source == "prompted" else {}),
        },
        inputs={
            "vector": folder / "vector.safetensors",
            **input_of("dilemmas", config.sweep.dilemmas),
            **(input_of("mundane", config.sweep.mundane) if config.sweep.n_mundane else {}),
            "trait": data_file(config.vector.trait, "trait.json"),
            **({"history": history} if history else {}),
            **({"unsteered": first} if filtered and number > 1 else {}),
        },
        revisions=revisions_of(
            dilemmas=config.sweep.dilemmas, **({"mundane": config.sweep.mundane} if config.sweep.n_mundane else {})
        ),
        outputs=[out],
        rebuild=rebuild,
        clean=Windows(out).discard,  # last: an interruption before loses no row
    )
    if job.done():
        return
    vector = load_vector(folder / "vector.safetensors")
    look_ahead(config, origin, vector, folder / "vector.safetensors", run.day)
    unsteered = [0.0] if number == 1 else []  # unsteered completions are round 1's, frozen
    with open_round(config.sweep) as prompts:
        sweep(
            Job(
                out=out,
                prompts=prompts,
                coefficients=unsteered if searches else unsteered + sorted(config.sweep.coefficients),
                seed=f"{config.seed}/{number}",
                student=served_student(origin, history, run.students, config.model.dtype, config.model.student),
                origin=origin,
                vector=vector,
                vector_file=folder / "vector.safetensors",
                config=config,
                finish=lambda counts: job.finish(origin.identity, **counts),
                frozen=(lambda: unsteered_in(first, round_command(run.folder, 1))) if number > 1 else None,
                day=run.day,
                history=history,
            ),
            rebuild=rebuild,
        )


def main() -> None:
    options = sweep_options()
    arguments, run = parse_arguments(options)
    if run:
        stage(run, arguments.round, arguments.rebuild)
        return
    need(options, arguments, "model", "vector", "prompts", "out")
    out = arguments.outputs[0]
    if not arguments.rebuild:
        store_of(out).refuse_finished()
    config = configured(arguments, *settings_of_sweep(arguments))
    searches = config.searches
    if not searches:
        need(options, arguments, "coefficients")
    elif arguments.coefficients:
        way = "the walk" if config.walks else "iso-KL"
        console.print(f"[yellow]--coefficients are those of a grid: {way} finds its own, at most sweep.dose_ceiling[/]")
    model = resolve_model(arguments.model, config.model.revision)
    guard(arguments.outputs, [model.place])
    vector = load_vector(arguments.vector, arguments.model)
    coefficients = [0.0] if searches else sorted(set(arguments.coefficients))
    config = check_settings(config, model, vector, arguments.vector, coefficients)

    def finish(counts: dict[str, Any]) -> None:
        say(f"wrote {counts['rows']} rows to {out}")
        store_of(out).discard()

    load_trait(config.vector.trait)
    with open_prompts(arguments.prompts) as prompts:
        # a bad row is refused before a lock makes the output's folder, and before a tokenizer is loaded
        for _ in prompts:
            pass
        hold(out)
        sweep(
            Job(
                out=out,
                prompts=prompts,
                coefficients=coefficients,
                seed=str(config.seed),
                student=ServedStudent(model.folder, fingerprint=model.fingerprint),
                origin=model,
                vector=vector,
                vector_file=arguments.vector,
                config=config,
                finish=finish,
                day=config.model.day,
            ),
            rebuild=arguments.rebuild,
        )


if __name__ == "__main__":
    entry(main)
