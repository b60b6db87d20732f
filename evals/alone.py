"""Conditions of one model scored on plain files: rows to one file, and what they say at the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.conditions import Condition, Weights, randoms, refuse_duplicate_conditions
from evals.measures.forced_choice.answers import answers
from evals.measures.forced_choice.ask import Read
from evals.measures.forced_choice.cached import answers_key, cached_or_asked, free_of
from evals.measures.forced_choice.checks import (
    refuse_sampling_options,
    refuse_steering_options,
    refuse_too_long,
    refuse_unread_settings,
)
from evals.measures.forced_choice.contrast import contrast
from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument
from evals.measures.forced_choice.levels import condition_levels
from evals.measures.forced_choice.positions import left_by_reversal, order_effect, reliability
from evals.measures.forced_choice.rows import ScoreRow
from evals.statistics import Answers, Estimate, interval_text
from evals.verdict import preflight
from gen.ahead import refuse_overflow
from gen.students import served_student
from shared.adapters import check_readable
from shared.chat import Chat
from shared.config import resolve_config
from shared.console import console, format_number, print_table, say
from shared.context import fitted
from shared.errors import SteerHealError
from shared.folding import folded_at_gates, gates_of
from shared.instrument import FOUNDATIONS
from shared.locks import hold
from shared.models import cache_folder, resolve_model
from shared.outputs import guard, input_paths
from shared.records import write_jsonl
from shared.tables import write_parquet
from shared.traits import load_trait
from shared.vectors import Vector, load_vector
from shared.vignettes import load_vignettes


def score_files(arguments: Any) -> None:
    """`python -m evals.score --model ... --out ...`."""
    refuse_steering_options(arguments)
    out = arguments.outputs[0]
    config, sources = resolve_config(getattr(arguments, "config", None), getattr(arguments, "set", ""))
    guard(arguments.outputs, input_paths(config))
    refuse_unread_settings(sources)
    dtype = arguments.dtype or config.model.dtype
    origin = resolve_model(arguments.model, config.model.revision)
    config = fitted(config, origin.context)
    guard(arguments.outputs, [origin.place])
    vectors: dict[str, Vector] = {}
    if arguments.vector:
        vectors["trait"] = load_vector(arguments.vector)
        vectors["trait"].check(arguments.vector, hidden=origin.hidden, depth=origin.depth)
        vectors.update(randoms(vectors["trait"], arguments.random, config.seed))
        doses = [("--coefficient", dose) for dose in arguments.coefficient]
        refuse_overflow(vectors.values(), doses, origin, dtype)
    vignettes, instrument = load_vignettes(arguments.vignettes, arguments.items), load_instrument(arguments.instrument)
    read = Read(
        arguments.debias, arguments.think, arguments.samples, arguments.temperature, arguments.top_k, config.seed, arguments.stop
    )  # fmt: skip
    refuse_sampling_options(read, arguments.free_tokens)
    if arguments.adapter:
        check_readable(arguments.adapter)
    if arguments.prompted:
        load_trait(config.vector.trait)
    conditions, free = conditions_of(arguments, vectors, config.vector.trait), free_of(arguments.free_tokens)
    hold(out)  # an unwritable place, or one that another process writes to, is found before the work, not after it
    chat = Chat.load(origin.folder, config.model.chat_template_kwargs, config.model.day)
    renderer = InstrumentRenderer(chat, instrument)
    student = served_student(origin, _adapter(arguments), cache_folder() / "students", dtype, config.model.student)
    refuse_too_long(renderer, vignettes, read, free, config.model.max_model_len, [c.system for c in conditions])
    cache = None
    if arguments.cache:
        weights = (student.fingerprint, dtype)
        cache = answers_key(weights, renderer, vignettes, read, free, vectors, fresh=arguments.rebuild)
    from gen.engine.engine import engine

    with engine(
        student.folder,
        layers=sorted(vectors["trait"].layers) if vectors else [0],
        dtype=dtype,
        max_model_len=config.model.max_model_len,
        gpu_memory=config.model.gpu_memory,
        tensor_parallel=config.model.tensor_parallel,
        slots=max(1, len(vectors)),
        seed=config.seed,
        students=[student],
    ) as model:
        model.serve(student)
        for name, vector in vectors.items():
            model.load(name, vector)
        answered_rows = cached_or_asked(
            model, renderer, vignettes, Weights(arguments.model, student, conditions), read, chat.tokenizer, free, cache
        )
    rows = [
        {
            **row,
            "model": origin.fingerprint,
            "dtype": dtype,
            "stage": c.stage,
            "name": c.name,
            "coefficient": c.coefficient,
            "draw": c.draw,
        }
        for c in conditions
        for row in answered_rows[c.name]
    ]
    (write_parquet if out.suffix == ".parquet" else write_jsonl)(out, rows)
    score_tables({c.name: answered_rows[c.name] for c in conditions}, out, config.eval.bootstrap, config.seed)
    say(f"wrote {len(rows)} rows to {out}")


def conditions_of(arguments: Any, vectors: dict[str, Vector], trait: str) -> list[Condition]:
    """The conditions that the options ask for; with none, the model as it is, under the name `healed` when an adapter is loaded."""
    conditions = [Condition("base", "base")] if arguments.base else []
    if arguments.prompted:
        conditions.append(Condition("prompted", "prompted", system=load_trait(trait).trait))
    for name, vector in vectors.items():
        draw = None if name == "trait" else int(name.rpartition("-")[2])
        stage = "steered" if draw is None else "random"
        conditions += [
            Condition(stage, f"{stage if draw is None else name}-{c:g}", c, name, vector.metadata.get("positions", "all"), draw=draw)
            for c in dict.fromkeys(arguments.coefficient)
        ]  # fmt: skip
    if not conditions:
        conditions = [Condition("healed", "healed") if arguments.adapter else Condition("base", "base")]
    refuse_duplicate_conditions(conditions)
    return conditions


def _adapter(arguments: Any) -> Path | None:
    gates = gates_of(arguments.gate)
    if not gates:
        return arguments.adapter
    if arguments.adapter is None:
        raise SteerHealError(
            "a gate needs an adapter", given=f"--gate {arguments.gate[0]}", expected="--adapter too", next="--adapter FOLDER"
        )  # fmt: skip
    return folded_at_gates(arguments.adapter, gates, cache_folder() / "gated")


def score_tables(rows_of: dict[str, list[dict[str, Any]]], source: Path, count: int, seed: int) -> None:
    """The profile and the figures that say what it is worth, a column per condition, and the preflight of the first.

    Args:
        rows_of: score rows by condition.
        source: of the rows, for errors.
        count: resamples of an interval.
        seed: of the resamples.
    """
    columns = {
        name: answers([ScoreRow.model_validate(row) for row in rows], source, "python -m evals.score --help")
        for name, rows in rows_of.items()
    }
    lines: list[list[Any]] = [
        [f"mass on {foundation}", *[_mean(condition_answers, f) for condition_answers in columns.values()]]
        for f, foundation in enumerate(FOUNDATIONS)
    ]
    level = [condition_levels(condition_answers, count, seed) for condition_answers in columns.values()]
    for key in ("auth_nats", "care_nats", "auth_moral", "p_not_wrong", "p_ans_any", "nll_prefill", "informedness"):
        lines.append([key, *_shown([values[key] for values in level])])
    lines.append(
        ["authority contrast", *_shown([contrast(condition_answers) for condition_answers in columns.values()])]
    )
    if any(np.isfinite(condition_answers.valid).any() for condition_answers in columns.values()):
        lines.append(["valid JSON", *_shown([values["valid"] for values in level])])
    lines.append(["order effect", *[order_effect(condition_answers) for condition_answers in columns.values()]])
    if any(condition_answers.setting.debias == "cyclic" for condition_answers in columns.values()):
        removed = [left_by_reversal(condition_answers) for condition_answers in columns.values()]
        lines.append(["position, left by reversal", *_shown(removed)])
    halves = [reliability(condition_answers, count, seed) for condition_answers in columns.values()]
    lines.append(["split-half reliability", *_shown(halves)])
    lines.append(["unscorable", *[int((~condition_answers.scorable).sum()) for condition_answers in columns.values()]])
    first = next(iter(columns.values()))
    print_table(
        f"{len(first.truth)} items, {first.setting.debias}, {first.setting.think} think tokens", ["", *columns], lines
    )
    console.print(
        f"informedness is against {'the raters' if first.rated else 'the foundations that the vignettes were written for; nobody has rated them'}; "
        "order effect and position are nats of clr"
    )
    problem, name = preflight(first), next(iter(columns))
    verdict = f"{problem.state}: {problem.reason}" if problem else "there is an axis to move"
    console.print(f"{'[yellow]' if problem else '[default]'}preflight, of {name}: {verdict}[/]")
    if name != "base":
        way = "score it without --adapter" if name == "healed" else "add --base"
        console.print(f"it is the original model's that counts: {way}")


def _shown(estimates: Sequence[Estimate | None]) -> list[str | None]:
    return [interval_text(value) if value else None for value in estimates]


def _mean(answers_: Answers, f: int) -> str:
    return format_number(float(answers_.p[answers_.scorable][:, f].mean()) if answers_.scorable.any() else None)
