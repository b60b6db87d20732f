"""A round in three calls, for notebooks: extract, sweep, heal. Each is the stage's own command, in a separate process.

    from shared.notebook import extract, sweep, heal
    vector = extract("embedded", "work")
    found = sweep("embedded", "work", coefficients=[0, 1, 1.5], prompts="prompts.jsonl")
    adapter = heal("embedded", "work", settings={"train.divergence": "kl_rev", "train.lam": 0.3})

The processes are why a kernel can call them in any order, any number of times: vLLM gives its memory back, Unsloth comes before
transformers. Files lie in the folder under the names they have in a run; settings are the dotted keys of `python -m shared.config`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from shared.options import readable
from shared.process import exit_error, run_process
from shared.records import Completion, read_jsonl
from shared.vectors import Vector, load_vector

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Completions that the filter kept, and those it rejected with their reasons."""

    kept: list[Completion]
    rejected: list[Completion]


def extract(model: str, folder: str | Path, settings: Settings | None = None) -> Vector:
    """The steering vector of a model, also in folder/vector.safetensors. Raises SteerHealError with what the stage said."""
    out = Path(folder) / "vector.safetensors"
    _stage("gen.extract", settings, "--model", model, "--out", out)
    return load_vector(out)


def sweep(
    model: str,
    folder: str | Path,
    coefficients: Sequence[float],
    prompts: str | Path,
    samples: int = 1,
    settings: Settings | None = None,
) -> Sweep:
    """Sample at every coefficient with folder/vector.safetensors and filter; 0 must be among the coefficients, as the yardstick.

    Leaves sweep.jsonl, kept.jsonl and rejected.jsonl in folder. An interrupted sweep goes on from its last window; a cell that is run
    again replaces a finished one.
    """
    folder = Path(folder)
    finished = (folder / "sweep.jsonl").is_file() and not (folder / ".sweep.jsonl.windows").exists()
    _stage(
        "gen.sweep", settings, "--model", model, "--vector", folder / "vector.safetensors", "--prompts", prompts,
        "--coefficients", *coefficients, "--samples", samples, "--out", folder / "sweep.jsonl", *(["--rebuild"] if finished else []),
    )  # fmt: skip
    _stage("gen.filter", settings, "--in", folder / "sweep.jsonl", "--out", folder)
    made_by = "shared.notebook.sweep"
    kept = read_jsonl(folder / "kept.jsonl", Completion, made_by=made_by)
    return Sweep(kept, read_jsonl(folder / "rejected.jsonl", Completion, made_by=made_by, may_be_empty=True))


def heal(model: str, folder: str | Path, history: str | Path | None = None, settings: Settings | None = None) -> Path:
    """Distil folder/kept.jsonl into a LoRA, over a folded history if one is given; the adapter's folder, which PEFT loads."""
    folder = Path(folder)
    over = () if history is None else ("--history", history)
    _stage(
        "train.heal", settings, "--model", model, "--data", folder / "kept.jsonl", *over, "--out", folder / "adapter"
    )
    return folder / "adapter"


def _stage(module: str, settings: Settings | None, *arguments: object) -> None:
    """Run a stage, its output into the notebook as it comes."""
    with tempfile.TemporaryDirectory() as scratch:
        chosen: tuple[object, ...] = ()
        if settings:
            path = Path(scratch) / "settings.toml"
            path.write_text(_toml(settings), encoding="utf-8")
            chosen = ("--config", path)
        words = [readable(str(word)) for word in (*arguments, *chosen)]
        ended = run_process([sys.executable, "-m", module, *words], out=_show, err=_show, name=module)
    if error := exit_error(ended, module, None):
        raise error


def _show(block: bytes) -> None:
    print(block.decode(errors="replace"), end="", flush=True)


def _toml(settings: Settings) -> str:
    """Dotted keys as a configuration file; None, which TOML has not, is the default."""
    document: dict[str, Any] = {}
    for key, value in settings.items():
        section, dot, name = key.partition(".")
        holder = document.setdefault(section, {}) if dot else document
        if value is not None:
            holder[name if dot else key] = value
    return tomlkit.dumps(document)
