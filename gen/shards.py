"""The rows of a sweep or of a filter as shards: Parquet files in one folder, with a manifest of their digests.

`datasets` reads the folder as it stands (README.md names the files). Rows are in the order of the plan; no file holds them all, and
nobody has to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from gen.columns import schema
from gen.windows import Windows
from shared.commands import removal
from shared.errors import SteerHealError
from shared.publish import atomic_file, digest, write_json, write_text
from shared.records import VERSION, Count, Inside, Record, read_record
from shared.strict import parse_json

if TYPE_CHECKING:
    import pyarrow

    from gen.board import Board

MANIFEST, CARD, INDEX = "manifest.json", "README.md", "index.jsonl"
ROWS = 32_768  # of a shard, in whole windows
NAME = re.compile(r"\d{5}\.parquet")


class Shard(Record):
    """A file of a folder of shards."""

    name: Inside
    rows: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ShardsManifest(Record):
    """manifest.json of a folder of shards, which is written last."""

    rows: Count
    shards: list[Shard]


def table_of(rows: bytes) -> pyarrow.Table:
    """Lines of JSONL as a table, read by Arrow and not by Python. Raises pyarrow.ArrowInvalid for other fields."""
    import pyarrow.json

    return pyarrow.json.read_json(
        BytesIO(rows),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(rows) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema(), unexpected_field_behavior="error"),
    )


def is_sharded(path: Path) -> bool:
    """Whether a path is a folder of shards."""
    return (path / MANIFEST).is_file()


def read_manifest_of(folder: Path, made_by: str) -> ShardsManifest:
    """The manifest of a folder of shards. made_by: the command that makes it, for the error."""
    return read_record(folder / MANIFEST, ShardsManifest, what="a folder of shards could not be read", next=made_by)


def verified(folder: Path, made_by: str) -> Iterator[Path]:
    """The shards of a folder in their order, each compared with its digest before it is given out.

    Raises SteerHealError for one that is missing or was edited. made_by: the command that makes the folder.
    """
    for shard in read_manifest_of(folder, made_by).shards:
        path = folder / shard.name
        if not path.is_file() or digest(path) != shard.sha256:
            raise SteerHealError(
                "a shard is not what was written",
                given=f"{path}: {'edited' if path.is_file() else 'missing'}",
                expected=f"what {folder / MANIFEST} records",
                next=f"restore it, or make the folder again: {made_by}",
            )
        yield path


def write_manifest(folder: Path, shards: Sequence[Shard]) -> None:
    """Write the card that `datasets` reads, and then the manifest."""
    write_text(folder / CARD, '---\nconfigs:\n- config_name: default\n  data_files: "*.parquet"\n---\n')
    write_json(
        folder / MANIFEST,
        {
            "version": VERSION,
            "rows": sum(shard.rows for shard in shards),
            "shards": [shard.model_dump(exclude={"version"}) for shard in shards],
        },
    )


class Shards(Windows):
    """The windows of a sweep whose output is a folder of shards.

    A window is kept as Arrow's own file. A shard is written once its windows are complete; they are then removed. One index, which is only
    appended to, lists what is complete: a line a window and a line a shard. So the number of files stays bounded, and no row is parsed twice.
    """

    is_read_again = False  # there may be millions of rows

    def __init__(self, out: Path):
        super().__init__(out)
        self.index = self.folder / INDEX
        self._lines: dict[int, dict[str, Any]] = {}  # of windows
        self._shards: dict[int, dict[str, Any]] = {}

    def open(self, fingerprint: dict[str, Any], *, rebuild: bool, count: int | None = None) -> None:
        self._refuse_other_files()
        super().open(fingerprint, rebuild=rebuild, count=count)
        assert self.count is not None
        self.each = max(ROWS // int(fingerprint["window"]), 1)
        if not self.index.is_file():
            for name in (MANIFEST, CARD):
                (self.out / name).unlink(missing_ok=True)
            for path in self._files():
                path.unlink()
            self.index.touch()
        self.out.mkdir(exist_ok=True)
        self._read_index()

    def refuse_finished(self) -> None:
        self._refuse_other_files()
        if not self.plan.is_file() and is_sharded(self.out):
            raise SteerHealError(
                "the rows of a finished sweep are there already",
                given=f"--out {self.out}",
                expected="no such folder, or one that an interrupted sweep goes on to make",
                next=f"the same command with --out {self.out.with_name(f'{self.out.name}-2')}; or with --rebuild, which replaces them",
            )

    def path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.arrow"

    def has_work(self) -> bool:
        """Whether an interrupted sweep left shards."""
        return self.index.is_file() and self.index.stat().st_size > 0

    def __contains__(self, index: int) -> bool:
        """Whether a window is complete. Raises SteerHealError for one that was edited."""
        if index in self._whole or index // self.each in self._shards:
            return True
        line, path = self._lines.get(index), self.path(index)
        if line is None or not path.is_file():
            return False
        if digest(path) != line["sha256"]:
            raise SteerHealError(
                "a window of an interrupted sweep was edited",
                given=path,
                expected=f"the rows that the sweep wrote, as {self.index} says",
                next=f"{removal(path)}, then the same command makes it again",
            )
        self._whole.add(index)
        return True

    def write(self, index: int, rows: bytes) -> None:
        """Keep a window, given as lines of JSONL. The last of a shard's windows makes the shard."""
        import pyarrow

        table = table_of(rows)
        with atomic_file(self.path(index)) as temporary, pyarrow.ipc.new_file(temporary, table.schema) as writer:
            writer.write_table(table)
        line = {
            "window": index,
            "rows": len(table),
            "tokens": _tokens(table),
            "keys": digest_of_keys(table.column("key").to_pylist()),
            "sha256": digest(self.path(index)),
        }
        self._append(line)
        self._lines[index] = line
        self._whole.add(index)
        if all(other in self for other in self._of_shard(index // self.each)):
            self._pack(index // self.each)

    def show(self, index: int, keys: Sequence[str], board: Board, name: str = "") -> None:
        """As of a file of rows, but by the window's line in the index: its rows are not read."""
        board.count(*self.counted(index, keys), name)

    def counted(self, index: int, keys: Sequence[str]) -> tuple[int, int]:
        """Numbers of rows and tokens of a complete window. Raises SteerHealError where its keys are not the planned ones."""
        line = self._lines[index]
        if line["keys"] != digest_of_keys(keys):
            raise self._other(
                index, f"keys of another plan in {self.index}", keys[0], removal(self.folder, self.out, folder=True)
            )
        return line["rows"], line["tokens"]

    def publish(self, count: int) -> None:
        """Write the manifest; the shards are there."""
        shards = [self._shards[number] for number in range(-(-count // self.each))]
        write_manifest(self.out, [Shard(name=s["name"], rows=s["rows"], sha256=s["sha256"]) for s in shards])

    def _of_shard(self, number: int) -> range:
        assert self.count is not None
        return range(number * self.each, min((number + 1) * self.each, self.count))

    def _pack(self, number: int) -> None:
        """Write a shard from its windows, one in memory at a time, a row group each."""
        import pyarrow.parquet

        path, rows = self.out / f"{number:05d}.parquet", 0
        with (
            atomic_file(path) as temporary,
            pyarrow.parquet.ParquetWriter(temporary, schema(), compression="zstd") as writer,
        ):
            for index in self._of_shard(number):
                with pyarrow.OSFile(str(self.path(index))) as source, pyarrow.ipc.open_file(source) as window:
                    table = window.read_all()
                rows += len(table)
                writer.write_table(table)
        line = {"shard": number, "name": path.name, "rows": rows, "sha256": digest(path)}
        self._append(line)
        self._shards[number] = line
        for index in self._of_shard(number):
            self.path(index).unlink()
            self._whole.discard(index)

    def _append(self, line: dict[str, Any]) -> None:
        with open(self.index, "ab") as handle:
            handle.write(json.dumps(line).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())

    def _read_index(self) -> None:
        """Read the index. A line that a crash cut short is cut off: its window or shard is made again."""
        content = self.index.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(self.index, end)
        for line in content[:end].splitlines():
            entry = parse_json(line)
            if "window" in entry:
                self._lines[entry["window"]] = entry
            else:
                self._shards[entry["shard"]] = entry
        for number, entry in list(self._shards.items()):
            path = self.out / entry["name"]
            if not path.is_file() or digest(path) != entry["sha256"]:
                raise SteerHealError(
                    "a shard of an interrupted sweep was edited or removed",
                    given=path,
                    expected=f"what {self.index} records",
                    next=f"restore it, or begin again: the same command with --rebuild, or {removal(self.folder, self.out, folder=True)}",
                )
            for index in self._of_shard(number):  # where a crash came between the index and the removal
                self.path(index).unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        with suppress(FileNotFoundError):
            return [path for path in self.out.iterdir() if NAME.fullmatch(path.name)]
        return []

    def _refuse_other_files(self) -> None:
        expected = {MANIFEST, CARD, *(path.name for path in self._files())}
        other = [path.name for path in self.out.iterdir() if path.name not in expected and path.name[0] != "."] if self.out.is_dir() else []  # fmt: skip
        if other:
            raise SteerHealError(
                "a folder of shards holds other files",
                given=f"{self.out}: {', '.join(sorted(other)[:3])}",
                expected="a new folder, an empty one, or one that a sweep has made",
                next="name another folder, or a file of rows: --out NAME.jsonl",
            )


def store_of(out: Path) -> Windows:
    """The store of a sweep's windows, for a file of rows or for a folder of shards."""
    return Windows(out) if out.suffix == ".jsonl" else Shards(out)


def digest_of_keys(keys: Sequence[str]) -> str:
    """sha256 over the keys of rows in their order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def _tokens(table: pyarrow.Table) -> int:
    import pyarrow.compute

    return int(pyarrow.compute.sum(pyarrow.compute.list_value_length(table.column("completion_ids"))).as_py() or 0)
