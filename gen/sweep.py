"""Sample a sweep of coefficients in windows of one mixed batch each, every completion scored under the original weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from gen import filter as keep
from gen import walk as walking
from gen.ahead import look_ahead, refuse_overflow
from gen.board import Board
from gen.commandline import sweep_options
from gen.crews import Crew, employ
from gen.job import Job, determining, fingerprint
from gen.plan import check_coefficients, plan, spread, windows
from gen.pool import Item
from gen.prompts import Renderer, Survey, open_round, survey, unchanged
from gen.recording import recorded
from gen.rules import Yardstick
from gen.students import Student
from gen.students import student as student_of
from gen.windows import Windows
from shared.chat import Chat
from shared.cli import configured, entry, need, parse
from shared.commands import round_command
from shared.console import console, progress, say
from shared.context import fitted
from shared.errors import SteerHealError
from shared.lines import problem_of
from shared.locks import hold
from shared.models import resolve as resolve_model
from shared.outputs import guard
from shared.prompts import open_prompts
from shared.records import Completion, data_file, iterate_jsonl
from shared.run import Run
from shared.sets import input_of, revisions_of
from shared.stage import Stage
from shared.traits import load_trait
from shared.vectors import load_vector


def sweep(job: Job, *, rebuild: bool = False) -> None:
    """Make the rows of a job, going on after the windows that an interrupted one left.

    Only the window at hand is in memory: of the rows before it their sums, and four floats of each unsteered one.
    """
    config, samples = job.config, job.config.sweep.samples
    check_coefficients(job.coefficients)
    trait = load_trait(config.vector.trait)
    done = Windows(job.out)
    day = job.day or (None if rebuild else done.day())
    renderer = Renderer(Chat.load(job.origin.folder, config.model.chat_template_kwargs, day), trait)
    with console.status("reading the prompts"):
        found = survey(job.prompts, renderer, config.sweep.max_tokens, config.model.max_model_len)
        yardstick = Yardstick(job.frozen() if job.frozen else ())
    total = found.count * (len(job.coefficients) + job.walks) * samples
    count = math.ceil(total / config.sweep.window)
    with ExitStack() as stack:
        crew = stack.enter_context(employ(job, renderer))
        done.open(fingerprint(job, renderer.chat, found, yardstick, crew.made_in()), rebuild=rebuild, count=count)
        whole = sum(index in done for index in range(count))
        console.print(
            f"{total} rows of {found.count} prompts, the longest of {found.longest} tokens"
            + (f"; resuming: {whole} of {count} windows are whole" if whole else "")
        )
        if whole < count:
            crew.begin()
        walked = _walked(job, done, crew, found, yardstick) if job.walks else None
        coefficients = [*job.coefficients, *([walked.coefficient] if walked else [])]
        bar = stack.enter_context(progress("rate", "kept"))
        board = Board(bar, total, yardstick, config, grows=job.frozen is None)
        keys: dict[int, list[str]] = {}

        def missing() -> Iterator[Item]:
            records = recorded(found.count, coefficients, samples)
            rows = plan(unchanged(job.prompts, found), coefficients, samples, job.seed)
            rows = (replace(row, recorded=True) if records(row) else row for row in rows)
            for index, window in enumerate(windows(rows, config.sweep.window)):
                names = [row.key for row in window]
                if index in done:
                    board.add(done.read(index, names))
                    continue
                keys[index] = names
                yield index, window

        for index, rows in crew.make(missing(), board.advance):
            done.write(index, rows)
            board.add(done.read(index, keys.pop(index)), f"window {index + 1} of {count}")
    done.publish(count)
    if walked:
        walking.show(walked, config.sweep.survival, config.sweep.dose_ceiling)
    if len(yardstick):
        unsteered = job.frozen() if job.frozen else keep.unsteered_in(job.out, "the same command")
        made = iterate_jsonl(job.out, Completion, made_by="the same command")
        limit = yardstick.limits(config.filter)
        judged = keep.tally(made, unsteered, limit, config.filter, config.vector.trait)
        keep.show(judged, limit, config.filter, job.vector)
    else:
        console.print(
            "no completions at coefficient 0, so no filter limits: sample with 0 among the coefficients to see what would be kept"
        )
    counts = {
        "resumed": whole / count,
        "rows": total,
        "tokens": board.tokens,
        "prompts": found.count,
        "prompts_digest": found.digest,
        "workers": crew.about,
    }
    job.finish({**counts, **({"walk": walked.as_dict()} if walked else {})})


def _walked(job: Job, done: Windows, crew: Crew, found: Survey, yardstick: Yardstick) -> walking.Walk:
    """The walk's answer: the one noted by an interrupted sweep, or a walk."""
    if "walk" in done.notes:
        try:
            answer = walking.Walk.from_dict(done.notes["walk"])
        except ValueError as error:
            raise SteerHealError(
                "the walk of an interrupted sweep could not be read",
                given=f"{done.plan}: {problem_of(error)}",
                expected="what the walk noted",
                next=f"rm -r {done.folder}, then the same command walks again",
            ) from None
        console.print(f"walk: the interrupted sweep found {answer.coefficient:g}")
        return answer
    answer = walking.walk(
        crew.rows,
        spread((prompt for _, prompt in job.prompts), found.count, job.config.sweep.dose_prompts),
        job.seed,
        yardstick if job.frozen else None,
        job.config,
    )
    done.note("walk", answer.as_dict())
    return answer


def stage(run: Run, number: int, rebuild: bool) -> None:
    config, folder = run.config, run.round(number)
    origin = resolve_model(config.model.name, config.model.revision)
    history = run.history(number - 1)
    out, first = folder / "sweep.jsonl", run.round(1) / "sweep.jsonl"
    walks = config.sweep.dose == "walk"
    job = Stage(
        run,
        number,
        "sweep",
        settings={
            "model": origin.fingerprint,
            "dtype": config.model.dtype,
            "student": config.model.student,
            **config.model.rendering,
            "sweep": determining(config.sweep),
            "seed": config.seed,
            **({"filter": config.filter.model_dump()} if walks else {}),
        },
        inputs={
            "vector": folder / "vector.safetensors",
            **input_of("dilemmas", config.sweep.dilemmas),
            **(input_of("mundane", config.sweep.mundane) if config.sweep.n_mundane else {}),
            "trait": data_file(config.vector.trait, "trait.json"),
            **({"history": history} if history else {}),
            **({"unsteered": first} if walks and number > 1 else {}),
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
    vector.check(folder / "vector.safetensors", hidden=origin.hidden, depth=origin.depth)
    look_ahead(config, origin, vector, run.day)
    unsteered = [0.0] if number == 1 else []  # unsteered completions are round 1's, frozen
    with open_round(config.sweep) as prompts:
        sweep(
            Job(
                out,
                prompts,
                unsteered if walks else unsteered + sorted(config.sweep.coefficients),
                f"{config.seed}/{number}",
                student_of(origin, history, run.students, config.model.dtype, config.model.student),
                origin,
                vector,
                folder / "vector.safetensors",
                config,
                lambda counts: job.finish(origin.identity, **counts),
                (lambda: keep.unsteered_in(first, round_command(run.folder, 1))) if number > 1 else None,
                run.day,
            ),
            rebuild=rebuild,
        )


def main() -> None:
    options = sweep_options()
    arguments, run = parse(options)
    if run:
        stage(run, arguments.round, arguments.rebuild)
        return
    need(options, arguments, "model", "vector", "prompts", "out")
    out = arguments.outputs[0]
    if not arguments.rebuild:
        Windows(out).refuse_finished()
    given = {"sweep.samples": arguments.samples, "sweep.dose": arguments.dose, "sweep.survival": arguments.survival, "sweep.workers": arguments.workers, "cluster.address": arguments.cluster}  # fmt: skip
    settings = [f"{key}={value}" for key, value in given.items() if value is not None]
    config = configured(arguments, *settings)
    walks = config.sweep.dose == "walk"
    if not walks:
        need(options, arguments, "coefficients")
    elif arguments.coefficients:
        console.print(
            "[yellow]--coefficients are those of a grid: the walk finds its own, at most sweep.dose_ceiling[/]"
        )
    model = resolve_model(arguments.model, config.model.revision)
    config = fitted(config, model.context)
    guard(arguments.outputs, [model.place])
    vector = load_vector(arguments.vector, arguments.model)
    vector.check(arguments.vector, hidden=model.hidden, depth=model.depth, model=arguments.model)
    coefficients = [0.0] if walks else sorted(set(arguments.coefficients))
    doses = (
        [("sweep.dose_ceiling", config.sweep.dose_ceiling)] if walks else [("--coefficients", c) for c in coefficients]
    )
    refuse_overflow([vector], doses, model, config.model.dtype)

    def finish(counts: dict[str, Any]) -> None:
        say(f"wrote {counts['rows']} rows to {out}")
        Windows(out).discard()

    load_trait(config.vector.trait)
    with open_prompts(arguments.prompts) as prompts:
        # a bad row is refused before a lock makes the output's folder, and before a tokenizer is loaded
        for _ in prompts:
            pass
        hold(out)
        sweep(
            Job(
                out,
                prompts,
                coefficients,
                str(config.seed),
                Student(model.folder, fingerprint=model.fingerprint),
                model,
                vector,
                arguments.vector,
                config,
                finish,
                day=config.model.day,
            ),
            rebuild=arguments.rebuild,
        )


if __name__ == "__main__":
    entry(main)
