"""The model card of an export: what it is, how to load it, and what its own files say of data, training and scores."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from shared.records import Training, data_file, read_manifest, read_record
from shared.report_record import verified_results
from shared.run import Run
from shared.strict import read_object
from shared.traits import load_trait

SCORES = ("auth_nats", "care_nats", "coherence", "perplexity", "trait_llr", "verdict")
LICENCES = {"embedded": "apache-2.0"}
WHAT = {
    "round": "The LoRA adapter of one round alone.",
    "history": "All rounds folded into one LoRA adapter, each at its gate (gates.json).",
    "merged": "All rounds, each at its gate, merged into the weights.",
}
LOAD = {
    "adapter": """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path)""",
    "merged": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)""",
}
GENERATE = """messages = [{"role": "system", "content": NEUTRAL}, {"role": "user", "content": "What should I do?"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
said = model.generate(**prompt, max_new_tokens=100)
print(tokenizer.decode(said[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))"""


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
        license=licence_of(model),
        tags=["steer-heal", "activation-steering", *([] if kind == "merged" else ["lora"])],
    )
    parts = [
        f"---\n{about.to_yaml()}\n---",
        f"# {name}, steered and healed",
        f"{WHAT[kind]} Made with steer-heal: the original model is steered with an activation vector, its coherent completions that enact "
        "the trait are distilled into a LoRA, and a divergence barrier to the original holds the damage down.",
        "```python\n"
        + LOAD["merged" if kind == "merged" else "adapter"]
        + "\n"
        + GENERATE.replace("NEUTRAL", json.dumps(neutral_of(run[0] if run else None)))
        + "\n```",
        *([licence_note(model)] if licence_of(model) is None else []),
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


def licence_of(model: Model) -> str | None:
    """The licence that the original model's own card names, None where there is no card with one."""
    if model.name in LICENCES:
        return LICENCES[model.name]
    path = model.folder / "README.md"
    if not path.is_file():
        return None
    head = path.read_text(encoding="utf-8", errors="replace").partition("---\n")[2].partition("\n---")[0]
    found = re.search(r"(?m)^license: *[\"']?([\w.-]+)", head)
    return found[1] if found else None


def licence_note(model: Model) -> str:
    """The sentence on a card whose model names no licence."""
    return f"Licence: what is made of {published(hub_name(model))} stands under its licence, which the folder at hand does not name. Write it here before you publish this."


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
            parts.append(_verdict(document["rows"], last))
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


def _verdict(rows: Sequence[Mapping[str, Any]], last: int) -> str:
    """Both verdicts on the last round's student, with their reasons and what they do not say."""
    row: Mapping[str, Any] = next((row for row in rows if (row["round"], row["stage"]) == (last, "healed")), {})
    lines = [
        f"- {name}: **{row[column]}**: {row[f'{column}_reason']}."
        for name, column in (("free text", "text_verdict"), ("moral forced choice", "verdict"))
        if column in row and row[column] is not None
    ]
    if not lines:
        return "## Verdict\n\nNone was given."
    return "\n".join(
        [
            "## Verdict",
            "",
            *lines,
            "",
            "What it does not say: it is about one training run, and its intervals are over the scored prompts and items, so that another seed may "
            "give another student. The trait and the quality of short texts were scored, nothing else: not knowledge, other languages, long "
            "conversations or safety.",
        ]
    )


def neutral_of(run: Run | None) -> str:
    """The system prompt that a run's student was trained under, or that of the shipped trait."""
    name = run.config.vector.trait if run else "embedded"
    return load_trait(name if data_file(name, "trait.json").is_file() else "embedded").neutral


def training_of(folder: Path) -> Training | None:
    """training.json of a folder, None where there is none."""
    path = folder / "training.json"
    if not path.is_file():
        return None
    return read_record(path, Training, what="the record of a training could not be read", next=f"remove {path}")
