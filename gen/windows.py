"""The windows of a sweep in a folder beside its output: whole ones survive an interruption, and the sweep goes on after them."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from shared.commands import removal
from shared.console import say
from shared.errors import SteerHealError
from shared.provenance import differences, refuse_mixing
from shared.publish import atomic_file, intact, seal, seal_of, write_json
from shared.records import Completion, iterate_jsonl
from shared.strict import parse_json

if TYPE_CHECKING:
    from gen.board import Board

VERSION = 4  # 1 had no seals, and other last digits in its scores; 2 did not know the instruction set, 3 not the code


class Windows:
    """`.<out>.windows/` with plan.json, the fingerprint of all that determines the rows, and per whole window a JSONL and its sha256."""

    is_read_again: ClassVar[bool] = True  # the whole output, at the end of the sweep, for the filter's table

    def __init__(self, out: Path):
        self.out, self.folder = out, out.with_name(f".{out.name}.windows")
        self.plan = self.folder / "plan.json"
        self.notes: dict[str, Any] = {}
        self._whole: set[int] = set()

    def open(self, fingerprint: dict[str, Any], *, rebuild: bool, count: int | None = None) -> None:
        """Go on with the folder of an equal fingerprint, or begin one. count: windows in all, for `status`.

        With rebuild every window that is there is discarded. Raises SteerHealError with the differences when there is another's work.
        """
        self.fingerprint, self.count = json.loads(json.dumps(fingerprint)), count
        if self.plan.is_file():
            try:
                old = parse_json(self.plan.read_bytes())
                changed = differences(
                    {"version": old["version"], **old["fingerprint"]}, {"version": VERSION, **self.fingerprint}
                )
                self.notes = dict(old["notes"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                changed = [f"{self.plan}: {error!r}"]
            if not changed and not rebuild:
                return
            lost = self.notes or self.has_work()
            if lost and not rebuild:
                refuse_mixing("sweep", self.out, changed, self.folder)
                raise SteerHealError(
                    f"an interrupted sweep of {self.out} was begun with other settings, inputs or code",
                    given="; ".join(changed),
                    expected=f"what {self.plan} records",
                    next=f"go back to that, or discard its windows: the same command with --rebuild (REBUILD=1), or {removal(self.folder, folder=True)}",
                )
            if lost:
                say(f"discarding the windows of an interrupted sweep: {'; '.join(changed) or 'this is a rebuild'}")
        self.discard()
        self.notes = {}
        self._write()

    def has_work(self) -> bool:
        """Whether there are rows that would be lost with the folder."""
        return any(self.folder.glob("[0-9]*.jsonl"))

    def refuse_finished(self) -> None:
        """Raise SteerHealError where the output holds the rows of a finished sweep, which this one would overwrite."""
        if self.plan.is_file() or not self.out.is_file() or not self.out.stat().st_size:
            return
        raise SteerHealError(
            "the rows of a finished sweep are there already",
            given=f"--out {self.out}",
            expected="no such file, or one that an interrupted sweep goes on to make",
            next=f"the same command with --out {shlex.quote(str(_free(self.out)))}; or with --rebuild, which replaces them",
        )

    def day(self) -> date | None:
        """The day that the rows of an interrupted sweep were rendered with; None without one, or for a template without a clock."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return date.fromisoformat(parse_json(self.plan.read_bytes())["fingerprint"]["date"])
        return None

    def note(self, name: str, value: Any) -> None:
        """Keep something found out on the way, so that a resumed sweep need not find it again."""
        self.notes[name] = value
        self._write()

    def _write(self) -> None:
        write_json(
            self.plan,
            {"version": VERSION, "fingerprint": self.fingerprint, "notes": self.notes, "windows": self.count},
        )

    def path(self, index: int) -> Path:
        """The path of a window, numbered from 0."""
        return self.folder / f"{index:05d}.jsonl"

    def seal(self, index: int) -> Path:
        """The path of the checksum that marks a window as complete."""
        return seal_of(self.path(index))

    def __contains__(self, index: int) -> bool:
        """Whether a window is complete. Raises SteerHealError for one that was edited."""
        path, seal = self.path(index), self.seal(index)
        if index not in self._whole and path.is_file() and seal.is_file():
            if not intact(path):
                raise SteerHealError(
                    "a window of an interrupted sweep was edited",
                    given=path,
                    expected=f"the rows that the sweep wrote, as {seal.name} says",
                    next=f"{removal(path)}, then the same command makes it again",
                )
            self._whole.add(index)
        return index in self._whole

    def write(self, index: int, rows: bytes) -> None:
        """Keep a window: its rows as lines of JSONL."""
        self.seal(index).unlink(missing_ok=True)
        with atomic_file(self.path(index)) as temporary:
            temporary.write_bytes(rows)
        seal(self.path(index))
        self._whole.add(index)

    def read(self, index: int, keys: Sequence[str]) -> Iterator[Completion]:
        """The rows of a window. Raises SteerHealError, at the latest at their end, where they are not those of the keys in their order."""
        again = f"{removal(self.path(index))}, then the same command makes it again"
        expected_keys = iter(keys)
        for row in iterate_jsonl(self.path(index), Completion, made_by=again):
            if row.key != (key := next(expected_keys, None)):
                raise self._other(index, f"row {row.key}", key or "its end", again)
            yield row
        if (key := next(expected_keys, None)) is not None:
            raise self._other(index, "its end", key, again)

    def show(self, index: int, keys: Sequence[str], board: Board, name: str = "") -> None:
        """Count a whole window on the board.

        Args:
            index: of the window.
            keys: of its rows in the plan.
            board: that counts it.
            name: as of `Board.add`.

        Raises:
            SteerHealError: rows of other keys.
        """
        board.add(self.read(index, keys), name)

    def _other(self, index: int, given: str, expected: str, again: str) -> SteerHealError:
        return SteerHealError(
            "a window of an interrupted sweep holds other rows than its plan",
            given=f"{self.path(index)}: {given}",
            expected=expected,
            next=again,
        )

    def publish(self, count: int) -> None:
        """Join windows 0 to count - 1 into the output, which appears whole; the folder stays until it is discarded."""
        with atomic_file(self.out) as temporary, open(temporary, "wb") as file:
            for index in range(count):
                with open(self.path(index), "rb") as window:
                    shutil.copyfileobj(window, file)

    def discard(self) -> None:
        """Remove the folder, its plan first: without one, what an interruption leaves is never taken for windows."""
        self._whole.clear()
        self.plan.unlink(missing_ok=True)
        if self.folder.is_dir():
            shutil.rmtree(self.folder)


def _free(path: Path) -> Path:
    """A name beside a file that nothing has yet."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, 10_000))
    return next(other for other in names if not other.exists())
