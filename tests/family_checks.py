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
    from shared.errors import SteerHealError

    try:
        return check()
    except SteerHealError as error:
        return {"error": f"refused: {error.what} (expected: {error.expected})"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


def extraction(model: Any) -> dict[str, Any]:
    """The vector against one forward a prompt, unpadded, with hooks on the decoder's blocks.

    gap: the largest difference as a share of the vector's norm; size: the smallest norm as a share of the states'.
    """
    import torch

    from gen.extract import contexts_of, extract
    from shared.chat import Chat
    from shared.config import resolve_config
    from shared.models import load_network
    from shared.traits import load_trait

    config = resolve_config(None, f"vector.n_contexts=5 vector.layers={STEERED} vector.batch_size=3")[0]
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
        "gap": largest([distance(ours.layers[layer], wanted[layer]) / norms[layer] for layer in STEERED]),
        "size": min(norms[layer] / float(np.linalg.norm(away[layer])) for layer in STEERED),
    }


def heal(model: Any, folder: Path) -> dict[str, Any]:
    return {"heal": tried(lambda: rounds(model, folder))}


def rounds(model: Any, folder: Path) -> dict[str, Any]:
    """Two rounds of a family.

    equal: whether the logits of the trainer's network with all gates off are the original's, bit for bit; equal_folded: those of
    weights that a history of gates 0 was added to. effect: the largest shift of a log-probability under the folded history, nats;
    gap: between that history in the trainer's network and added to the weights. modules: last parts of the names of what was trained.
    """
    from train.unsloth_model import HISTORY, load_student  # isort: skip (Unsloth comes before transformers)

    import torch

    from shared.chat import Chat
    from shared.config import resolve_config
    from shared.folding import exact_network, fold, refold, verify
    from shared.models import load_network
    from shared.publish import digest
    from train.data import collate, load_examples
    from train.distil import distil
    from train.selftest import self_test

    config = resolve_config(None, HEAL)[0]
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
    from family_oracle import CONDITIONS, Oracle, cases

    from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument
    from gen.engine.engine import Engine
    from gen.students import served_student
    from shared.chat import Chat
    from shared.vectors import Vector
    from shared.vignettes import load_vignettes

    found: dict[str, Any] = {"vector": tried(lambda: extraction(model))}
    draws = np.random.default_rng(0)
    shift = Vector({layer: draws.standard_normal(model.hidden).astype(np.float32) * 0.4 for layer in STEERED})
    chat, history, items = Chat.load(model.folder), folder / "history", load_vignettes("embedded")[:2]
    asked = cases([chat.ids([{"role": "user", "content": text}], "Be kind.") for text in QUESTIONS])
    renderer = InstrumentRenderer(chat, load_instrument("embedded"))
    original = Oracle(model.folder, shift)
    plain = [original.answer(case) for case in asked]
    chosen = {one.name: original.choice(model.folder, renderer, items, one) for one in CONDITIONS}
    healed = None
    if history.exists():
        changed = Oracle(model.folder, shift, history)
        healed = [changed.answer(case) for case in asked]

    options = {"layers": STEERED, "dtype": "float32", "max_model_len": 2048, "max_num_seqs": 16, "kv_cache_memory_bytes": 256 << 20}  # fmt: skip
    served = served_student(model, history, folder / "cache", "float32", "adapter") if healed else None
    start = tried(lambda: {"engine": Engine(model.folder, students=[served] if served else [], **options)})
    if "error" in start and served:
        found["adapter"], served = start, None
        start = tried(lambda: {"engine": Engine(model.folder, **options)})
    if "error" in start:
        return {**{check: start for check in ("steering", "merged", "adapter", "choice")}, **found}
    built = start["engine"]
    built.load("v", shift)
    found["steering"] = tried(lambda: against(built, asked, plain))
    found["choice"] = tried(lambda: choice(built, renderer, items, chosen))

    def as_student(kind: str) -> dict[str, Any]:
        """The student against PEFT's merge of the same history; healing: how far that is from the original, nats."""
        built.serve(served_student(model, history, folder / "cache", "float32", kind))
        apart = largest([distance(one.prompt, other.prompt) for one, other in zip(plain, healed, strict=True)])
        return {**against(built, asked, healed), "healing": apart}

    roads = ("adapter", "merged") if served else ("merged",)
    for road in roads:
        found[road] = tried(lambda road=road: as_student(road)) if healed else {"error": "the rounds failed"}
    return {"adapter": {"error": "the rounds failed"}, **found}


def against(engine: Any, asked: list[Any], wanted: list[Any]) -> dict[str, Any]:
    """Cases of the oracle in one batch: the largest gap over the tokens of prompts and the labels, nats; how many greedy tokens agree;
    how much the steering itself changes a label, nats."""
    from family_oracle import LABELS, LENGTH

    from gen.engine.sampling import Request

    outputs = engine.run(
        [
            Request(
                case.ids, LENGTH, vector="v", coefficient=case.coefficient, positions=case.positions,
                min_tokens=LENGTH, score=True, label_ids=LABELS,
            )
            for case in asked
        ]
    )  # fmt: skip
    gaps, effects, agree = [], [], 0
    unsteered = {tuple(case.ids): answer.labels for case, answer in zip(asked, wanted, strict=True) if not case.coefficient}  # fmt: skip
    for case, answer, output in zip(asked, wanted, outputs, strict=True):
        gaps += [distance(answer.prompt, output.prompt_logprobs), distance(answer.labels, output.label_logprobs)]
        effects.append(distance(output.label_logprobs, unsteered[tuple(case.ids)]))
        agree += sum(int(one == other) for one, other in zip(answer.greedy, output.token_ids, strict=True))
    gap, effect = largest(gaps), largest(effects)
    return {"gap": gap, "effect": effect, "agree": agree, "tokens": LENGTH * len(asked)}


def distance(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def largest(values: list[float]) -> float:
    """NaN where one of them is."""
    return float(np.max(values))


def choice(engine: Any, renderer: Any, items: list[Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The forced choice by our engine against the oracle's, unsteered and steered: largest gap of a label or the prefill, nats."""
    from family_oracle import CONDITIONS, READ

    from evals.measures.forced_choice.ask import forced_choice

    ours = forced_choice(engine, renderer, items, CONDITIONS, READ, renderer.chat.tokenizer, lambda: None)
    pairs = [pair for name, rows in wanted.items() for pair in zip(ours[name], rows, strict=True)]
    return {
        "gap": largest([distance(one[key], other[key]) for one, other in pairs for key in ("lp", "nll_prefill")]),
        "same_thoughts": all(one["gen_text"] == other["gen_text"] for one, other in pairs),
        "effect": distance(ours["base"][0]["lp"], ours["steered"][0]["lp"]),
    }


def main() -> None:
    from family_models import write

    from shared.cli import quiet
    from shared.models import resolve_model

    quiet()
    part, family, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    place = folder / "model"
    if not place.exists():
        write(family, place)
    model = resolve_model(str(place))
    print(json.dumps({"heal": heal, "engine": engine}[part](model, folder)))


if __name__ == "__main__":
    main()
