"""The kept completions of a round as a data set: the rows, a card that says what they are, and, behind a flag, the upload."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from huggingface_hub import DatasetCardData

from gen.commandline import card_options
from shared import jinja
from shared.cli import entry, need, parse_arguments
from shared.commands import round_command
from shared.config import flatten_config
from shared.console import format_number, say
from shared.errors import SteerHealError
from shared.filter_record import FILTER_RECORD, read_filter_record
from shared.hub import public_name, push
from shared.publish import atomic_folder
from shared.records import Completion, iterate_jsonl, read_jsonl, write_jsonl
from shared.run import Run
from shared.traits import load_trait
from shared.vectors import load_vector

FILES = ("kept", "rejected")
TEMPLATES = Path(__file__).parent / "templates"


def data_card(run: Run, number: int) -> str:
    """Markdown with the hub's metadata; loads as configurations `kept` (the default) and `rejected`."""
    folder, config = run.round(number), run.config
    again = round_command(run.folder, number)
    manifest = run.verify(number, "filter")
    kept = read_jsonl(folder / "kept.jsonl", Completion, made_by=again)
    rejected = read_jsonl(folder / "rejected.jsonl", Completion, made_by=again, may_be_empty=True)
    record = read_filter_record(folder / FILTER_RECORD, round_command(run.folder, number, rebuild=True))
    vector, trait = load_vector(folder / "vector.safetensors"), load_trait(config.vector.trait)
    about = DatasetCardData(
        task_categories=["text-generation"],
        tags=["steer-heal", "steering-vectors", "synthetic"],
        source_datasets=["original"],
        configs=[
            {"config_name": name, "data_files": f"{name}.jsonl", **({"default": True} if name == "kept" else {})}
            for name in FILES
            if name == "kept" or rejected
        ],
    )
    of = {
        line.coefficient: [row.trait_llr for row in kept if row.coefficient == line.coefficient]
        for line in record.lines
    }
    lines = [
        {
            "dose": "trait prompt" if line.prompted else f"{line.coefficient:g}",
            "sampled": line.n,
            "kept": line.kept,
            "trait_llr": _mean(of[line.coefficient]),
        }
        for line in record.lines
        if line.source == config.filter.source
    ]
    settings = [
        (key, public_name(value) if isinstance(value, str) and value else value)
        for key, value in flatten_config(config).items()
        if key.startswith(("sweep.", "filter.", "vector."))
    ]
    return jinja.fill_card(
        TEMPLATES,
        "data_card.md",
        metadata=about.to_yaml(),
        round=number,
        source=config.filter.source,
        model=public_name(config.model.name),
        random=config.vector.direction == "random",
        layers=sorted(vector.layers),
        filter_off=config.filter.off,
        trait=trait,
        lines=lines,
        limits=", ".join(f"{name} {format_number(limit, 3)}" for name, limit in record.limits.items()),
        settings=settings,
        version=manifest.versions.get("steer-heal"),
        commit=manifest.commit,
        seed=config.seed,
        fingerprint=str(vector.metadata.get("model_fingerprint", "unknown"))[:12],
        vector=vector.digest()[:12],
        dilemmas=public_name(config.sweep.dilemmas),
        mundane=public_name(config.sweep.mundane),
    )


def _mean(values: list[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return format_number(float(np.mean(numbers)) if numbers else None, 3, signed=True)


def write_data_set(run: Run, number: int, out: Path) -> None:
    """Write the kept rows of a round as a data set with its card. Raises SteerHealError for a folder with other files."""
    content = data_card(run, number)
    with atomic_folder(out, names=(*(f"{name}.jsonl" for name in FILES), "README.md")) as folder:
        for name in FILES:
            source = run.round(number) / f"{name}.jsonl"
            if source.stat().st_size:
                again = round_command(run.folder, number)
                rows = iterate_jsonl(source, Completion, made_by=again)
                # the sampler's record is for the trainer, and a column that few rows have is trouble in a data set
                write_jsonl(folder / source.name, (row.model_copy(update={"logprobs": None}) for row in rows))
        (folder / "README.md").write_text(content, encoding="utf-8")


def main() -> None:
    options = card_options()
    arguments, run = parse_arguments(options, begins=False)
    need(options, arguments, "run", "out")
    assert run is not None
    path = run.manifest(arguments.round, "filter")
    if not path.is_file():
        raise SteerHealError(
            "the round has no filtered rows to write a card of",
            given=path,
            expected="a filtered round",
            next=round_command(run.folder, arguments.round),
        )
    write_data_set(run, arguments.round, arguments.out)
    say(f"wrote {arguments.out}")
    if arguments.push_to:
        push(arguments.out, arguments.push_to, arguments.private, "dataset")
        say(f"uploaded to {arguments.push_to}")


if __name__ == "__main__":
    entry(main)
