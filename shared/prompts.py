"""Prompts of a file or a data set, read lazily and as often as asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shared.errors import SteerHealError
from shared.records import Prompt, data_file
from shared.sources import open_rows
from shared.strata import quotas, take_quota

MADE_BY = "write a JSONL, CSV or Parquet file with a prompt or messages field per row, or name a data set: <id>:<configuration>:<split>"

Located = tuple[str, Prompt]


@dataclass(frozen=True)
class Prompts:
    """Prompts that can be gone through again and again, each with the place it comes from, for errors."""

    read: Callable[[], Iterator[Located]]

    def __iter__(self) -> Iterator[Located]:
        return self.read()


@contextmanager
def open_prompts(name: str) -> Iterator[Prompts]:
    """The prompts of a file or a data set, as `shared.sources.open_rows` names them, while the context lasts."""
    with open_rows(name, what="a prompt set could not be loaded", made_by=MADE_BY) as source:
        yield Prompts(lambda: ((source.place(number), prompt) for number, prompt in source.rows(Prompt)))


def prompts_name(value: str, embedded: str) -> str:
    """The name by which a configuration value's prompts are opened; `embedded` is the file shipped with the package."""
    return str(data_file(value, embedded)) if value == "embedded" else value


def stratified_prompts(value: str, embedded: str, count: int, stratum: str) -> list[Prompt]:
    """The first `count` prompts that a configuration value names, in turn over the strata, in the order of their source.

    Args:
        value: of the configuration: `embedded`, a file or a data set.
        embedded: the file that is shipped with the package.
        count: prompts to pick; fewer where there are fewer.
        stratum: the field by which prompts are told apart into strata.
    """
    with open_prompts(prompts_name(value, embedded)) as prompts:
        quota = quotas(Counter(getattr(prompt, stratum) for _, prompt in prompts), count)
        return [prompt for _, prompt in take_quota(prompts, quota, lambda item: getattr(item[1], stratum))]


def load_heldout(name: str) -> list[Prompt]:
    """The held-out prompts that eval.heldout names, a file or a data set.

    Raises SteerHealError for a missing or repeated id, and for a text that is there under two ids, since it would count twice.
    """
    path = prompts_name(name, "heldout.jsonl")
    with open_prompts(path) as prompts:
        rows = [row for _, row in prompts]
    ids = Counter(row.id for row in rows)
    if bad := [identifier for identifier, times in ids.items() if identifier is None or times > 1]:
        raise SteerHealError(
            "every held-out prompt needs a unique id",
            given=f"{path}: {'no id' if bad[0] is None else f'id {bad[0]} twice'}",
            expected="a unique id in every row",
            next=f"mend {path}",
        )
    first: dict[str, str | None] = {}
    for row in rows:
        if (other := first.setdefault(json.dumps(row.turns), row.id)) != row.id:
            raise SteerHealError(
                "a held-out prompt is there twice",
                given=f"{path}: {other} and {row.id} ask the same",
                expected="a different prompt in every row",
                next=f"leave one of them out of {path}",
            )
    return rows
