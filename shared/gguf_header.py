"""The header of a GGUF file, read in a fraction of a second and without any library: metadata, tensors, and whether the file is complete.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A number is little-endian; a string is its length and its bytes.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from shared.errors import SteerHealError
from shared.machine import GIB

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
LONGEST = 1 << 20  # bytes of a key or a name: more is no name
# of a tensor: its name, values in a block, bytes of a block. A test holds this table against the package gguf's.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}  # fmt: skip


class _Broken(ValueError):
    """What cannot be read; the message says why."""


@dataclass(frozen=True)
class Tensor:
    """shape: as numpy has it, the reverse of the file's. offset, size: bytes, from the beginning of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def values(self) -> int:
        """The number of values: the product of the shape."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """fields: metadata by key; an array is a list. tensors: in the order of the file. state: the file's size and times when it was read."""

    path: Path
    fields: dict[str, Any]
    tensors: tuple[Tensor, ...]
    state: tuple[int, ...]

    @property
    def architecture(self) -> str:
        """general.architecture of the metadata, such as llama; empty where it is missing."""
        return str(self.fields.get("general.architecture", ""))

    def text(self, key: str) -> str | None:
        """A string of the metadata; None where the key is missing or holds another type."""
        value = self.fields.get(key)
        return value if isinstance(value, str) else None

    def whole(self, key: str) -> int | None:
        """A whole number of the metadata; None where the key is missing or holds another type."""
        value = self.fields.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Values by type of the tensors, the most frequent first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            counts[tensor.kind] = counts.get(tensor.kind, 0) + tensor.values
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def state_of(path: Path) -> tuple[int, ...]:
    """The identity of a file's content: its inode, its size and its times."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF does. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return file.read(4) == MAGIC


def read_header(path: Path) -> Header:
    """The metadata and the list of tensors of a GGUF file. No weights are read.

    Raises:
        SteerHealError: the file is not GGUF, has another version or byte order, is damaged, or ends before its last tensor does.
        OSError: it cannot be opened.
    """
    state = state_of(path)
    with open(path, "rb") as file:
        if file.read(4) != MAGIC:
            _refuse(path, "it does not begin with GGUF", "a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                fields, tensors = _Reader(data).read()
            except (_Broken, struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
                problem = "the file is cut short" if isinstance(error, struct.error) else str(error)
                _refuse(path, problem, f"a whole GGUF file, version {' or '.join(map(str, VERSIONS))}")
            size = len(data)
    end = max((tensor.offset + tensor.size for tensor in tensors), default=0)
    if end > size:
        _refuse(
            path, f"{size / GIB:.3f} of at least {end / GIB:.3f} GiB are there: the file is cut short", "the whole file"
        )
    return Header(path, fields, tuple(tensors), state)


def _refuse(path: Path, problem: str, expected: str) -> NoReturn:
    raise SteerHealError(
        "a GGUF file could not be read",
        given=f"{path}: {problem}",
        expected=expected,
        next=f"download it again, and compare its size and checksum (sha256sum {path}) with the publisher's",
    )


class _Described(NamedTuple):
    """A tensor as the header has it. kind: a key of TYPES; offset: bytes from the end of the header."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int


class _Reader:
    """A GGUF file from its beginning on. Raises _Broken or struct.error for what cannot be."""

    def __init__(self, data: mmap.mmap):
        self._data, self._at = data, 4

    def read(self) -> tuple[dict[str, Any], list[Tensor]]:
        version = self._number("I")
        if version not in VERSIONS:
            big = version & 0xFFFF == 0
            raise _Broken("its numbers are big-endian" if big else f"it is of version {version}")
        tensors, pairs = self._number("Q"), self._number("Q")
        if max(tensors, pairs) > len(self._data) // 12:  # a key and its value take as much at least
            raise _Broken(f"{tensors} tensors and {pairs} keys do not fit into it")
        fields: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string(LONGEST)
            if key in fields:
                raise _Broken(f"the key {key} is there twice")
            fields[key] = self._value(self._number("I"))
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise _Broken(f"general.alignment is {alignment!r}, not a power of two")
        described = [self._tensor() for _ in range(tensors)]
        return fields, self._placed(described, alignment)

    def _placed(self, described: list[_Described], alignment: int) -> list[Tensor]:
        """Tensors lie one after the other, each at a multiple of the alignment: llama.cpp refuses any other order."""
        begin, wanted, names = _padded(self._at, alignment), 0, set()
        placed = []
        for name, kind, shape, offset in described:
            if kind not in TYPES:
                raise _Broken(f"{name} is of type {kind}, which is not known here")
            if name in names:
                raise _Broken(f"the tensor {name} is there twice")
            names.add(name)
            called, block, size = TYPES[kind]
            if shape[-1] % block:
                raise _Broken(f"{name} has rows of {shape[-1]} values in blocks of {block}")
            if offset != wanted:
                raise _Broken(f"{name} begins at {offset}, not at {wanted}")
            length = prod(shape) // block * size
            placed.append(Tensor(name, called, shape, begin + offset, length))
            wanted = _padded(offset + length, alignment)
        return placed

    def _tensor(self) -> _Described:
        name, dimensions = self._string(LONGEST), self._number("I")
        if not 1 <= dimensions <= 4:
            raise _Broken(f"{name} has {dimensions} dimensions")
        shape = tuple(reversed(self._numbers("Q", dimensions)))
        if 0 in shape or prod(shape) > 1 << 50:
            raise _Broken(f"{name} has the shape {list(shape)}")
        return _Described(name, self._number("I"), shape, self._number("Q"))

    def _value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            raise _Broken(f"a value is of type {kind}")
        inner, count = self._number("I"), self._number("Q")
        if inner in SCALARS:
            return list(self._numbers(SCALARS[inner], count))
        if inner != STRING or count > len(self._data) // 8:
            raise _Broken(f"an array of {count} values of type {inner}")
        return [self._string() for _ in range(count)]

    def _number(self, code: str) -> Any:
        return self._numbers(code, 1)[0]

    def _numbers(self, code: str, count: int) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}") * count
        if size > len(self._data) - self._at:
            raise _Broken("the file is cut short")
        numbers = struct.unpack_from(f"<{count}{code}", self._data, self._at)
        self._at += size
        return numbers

    def _string(self, longest: int | None = None) -> str:
        (length,) = struct.unpack_from("<Q", self._data, self._at)
        begin = self._at + 8
        if length > len(self._data) - begin or (longest and length > longest):
            raise _Broken("the file is cut short" if length > len(self._data) - begin else f"a name of {length} bytes")
        self._at = begin + length
        return self._data[begin : self._at].decode("utf-8")


def _padded(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment
