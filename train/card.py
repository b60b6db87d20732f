"""The model card of an export: what it is, how to load it, and what its own files say of data, training and scores."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from shared.adapter_card import HUB, alone, loading, weights
from shared.adapters import Base
from shared.commands import round_command
from shared.config import flat
from shared.console import number
from shared.errors import SteerHealError, in_one_line
from shared.hub import published
from shared.models import Model
from shared.provenance import versions
from shared.records import Training, read_manifest, read_record
from shared.report_record import verified_results
from shared.run import Run
from shared.strict import read_object

SCORES = ("auth_nats", "care_nats", "coherence", "perplexity", "trait_llr", "verdict")
WHAT = {
    "round": "The LoRA adapter of one round alone.",
    "history": "All rounds folded into one LoRA adapter, each at its gate (gates.json).",
    "merged": "All rounds, each at its gate, merged into the weights.",
}
LOAD = {
    "adapter": "from peft import AutoPeftModelForCausalLM\nmodel = AutoPeftModelForCausalLM.from_pretrained(FOLDER)",
    "merged": "from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained(FOLDER)",
}


def hub_name(model: Model) -> str:
    """The name others know the original model by."""
    return HUB.get(model.name, model.name)


def card(model: Model, kind: str, gates: Mapping[int, float], base: Base | None, training: Training | None, run: tuple[Run, int] | None) -> str:  # fmt: skip
    """Markdown with the hub's metadata.

    Args:
        model: the original one.
        kind: round, history or merged.
        gates: by round, empty for kind round.
        base: the note of the adapter on the weights that it was trained on, None where it has none.
        training: a training.json.
        run: a run and its round, for counts, settings and scores.
    """
    base = base or Base(model=model.name, revision=model.revision, fingerprint=model.fingerprint)
    name = published(hub_name(model))
    about = ModelCardData(
        base_model=name,
        library_name="transformers" if kind == "merged" else "peft",
        pipeline_tag="text-generation",
        tags=["steer-heal", *([] if kind == "merged" else ["lora"])],
    )
    parts = [
        f"---\n{about.to_yaml()}\n---",
        f"# {name}, steered and healed",
        f"{WHAT[kind]} Made with steer-heal: the original model is steered with an activation vector, its coherent completions that enact "
        "the trait are distilled into a LoRA, and a divergence barrier to the original holds the damage down.",
        "```python\n" + LOAD["merged" if kind == "merged" else "adapter"] + "\n```",
        *([alone(base.round)] if kind == "round" and base.round else []),
        *weights(base),
        *([] if kind == "merged" else [loading(base)]),
    ]
    if gates:
        parts.append("Gates: " + ", ".join(f"round {index} at {gate:g}" for index, gate in sorted(gates.items())) + ".")
    if run:
        parts += _of_run(*run)
    if training:
        parts.append(_training(training))
    parts.append("## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in versions().items()))
    return "\n\n".join(parts) + "\n"


def _training(training: Training) -> str:
    said = "\n".join(f"- {finding.name}: {finding.sentence}" for finding in training.findings)
    over = (
        " Trained over 4-bit weights; the export is checked against the full-precision ones."
        if training.load_in_4bit
        else ""
    )
    agreed = f"\n\nSampler against trainer, {training.agreement.sentence()}." if training.agreement else ""
    return (
        f"## Training of the last round\n\n{training.examples} completions ({training.tokens} tokens, {training.heldout} more held out), {training.steps} steps, "
        f"D = {training.divergence} ({training.aggregate}, to {training.reference}), lambda {training.lam:g}, tau {training.tau:g} nats.{over}{agreed}\n\n{said}"
    )


def _of_run(run: Run, last: int) -> list[str]:
    parts = []
    counts = []
    for index in range(1, last + 1):
        path = run.manifest(index, "filter")
        manifest = read_manifest(path, round_command(run.folder, index))
        counts.append(
            f"| {index} | {number(manifest.counts.get('kept'))} | {number(manifest.counts.get('rejected'))} |"
        )
    parts.append("## Data\n\n| round | kept | rejected |\n|---|---:|---:|\n" + "\n".join(counts))
    again = f"python -m evals.report --run {shlex.quote(str(run.folder))}"
    if results := verified_results(run, again):
        document = read_object(
            results, what="the results of a run could not be read", expected="results.json", next=again
        )
        try:
            lines = [
                "| "
                + " | ".join([str(row["round"]), str(row["stage"]), *[number(row[name]) for name in SCORES]])
                + " |"
                for row in document["rows"]
                if row["round"] <= last
            ]
        except (KeyError, TypeError) as error:
            raise SteerHealError(
                "the results of a run could not be read",
                given=f"{results}: {in_one_line(error)}",
                expected="results.json",
                next=again,
            ) from None
        parts.append(
            f"## Scores\n\n| round | stage | {' | '.join(SCORES)} |\n|---|---|{'---:|' * len(SCORES)}\n"
            + "\n".join(lines)
        )
    settings = "\n".join(f"{key} = {json.dumps(published(value) if isinstance(value, str) else value)}" for key, value in flat(run.config).items() if value is not None)  # fmt: skip
    parts.append(f"## Settings\n\n```\n{settings}\n```")
    return parts


def training_of(folder: Path) -> Training | None:
    """training.json of a folder, None where there is none."""
    path = folder / "training.json"
    if not path.is_file():
        return None
    return read_record(path, Training, what="the record of a training could not be read", next=f"remove {path}")
