"""Vignettes: the embedded set, a JSONL file in tinymfv's schema, or the published set through `datasets`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from shared.errors import SteerHealError
from shared.records import DATA, Vignette, read_jsonl

MADE_BY = "set eval.vignettes to embedded, a JSONL file, or wassname/tiny-mfv:classic:other_violate"


def load_vignettes(name: str) -> list[Vignette]:
    """'embedded', a JSONL path, or '<dataset id>:<configuration>:<split>'; the split is the condition."""
    if name == "embedded":
        return read_jsonl(DATA / "vignettes.jsonl", Vignette, made_by="make setup")
    if name.count(":") != 2 or Path(name).is_file():
        return unique(read_jsonl(Path(name), Vignette, made_by=MADE_BY), name)
    from datasets import load_dataset

    repository, subset, condition = name.split(":")
    try:
        # A prepared set is found again by its folder's name, whatever the folder holds by now: a local one is prepared anew.
        with TemporaryDirectory() as fresh:
            cache = fresh if Path(repository).is_dir() else None
            rows = list(load_dataset(repository, subset, split=condition, cache_dir=cache))
        return unique([Vignette.model_validate({**row, "condition": condition}) for row in rows], name)
    except ValidationError as error:
        problem = str(error.errors()[0])
    except Exception as error:  # datasets raises whatever its transport raises
        problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    raise SteerHealError(
        "a vignette set could not be loaded",
        given=f"{name}: {problem}",
        expected="a data set that can be reached or is cached",
        next=MADE_BY,
    )


def unique(vignettes: list[Vignette], source: str) -> list[Vignette]:
    ids = [vignette.id for vignette in vignettes]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise SteerHealError(
            "vignette ids repeat", given=f"{source}: {twice[0]}", expected="one row per id", next=f"mend {source}"
        )
    return vignettes
