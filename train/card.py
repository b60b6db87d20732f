"""The model card of an export: what it is, how to load it, and what its own files say of data, training and scores."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from shared import jinja
from shared.adapter_card import HUB, trained_on
from shared.adapters import Base
from shared.commands import round_command
from shared.config import flatten_config
from shared.console import format_number
from shared.errors import SteerHealError, in_one_line
from shared.hub import public_name
from shared.models import Model
from shared.provenance import versions
from shared.records import Training, data_file, read_manifest, read_record
from shared.report_record import verified_results
from shared.run import Run
from shared.strict import read_object
from shared.traits import load_trait

SCORES = ("auth_nats", "care_nats", "coherence", "perplexity", "trait_llr", "verdict")
LICENCES = {"embedded": "apache-2.0"}
TEMPLATES = Path(__file__).parent / "templates"


def hub_name(model: Model) -> str:
    """The name others know the original model by."""
    return HUB.get(model.name, model.name)


def model_card(model: Model, kind: str, gates: Mapping[int, float], base: Base | None, training: Training | None, run: tuple[Run, int] | None) -> str:  # fmt: skip
    """The model card of an export as Markdown, with the hub's metadata.

    Args:
        model: the original one.
        kind: round, history or merged.
        gates: by round, empty for kind round.
        base: the adapter's note on the weights that it was trained on, None where it has no note.
        training: a training.json.
        run: a run and its round, for counts, settings and scores.
    """
    base = base or Base(model=model.name, revision=model.revision, fingerprint=model.fingerprint)
    name = public_name(hub_name(model))
    about = ModelCardData(
        base_model=name,
        library_name="transformers" if kind == "merged" else "peft",
        pipeline_tag="text-generation",
        license=licence_of(model),
        tags=["steer-heal", "activation-steering", *([] if kind == "merged" else ["lora"])],
    )
    return jinja.fill_card(
        TEMPLATES,
        "model_card.md",
        metadata=about.to_yaml(),
        name=name,
        kind=kind,
        round=base.round,
        neutral=json.dumps(neutral_of(run[0] if run else None)),
        licence=licence_of(model),
        gates=sorted(gates.items()),
        columns=SCORES,
        run=_of_run(*run) if run else None,
        training=training,
        versions=versions().items(),
        **trained_on(base),
    )


def licence_of(model: Model) -> str | None:
    """The licence that the original model's own card names, None where there is no card with one."""
    if model.name in LICENCES:
        return LICENCES[model.name]
    path = model.folder / "README.md"
    if not path.is_file():
        return None
    head = path.read_text(encoding="utf-8", errors="replace").partition("---\n")[2].partition("\n---")[0]
    match = re.search(r"(?m)^license: *[\"']?([\w.-]+)", head)
    return match[1] if match else None


def _of_run(run: Run, last: int) -> dict[str, Any]:
    """Counts and settings of a run, and verdicts and scores where it has a report."""
    counts = []
    for index in range(1, last + 1):
        path = run.manifest(index, "filter")
        manifest = read_manifest(path, round_command(run.folder, index))
        counts.append(
            (index, format_number(manifest.counts.get("kept")), format_number(manifest.counts.get("rejected")))
        )
    scores, verdicts = None, None
    again = f"python -m evals.report --run {shlex.quote(str(run.folder))}"
    if results := verified_results(run, again):
        document = read_object(
            results, what="the results of a run could not be read", expected="results.json", next=again
        )
        try:
            verdicts = _verdicts(document["rows"], last)
            scores = [
                [str(row["round"]), str(row["stage"]), *[format_number(row[name]) for name in SCORES]]
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
    settings = [
        (key, json.dumps(public_name(value) if isinstance(value, str) else value))
        for key, value in flatten_config(run.config).items()
        if value is not None
    ]
    return {"counts": counts, "verdicts": verdicts, "scores": scores, "settings": settings}


def _verdicts(rows: Sequence[Mapping[str, Any]], last: int) -> list[tuple[str, str, str]]:
    """Both verdicts on the last round's student, each with its measure and its reason."""
    row: Mapping[str, Any] = next((row for row in rows if (row["round"], row["stage"]) == (last, "healed")), {})
    return [
        (name, row[column], row[f"{column}_reason"])
        for name, column in (("free text", "text_verdict"), ("moral forced choice", "verdict"))
        if column in row and row[column] is not None
    ]


def neutral_of(run: Run | None) -> str:
    """The system prompt that a run's student was trained under, or that of the shipped trait."""
    name = run.config.vector.trait if run else "embedded"
    return load_trait(name if data_file(name, "trait.json").is_file() else "embedded").neutral


def training_of(folder: Path) -> Training | None:
    """training.json of a folder; None where the folder has none."""
    path = folder / "training.json"
    if not path.is_file():
        return None
    return read_record(path, Training, what="the record of a training could not be read", next=f"remove {path}")
