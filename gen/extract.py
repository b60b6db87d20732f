"""Extract the steering vector: v_l = mean over contexts of h_l(trait prompt, x) - h_l(neutral prompt, x).

h_l is the residual stream after decoder layer l at the last token of the rendered prompt (the assistant tag), by a plain
forward in fp32 (Blank et al. 2026, arXiv 2606.00995; Panickssery et al. 2023). The vector is raw, not normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gen.commandline import extract_options
from shared.chat import Chat, neutral_for
from shared.cli import configured, entry, need, parse_arguments
from shared.console import print_table, progress, say
from shared.errors import SteerHealError
from shared.folding import exact_network
from shared.gpu import on_gpu
from shared.locks import hold
from shared.models import Model, resolve_model
from shared.outputs import guard
from shared.prompts import stratified_prompts
from shared.publish import digest
from shared.records import Prompt, data_file
from shared.run import Run
from shared.schema import ModelConfig, VectorConfig, band
from shared.sets import input_of, revisions_of
from shared.stage import Stage
from shared.traits import Trait, load_trait
from shared.vectors import Vector, cosine

if TYPE_CHECKING:
    import torch


ROUNDING = 1e-6  # of a state's norm: a difference as small is the float32 of two batches, and no effect of a prompt


class _LastLayerReached(Exception):
    """A forward has passed the last layer that is asked for; what follows it changes nothing that is read."""


def activations(
    model: torch.nn.Module,
    depth: int,
    layers: Sequence[int],
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    label: str,
) -> dict[int, np.ndarray]:
    """Residual stream after each layer at the last token of each prompt: layer -> fp32 [prompts, hidden].

    A forward ends after the last of the layers: for a band in the middle of the depth that is half of it.

    Args:
        model: a network of Transformers.
        depth: its decoder layers.
        layers: 0-based, whose outputs are read.
        prompts: token ids.
        batch_size: prompts of one forward.
        label: for the line of progress.
    """
    import torch

    from shared.layers import decoder_layers

    _, stack = decoder_layers(model, depth)
    device = next(model.parameters()).device
    caught: dict[int, torch.Tensor] = {}
    states: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}

    def catch(layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            caught[layer] = output[0] if isinstance(output, tuple) else output
            if layer == max(layers):
                raise _LastLayerReached

        return hook

    handles = [stack[layer].register_forward_hook(catch(layer)) for layer in layers]
    order = sorted(
        range(len(prompts)), key=lambda index: len(prompts[index])
    )  # batches of like length waste little on padding
    try:
        with torch.inference_mode(), progress() as bar:
            task = bar.add_task(label, total=len(prompts))
            for begin in range(0, len(order), batch_size):
                batch = [prompts[index] for index in order[begin : begin + batch_size]]
                width = max(map(len, batch))
                ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch], device=device)
                mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=device)
                with suppress(_LastLayerReached):
                    model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
                last = torch.tensor([len(row) - 1 for row in batch], device=device)
                for layer in layers:
                    states[layer].append(
                        caught[layer][torch.arange(len(batch), device=device), last].float().cpu().numpy()
                    )
                bar.advance(task, len(batch))
    finally:
        for handle in handles:
            handle.remove()
    original_order = np.argsort(order)
    return {layer: np.concatenate(parts)[original_order] for layer, parts in states.items()}


def in_fp32(model: Model, history: Path | None) -> torch.nn.Module:
    """The student of a folded history (None: the original model) for plain forwards, on the GPU where there is one.

    Raises SteerHealError where torch is a CUDA build that sees no GPU.
    """
    network: torch.nn.Module = exact_network(model, history, "cuda" if on_gpu() else "cpu")
    return network


def contexts_of(config: VectorConfig, count: int) -> list[Prompt]:
    """`count` contexts, stratified over genres."""
    return stratified_prompts(config.contexts, "contexts.jsonl", count, "genre")


def inputs(model: Model, config: VectorConfig) -> tuple[Trait, list[Prompt], list[int]]:
    """The inputs of a vector: the trait, the contexts, the layers. Raises SteerHealError where one of them cannot be had."""
    layers = band(config.layers, model.depth, "vector.layers")
    return load_trait(config.trait), contexts_of(config, config.n_contexts), layers


def extract(
    model: Model,
    history: Path | None,
    model_config: ModelConfig,
    config: VectorConfig,
    seed: int = 0,
    day: date | None = None,
) -> Vector:
    """The steering vector of the student of a folded history over a model (None: the model's own), exact whatever model.dtype is.

    seed draws the direction where config.direction is random; its norms are the trait's. day is what a chat template with a clock
    writes, today's unless given. Raises SteerHealError where the trait prompt changes nothing in some layer, before anything is written.
    """
    trait, contexts, layers = inputs(model, config)
    chat = Chat.load(model.folder, model_config.chat_template_kwargs, day)  # the first thing that takes seconds

    def under(system: Callable[[Prompt], str | None]) -> list[list[int]]:
        return [chat.ids(row.turns, system(row)) for row in contexts]

    trait_prompts = under(lambda _: trait.trait)
    other_prompts = under(lambda row: trait.opposite if config.contrast else neutral_for(row.turns, trait.neutral))
    refuse_unreached(config, trait_prompts, other_prompts)
    network = in_fp32(model, history)

    def states(prompts: Sequence[Sequence[int]], label: str) -> dict[int, np.ndarray]:
        return activations(network, model.depth, layers, prompts, config.batch_size, label)

    towards = states(trait_prompts, "trait prompt")
    away = states(other_prompts, "opposite prompt" if config.contrast else "neutral prompt")
    refuse_not_finite(model, layers, towards, away)
    differences = {layer: towards[layer].astype(np.float64) - away[layer] for layer in layers}
    halves = {layer: (d[0::2].mean(0), d[1::2].mean(0)) for layer, d in differences.items()}
    vector = Vector(
        {layer: difference.mean(0).astype(np.float32) for layer, difference in differences.items()},
        {
            "band": config.layers,
            "positions": config.positions,
            "contrast": config.contrast,
            "model": model.name,
            "revision": model.revision,
            "model_fingerprint": model.fingerprint,
            "weights_fingerprint": model.fingerprint + (f" + {digest(history)}" if history else ""),
            "trait": trait.trait,
            "neutral": trait.opposite if config.contrast else trait.neutral,
            **({"date": chat.day.isoformat()} if chat.dated else {}),
            "n_contexts": len(contexts),
            "tokens": sum(map(len, [*trait_prompts, *other_prompts])),
            "hidden_norm": {str(layer): float(np.linalg.norm(away[layer], axis=1).mean()) for layer in layers},
            "split_half_cosine": {str(layer): cosine(a, b) for layer, (a, b) in halves.items()},
        },
    )
    doses = vector.relative_dose(1.0)
    if silent := [layer for layer in layers if doses[layer] <= ROUNDING]:
        evidence = f"‖v‖ = {vector.norm(silent[0]):.2g} in layer {silent[0]}, {doses[silent[0]]:.1g} of the mean ‖h‖, over {len(contexts)} contexts"
        raise unreached_error(config, evidence)
    return vector.random_like(seed) if config.direction == "random" else vector


def refuse_unreached(config: VectorConfig, towards: Sequence[Sequence[int]], away: Sequence[Sequence[int]]) -> None:
    """Raise SteerHealError unless some prompt differs by its system prompt, before a model is loaded.

    Args:
        config: which trait, for the error.
        towards, away: token ids of the prompts under the trait prompt and under the other one.
    """
    if all(list(ids) == list(other) for ids, other in zip(towards, away, strict=True)):
        raise unreached_error(
            config, f"all {len(towards)} contexts are the same tokens with and without the trait prompt"
        )


def unreached_error(config: VectorConfig, given: str) -> SteerHealError:
    """The error of a trait prompt that changes nothing in what the model reads. given: the evidence."""
    other = "opposite" if config.contrast else "neutral"
    return SteerHealError(
        "the trait prompt does not reach the model",
        given=given,
        expected=f"a chat template that renders the system prompt, and a trait prompt that differs from the {other} one",
        next=f"look at the trait and {other} prompts of vector.trait = {config.trait}, or take a model whose chat template has a system turn",
    )


def refuse_not_finite(model: Model, layers: Sequence[int], *states: dict[int, np.ndarray]) -> None:
    """Raise SteerHealError for activations [prompts, hidden] by layer that are NaN, infinite, or 0 throughout."""
    for layer in layers:
        norms = np.concatenate([np.linalg.norm(by_layer[layer].astype(np.float64), axis=1) for by_layer in states])
        if bad := int((~(np.isfinite(norms) & (norms > 0))).sum()):
            raise SteerHealError(
                "a model's activations are not finite, or 0",
                given=f"{model.name}: those of {bad} of {len(norms)} prompts, after layer {layer}",
                expected="finite numbers in float32, not all of them 0",
                next="check the model's weights, or choose another model.name",
            )


def show_vector(vector: Vector) -> None:
    """Print a vector's table: by layer its norm, the mean norm of the activations, the relative dose at 1 and the split-half cosine."""
    norms, cosines = vector.metadata["hidden_norm"], vector.metadata["split_half_cosine"]
    kind = "random direction of the norms of a" if "random_seed" in vector.metadata else ""
    print_table(
        f"{kind} steering vector, {vector.metadata['n_contexts']} contexts".strip(),
        ["layer", "‖v‖", "mean ‖h‖", "dose at 1", "split-half cosine"],
        [
            [str(layer), vector.norm(layer), norms[str(layer)], vector.relative_dose(1.0)[layer], cosines[str(layer)]]
            for layer in sorted(vector.layers)
        ],
    )


def stage(run: Run, number: int, rebuild: bool) -> None:
    config = run.config
    origin = resolve_model(config.model.name, config.model.revision)
    history = run.history(number - 1)
    trait = data_file(config.vector.trait, "trait.json")
    out, seed = run.round(number) / "vector.safetensors", config.seed + number
    job = Stage(
        run,
        number,
        "extract",
        settings={
            "model": origin.fingerprint,
            "revision": origin.revision,
            **config.model.rendering,
            "vector": config.vector.model_dump(),
            **({"seed": seed} if config.vector.direction == "random" else {}),
        },
        inputs={
            **input_of("contexts", config.vector.contexts),
            "trait": trait,
            **({"history": history} if history else {}),
        },
        revisions=revisions_of(contexts=config.vector.contexts),
        outputs=[out],
        rebuild=rebuild,
    )
    if job.done():
        return
    vector = extract(origin, history, config.model, config.vector, seed, run.day)
    vector.save(out)
    show_vector(vector)
    metadata = vector.metadata
    job.finish(origin.identity, contexts=metadata["n_contexts"], tokens=metadata["tokens"], layers=len(vector.layers))


def main() -> None:
    options = extract_options()
    arguments, run = parse_arguments(options)
    if run:
        stage(run, arguments.round, arguments.rebuild)
        return
    need(options, arguments, "model", "out")
    config = configured(arguments)
    model = resolve_model(arguments.model, config.model.revision)
    guard(arguments.outputs, [model.place])
    inputs(model, config.vector)
    hold(arguments.out)  # a place that cannot be written is found before the work, not after it
    vector = extract(model, None, config.model, config.vector, config.seed, config.model.day)
    vector.save(arguments.out)
    show_vector(vector)
    say(f"wrote {arguments.out}")


if __name__ == "__main__":
    entry(main)
