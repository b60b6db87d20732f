"""Rows of the files that stages exchange, and the one reader and writer of JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import SteerHealError
from shared.publish import atomic_file

VERSION = 1
DATA = Path(__file__).parent / "data"

Row = TypeVar("Row", bound="Record")


class Record(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    version: Literal[1] = 1


class Prompt(Record):
    """A prompt: one user message, or the messages of a conversation that ends with the user's turn."""

    id: str | None = None
    genre: str | None = None
    domain: str | None = None
    kind: str | None = None
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Prompt:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("a prompt row has either prompt or messages")
        return self

    @property
    def turns(self) -> list[dict[str, str]]:
        return self.messages if self.messages is not None else [{"role": "user", "content": self.prompt or ""}]


class Completion(Record):
    """A sampled completion. Perplexities and trait_llr (nats per token) are under the original model."""

    key: str
    prompt_ids: list[int] = Field(min_length=1)
    completion_ids: list[int]
    text: str
    finish_reason: str
    coefficient: float
    sample: int
    seed: int
    perplexity: float | None
    perplexity_last_quarter: float | None
    trait_llr: float | None
    distinct_3: float | None
    reasons: list[str] = []


class Pair(Record):
    """Training data from elsewhere: prompt (or messages) and completion as text."""

    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    completion: str


class Vignette(Record):
    """A moral vignette in tinymfv's schema; human_* are per cent of raters, null where nobody rated."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    id: str
    foundation: str
    foundation_coarse: str
    text: str
    wrong: float | None = None
    condition: str | None = None


def data_file(name: str, embedded: str) -> Path:
    """The file a configuration value names; 'embedded' is the one shipped with the package."""
    return DATA / embedded if name == "embedded" else Path(name)


def read_jsonl(path: Path, row: type[Row], *, made_by: str) -> list[Row]:
    """Read and validate every line. made_by is the command that makes the file, for the error."""
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise SteerHealError(
            "a stage file is missing", given=path, expected=f"a JSONL file of {row.__name__} rows", next=made_by
        ) from None
    rows = []
    lines = raw.split(b"\n")
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(row.model_validate(json.loads(line.decode("utf-8"))))
        except (ValueError, RecursionError) as error:
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                problem = f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}"
            else:
                problem = f"{error}" + (" (the file ends here: truncated?)" if index == len(lines) else "")
            raise SteerHealError(
                f"line {index} of a JSONL file could not be read",
                given=f"{path}:{index}: {problem}",
                expected=f"a {row.__name__} row, version {VERSION}",
                next=f"mend or remove the line, or make the file again: {made_by}",
            ) from None
    if not rows:
        raise SteerHealError("a JSONL file has no rows", given=path, expected=f"{row.__name__} rows", next=made_by)
    return rows


def write_jsonl(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Write rows atomically; numbers keep full precision and NaN is refused."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        for row in rows:
            value = row.model_dump() if isinstance(row, BaseModel) else row
            handle.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def stratified(rows: list[Row], count: int, stratum: str) -> list[Row]:
    """The first `count` rows in turn over the strata, each stratum in file order; the result keeps file order."""
    groups: dict[object, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(getattr(row, stratum), []).append(index)
    turns = sorted(
        (turn, order, index) for order, group in enumerate(groups.values()) for turn, index in enumerate(group)
    )
    return [rows[index] for index in sorted(index for _, _, index in turns[:count])]
