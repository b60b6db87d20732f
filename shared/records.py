"""Rows of the files that stages exchange, read whole and written as JSONL; `shared.lines` reads them one at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from shared.conversations import pair_of, prompt_of
from shared.divergences import DivergenceName
from shared.errors import SteerHealError
from shared.lines import conversion_of, placed_jsonl, problem_of
from shared.logprobs import Agreement, Logprobs
from shared.publish import atomic_file
from shared.reasons import Reason
from shared.record import VERSION as VERSION
from shared.record import Record as Record
from shared.strict import WIDEST, parse_json

DATA = Path(__file__).parent / "data"

Row = TypeVar("Row", bound="Record")


def _inside(name: str) -> str:
    """A name in the folder of a run, never one that leads out of it."""
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or ".." in path.parts
        or not path.parts
        or "\0" in name
        or any(len(p.encode()) > 255 for p in path.parts)
    ):
        raise ValueError("a name inside the run's folder")
    return name


# Limits of what is measured. Finite is not enough: what is computed of a number must stay finite as well. A log-softmax is rounded, by up
# to 1e-3 nats in half precision: so far may a log-probability be above 0, a mass above 1, a KL or a cross-entropy below 0.
ROUNDED = 1e-3
Number = Annotated[float, Field(ge=-WIDEST, le=WIDEST)]
Nats = Annotated[float, Field(ge=-1e6, le=1e6)]
Positive = Annotated[float, Field(ge=-ROUNDED, le=1e6)]  # nats that only rounding makes negative
LogProbability = Annotated[float, Field(ge=-1e6, le=ROUNDED)]
Mass = Annotated[float, Field(ge=0, le=1 + 2 * ROUNDED)]  # of several labels: exp(ROUNDED) and the sum's own rounding
Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1 - 1e-6, le=1 + 1e-6)]
Perplexity = Annotated[float, Field(ge=1 - ROUNDED)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Inside = Annotated[str, Field(max_length=1000), AfterValidator(_inside)]


class Asked(Record):
    """What a model is asked: one user message, or the messages of a conversation that ends with the user's turn."""

    prompt: str | None = None
    messages: list[dict[str, str]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _in_one_form(cls, row: Any) -> Any:
        return prompt_of(row) if isinstance(row, dict) else row

    @property
    def turns(self) -> list[dict[str, str]]:
        """The messages in order; a plain prompt is one user turn."""
        return self.messages if self.messages is not None else [{"role": "user", "content": self.prompt or ""}]


class Prompt(Asked):
    """A prompt of a set; genre and domain are strata."""

    shape = 'prompt (or messages), such as {"prompt": "..."}'
    id: str | None = None
    genre: str | None = None
    domain: str | None = None
    kind: str | None = None


Source = Literal["steered", "unsteered", "prompted"]


def source_of(coefficient: float, prompted: bool) -> Source:
    """The source of a completion, as filter.source names it."""
    return "prompted" if prompted else "steered" if coefficient else "unsteered"


class Completion(Record):
    """A sampled completion. Perplexities and trait_llr (nats per token) are under the original model.

    prompted: sampled under the trait prompt without a vector; prompt_ids are the neutral prompt's all the same, which it is trained under.
    logprobs: of a sample of a sweep's rows (gen/recording.py).
    Rows that are not prompted, and those without logprobs, are written without these fields.
    """

    known_by = ("key",)
    key: str
    prompt_ids: list[Token] = Field(min_length=1)
    completion_ids: list[Token]
    text: str
    finish_reason: str
    coefficient: Number
    sample: Count
    seed: Seed
    perplexity: Perplexity | None
    perplexity_last_quarter: Perplexity | None
    trait_llr: Nats | None
    distinct_3: Share | None
    prompted: bool = False
    reasons: list[Reason] = Field(default_factory=list)
    logprobs: Logprobs | None = None

    @model_validator(mode="after")
    def _of_one_source(self) -> Self:
        if self.prompted and self.coefficient:
            raise ValueError(f"prompted, and steered at coefficient {self.coefficient:g}")
        return self

    @property
    def source(self) -> Source:
        """steered, unsteered or prompted, as filter.source names it."""
        return source_of(self.coefficient, self.prompted)

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row: dict[str, Any] = write(self)
        if not self.prompted:
            del row["prompted"]
        if self.logprobs is None:
            del row["logprobs"]
        return row


class Pair(Asked):
    """Training data from elsewhere: prompt (or messages) and completion, or messages that end with the assistant's turn."""

    shape = 'prompt (or messages), completion, such as {"prompt": "...", "completion": "..."}'
    completion: str

    @model_validator(mode="before")
    @classmethod
    def _in_one_form(cls, row: Any) -> Any:
        return pair_of(row) if isinstance(row, dict) else row

    @property
    def answers(self) -> int:
        """The number of the assistant's turns; the last of them is the completion."""
        return 1 + sum(turn["role"] == "assistant" for turn in self.turns)


class Finding(Record):
    """What the diagnosis says of a training."""

    name: str
    sentence: str


class Start(BaseModel):
    """D before the first step to the original and to the previous round's student, nats."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)
    base: Number
    previous: Number


class Training(Record):
    """training.json: what was trained, on how much, and the diagnosis."""

    divergence: DivergenceName
    aggregate: str
    reference: Literal["base", "previous"]
    lam: Number
    tau: Number
    load_in_4bit: bool
    examples: Count
    heldout: Count
    tokens: Count
    steps: Count
    start: Start
    agreement: Agreement | None = None  # None in files from before it was compared
    findings: list[Finding]


PerCent = Annotated[float, Field(ge=0, le=100)]
SEVEN = ("human_Care", "human_Fairness", "human_Loyalty", "human_Authority", "human_Sanctity", "human_Liberty", "human_SocialNorms")  # fmt: skip
WHOLE = 103.5  # seven shares of a hundred, each rounded to a whole number: half of one too many in each


class Vignette(Record):
    """A moral vignette in tinymfv's schema; human_* are per cent of raters, null where nobody rated, wrong is on a scale of five."""

    model_config = ConfigDict(extra="allow")
    id: str
    foundation: str
    foundation_coarse: str
    text: str
    wrong: Annotated[float, Field(ge=0, le=5)] | None = None
    condition: str | None = None
    human_Care: PerCent | None = None
    human_Fairness: PerCent | None = None
    human_Loyalty: PerCent | None = None
    human_Authority: PerCent | None = None
    human_Sanctity: PerCent | None = None
    human_Liberty: PerCent | None = None
    human_SocialNorms: PerCent | None = None

    @model_validator(mode="after")
    def _of_a_hundred(self) -> Self:
        total = sum(getattr(self, name) or 0 for name in SEVEN)
        if total > WHOLE:
            raise ValueError(f"human_* are per cent of the raters, and sum to {total:g}")
        return self


class Identity(BaseModel):
    """A model as manifests know it; revision is the hub commit, None for a local one."""

    model_config = ConfigDict(strict=True)
    name: str
    revision: str | None
    fingerprint: str


class Manifest(Record):
    """What a stage recorded: digests by name, wall time in seconds, provenance; model is the original, None in the first manifests of
    version 1."""

    model: Identity | None = None
    stage: str | None = None
    round: int | None = None
    config: dict[str, Any] | None = (
        None  # the whole configuration by dotted keys; None in manifests from before it was recorded
    )
    settings: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[Inside, str]
    counts: dict[str, Any]
    seconds: Annotated[float, Field(ge=0)]
    resumed: Annotated[float, Field(ge=0, le=1)] | None = (
        None  # as `Stage.finish` has it; None in manifests from before
    )
    peak_memory_gib: Annotated[float, Field(ge=0)] | None = None  # None in manifests from before it was recorded
    commit: str | None
    versions: dict[str, str]
    hardware: dict[str, Any]

    @model_validator(mode="after")
    def _counted(self) -> Self:
        for name in ("tokens", "kept", "rejected"):
            if type(count := self.counts.get(name, 0)) is not int or count < 0:
                raise ValueError(f"counts.{name} is a whole number from 0")
        return self


def data_file(name: str, embedded: str) -> Path:
    """The file a configuration value names; 'embedded' is the one shipped with the package."""
    return DATA / embedded if name == "embedded" else Path(name)


def iterate_jsonl(path: Path, row: type[Row], *, made_by: str) -> Iterator[Row]:
    """The rows of `placed_jsonl` alone, so that no file is too long."""
    return (value for *_, value in placed_jsonl(path, row, made_by=made_by))


def read_jsonl(path: Path, row: type[Row], *, made_by: str, may_be_empty: bool = False) -> list[Row]:
    """Read and validate every line into memory. made_by is the command that makes the file, for the error; may_be_empty: a file of no
    bytes, as the rejected of a filter that rejects nothing, has no rows and no error."""
    if may_be_empty and path.is_file() and not path.stat().st_size:
        return []
    return refuse_duplicate_rows(path, list(iterate_jsonl(path, row, made_by=made_by)), made_by)


def refuse_duplicate_rows(path: Path, rows: list[Row], made_by: str) -> list[Row]:
    """The rows of a file. Raises SteerHealError for two of one key."""
    names = rows[0].known_by if rows else ()
    keys = [tuple(getattr(row, name) for name in names) for row in rows] if names else []
    if len(set(keys)) < len(keys):
        twice, _ = Counter(keys).most_common(1)[0]
        raise SteerHealError(
            "a row is there twice",
            given=f"{path}: {', '.join(f'{name} {value!r}' for name, value in zip(names, twice, strict=True))}",
            expected=f"one row of each {', '.join(names)}",
            next=f"leave one out, or make the file again: {made_by}",
        )
    return rows


def read_record(path: Path, kind: type[Row], *, what: str, next: str) -> Row:
    """The one record that a JSON file holds. Raises SteerHealError when it cannot be read or is something else.

    Args:
        path: of the file.
        kind: the record's class.
        what: the error's first line.
        next: the error's next step.
    """
    try:
        return kind.model_validate(parse_json(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise SteerHealError(
            what,
            given=f"{path}: {problem_of(error)}",
            expected=f"a {kind.__name__.lower()} file, version {VERSION}",
            next=conversion_of(error, path) or next,
        ) from None


def read_manifest(path: Path, next: str) -> Manifest:
    """The manifest of a stage. next: the command or edit that mends a manifest that cannot be read."""
    return read_record(path, Manifest, what="a manifest could not be read", next=next)


@contextmanager
def writing_jsonl(path: Path) -> Iterator[Callable[[BaseModel | dict[str, Any]], object]]:
    """Yield what writes a row; the file appears whole on success. Numbers keep full precision and NaN is refused."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        yield lambda row: handle.write(jsonl_line(row))


def jsonl_line(row: BaseModel | dict[str, Any]) -> str:
    """A row as one line of JSONL. Raises ValueError for NaN and infinities."""
    value = row.model_dump() if isinstance(row, BaseModel) else row
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def as_jsonl(rows: Iterable[BaseModel | dict[str, Any]]) -> bytes:
    """Rows as `write_jsonl` writes them."""
    return "".join(map(jsonl_line, rows)).encode()


def write_jsonl(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Write rows as `writing_jsonl` does."""
    with writing_jsonl(path) as write:
        for row in rows:
            write(row)
