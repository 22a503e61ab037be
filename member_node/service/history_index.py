"""Where an event stands in a history file: its id's hash beside its row, sorted, in a file mapped when it is asked.

A file ``X.ids`` beside ``X.parquet``: ``"SRIDS001" | rows u64 | crc32 of the rest u32 | zeros [12] | hashes u64 [rows]
sorted | row numbers u32 [rows]``. Hashes are FNV-1a (64 bits) of a text's UTF-8 bytes, integers stand for themselves,
both mixed once more. Equal hashes are candidates only: the reader compares the ids themselves.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MAGIC = b"SRIDS001"
_HEADER = struct.Struct("<8sQI12x")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))


@_compiled
def _hash_bytes(offsets: NDArray[np.int32], content: NDArray[np.uint8], hashes: NDArray[np.uint64]) -> None:
    for row in range(len(hashes)):
        value = np.uint64(0xCBF29CE484222325)
        for place in range(offsets[row], offsets[row + 1]):
            value = (value ^ np.uint64(content[place])) * np.uint64(0x100000001B3)
        hashes[row] = value


def hash_ids(ids: pa.Array) -> NDArray[np.uint64]:
    """Hashes uint64 [n] of event ids (int64 or string, without nulls)."""
    if ids.type == pa.int64():
        values = np.asarray(ids.to_numpy(zero_copy_only=False)).view(np.uint64)
    else:
        _, offsets, content = ids.buffers()
        places = (
            np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1] if len(ids) else None
        )
        values = np.empty(len(ids), np.uint64)
        if places is not None:
            raw = np.frombuffer(content, np.uint8) if content is not None else np.empty(0, np.uint8)
            _hash_bytes(places.copy(), raw, values)
    mixed = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    answer: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(29))
    return answer


def as_ids(texts: Sequence[str], kind: pa.DataType) -> pa.Array:
    """Ids given as text in the type a file holds; those that cannot be in it are left out."""
    if kind == pa.string():
        return pa.array(texts, type=pa.string())
    numbers = []
    for text in texts:
        digits = text.removeprefix("-")
        if (
            digits.isdecimal()
            and len(digits) < 20
            and str(int(text)) == text
            and -(2**63) <= int(text) < 2**63
        ):
            numbers.append(int(text))
    return pa.array(numbers, type=pa.int64())


def index_parts(parts: Sequence[NDArray[np.uint64]]) -> list[bytes]:
    """The bytes of the index of a file with ids of these hashes, in their order."""
    hashes = np.concatenate([np.empty(0, np.uint64), *parts])
    rows = np.argsort(hashes, kind="stable")
    sorted_hashes, numbers = hashes[rows].tobytes(), rows.astype(np.uint32).tobytes()
    crc = zlib.crc32(numbers, zlib.crc32(sorted_hashes))
    return [_HEADER.pack(MAGIC, len(hashes), crc), sorted_hashes, numbers]


class IdIndex:
    """The index of one file, mapped."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError if it does not hold, OSError if it is not there."""
        with open(path, "rb") as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size:
                raise ValueError(f"{path}: cut off")
            magic, count, crc = _HEADER.unpack(head)
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        whole = memoryview(content)[_HEADER.size :]
        if magic != MAGIC or len(whole) != 12 * count or zlib.crc32(whole) != crc:
            raise ValueError(f"{path}: damaged")
        self._hashes = np.frombuffer(whole, np.uint64, count)
        self._rows = np.frombuffer(whole, np.uint32, count, 8 * count)

    def rows(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows whose ids may be among those hashed, int64 in ascending order."""
        first = np.searchsorted(self._hashes, hashes, side="left")
        last = np.searchsorted(self._hashes, hashes, side="right")
        found = [self._rows[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True) if b > a]
        if not found:
            return np.empty(0, np.int64)
        return np.unique(np.concatenate(found)).astype(np.int64)
