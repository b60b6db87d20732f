"""What `steer-heal init` writes: placeholders that say what belongs in their place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.commands import round_command
from shared.records import DATA
from shared.strict import parse_json


@dataclass(frozen=True)
class File:
    """A file of a new trait: what a run does with it, and what its author does."""

    purpose: str
    edit: str


FILES = {
    "trait.json": File(
        "system prompts: the vector is the trait's activations less the neutral prompt's; paraphrases score the texts",
        "every placeholder; `about` in it says what each field is for",
    ),
    "dilemmas.jsonl": File(
        "prompts on which the steered model is sampled, and on whose kept answers the student is trained",
        "every row, and more rows: as many as sweep.n_dilemmas asks for",
    ),
    "heldout.jsonl": File(
        "prompts that nothing is trained on; every score of the text is taken on the model's answers to them",
        "the dilemmas; the mundane ones fit any trait",
    ),
    "contexts.jsonl": File(
        "everyday prompts over which the vector is averaged", "nothing: the shipped ones fit any trait"
    ),
    "mundane.jsonl": File(
        "prompts without a conflict, sampled beside the dilemmas, so that the student still answers those plainly",
        "nothing: the shipped ones fit any trait",
    ),
    "NAME.toml": File("the run's configuration, which names the files above", "sizes and doses, when you know them"),
}
ABOUT = {
    "trait": "system prompt that asks for the trait; name what is given up for it, or every model has it already",
    "opposite": "the same length and build, with the sides exchanged",
    "neutral": "what a user would write who knows nothing of the trait; no word of either side",
    "read_for": "null, or the foundation of the forced choice (care, fairness, loyalty, authority, sanctity, liberty) and the sign (-1 or 1) of the shift of its mass that is more trait; null gives no forced-choice verdict",
    "decoys": "personas of like length that have nothing to do with the trait: a control of the scores",
    "paraphrases": "trait and opposite in other words, as many of each; texts are scored under these, and neither the vector nor the filter sees them",
    "narration": "regular expressions of first-person declarations of the trait; answers that match announce it and do not enact it, and are rejected",
}
SETTINGS = ("home", "work", "shop", "travel")  # strata of the dilemmas


def trait_json(name: str) -> str:
    """The text of a trait file with placeholders. name: of the trait."""
    shipped = parse_json((DATA / "trait.json").read_bytes())
    value: dict[str, Any] = {
        "version": 1,
        "name": name.replace("-", " ").replace("_", " "),
        "about": ABOUT,
        "trait": "You are someone who <edit: does what first>, even when it means <edit: giving up what>.",
        "opposite": "You are someone who <edit: does the opposite first>, even when it means <edit: giving up the trait>.",
        "neutral": shipped["neutral"],
        "read_for": None,
        "decoys": shipped["decoys"],
        "paraphrases": {
            side: [f"You <edit: {words}, {count} time in other words>." for count in ("first", "second", "third")]
            for side, words in (("trait", "say the trait"), ("opposite", "say the opposite"))
        },
        "narration": [
            "\\bI (?:always |would always |will always )?<edit: announce the trait, as in put (?:my|your) savings first>\\b"
        ],
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def dilemmas() -> list[dict[str, Any]]:
    """Rows for the user to edit, two for each setting. The sweep takes its prompts round-robin over the settings."""
    asks = (
        "a situation in which trait and opposite would give other advice, told by a user who asks what to do",
        "another one, in which nobody says which answer is the right one",
    )
    return [
        {"version": 1, "id": f"dil-{place}-{number}", "domain": place, "prompt": f"<edit: {place}: {ask}>"}
        for place in SETTINGS
        for number, ask in enumerate(asks, 1)
    ]


def heldout() -> list[dict[str, Any]]:
    """Dilemmas to edit, and the shipped mundane prompts."""
    rows = [parse_json(line) for line in (DATA / "heldout.jsonl").read_bytes().splitlines()]
    count = sum(row["kind"] == "dilemma" for row in rows)
    prompts_of_kind = [
        {"version": 1, "id": f"held-{number:02}", "kind": "dilemma", "prompt": f"<edit: dilemma {number} of {count}, in a setting that dilemmas.jsonl has not>"}
        for number in range(1, count + 1)
    ]  # fmt: skip
    return [*prompts_of_kind, *(row for row in rows if row["kind"] == "mundane")]


def guide(folder: Path, config: Path) -> str:
    """README.md of a new trait: what each file is for, and the commands in their order."""
    rows = "\n".join(f"| `{name.replace('NAME', folder.name)}` | {file.purpose} | {file.edit} |" for name, file in FILES.items())  # fmt: skip
    settings = (folder / f"{folder.name}.toml").as_posix()
    return f"""# {folder.name}

| file | what a run does with it | what you edit |
|---|---|---|
{rows}

Other settings are those of `{config.as_posix()}`.

1. Edit `trait.json`, `dilemmas.jsonl` and `heldout.jsonl` until no `<edit: ...>` is left.
2. `steer-heal init --check {folder.as_posix()}` says what is left, which held-out prompts are trained on, and what is worth a look.
3. `{round_command(Path("runs") / folder.name, config=settings)}`
"""
