"""The forced choice as a task of Inspect: the two-phase read of evals.measures.forced_choice.ask on any model that gives log-probabilities.

    export STEERED_BASE_URL=http://127.0.0.1:8000/v1 STEERED_API_KEY=-       # where `make serve` listens
    inspect eval steer_heal/forced_choice --model openai-api-completions/steered/embedded \\
            -T tokenizer=embedded -T vector=trait -T coefficient=1.5

What is read depends on what a provider of Inspect can be told. The row of evals.measures.forced_choice.ask is in the metadata of every score,
with `route`, which of these it was, and `retokenised`, how many prompts became other tokens than the exact ones (null: not known).

openai-api-completions, vllm-completions   exact, against vLLM. They are sent the token ids of evals.measures.forced_choice.instrument.InstrumentRenderer and asked
    for the labels by id, so that none falls out of top_logprobs. They need tokenizer.
hf   exact where retokenised is 0: the text of the same tokens, past the chat template, which Hugging Face tokenises in one go. It
    cannot forbid the end of a thought: one that ends early is an error, unless stop is set. It needs tokenizer, and model arguments
    that an error spells out.
openai-api, vllm, sglang   approximate: turns of a chat, the last one continued (continue_final_message). The template sees them all
    at once, so that it writes its default system turn once (the exact read has it before the nudge too: SmolLM2, Qwen2.5), and may
    drop the thought of an earlier turn (Qwen3, DeepSeek) or trim blanks (Gemma). Labels are those among top_logprobs.
any other   unknown: the same turns, but whether the service continues the last one or opens another is up to it. Before any other
    number, compare the answer mass with that of an exact read.

nll_prefill is never read. A label without a log-probability makes its item unscorable: counted, and in no other metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, Logprob, Model, ModelOutput, get_model
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect, registry_info

from evals.bridges.inspect_prompts import EXACT, Form, form_of, in_the_question
from evals.measures.forced_choice.answers import point_estimates
from evals.measures.forced_choice.ask import Read, row
from evals.measures.forced_choice.instrument import ORDERS, load_instrument, orders, rotations_of
from shared.chat import Chat
from shared.errors import SteerHealError
from shared.instrument import FOUNDATIONS
from shared.models import tokenizer_folder
from shared.records import Vignette
from shared.vignettes import load_vignettes, raters_distribution

NAME = "steer_heal/forced_choice"
NOTHING = -9999.0  # how vLLM and OpenAI write a log-probability of minus infinity


@task(name=NAME)
def forced_choice(
    vignettes: str = "embedded",
    instrument: str = "embedded",
    debias: str = "cyclic",
    think: int = 16,
    top_logprobs: int = 20,
    stop: bool = False,
    items: int | None = None,
    tokenizer: str | None = None,
    system: str | None = None,
    vector: str | None = None,
    coefficient: float | None = None,
    positions: str = "all",
    steer_from: int | str | None = None,
    steer_until: int | str | None = None,
    terms: Sequence[dict[str, Any]] = (),
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Task:
    """One sample per vignette, asked in every order.

    vignettes, instrument, debias, think and stop as in evals.measures.forced_choice.ask; items: a stratified number of them. tokenizer:
    'embedded', a folder, a GGUF file or a Hugging Face id. system: a system prompt for the question. vector, coefficient, positions,
    steer_from and steer_until: the steering asked of a server of gen.serve; terms: further ones, as steer_terms has them. Their windows are
    counted in the question, in both phases of the read.
    """
    if (
        debias not in ORDERS
        or think < 0
        or (vector is None) != (coefficient is None)
        or (vector is None and (steer_from is not None or steer_until is not None))
    ):
        raise SteerHealError(
            "the forced choice cannot be asked like this",
            given=f"debias {debias}, think {think}, vector {vector}, coefficient {coefficient}",
            expected="debias 'reversal', 'rotating' or 'cyclic', think from 0, a vector with a coefficient or neither",
            next="-T debias=cyclic -T think=16 -T vector=trait -T coefficient=1.5",
        )
    single = {
        "vector": vector,
        "coefficient": coefficient,
        "positions": positions,
        "from": steer_from,
        "until": steer_until,
    }
    if steer_from is not None or steer_until is not None:
        del single["positions"]
    options = {name: value for name, value in single.items() if value is not None}
    steering = in_the_question([*([options] if vector is not None else []), *terms])
    loaded = load_vignettes(vignettes, items)
    samples = [
        Sample(
            id=vignette.id,
            input=vignette.text,
            target=vignette.foundation_coarse,
            metadata={"vignette": vignette.model_dump(), "human": raters_distribution(vignette), "rotation": rotation},
        )
        for vignette, rotation in zip(loaded, rotations_of(debias, loaded), strict=True)
    ]
    return Task(
        dataset=MemoryDataset(samples, name=vignettes),
        solver=ask(instrument, debias, think, stop, top_logprobs, tokenizer, system, steering, chat_template_kwargs or {}),
        scorer=foundations(instrument, debias, think, stop),
    )  # fmt: skip


if (
    registry_info(forced_choice).name != NAME
):  # not an editable install: Inspect puts the import package, evals, before the name
    from inspect_ai._util.registry import registry_add

    registry_add(forced_choice, registry_info(forced_choice).model_copy(update={"name": NAME}))


@solver
def ask(
    instrument: str,
    debias: str,
    think: int,
    stop: bool,
    top_logprobs: int,
    tokenizer: str | None,
    system: str | None,
    steering: list[dict[str, Any]],
    chat_template_kwargs: dict[str, Any],
) -> Solver:
    """Ask a vignette in every order and leave in the store, by order: lp [7] in canonical order, nats or None, and the thoughts.
    Arguments as of `forced_choice`; steering: terms, as a server of gen.serve takes them."""
    loaded, read = load_instrument(instrument), Read(debias, think, stop=stop, nll_prefill=False)
    chat = Chat.load(tokenizer_folder(tokenizer), chat_template_kwargs) if tokenizer else None
    one_at_a_time, steered = anyio.Lock(), not steering

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        nonlocal steered
        model = get_model()
        form = form_of(model, loaded, read, chat=chat, system=system, steering=steering, template=chat_template_kwargs)
        vignette = Vignette.model_validate(state.metadata["vignette"])
        listings = orders(debias, state.metadata["rotation"])
        async with one_at_a_time:
            if not steered:
                await _refuses_half_a_steering(model, form, form.question(vignette.text, listings[0]))
                steered = True
        reads = await collect(*[_ask(model, form, read, top_logprobs, vignette.text, listing) for listing in listings])
        state.messages, state.output = reads[0].pop("messages"), reads[0].pop("output")
        for other in reads[1:]:
            del other["messages"], other["output"]
        state.store.set("asked", reads)
        state.store.set("route", form.route)
        state.store.set("template", form.template)
        return state

    return solve


async def _ask(model: Model, form: Form, read: Read, top: int, vignette: str, listing: Sequence[int]) -> dict[str, Any]:
    """One order: the thought, then the labels."""
    question, others = form.question(vignette, listing), []
    thought: list[Any] = []
    text, tokens = "", 0 if not read.think else None
    if read.think:
        messages, other = form.prompt(question, None)
        others.append(other)
        config = GenerateConfig(
            temperature=0.0, max_tokens=read.think, logprobs=True, extra_body=form.body(question, False)
        )
        output = await model.generate(messages, config=config)
        thought, text, tokens = form.thought(_logprobs(model, output), output.completion)
    messages, other = form.prompt(question, thought)
    others.append(other)
    config = GenerateConfig(
        temperature=0.0, max_tokens=1, logprobs=True, top_logprobs=top, extra_body=form.body(question, True)
    )
    output = await model.generate(messages, config=config)
    logprobs = {entry.token: entry.logprob for entry in reversed(_logprobs(model, output)[0].top_logprobs or [])}
    by_place = [logprobs.get(label) for label in form.labels]
    lp = [by_place[place] for place in np.argsort(listing)]
    return {
        "lp": [None if value is None or value <= NOTHING else value for value in lp],
        "text": text,
        "tokens": tokens,
        "retokenised": others,
        "messages": [*messages, output.message],
        "output": output,
    }


def _logprobs(model: Model, output: ModelOutput) -> list[Logprob]:
    """The tokens of an answer. Raises SteerHealError where the model gives no log-probabilities."""
    logprobs = output.choices[0].logprobs if output.choices else None
    if logprobs is None or not logprobs.content:
        raise SteerHealError(
            "a model gives no log-probabilities",
            given=str(model),
            expected="log-probabilities of the tokens it answers with",
            next=EXACT,
        )
    return logprobs.content


async def _refuses_half_a_steering(model: Model, form: Form, question: Any) -> None:
    """A server without the patch takes steering fields and leaves them out: one that reads them refuses a vector without a coefficient."""
    body = form.body(question, True) or {}
    half = {"steer_vector": body["vllm_xargs"]["steer_terms"][0]["vector"]}  # a text, which every vLLM takes
    config = GenerateConfig(max_tokens=1, logprobs=True, extra_body={**body, "vllm_xargs": half})
    try:
        await model.generate(form.prompt(question, None)[0], config=config)
    except Exception as error:  # each provider has its own type for a refusal
        if getattr(error, "status_code", None) == 400:
            return
        raise
    raise SteerHealError(
        "a server does not read steering: its answers would be unsteered",
        given=f"{model} took {half}, without a coefficient",
        expected="HTTP 400, as from gen.serve",
        next="make serve VECTORS=NAME=FILE, and its address as the base url",
    )


def _level(name: str) -> Metric:
    def over(scores: list[SampleScore]) -> float:  # Inspect reads this annotation
        return point_estimates([sample.score.metadata or {} for sample in scores], Path(NAME))[name]

    return over


@metric
def auth_nats() -> Metric:
    """ln of the mean probability of authority over the scorable items, nats."""
    return _level("auth_nats")


@metric
def care_nats() -> Metric:
    """ln of the mean probability of care over the scorable items, nats."""
    return _level("care_nats")


@metric
def answer_mass() -> Metric:
    """Mean over the scorable items of the probability that the answer is one of the labels."""
    return _level("answer_mass")


@metric
def informedness() -> Metric:
    """Agreement of the likeliest foundation with the raters', or with the item's where nobody rated: 0 is guessing, 1 is agreement."""
    return _level("informedness")


@metric
def unscorable() -> Metric:
    """The number of items that are in no other metric."""
    return _level("unscorable")


@scorer(metrics=[auth_nats(), care_nats(), answer_mass(), informedness(), unscorable()])
def foundations(instrument: str, debias: str, think: int, stop: bool) -> Scorer:
    """p of the seven foundations and answer_mass; NaN for an unscorable item. The whole row is in the metadata."""
    loaded, read = load_instrument(instrument), Read(debias, think, stop=stop, nll_prefill=False)

    async def score(state: TaskState, target: Target) -> Score:
        reads = state.store.get("asked")
        tokens = [entry["tokens"] for entry in reads]
        others = [other for entry in reads for other in entry["retokenised"]]
        score_row = row(
            Vignette.model_validate(state.metadata["vignette"]),
            np.array([[entry["lp"]] for entry in reads], dtype=float),
            read,
            None,
            [entry["text"] for entry in reads],
            None if None in tokens else tokens,
            state.metadata["rotation"],
        )
        score_row["instrument"], score_row["template"] = loaded.identity, state.store.get("template")
        score_row["route"], score_row["retokenised"] = state.store.get("route"), None if None in others else sum(others)
        p, mass = score_row["p"] or [float("nan")] * len(FOUNDATIONS), score_row["pmass_allowed"]
        return Score(
            value={**dict(zip(FOUNDATIONS, p, strict=True)), "answer_mass": float("nan") if mass is None else mass},
            answer=score_row["top1"],
            reason=None if score_row["p"] else "scoring_failed",
            explanation=None
            if score_row["p"]
            else "a label has no log-probability: not among top_logprobs, or minus infinity",
            metadata=score_row,
        )

    return score
