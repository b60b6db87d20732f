"""What a measure is: what it asks of a model under every condition of a round, and what the report says of the answers.

A measure is one file or folder below `evals/measures`, and one line in `evals.measures.registry.MEASURES`. docs/measures.md has an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from rich.markup import escape

from evals.cache import Cache, Row
from evals.coherence import State
from evals.conditions import Condition, Weights
from evals.rows import ConditionLine, Scores
from evals.statistics import Estimate
from evals.table import Table, ranged
from shared.chat import Chat
from shared.console import console
from shared.errors import SteerHealError
from shared.models import Model
from shared.records import Record, read_jsonl, write_jsonl
from shared.run import Run
from shared.schema import Config
from shared.traits import Trait
from shared.vectors import Vector

Columns = dict[str, Any]


@dataclass(frozen=True)
class Scoring:
    """One scoring of a round.

    Args:
        config: of the run; its `eval` is that of the mode, a round's own or EVAL=full.
        number: of the round.
        origin: the original model.
        chat: of the original model.
        vectors: by the names that conditions know them under; `trait` is the round's own. Those of decoys are added before the first engine.
        first: the vector of round 1.
        cached: take rows from the cache, and add what is made.
        fresh: with cached, take none, and put what is made in their place.
    """

    run: Run
    config: Config
    number: int
    origin: Model
    chat: Chat
    trait: Trait
    vectors: dict[str, Vector]
    first: Vector
    cached: bool = False
    fresh: bool = False

    def weights(self, group: Weights) -> tuple[str, str]:
        """The key of a group's weights in the cache: their fingerprint and dtype."""
        return group.student.fingerprint, self.config.model.dtype


class Session(ABC):
    """One scoring by one measure. The methods are called in this order: before_engine once, ask for each group, judge once, write once."""

    def __init__(self) -> None:
        self.taken = 0  # conditions whose rows the cache had
        self.counts: dict[str, int] = {}  # for the stage's manifest

    def before_engine(self, groups: Sequence[Weights]) -> None:  # noqa: B027 - optional
        """Plain forwards, while the machine's memory is free of the engine."""

    def ask(self, engine: Any, group: Weights) -> None:  # noqa: B027 - optional
        """Put the requests of a group's conditions to the engine, which serves the group's weights."""

    def judge(self, engine: Any) -> None:  # noqa: B027 - optional
        """Put requests to the original model, which the engine serves once all groups are asked."""

    @abstractmethod
    def write(self, folder: Path) -> Mapping[str, Any]:
        """Write the rows into the folder of a round's scores. Returns what of the scoring the
        measure's own `read` needs again: scores.json keeps it under `measures`, by the measure's name."""


class ByCondition(Session):
    """A session whose rows are made by condition: from the cache, or for all missing conditions of a group in one batch."""

    def __init__(self, measure: Measure, scoring: Scoring):
        super().__init__()
        self.measure, self.scoring = measure, scoring
        self.rows: dict[str, list[Row]] = {}

    @abstractmethod
    def depends(self) -> Mapping[str, Any]:
        """Inputs of rows other than weights, steering and prompts: JSON-able, a part of their key in the cache."""

    @abstractmethod
    def prompts(self, condition: Condition) -> Any:
        """The token ids that a condition puts to the model, or what determines them: JSON-able, a part of the name in the cache."""

    @abstractmethod
    def make(self, engine: Any, group: Weights, conditions: Sequence[Condition]) -> dict[str, list[Row]]:
        """Rows by the names of conditions, all of them in one batch of the engine."""

    def check(self, rows: Sequence[Row]) -> None:
        """Raise ValueError for rows from the cache that are no answer to what is asked. This checks their schema."""
        for row in rows:
            self.measure.row.model_validate({"name": "", **row})

    def weights(self, group: Weights) -> tuple[str, str]:
        """The key of a group's weights in the cache."""
        return self.scoring.weights(group)

    def ask(self, engine: Any, group: Weights) -> None:
        self.collect(engine, group)

    def collect(self, engine: Any, group: Weights) -> None:
        """Take or make the rows of a group's conditions."""
        scoring, cache = self.scoring, None
        group = replace(group, conditions=[c for c in group.conditions if self.measure.takes(c)])
        if scoring.cached:
            depends = {"kind": self.measure.name, **self.depends()}
            weights = self.weights(group)
            module = type(self).__module__
            cache = Cache(weights, depends, self.prompts, self.check, module, scoring.vectors, fresh=scoring.fresh)
        rows = from_cache_or_made(self.measure.name, group, cache, lambda missing: self.make(engine, group, missing))
        self.rows.update(rows)
        self.taken += cache.taken if cache else 0

    def write(self, folder: Path) -> Mapping[str, Any]:
        rows = with_condition_names(
            self.rows, model=self.scoring.origin.fingerprint, dtype=self.scoring.config.model.dtype
        )
        write_jsonl(folder / self.measure.file, [row for condition in rows.values() for row in condition])
        self.counts[self.measure.name] = sum(map(len, rows.values()))
        return {}


def from_cache_or_made(
    what: str, group: Weights, cache: Cache | None, make: Callable[[Sequence[Condition]], dict[str, list[Row]]]
) -> dict[str, list[Row]]:
    """Rows by condition of one set of weights, in the order asked: what the cache has, and the rest in one batch, which it is given.

    Args:
        what: the rows in words, for progress.
        group: the weights with their conditions.
        cache: None takes nothing and keeps nothing.
        make: rows by condition of those that are not in the cache.
    """
    cached = {c.name: rows for c in group.conditions if cache is not None and (rows := cache.get(c)) is not None}
    missing = [condition for condition in group.conditions if condition.name not in cached]
    if cache is not None and cached:
        console.print(
            f"{what}, {group.label}: {', '.join(cached)} from the cache [dim]({escape(str(cache.folder))})[/]"
        )
    if missing:
        new = make(missing)
        if cache is not None:
            for condition in missing:
                cache.put(condition, new[condition.name])
        cached.update(new)
    return {condition.name: cached[condition.name] for condition in group.conditions}


def with_condition_names(rows: Mapping[str, Iterable[Row]], **made: str) -> dict[str, list[Row]]:
    """Rows by condition, each with the name of its condition and the values of `made`, so that one file cannot be taken for another."""
    return {name: [{"name": name, **row, **made} for row in of_one] for name, of_one in rows.items()}


@dataclass(frozen=True)
class Damage:
    """What a condition has lost against the base by one measure. Both verdicts and the answer on the page read it.

    subject: what the measure reads, as `neutral text`. reason: the figure with its limit, a clause without a full stop.
    """

    subject: str
    state: State
    reason: str


@dataclass(frozen=True)
class Compared:
    """A condition against the base.

    columns: of its row in results.json, all that the measure declares. estimates: those with an interval, which a verdict reads.
    damage: None for a measure that judges nobody.
    """

    columns: Columns
    estimates: Mapping[str, Estimate | None] = field(default_factory=dict)
    damage: Damage | None = None


class Headline(NamedTuple):
    """A column with an interval, `COLUMN_ci`, that stands where runs and arms are compared."""

    column: str
    digits: int
    signed: bool

    def cell(self, row: Mapping[str, Any]) -> str:
        """The figure of a row of results.json with its interval."""
        return ranged(dict(row), self.column, f"{self.column}_ci", self.digits, self.signed)


class Measure(ABC):
    """One measure. A subclass says what it asks (begin), how its rows are read back and compared, and what the report says of them.

    name: as in `eval.measures` and in files. row: the schema of a row, with a field `name` for its condition. columns: what it adds to
    each row of results.json. headlines: those of them that tables over runs and arms show. source: what stands in the place of its own
    items, as in `eval.measures = ["NAME=SOURCE"]`.
    """

    name: ClassVar[str]
    row: ClassVar[type[Record]]
    takes_source: ClassVar[bool] = False  # whether items of a file or a data set can stand in the place of its own
    columns: ClassVar[tuple[str, ...]] = ()
    headlines: ClassVar[tuple[Headline, ...]] = ()
    every_draw: ClassVar[bool] = False  # or the first random direction alone

    def __init__(self, source: str = "embedded"):
        self.source = source

    @property
    def file(self) -> str:
        """The file of its rows in the folder of a round's scores."""
        return f"{self.name}.jsonl"

    def check(self) -> None:  # noqa: B027 - optional
        """Raise SteerHealError where the source cannot be had. Called before a configuration is frozen."""

    def inputs(self, run: Run, number: int, config: Config) -> Mapping[str, Path]:
        """Files that its rows depend on, by label."""
        return {}

    def revisions(self, config: Config) -> Mapping[str, str]:
        """Revisions of inputs that are no files, by label."""
        return {}

    @abstractmethod
    def begin(self, scoring: Scoring) -> Session:
        """A session. Raises SteerHealError for what cannot be asked, before any model is loaded."""

    def asks(self, stage: str) -> bool:
        """Whether the conditions of a stage, such as `prompted`, have rows of this measure."""
        return True

    def takes(self, line: Condition | ConditionLine) -> bool:
        """Whether a condition has rows of this measure. The rank among random directions is of the forced choice, which is cheap: the
        others are asked of the first direction alone."""
        return self.asks(line.stage) and (self.every_draw or line.headline or line.stage != "random")

    def read(self, folder: Path, scores: Scores, again: str) -> Any:
        """The rows that `write` wrote, by condition. Raises SteerHealError for a file that is not of these conditions.

        Args:
            folder: of a round's scores.
            again: the command that makes them again.
        """
        path = folder / self.file
        rows: dict[str, list[Any]] = {line.name: [] for line in scores.conditions if self.asks(line.stage)}
        for row in read_jsonl(path, self.row, made_by=again):
            name = getattr(row, "name", None)
            if name not in rows:
                raise SteerHealError(
                    "a file of scores could not be used",
                    given=f"{path}: condition {name}",
                    expected=f"one of {', '.join(rows)}",
                    next=again,
                )
            rows[name].append(row)
        spared = {
            line.name for line in scores.conditions if not self.takes(line)
        }  # which earlier versions asked as well
        return {name: lines for name, lines in rows.items() if lines or name not in spared}

    def refuse_unpaired(self, base: Any, other: Any) -> None:
        """Raise SteerHealError where a condition was not asked what the base was, in its order: they are compared row by row."""
        keys = [[tuple(getattr(row, key) for key in self.row.known_by if key != "name") for row in rows] for rows in (base, other)]  # fmt: skip
        if keys[0] != keys[1]:
            raise SteerHealError(
                f"{self.name}: two conditions were asked different things",
                given=f"{len(keys[1])} rows against the base's {len(keys[0])}; only in one: {sorted({*keys[0]} ^ {*keys[1]})[:2]}",
                expected="the same items of every condition, in one order",
                next="score every round of the run with the same eval.measures",
            )

    def compare(self, base: Any, other: Any, resamples: int, seed: int) -> Compared:
        """The columns of one condition.

        Args:
            base: what `read` gives of the base. It is `other` itself where the base's own row is asked for.
            other: what `read` gives of the condition.
            resamples: of a bootstrap.
        """
        return Compared({})

    def tables(self, rows: Sequence[Columns], read: Sequence[tuple[int, Any]]) -> list[Table]:
        """Tables of the report.

        Args:
            rows: the headline rows of results.json.
            read: the number of each round with what `read` gives of it.
        """
        return []

    def about(self, base: Columns, rows: Sequence[Columns], scores: Scores) -> list[str]:
        """Sentences on the measure itself: what it is worth on this model. scores: how round 1 was scored."""
        return []

    def sentences(self, base: Columns, by_stage: Mapping[str, Columns], extra: Sequence[Columns]) -> list[str]:
        """Sentences on one round, which follow `Round N: `.

        Args:
            by_stage: the round's headline rows by stage.
            extra: its other rows: doses, draws and gates.
        """
        return []
