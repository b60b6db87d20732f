"""Score the forced choice and the free generations of every condition of a round, or one condition on plain files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evals.forced_choice import Condition, Read, forced_choice
from evals.generations import generate, judge
from evals.instrument import FOUNDATIONS, Renderer, load_instrument, orders
from evals.vignettes import load_vignettes
from gen.filter import by_coefficient, unsteered_of
from gen.students import Student
from gen.students import student as student_of
from shared.chat import load_tokenizer
from shared.cli import entry, need, parse, parser, plain
from shared.config import Config, EvalConfig, resolve
from shared.console import console, progress, table
from shared.models import cache_folder
from shared.models import resolve as resolve_model
from shared.publish import atomic_folder, write_json
from shared.records import Completion, Prompt, Vignette, data_file, read_jsonl, stratified, write_jsonl
from shared.run import Run, Stage
from shared.traits import load_trait
from shared.vectors import load_vector


def of_mode(config: EvalConfig, mode: str) -> EvalConfig:
    """The evaluation of a round, or the full one: all items, cyclic orders."""
    return config if mode == "round" else config.model_copy(update={"items": 10**9, "debias": "cyclic"})


@contextmanager
def counting(label: str, total: int) -> Iterator[Any]:
    with progress() as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def conditions_of(
    number: int, coefficient: float, positions: str, trait: str
) -> tuple[list[Condition], list[Condition]]:
    """Conditions of a round: those of student number - 1, and the healed one."""
    before = [
        Condition("steered", "steered", coefficient, "trait", positions),
        Condition("random", "random", coefficient, "random", positions, draw=1),
    ]
    if number == 1:
        before = [Condition("base", "base"), Condition("prompted", "prompted", system=trait), *before]
    return before, [Condition("healed", "healed")]


def stage(run: Run, number: int, mode: str, rebuild: bool) -> None:
    from gen.engine.engine import engine

    config, folder = run.config, run.round(number)
    settings = of_mode(config.eval, mode)
    origin = resolve_model(config.model.name, config.model.revision)
    name, out = ("score", folder / "scores") if mode == "round" else ("score-full", folder / "scores-full")
    files = {"vignettes": settings.vignettes, "instrument": settings.instrument, "heldout": settings.heldout}
    embedded = {"vignettes": "vignettes.jsonl", "instrument": "instrument.json", "heldout": "heldout.jsonl"}
    before_path, after_path = run.history(number - 1), run.history(number)
    assert after_path is not None
    job = Stage(
        run,
        number,
        name,
        settings={
            "model": origin.fingerprint,
            "dtype": config.model.dtype,
            "student": config.model.student,
            "chat_template_kwargs": config.model.chat_template_kwargs,
            "eval": settings.model_dump(),
            "sampling": [config.sweep.temperature, config.sweep.top_p],
            "seed": config.seed,
        },
        inputs={
            "vector": folder / "vector.safetensors",
            "sweep": folder / "sweep.jsonl",
            "kept": folder / "kept.jsonl",
            "history": after_path,
            "unsteered": run.round(1) / "sweep.jsonl",
            "trait": data_file(config.vector.trait, "trait.json"),
            **({"history before": before_path} if before_path else {}),
            **{label: path for label, value in files.items() if (path := data_file(value, embedded[label])).is_file()},
        },
        outputs=[out],
        rebuild=rebuild,
    )
    if job.done():
        return
    tokenizer, trait = load_tokenizer(str(origin.folder)), load_trait(config.vector.trait)
    vector = load_vector(folder / "vector.safetensors")
    vector.check(folder / "vector.safetensors", hidden=origin.hidden, depth=origin.depth)
    kept = read_jsonl(folder / "kept.jsonl", Completion, made_by=f"make round N={number} RUN={run.folder}")
    sweep = read_jsonl(folder / "sweep.jsonl", Completion, made_by=f"make round N={number} RUN={run.folder}")
    coefficient = float(np.mean([row.coefficient for row in kept]))
    vignettes = stratified(load_vignettes(settings.vignettes), settings.items, "foundation_coarse")
    heldout = read_jsonl(
        data_file(settings.heldout, "heldout.jsonl"), Prompt, made_by="set eval.heldout to a prompts JSONL"
    )
    read = Read(settings.debias, settings.think, seed=config.seed, nll_prefill=False)
    renderer = Renderer(tokenizer, load_instrument(settings.instrument), config.model.chat_template_kwargs)
    before, after = conditions_of(number, coefficient, vector.metadata.get("positions", "all"), trait.trait)
    scored: dict[str, list[dict[str, Any]]] = {}
    texts: list[dict[str, Any]] = []
    start, end = (
        student_of(origin, path, run.students, config.model.dtype, config.model.student)
        for path in (before_path, after_path)
    )
    with engine(
        start.folder,
        layers=sorted(vector.layers),
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        seed=config.seed,
        students=[start, end],
    ) as model:
        model.load("trait", vector)
        model.load("random", vector.random_like(config.seed + number))
        for label, conditions, student in (
            ("teacher", before, start),
            ("student", after, end),
        ):
            model.serve(student)
            reads = len(conditions) * len(vignettes) * len(orders(settings.debias)) * (2 if settings.think else 1)
            with counting(f"forced choice, {label}", reads) as advance:
                scored.update(forced_choice(model, renderer, vignettes, conditions, read, tokenizer, advance))
            with counting(
                f"generations, {label}", len(conditions) * len(heldout) * settings.generation_samples
            ) as advance:
                texts += generate(model, tokenizer, heldout, conditions, trait, config, advance)
        model.serve(Student(origin.folder))
        with counting("scoring generations", 2 * len(texts)) as advance:
            texts = judge(model, tokenizer, heldout, texts, trait, config, advance)
    with atomic_folder(out) as temporary:
        for condition, rows in scored.items():
            write_jsonl(temporary / f"{condition}.jsonl", rows)
        write_jsonl(temporary / "generations.jsonl", texts)
        write_json(
            temporary / "scores.json",
            {
                "version": 1,
                "round": number,
                "instrument": settings.instrument,
                "vignettes": settings.vignettes,
                "debias": settings.debias,
                "orders": len(orders(settings.debias)),
                "think": settings.think,
                "items": [vignette.id for vignette in vignettes],
                "foundations": list(FOUNDATIONS),
                "conditions": [
                    {
                        "stage": c.stage,
                        "name": c.name,
                        "coefficient": c.coefficient,
                        "draw": c.draw,
                        "headline": c.headline,
                    }
                    for c in [*before, *after]
                ],
                "sweep": by_coefficient(sweep, unsteered_of(run), config.filter, config.vector.trait, vector),
            },
        )
    job.finish(
        items=len(vignettes), conditions=len(scored), generations=len(texts), tokens=sum(row["tokens"] for row in texts)
    )


def standalone(arguments: Any) -> None:
    from gen.engine.engine import engine

    config: Config = resolve(getattr(arguments, "config", None), getattr(arguments, "set", ""))[0]
    dtype = arguments.dtype or config.model.dtype
    origin = resolve_model(arguments.model, config.model.revision)
    vector = load_vector(arguments.vector) if arguments.vector else None
    if vector is not None:
        vector.check(arguments.vector, hidden=origin.hidden, depth=origin.depth)
    tokenizer = load_tokenizer(str(origin.folder))
    vignettes: list[Vignette] = load_vignettes(arguments.vignettes)
    renderer = Renderer(tokenizer, load_instrument(arguments.instrument), config.model.chat_template_kwargs)
    read = Read(arguments.debias, arguments.think, arguments.samples, arguments.temperature, config.seed)
    student = student_of(origin, arguments.adapter, cache_folder() / "students", dtype, config.model.student)
    condition = (
        Condition("scored", "scored")
        if vector is None
        else Condition("steered", "scored", arguments.coefficient, "trait", vector.metadata.get("positions", "all"))
    )
    with engine(
        student.folder,
        layers=sorted(vector.layers) if vector else [0],
        dtype=dtype,
        max_model_len=config.model.max_model_len,
        seed=config.seed,
        students=[student],
    ) as model:
        model.serve(student)
        if vector is not None:
            model.load("trait", vector)
        reads = len(vignettes) * len(orders(arguments.debias)) * arguments.samples * (2 if arguments.think else 1)
        with counting("forced choice", reads) as advance:
            rows = forced_choice(model, renderer, vignettes, [condition], read, tokenizer, advance)["scored"]
    out = arguments.out / "scores.jsonl" if arguments.out.is_dir() else arguments.out
    write_jsonl(out, rows)
    profile(rows)
    console.print(f"wrote {len(rows)} rows to {out}")


def profile(rows: Sequence[dict[str, Any]]) -> None:
    """The mean profile and the answer mass, at the terminal."""
    scorable = [row for row in rows if row["p"] is not None]
    p = np.array([row["p"] for row in scorable]).mean(axis=0) if scorable else np.full(len(FOUNDATIONS), np.nan)
    lines = [[name, float(value), float(np.log(value))] for name, value in zip(FOUNDATIONS, p, strict=True)]
    table(
        f"profile over {len(scorable)} items, {len(rows) - len(scorable)} unscorable",
        ["foundation", "mass", "nats"],
        lines,
    )
    if scorable:
        console.print(f"answer mass {np.mean([row['pmass_allowed'] for row in scorable]):.4f}")


def main() -> None:
    options = parser("evals.score", "Score a model on the forced choice.")
    options.add_argument(
        "--eval",
        choices=["round", "full"],
        default="round",
        help="items and orders of a round's scoring, or all items, cyclically",
    )
    files = plain(options)
    files.add_argument("--model", help="'embedded', a Hugging Face id or a local folder")
    files.add_argument("--adapter", type=Path, help="PEFT adapter folder (adapter/ or history/)")
    files.add_argument("--vector", type=Path, help="steering vector, .safetensors")
    files.add_argument("--coefficient", type=float, help="multiple of the vector")
    files.add_argument("--instrument", default="embedded", help="'embedded' or a JSON file")
    files.add_argument(
        "--vignettes", default="embedded", help="'embedded', a JSONL file, or '<dataset id>:<configuration>:<split>'"
    )
    files.add_argument("--debias", choices=["reversal", "cyclic"], default="reversal", help="option orders")
    files.add_argument("--think", type=int, default=16, metavar="T", help="think tokens before the answer")
    files.add_argument("--samples", type=int, default=1, metavar="N", help="thoughts per item and order")
    files.add_argument("--temperature", type=float, default=0.0, help="of the thoughts; 0 is greedy")
    files.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (default: model.dtype)"
    )
    files.add_argument("--out", type=Path, help="score rows to write, JSONL")
    arguments, run = parse(options)
    if run:
        stage(run, arguments.round, arguments.eval, arguments.rebuild)
        return
    need(options, arguments, "model", "out", *(["coefficient"] if arguments.vector else []))
    standalone(arguments)


if __name__ == "__main__":
    entry(main)
