"""Vignettes: the embedded set, a JSONL file in tinymfv's schema, or the published set through `datasets`."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from shared.errors import SteerHealError
from shared.instrument import FOUNDATIONS, foundation_of
from shared.lines import problem_of
from shared.records import DATA, SEVEN, Vignette, read_jsonl
from shared.sets import COLON, names_set, open_set
from shared.strata import stratified
from shared.strict import repeated

MADE_BY = "set eval.vignettes to embedded, a JSONL file, or wassname/tiny-mfv:classic:other_violate"


def load_vignettes(name: str, items: int | None = None) -> list[Vignette]:
    """'embedded', a JSONL path, or '<dataset id>:<configuration>:<split>' or '<dataset id>:<split>', where the split, which may be a
    slice as in 'train[:20]', is the condition; items: how many to take, stratified by foundation."""
    vignettes = _load(name)
    return vignettes if items is None else stratified(vignettes, items, "foundation_coarse")


def _load(name: str) -> list[Vignette]:
    if name == "embedded":
        return read_jsonl(DATA / "vignettes.jsonl", Vignette, made_by="make setup")
    if not names_set(name):
        return _once(check_vignettes(read_jsonl(Path(name), Vignette, made_by=MADE_BY), name), name)
    condition = COLON.split(name)[-1].partition("[")[0]
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
    return check_vignettes(vignettes, name)


def _once(vignettes: list[Vignette], source: str) -> list[Vignette]:
    """The vignettes of a file. Raises SteerHealError for a text under two ids, which would count twice."""
    first: dict[str, str] = {}
    for vignette in vignettes:
        if (other := first.setdefault(vignette.text.strip(), vignette.id)) != vignette.id:
            raise SteerHealError(
                "a vignette is there twice",
                given=f"{source}: {other} and {vignette.id} have one text",
                expected="a different text in every row",
                next=f"leave one of them out of {source}",
            )
    return vignettes


def _partly_rated(vignette: Vignette) -> bool:
    ratings = [getattr(vignette, name) for name in SEVEN]
    return None in ratings and any(value is not None for value in ratings)


def raters_distribution(vignette: Vignette) -> list[float] | None:
    """The raters' distribution over the seven foundations in canonical order (Clifford et al. 2015), or None where nobody rated."""
    shares = [getattr(vignette, name) for name in SEVEN]
    shares_known = [share for share in shares if share is not None]
    return (
        [share / sum(shares_known) for share in shares_known]
        if len(shares_known) == len(shares) and sum(shares_known) > 0
        else None
    )


def check_vignettes(vignettes: list[Vignette], source: str) -> list[Vignette]:
    """The vignettes. Raises SteerHealError for an id that repeats and a foundation that is none of the seven."""
    ids = [vignette.id for vignette in vignettes]
    if twice := sorted(repeated(ids)):
        raise SteerHealError(
            "vignette ids repeat", given=f"{source}: {twice[0]}", expected="one row per id", next=f"mend {source}"
        )
    if empty := [vignette.id for vignette in vignettes if not vignette.text.strip()]:
        raise SteerHealError(
            "a vignette has no text", given=f"{source}: {empty[0]}", expected="text in every row", next=f"mend {source}"
        )
    if partly := [vignette.id for vignette in vignettes if _partly_rated(vignette)]:
        raise SteerHealError(
            "a vignette is rated for some foundations alone",
            given=f"{source}: {partly[0]}",
            expected="all seven of human_Care to human_SocialNorms, or none of them",
            next=f"mend {source}",
        )
    rated = [vignette.id for vignette in vignettes if raters_distribution(vignette) is not None]
    if rated and (unrated := [vignette.id for vignette in vignettes if raters_distribution(vignette) is None]):
        raise SteerHealError(
            "some vignettes are rated and some are not: no answer of all of them can be compared with people's",
            given=f"{source}: {len(rated)} rated, {len(unrated)} not, the first {unrated[0]}",
            expected="human_* of every vignette, or of none",
            next=f"leave the unrated ones out of {source}, or their ratings",
        )
    names = [vignette.foundation_coarse for vignette in vignettes]
    if strange := [name for name in names if foundation_of(name) is None]:
        raise SteerHealError(
            "a vignette is of no known foundation",
            given=f"{source}: foundation_coarse {strange[0]!r}",
            expected=f"one of {', '.join(FOUNDATIONS)}",
            next=f"mend {source}",
        )
    return vignettes
