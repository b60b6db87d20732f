"""Rows of the files that stages exchange, and the one reader and writer of JSONL."""

from __future__ import annotations

import errno
import json
import os
import shlex
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from shared.conversations import pair_of, prompt_of
from shared.errors import SteerHealError, in_one_line
from shared.publish import atomic_file
from shared.strict import BOM, WIDEST, Convertible, explained, parse

VERSION = 1
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


def _whole(version: Any) -> Any:
    if type(version) is not int:  # Literal takes true and 1.0 for 1
        raise ValueError("a whole number")
    return version


class Record(BaseModel):
    """What is read from a file: "5.0", true and [1.0] are no numbers, and 1.0 is no count."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)
    version: Annotated[Literal[1], BeforeValidator(_whole)] = 1
    known_by: ClassVar[tuple[str, ...]] = ()  # fields that no two rows of a file have in common
    shape: ClassVar[str] = ""  # what a row holds, for errors, where its required fields do not say it


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
        return self.messages if self.messages is not None else [{"role": "user", "content": self.prompt or ""}]


class Prompt(Asked):
    """A prompt of a set; genre and domain are strata."""

    shape = 'prompt (or messages), such as {"prompt": "..."}'
    id: str | None = None
    genre: str | None = None
    domain: str | None = None
    kind: str | None = None


class Completion(Record):
    """A sampled completion. Perplexities and trait_llr (nats per token) are under the original model."""

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
    reasons: list[str] = []


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
        """How many turns are the assistant's; the last of them is the completion."""
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

    divergence: Literal["nll", "kl_fwd", "kl_rev", "wd"]
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


def placed_jsonl(path: Path, row: type[Row], *, made_by: str) -> Iterator[tuple[int, int, Row]]:
    """Every row behind its line number from 1 and the byte that it begins at, read and validated as it is asked for.

    A byte-order mark before the first row is passed over. made_by is the command that makes the file, for the error. Raises SteerHealError
    for a missing or empty file and a bad line.
    """
    try:
        if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.ESPIPE, "a pipe or a device, which cannot be read twice", str(path))
        handle = open(path, "rb")  # noqa: SIM115 (closed below; only the opening may say that the file is missing)
    except (FileNotFoundError, IsADirectoryError):
        raise SteerHealError(
            "a file is missing", given=path, expected=f"a JSONL file of rows{_needed(row)}", next=made_by
        ) from None
    except (OSError, ValueError) as error:  # no permission, a name too long or with a NUL
        raise SteerHealError(
            "a file could not be read",
            given=f"{str(path)[:200]!r}: {in_one_line(error)}",
            expected=f"a JSONL file of rows{_needed(row)}",
            next=f"cat {shlex.quote(str(path))} > rows.jsonl, and name that"
            if isinstance(error, OSError) and error.errno == errno.ESPIPE
            else made_by,
        ) from None
    found, end = False, 0
    with handle:
        for index, line in enumerate(handle, start=1):
            begin, end = end, end + len(line)
            if not line.removeprefix(BOM).strip():
                continue
            try:
                value = row.model_validate(parse(line))
            except ValueError as error:
                raise refused_row(path, index, line, error, row, made_by) from None
            found = True
            yield index, begin, value
    if not found:
        raise SteerHealError("a JSONL file has no rows", given=path, expected=f"rows{_needed(row)}", next=made_by)


def refused_row(
    path: Path, index: int, line: bytes, error: ValueError, row: type[Record], made_by: str
) -> SteerHealError:
    """What is wrong with the line of a JSONL file that has this index from 1, and the command that mends it."""
    error = explained(error, line)
    problem, command = problem_of(error), conversion_of(error, path)
    if command is None and not isinstance(error, ValidationError) and not line.endswith(b"\n"):
        problem += " (the file ends here: truncated?)"
    return SteerHealError(
        f"line {index} of a JSONL file could not be read",
        given=f"{path}:{index}: {problem}",
        expected=f"a row of version {VERSION}{_needed(row)}",
        next=f"{command or 'mend or remove the line'}, or make the file again: {made_by}",
    )


def conversion_of(error: Exception, path: Path) -> str | None:
    """The command that converts a file to what is read, where an error knows one."""
    inner = error.errors()[0].get("ctx", {}).get("error") if isinstance(error, ValidationError) else error
    return inner.command(path) if isinstance(inner, Convertible) else None


def _needed(row: type[Record]) -> str:
    if row.shape:
        return f": {row.shape}"
    names = [name for name, field in row.model_fields.items() if field.is_required()]
    return f": {', '.join(names)}" if names else ""


def numbered_jsonl(path: Path, row: type[Row], *, made_by: str) -> Iterator[tuple[int, Row]]:
    """The rows of `placed_jsonl` with their line numbers alone."""
    return ((line, value) for line, _, value in placed_jsonl(path, row, made_by=made_by))


def iterate_jsonl(path: Path, row: type[Row], *, made_by: str) -> Iterator[Row]:
    """The rows of `placed_jsonl` alone, so that no file is too long."""
    return (value for *_, value in placed_jsonl(path, row, made_by=made_by))


def read_jsonl(path: Path, row: type[Row], *, made_by: str, may_be_empty: bool = False) -> list[Row]:
    """Read and validate every line into memory. made_by is the command that makes the file, for the error; may_be_empty: a file of no
    bytes, as the rejected of a filter that rejects nothing, has no rows and no error."""
    if may_be_empty and path.is_file() and not path.stat().st_size:
        return []
    return _told_apart(path, list(iterate_jsonl(path, row, made_by=made_by)), made_by)


def _told_apart(path: Path, rows: list[Row], made_by: str) -> list[Row]:
    """The rows. Raises SteerHealError for two of one key."""
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
    """The one record that a JSON file holds. Raises SteerHealError when it cannot be read or is something else."""
    try:
        return kind.model_validate(parse(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise SteerHealError(
            what,
            given=f"{path}: {problem_of(error)}",
            expected=f"a {kind.__name__.lower()} file, version {VERSION}",
            next=conversion_of(error, path) or next,
        ) from None


def read_manifest(path: Path, next: str) -> Manifest:
    """What a stage recorded. next: the command or edit that mends a manifest that cannot be read."""
    return read_record(path, Manifest, what="a manifest could not be read", next=next)


def problem_of(error: Exception) -> str:
    """What is wrong with a row, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg'].removeprefix('Value error, ')}"
    return str(error)


@contextmanager
def writing_jsonl(path: Path) -> Iterator[Callable[[BaseModel | dict[str, Any]], object]]:
    """Yield what writes a row; the file appears whole on success. Numbers keep full precision and NaN is refused."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        yield lambda row: handle.write(_line(row))


def _line(row: BaseModel | dict[str, Any]) -> str:
    value = row.model_dump() if isinstance(row, BaseModel) else row
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def write_jsonl(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Write rows as `writing_jsonl` does."""
    with writing_jsonl(path) as write:
        for row in rows:
            write(row)


def read_parquet(path: Path, row: type[Row], *, made_by: str) -> list[Row]:
    """Rows of a Parquet table. Raises SteerHealError as read_jsonl does."""
    import pyarrow
    import pyarrow.parquet

    try:
        if os.path.isdir(path):  # which pyarrow takes for a table in parts
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        rows = [row.model_validate(value) for value in pyarrow.parquet.read_table(path).to_pylist()]
        if not rows:
            raise ValueError("no rows")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SteerHealError(
            "a Parquet file could not be used",
            given=f"{path}: {problem_of(error)}",
            expected=f"rows{_needed(row)}",
            next=made_by,
        ) from None
    return _told_apart(path, rows, made_by)


def write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows atomically as one Parquet table; a field that is null in every row keeps its column."""
    import pyarrow
    import pyarrow.parquet

    with atomic_file(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), temporary)
