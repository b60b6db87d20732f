"""Sample a sweep of coefficients in one continuous batch, then score every completion under the original weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gen import filter as keep
from gen.scoring import score
from gen.students import Student
from shared.chat import load_tokenizer, render
from shared.cli import entry, need, parse, parser, plain
from shared.config import Config, resolve
from shared.console import console, progress
from shared.errors import SteerHealError
from shared.models import Model
from shared.models import resolve as resolve_model
from shared.records import Completion, Prompt, data_file, read_jsonl, stratified, write_jsonl
from shared.run import Run, Stage
from shared.traits import load_trait
from shared.vectors import Vector, load_vector

MADE_BY = "write a JSONL with a prompt or messages field per line"


@dataclass(frozen=True)
class Plan:
    """One completion to sample. The seed is a hash of the run's seed and the key, so that order never changes content."""

    key: str
    prompt: Prompt
    coefficient: float
    sample: int
    seed: int


def plan(prompts: Sequence[Prompt], coefficients: Sequence[float], samples: int, seed: str) -> list[Plan]:
    """Every prompt at every coefficient; keys are unique and sort by prompt, coefficient, sample."""
    rows = []
    for index, prompt in enumerate(prompts):
        for coefficient in coefficients:
            for sample in range(samples):
                key = f"{index:05d}-{prompt.id or 'prompt'}/{coefficient:g}/{sample}"
                rows.append(
                    Plan(
                        key,
                        prompt,
                        coefficient,
                        sample,
                        int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:4]) >> 1,
                    )
                )
    return rows


def sweep(plans: Sequence[Plan], student: Model, origin: Model, vector: Vector, config: Config) -> list[Completion]:
    """Sample every plan from the student, score under the original model; rows in the order of the plans."""
    from gen.engine.engine import Request, engine

    tokenizer = load_tokenizer(str(origin.folder))
    trait = load_trait(config.vector.trait)
    template = config.model.chat_template_kwargs
    neutral = [render(tokenizer, row.prompt.turns, trait.neutral, **template) for row in plans]
    towards = [render(tokenizer, row.prompt.turns, trait.trait, **template) for row in plans]
    longest = max(len(ids) for ids in [*neutral, *towards]) + config.sweep.max_tokens
    if longest > config.model.max_model_len:
        raise SteerHealError(
            "a prompt is too long",
            given=f"{longest} tokens with its completion",
            expected=f"at most model.max_model_len = {config.model.max_model_len}",
            next="raise model.max_model_len or lower sweep.max_tokens",
        )
    positions = vector.metadata.get("positions", "all")
    with (
        engine(
            student.folder,
            layers=sorted(vector.layers),
            dtype=config.model.dtype,
            max_model_len=config.model.max_model_len,
            seed=config.seed,
        ) as sampler,
        progress("rate") as bar,
    ):
        sampler.load("trait", vector)
        requests = [
            Request(
                ids,
                config.sweep.max_tokens,
                config.sweep.temperature,
                config.sweep.top_p,
                row.seed,
                "trait" if row.coefficient else None,
                row.coefficient,
                positions,
            )
            for row, ids in zip(plans, neutral, strict=True)
        ]
        task = bar.add_task("sampling", total=len(requests), rate="")
        tokens = 0

        def done(_index: int, output: object) -> None:
            nonlocal tokens
            tokens += len(output.token_ids)  # type: ignore[attr-defined]
            elapsed = bar.tasks[task].elapsed or 0.0
            bar.update(task, advance=1, rate=f"{tokens / elapsed:.0f} tokens/s" if elapsed else "")

        sampled = sampler.run(requests, done)
        sampler.serve(Student(origin.folder))
        task = bar.add_task("scoring", total=2 * len(requests), rate="")
        scores = score(sampler, neutral, towards, [output.token_ids for output in sampled], lambda: bar.advance(task))
    return [
        Completion(
            key=row.key,
            prompt_ids=ids,
            completion_ids=output.token_ids,
            text=output.text,
            finish_reason=output.finish_reason,
            coefficient=row.coefficient,
            sample=row.sample,
            seed=row.seed,
            perplexity=found.perplexity,
            perplexity_last_quarter=found.perplexity_last_quarter,
            trait_llr=found.trait_llr,
            distinct_3=found.distinct_3,
        )
        for row, ids, output, found in zip(plans, neutral, sampled, scores, strict=True)
    ]


def show(rows: Sequence[Completion], unsteered: Sequence[Completion], config: Config, vector: Vector) -> None:
    """The table by coefficient, with what the filter would keep."""
    if unsteered:
        keep.show(rows, unsteered, config.filter, config.vector.trait, vector)
    else:
        console.print(
            "no completions at coefficient 0, so no filter limits: sample with 0 among the coefficients to see what would be kept"
        )


def prompts_of(config: Config) -> list[Prompt]:
    """The dilemmas and mundane prompts of a round, stratified over domains."""
    dilemmas = read_jsonl(data_file(config.sweep.dilemmas, "dilemmas.jsonl"), Prompt, made_by=MADE_BY)
    mundane = (
        read_jsonl(data_file(config.sweep.mundane, "mundane.jsonl"), Prompt, made_by=MADE_BY)
        if config.sweep.n_mundane
        else []
    )
    return stratified(dilemmas, config.sweep.n_dilemmas, "domain") + stratified(
        mundane, config.sweep.n_mundane, "domain"
    )


def stage(run: Run, number: int, rebuild: bool) -> None:
    from shared.folding import merged

    config, folder = run.config, run.round(number)
    origin = resolve_model(config.model.name, config.model.revision)
    history = run.history(number - 1)
    out = folder / "sweep.jsonl"
    job = Stage(
        run,
        number,
        "sweep",
        settings={
            "model": origin.fingerprint,
            "dtype": config.model.dtype,
            "chat_template_kwargs": config.model.chat_template_kwargs,
            "sweep": config.sweep.model_dump(),
            "seed": config.seed,
        },
        inputs={
            "vector": folder / "vector.safetensors",
            "dilemmas": data_file(config.sweep.dilemmas, "dilemmas.jsonl"),
            **({"mundane": data_file(config.sweep.mundane, "mundane.jsonl")} if config.sweep.n_mundane else {}),
            "trait": data_file(config.vector.trait, "trait.json"),
            **({"history": history} if history else {}),
        },
        outputs=[out],
        rebuild=rebuild,
    )
    if job.done():
        return
    vector = load_vector(folder / "vector.safetensors")
    vector.check(folder / "vector.safetensors", hidden=origin.hidden, depth=origin.depth)
    coefficients = [
        *([0.0] if number == 1 else []),
        *sorted(config.sweep.coefficients),
    ]  # unsteered completions are round 1's, frozen
    plans = plan(prompts_of(config), coefficients, config.sweep.samples, f"{config.seed}/{number}")
    rows = sweep(plans, merged(origin, history, run.students, config.model.dtype), origin, vector, config)
    write_jsonl(out, rows)
    show(rows, [row for row in rows if row.coefficient == 0] or keep.unsteered_of(run), config, vector)
    job.finish(rows=len(rows), tokens=sum(len(row.completion_ids) for row in rows))


def main() -> None:
    options = parser("gen.sweep", "Sample completions over a sweep of coefficients with vLLM.")
    files = plain(options)
    files.add_argument("--model", help="'embedded', a Hugging Face id or a local folder")
    files.add_argument("--vector", type=Path, help="vector file, .safetensors")
    files.add_argument("--prompts", type=Path, help="JSONL with prompt or messages")
    files.add_argument(
        "--coefficients",
        nargs="+",
        type=finite,
        help="multiples of the vector; include 0 for the unsteered completions that the filter compares with",
    )
    files.add_argument("--samples", type=int, help="completions per prompt and coefficient (default: sweep.samples)")
    files.add_argument("--out", type=Path, help="sweep rows to write, JSONL")
    arguments, run = parse(options)
    if run:
        stage(run, arguments.round, arguments.rebuild)
        return
    need(options, arguments, "model", "vector", "prompts", "coefficients", "out")
    config = resolve(getattr(arguments, "config", None), getattr(arguments, "set", ""))[0]
    prompts = read_jsonl(arguments.prompts, Prompt, made_by=MADE_BY)
    model = resolve_model(arguments.model, config.model.revision)
    vector = load_vector(arguments.vector)
    vector.check(arguments.vector, hidden=model.hidden, depth=model.depth)
    plans = plan(
        prompts, sorted(set(arguments.coefficients)), arguments.samples or config.sweep.samples, str(config.seed)
    )
    rows = sweep(plans, model, model, vector, config)
    out = arguments.out / "sweep.jsonl" if arguments.out.is_dir() else arguments.out
    write_jsonl(out, rows)
    show(rows, [row for row in rows if row.coefficient == 0], config, vector)
    console.print(f"wrote {len(rows)} rows to {out}")


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise SteerHealError(
            "a coefficient is not finite", given=text, expected="a finite number", next="mend --coefficients"
        )
    return value


if __name__ == "__main__":
    entry(main)
