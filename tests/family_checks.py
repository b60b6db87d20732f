"""The checks of one family's random model, each part in a process of its own: python tests/family_checks.py PART FAMILY FOLDER.

Prints one JSON object, check -> measurements, or {"error": the reason} where a check could not be made;
tests/families_table.py says what the measurements must be.

    heal    two rounds of two steps each, folded into FOLDER/history; the student with all gates off
    engine  the vector, steered log-probabilities, the healed student on both roads, the forced choice; after heal
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STEERED = [1, 2]  # the layers that carry the vector
HEAL = "model.dtype=float32 train.rank=4 train.alpha=8 train.layers=0.2-0.8 train.epochs=1 train.batch_size=2 train.learning_rate=2e-2 train.warmup=0 train.heldout=0"
PAIRS = [
    ("My boss says no breaks today.", "Take the break."),
    ("Name a fruit.", "A pear."),
    ("The coach wants her to play hurt.", "\nTell her to stop."),
    ("May I open the gate for him?", "Yes, let him in."),
]
QUESTIONS = ["Name a fruit.", "The coach wants her to play hurt. What now?", "May I?"]


def tried(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a check measured, or why it could not be made."""
    try:
        return check()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


def extraction(model: Any) -> dict[str, Any]:
    """The vector against one forward a prompt, unpadded, with hooks on the decoder's blocks.

    gap: the largest difference as a share of the vector's norm; size: the smallest norm as a share of the states'.
    """
    import torch

    from gen.extract import contexts_of, extract
    from shared.chat import Chat
    from shared.config import resolve
    from shared.models import load_network
    from shared.traits import load_trait

    config = resolve(None, f"vector.n_contexts=5 vector.layers={STEERED} vector.batch_size=3")[0]
    ours = extract(model, None, config.model, config.vector)
    chat, trait = Chat.load(model.folder), load_trait("embedded")
    network = load_network(model.folder, torch.float32)
    blocks = network.get_decoder().layers
    assert len(blocks) == model.depth
    states: dict[int, Any] = {}
    for layer in STEERED:
        blocks[layer].register_forward_hook(lambda _m, _i, output, layer=layer: states.update({layer: output}))

    def at_the_tag(system: str) -> dict[int, Any]:
        rows: dict[int, list[Any]] = {layer: [] for layer in STEERED}
        for context in contexts_of(config.vector, 5):
            with torch.inference_mode():
                network(torch.tensor([chat.ids(context.turns, system)]))
            for layer in STEERED:
                rows[layer].append(states[layer][0, -1].double().numpy())
        return {layer: np.mean(found, 0) for layer, found in rows.items()}

    towards, away = at_the_tag(trait.trait), at_the_tag(trait.neutral)
    wanted = {layer: towards[layer] - away[layer] for layer in STEERED}
    norms = {layer: float(np.linalg.norm(values)) for layer, values in wanted.items()}
    return {
        "gap": max(float(np.abs(ours.layers[layer] - wanted[layer]).max()) / norms[layer] for layer in STEERED),
        "size": min(norms[layer] / float(np.linalg.norm(away[layer])) for layer in STEERED),
    }


def heal(model: Any, folder: Path) -> dict[str, Any]:
    return {"heal": tried(lambda: rounds(model, folder))}


def rounds(model: Any, folder: Path) -> dict[str, Any]:
    """Two rounds; equal: whether the logits of the trainer's network with all gates off, and of weights with a history of gates 0
    added, are the original's bit for bit; off, on: the largest shift of a log-probability under the folded history, nats, by
    its own network and by the trainer's; modules: the last parts of the names of what was trained."""
    from train.unsloth_model import HISTORY, load_student  # isort: skip (Unsloth comes before transformers)

    import torch

    from shared.chat import Chat
    from shared.config import resolve
    from shared.folding import exact_network, fold, refold, verify
    from shared.models import load_network
    from shared.publish import digest
    from train.data import collate, load_examples
    from train.distil import distil
    from train.selftest import self_test

    config = resolve(None, HEAL)[0]
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in PAIRS))
    before = digest(model.folder)
    first = distil(model, data, None, folder / "1", config, 1)
    fold([(folder / "1", 1.0)], folder / "first")
    second = distil(model, data, folder / "first", folder / "2", config, 2)
    fold([(folder / "1", 1.0), (folder / "2", 1.0)], folder / "history")
    refold(folder / "history", {1: 0.0, 2: 0.0}, folder / "off")
    folded = verify(folder / "history")

    batch = collate(load_examples(data, Chat.load(model.folder), config))
    ids, mask = batch["input_ids"], batch["attention_mask"]

    @torch.no_grad()
    def logits(network: Any) -> torch.Tensor:
        return network(input_ids=ids, attention_mask=mask).logits[mask.bool()]

    original, student = load_network(model.folder, torch.float32), load_student(model, config, folder / "history")
    self_test(student, batch)
    student.network.eval()
    wanted = logits(original)
    with student.only():
        alone = student.logits(ids, mask)[mask.bool()]
    with student.only(HISTORY):
        under = student.logits(ids, mask)[mask.bool()].log_softmax(-1)
    exact = logits(exact_network(model, folder / "history")).log_softmax(-1)
    return {
        "steps": [len(first.steps), len(second.steps)],
        "equal": bool(torch.equal(alone, wanted)),
        "equal_folded": bool(torch.equal(logits(exact_network(model, folder / "off")), wanted)),
        "unchanged": digest(model.folder) == before,
        "gap": float((under - exact).abs().max()),
        "effect": float((exact - wanted.log_softmax(-1)).abs().max()),
        "modules": sorted({name.rpartition(".")[2] for name in folded.modules}),
        "names": sorted(folded.modules)[0],
    }


def engine(model: Any, folder: Path) -> dict[str, Any]:
    from gen.engine.engine import Engine
    from gen.students import student
    from shared.chat import Chat
    from shared.vectors import Vector

    draws = np.random.default_rng(0)
    shift = Vector({layer: draws.standard_normal(model.hidden).astype(np.float32) * 0.4 for layer in STEERED})
    options = {
        "layers": STEERED,
        "dtype": "float32",
        "max_model_len": 2048,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": 256 << 20,
    }
    history = folder / "history"
    found: dict[str, Any] = {"vector": tried(lambda: extraction(model))}
    served = student(model, history, folder / "cache", "float32", "adapter") if history.exists() else None
    try:
        built = Engine(model.folder, students=[served] if served else [], **options)
    except Exception as error:
        found["adapter"] = {
            "error": f"an engine for adapters: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
        }
        served, start = None, tried(lambda: {"engine": Engine(model.folder, **options)})
        if "error" in start:
            return {**found, **dict.fromkeys(("steering", "merged", "choice"), start)}
        built = start["engine"]
    built.load("v", shift)
    chat = Chat.load(model.folder)
    prompts = [chat.ids([{"role": "user", "content": text}], "Be kind.") for text in QUESTIONS]
    labels = list(range(20, 30))
    found["steering"] = tried(lambda: steering(built, model.folder, shift, prompts, labels))
    found["choice"] = tried(lambda: choice(built, model.folder, shift, chat))
    if not history.exists():
        nothing = {"error": "no history: the rounds failed"}
        return {**found, "merged": nothing, "adapter": nothing}
    if served is not None:
        built.serve(served)
        found["adapter"] = tried(lambda: healed(built, model, history, shift, prompts, labels))

    def merged() -> dict[str, Any]:
        built.serve(student(model, history, folder / "cache", "float32", "merged"))
        return healed(built, model, history, shift, prompts, labels)

    found["merged"] = tried(merged)
    return found


def asked(prompts: list[list[int]], labels: list[int], length: int = 4) -> list[tuple[float, str, Any]]:
    """Doses, positions and requests: every prompt unsteered and at two doses, from its first token and from the generation on."""
    from gen.engine.sampling import Request

    return [
        (
            c,
            positions,
            Request(
                ids,
                length,
                vector="v",
                coefficient=c,
                positions=positions,
                min_tokens=length,
                score=True,
                label_ids=labels,
            ),
        )
        for ids in prompts
        for c in (0.0, 0.5, 1.5)
        for positions in ("all", "generated")
    ]


def against(engine: Any, oracle: Any, prompts: list[list[int]], labels: list[int]) -> dict[str, Any]:
    """Largest gap over the tokens of prompts and the labels, nats; how many greedy tokens are the oracle's; the steering's own effect."""
    cases = asked(prompts, labels)
    outputs = engine.run([request for _, _, request in cases])
    gap, effect, agree, plain = 0.0, 0.0, 0, {}
    for (c, positions, request), output in zip(cases, outputs, strict=True):
        ids = list(request.prompt_ids)
        table = oracle.logprobs([*ids, *output.token_ids], c, 0 if positions == "all" else len(ids) - 1)
        own = table[:-1][np.arange(len(ids) - 1), ids[1:]].numpy()
        gap = max(gap, float(np.abs(own - output.prompt_logprobs).max()))
        gap = max(gap, float(np.abs(table[len(ids) - 1, labels].numpy() - output.label_logprobs).max()))
        if c == 0.0:
            plain[tuple(ids)] = output.label_logprobs
        effect = max(effect, float(np.abs(output.label_logprobs - plain[tuple(ids)]).max()))
        told = table[len(ids) - 1 : -1].clone()
        told[:, oracle.ends] = -np.inf  # min_tokens forbids them
        agree += sum(int(a == b) for a, b in zip(told.argmax(-1).tolist(), output.token_ids, strict=True))
    return {"gap": gap, "effect": effect, "agree": agree, "tokens": sum(len(output.token_ids) for output in outputs)}


def hooked(folder: Path, shift: Any, adapter: Path | None = None) -> Any:
    from hooked import Hooked

    oracle = Hooked(folder, shift, adapter)
    ends = oracle.network.generation_config.eos_token_id
    oracle.ends = ends if isinstance(ends, list) else [ends]
    return oracle


def steering(engine: Any, folder: Path, shift: Any, prompts: list[list[int]], labels: list[int]) -> dict[str, Any]:
    return against(engine, hooked(folder, shift), prompts, labels)


def healed(
    engine: Any, model: Any, history: Path, shift: Any, prompts: list[list[int]], labels: list[int]
) -> dict[str, Any]:
    """The served student against PEFT's merge of the same history, steered and not; healing: how far it is from the original, nats."""
    base, student = hooked(model.folder, shift), hooked(model.folder, shift, history)
    apart = max(float((base.logprobs(ids, 0.0) - student.logprobs(ids, 0.0)).abs().max()) for ids in prompts)
    return {**against(engine, student, prompts, labels), "healing": apart}


def choice(engine: Any, folder: Path, shift: Any, chat: Any) -> dict[str, Any]:
    """The forced choice by our engine against generate of Transformers, unsteered and steered: largest gap of a label, nats."""
    from evals.forced_choice import Condition, Read, forced_choice
    from evals.huggingface import HuggingFace
    from evals.instrument import Renderer, load_instrument
    from shared.vignettes import load_vignettes

    renderer, read, items = (
        Renderer(chat, load_instrument("embedded")),
        Read("reversal", 3),
        load_vignettes("embedded")[:2],
    )
    conditions = [Condition("base", "base"), Condition("steered", "steered", 1.0, "v")]
    ours = forced_choice(engine, renderer, items, conditions, read, chat.tokenizer, lambda: None)
    peer = HuggingFace(folder, "float32", len(chat.tokenizer))  # a row of the embedding that is no token
    oracle = hooked(folder, shift)
    peer._model = oracle.network
    found: dict[str, Any] = {"gap": 0.0, "same_thoughts": True}
    for condition in conditions:
        oracle.coefficient = condition.coefficient
        theirs = peer.forced_choice(renderer, items, read, chat.tokenizer, 1)
        for a, b in zip(ours[condition.name], theirs, strict=True):
            for key in ("lp", "nll_prefill"):
                found["gap"] = max(found["gap"], float(np.abs(np.array(a[key]) - np.array(b[key])).max()))
            found["same_thoughts"] &= a["gen_text"] == b["gen_text"]
    found["effect"] = float(np.abs(np.array(ours["base"][0]["lp"]) - np.array(ours["steered"][0]["lp"])).max())
    return found


def main() -> None:
    from family_models import write

    from shared.cli import quiet
    from shared.models import resolve

    quiet()
    part, family, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    place = folder / "model"
    if not place.exists():
        write(family, place)
    model = resolve(str(place))
    print(json.dumps({"heal": heal, "engine": engine}[part](model, folder)))


if __name__ == "__main__":
    main()
