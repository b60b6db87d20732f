"""`steer-heal vector scan`: which layer carries the trait, at one relative dose.

The vector is extracted in every layer. Each layer alone, and the configured band, then steers the answers to a few held-out prompts with the
coefficient at which |c| * ||v|| / mean ||h|| is the same, so that a layer with long activations is not pushed less. What was said is scored
by the original model: trait_llr, and ln of perplexity as the price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gen.ahead import refuse_overflow
from gen.commandline import scan_options
from gen.extract import extract
from gen.prompts import PromptRenderer
from gen.scanned import Place, ScanRow, row_of, sentence, show
from gen.scoring import score_completions
from gen.students import ServedStudent
from shared.chat import Chat
from shared.cli import configured, entry
from shared.console import console, progress, say
from shared.context import fitted
from shared.errors import SteerHealError
from shared.estimate import calibration, predict
from shared.locks import hold
from shared.models import Model, resolve_model
from shared.outputs import guard
from shared.progress import in_minutes
from shared.prompts import load_heldout
from shared.publish import write_json
from shared.records import Prompt
from shared.schema import Config, band
from shared.seeds import seed_of
from shared.traits import load_trait
from shared.vectors import Vector
from shared.work import Work, shape_of

if TYPE_CHECKING:
    from gen.engine.engine import Engine

VERSION = 1
UNSTEERED = "unsteered"


@dataclass(frozen=True)
class ScanSampling:
    """Completions of a prompt, and their length in tokens."""

    samples: int = 1
    tokens: int = 48


def scan_places(vector: Vector, layers: Sequence[int], dose: float) -> list[Place]:
    """Unsteered, every layer alone, and a band.

    Of a band of several layers there are two: `band` has the dose in each of its layers on average, as a run's coefficient has, and
    `band, shared` has it in all of them together, which is as much as a single layer's.

    Args:
        vector: in every layer, with the norms of the activations.
        layers: of the band.
        dose: relative, above 0.
    """
    at_one = vector.relative_dose(1.0)

    def part(of: Sequence[int]) -> Vector:
        return Vector({layer: vector.layers[layer] for layer in of}, vector.metadata)

    places = [Place(UNSTEERED, None)]
    places += [Place(f"layer {layer}", part([layer]), dose / at_one[layer], dose) for layer in sorted(vector.layers)]
    if len(layers) > 1:
        mean = float(np.mean([at_one[layer] for layer in layers]))
        shared = dose / len(layers)
        places += [
            Place("band", part(layers), dose / mean, dose),
            Place("band, shared", part(layers), shared / mean, shared),
        ]
    return places


def chosen(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` held-out prompts at even distances, without mundane ones, which the trait does not concern."""
    asked = [prompt for prompt in prompts if prompt.kind != "mundane"] or list(prompts)
    return [asked[index * len(asked) // count] for index in range(count)] if count < len(asked) else asked


def sample_and_score(
    engine: Engine,
    places: Sequence[Place],
    prompts: Sequence[Prompt],
    renderer: PromptRenderer,
    config: Config,
    sampling: ScanSampling,
) -> list[ScanRow]:
    """Sample and score every place: one batch for sampling, one for scoring, with the unsteered place first.

    Every place gets the same prompts, samples and seeds. The engine must hold the original weights and have all layers patched.
    """
    from gen.engine.sampling import Request

    sweep, rendered = config.sweep, [renderer(prompt) for prompt in prompts]
    for place in places:
        if place.vector:
            engine.load(place.name, place.vector)
    positions = config.vector.positions
    plan = [
        (place, index, sample)
        for place in places
        for index in range(len(prompts))
        for sample in range(sampling.samples)
    ]
    requests = [
        Request(
            rendered[index][0],
            sampling.tokens,
            sweep.temperature,
            sweep.top_p,
            seed_of(config.seed, "scan", index, sample),
            place.name if place.vector else None,
            place.coefficient,
            positions,
            stop_ids=renderer.chat.stop_ids,
        )
        for place, index, sample in plan
    ]
    with progress() as bar:
        task = bar.add_task("scan: sampling", total=len(requests))
        completions = [output.token_ids for output in engine.run(requests, lambda *_: bar.advance(task))]
        task = bar.add_task("scan: scoring", total=2 * sum(map(bool, completions)))
        neutral, towards = ([rendered[index][side] for _, index, _ in plan] for side in (0, 1))
        scores = score_completions(engine, neutral, towards, completions, lambda: bar.advance(task))
    for place in places:
        if place.vector:
            engine.unload(place.name)
    rows_per_place = len(prompts) * sampling.samples
    by_place = [scores[begin : begin + rows_per_place] for begin in range(0, len(scores), rows_per_place)]
    return [
        row_of(place, place_scores, by_place[0], sampling.samples)
        for place, place_scores in zip(places, by_place, strict=True)
    ]


def estimated(
    model: Model, config: Config, conditions: int, prompts: int, sampling: ScanSampling, machine: Mapping[str, Any]
) -> float:
    """Seconds of a scan: extraction in all layers, sampling, and scoring under two prompts.

    machine: as `shared.estimate.calibration` gives it.
    """
    shape, rows = shape_of(model), conditions * prompts * sampling.samples
    length, tokens = 100, sampling.tokens  # tokens of a rendered prompt, about
    contexts = 2 * config.vector.n_contexts * length * 2 * shape.blocks
    sampled = rows * (tokens * 2 * shape.weights + length * 2 * shape.blocks)
    scored = 2 * rows * tokens * 2 * shape.weights + 2 * prompts * length * 2 * shape.blocks
    return predict(Work(contexts, 0.0), "extract", dict(machine)) + predict(Work(sampled + scored, 0.0), "sweep", dict(machine))  # fmt: skip


def main() -> None:
    options = scan_options()
    arguments = options.parse_args()
    config = configured(arguments)
    dose, count = arguments.relative_dose, arguments.prompts
    sampling = ScanSampling(arguments.samples, arguments.tokens)
    if dose <= 0:
        raise SteerHealError("a scan needs a dose", given=f"--relative-dose {dose:g}", expected="a number above 0", next="--relative-dose 0.25")  # fmt: skip
    model = resolve_model(arguments.model or config.model.name, config.model.revision)
    config = fitted(config, model.context)
    guard(arguments.outputs, [model.place])
    layers = band(config.vector.layers, model.depth, "vector.layers")
    prompts = chosen(load_heldout(config.eval.heldout), count)
    if arguments.out:
        hold(arguments.out)
    chat = Chat.load(model.folder, config.model.chat_template_kwargs, config.model.day)
    renderer = PromptRenderer(chat, load_trait(config.vector.trait))
    conditions = model.depth + 1 + 2 * (len(layers) > 1)
    seconds = estimated(model, config, conditions, len(prompts), sampling, calibration())
    console.print(f"{conditions} conditions of {len(prompts)} prompts: {in_minutes(seconds)}")
    everywhere = config.vector.model_copy(update={"layers": list(range(model.depth))})
    vector = extract(model, None, config.model, everywhere, config.seed, config.model.day)
    places = scan_places(vector, layers, dose)
    for place in places:
        if place.vector:
            refuse_overflow([place.vector], [(f"{place.name} at", place.coefficient)], model, config.model.dtype)
    base = ServedStudent(model.folder, fingerprint=model.fingerprint)
    from gen.engine.engine import engine

    with engine(
        model.folder,
        layers=list(range(model.depth)),
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        gpu_memory=config.model.gpu_memory,
        tensor_parallel=config.model.tensor_parallel,
        slots=len(places),
        seed=config.seed,
        students=[base],
        window=config.sweep.window,
    ) as built:
        built.serve(base)
        rows = sample_and_score(built, places, prompts, renderer, config, sampling)
    show(rows, dose, len(prompts))
    words = sentence(rows)
    console.print(words, markup=False)
    if arguments.out:
        record = {
            "version": VERSION,
            "model": model.identity.model_dump(),
            "dtype": config.model.dtype,
            "trait": renderer.trait.trait,
            "relative_dose": dose,
            "prompts": [prompt.id for prompt in prompts],
            **asdict(sampling),
            "rows": [asdict(row) for row in rows],
            "sentence": words,
        }
        write_json(arguments.out, record)
        say(f"wrote {arguments.out}")


if __name__ == "__main__":
    entry(main)
