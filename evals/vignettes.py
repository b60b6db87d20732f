"""Vignettes: the embedded set, a JSONL file in tinymfv's schema, or the published set through `datasets`."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from shared.errors import SteerHealError
from shared.records import DATA, Vignette, problem_of, read_jsonl
from shared.sets import names_set, open_set

MADE_BY = "set eval.vignettes to embedded, a JSONL file, or wassname/tiny-mfv:classic:other_violate"


def load_vignettes(name: str) -> list[Vignette]:
    """'embedded', a JSONL path, or '<dataset id>:<configuration>:<split>'; the split is the condition."""
    if name == "embedded":
        return read_jsonl(DATA / "vignettes.jsonl", Vignette, made_by="make setup")
    if name.count(":") != 2 or not names_set(name):
        return unique(read_jsonl(Path(name), Vignette, made_by=MADE_BY), name)
    condition = name.rpartition(":")[2]
    with open_set(name, what="a vignette set could not be loaded", next=MADE_BY) as rows:
        try:
            vignettes = [Vignette.model_validate({**row, "condition": condition}) for row in rows]
        except ValidationError as error:
            raise SteerHealError(
                "a vignette set could not be loaded",
                given=f"{name}: {problem_of(error)}",
                expected="rows of id, foundation, foundation_coarse and text",
                next=MADE_BY,
            ) from None
    return unique(vignettes, name)


def unique(vignettes: list[Vignette], source: str) -> list[Vignette]:
    ids = [vignette.id for vignette in vignettes]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise SteerHealError(
            "vignette ids repeat", given=f"{source}: {twice[0]}", expected="one row per id", next=f"mend {source}"
        )
    return vignettes
