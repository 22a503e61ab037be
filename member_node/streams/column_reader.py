"""Columns of a record batch as NumPy arrays, all in one compiled pass over Arrow's memory.

pyarrow makes an object of each column that is looked at and NumPy another of each that is copied: of a single event
that is most of what reading it costs. The Arrow C data interface (its ABI is fixed: ``struct ArrowArray``) tells the
addresses of all columns at once.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.compiled import compiled_brief
from scoring.features.address import floats, keys, longs, octets

# The places of ``struct ArrowArray``, in words.
_WORDS = 10
_NULLS, _OFFSET, _BUFFERS, _CHILDREN, _RELEASE = 1, 2, 5, 6, 8
_MISSING = np.iinfo(np.int64).min


class Read(IntEnum):
    """How a column is read: not at all, as int64, float64 (null: NaN), uint8 or bool, or as keys of integers."""

    NOTHING = 0
    WHOLE = 1
    NUMBER = 2
    OCTET = 3
    FLAG = 4
    KEY = 5


_NOTHING, _WHOLE, _NUMBER = int(Read.NOTHING), int(Read.WHOLE), int(Read.NUMBER)
_OCTET, _FLAG = int(Read.OCTET), int(Read.FLAG)


@dataclass(frozen=True, eq=False)
class ReadColumns:
    """What was read, one contiguous row a column, each kind in the order of the columns.

    ``wholes`` int64, ``keys`` uint64 (``scoring.schema.entity_keys``), ``numbers`` float64, ``octets`` uint8, ``flags``
    bool. ``null``: the first column that must hold no null and does, -1 where none.
    """

    wholes: NDArray[np.int64]
    keys: NDArray[np.uint64]
    numbers: NDArray[np.float64]
    octets: NDArray[np.uint8]
    flags: NDArray[np.bool_]
    null: int


class ColumnReader:
    """Reads batches of one schema; immutable and shared between threads."""

    def __init__(self, reads: list[Read], never_null: list[bool]) -> None:
        """``reads`` and ``never_null``: of each column, whose type must be the one that is read."""
        self._reads = np.array(reads, np.int64)
        # The place of each column among those read alike.
        self._places = np.array([reads[:at].count(each) for at, each in enumerate(reads)], np.int64)
        self._never_null = np.array(never_null, np.bool_)
        self._counts = tuple(reads.count(each) for each in Read)

    def read(self, batch: pa.RecordBatch) -> ReadColumns:
        """Copies of the columns."""
        rows = batch.num_rows
        counts = self._counts
        wholes = np.empty((counts[Read.WHOLE], rows), np.int64)
        found = np.empty((counts[Read.KEY], rows), np.uint64)
        numbers = np.empty((counts[Read.NUMBER], rows))
        small = np.empty((counts[Read.OCTET], rows), np.uint8)
        flags = np.empty((counts[Read.FLAG], rows), np.bool_)
        own = _own
        words, address = own.words, own.address
        batch._export_to_c(address)
        try:
            null = _read(
                address,
                rows,
                self._reads,
                self._places,
                self._never_null,
                wholes,
                found,
                numbers,
                small,
                flags,
            )
        finally:
            _release_function(words[_RELEASE])(address)
        return ReadColumns(wholes, found, numbers, small, flags, null)


class _Own(threading.local):
    """A thread's own ``struct ArrowArray``."""

    def __init__(self) -> None:
        self.words: Any = (ctypes.c_int64 * _WORDS)()
        self.address = ctypes.addressof(self.words)


_own = _Own()
_functions: dict[int, Any] = {}


def _release_function(address: int) -> Any:
    """The callback that frees an exported batch. It keeps the interpreter's lock: it only counts references down."""
    function = _functions.get(address)
    if function is None:
        function = _functions[address] = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(address)
    return function


@compiled_brief
def _read(
    address: int,
    rows: int,
    reads: NDArray[np.int64],
    places: NDArray[np.int64],
    never_null: NDArray[np.bool_],
    wholes: NDArray[np.int64],
    found: NDArray[np.uint64],
    numbers: NDArray[np.float64],
    small: NDArray[np.uint8],
    flags: NDArray[np.bool_],
) -> int:
    """Fill the matrices from the ``struct ArrowArray`` at ``address``; the first column of illegal nulls, or -1."""
    batch = longs(address)
    children = longs(batch[_CHILDREN])
    for column in range(len(reads)):
        child = longs(children[column])
        buffers = longs(child[_BUFFERS])
        start = child[_OFFSET] + batch[_OFFSET]
        # Where the number of nulls is not known (-1) their bits tell.
        valid = octets(buffers[0])
        nulls = buffers[0] != 0 and child[_NULLS] != 0
        if nulls and never_null[column]:
            for row in range(start, start + rows):
                if not (valid[row >> 3] >> (row & 7)) & 1:
                    return column
        read, place = reads[column], places[column]
        if read == _NOTHING:
            continue
        if read == _WHOLE:
            integers = longs(buffers[1])
            for row in range(rows):
                wholes[place, row] = integers[start + row]
        elif read == _NUMBER:
            decimals = floats(buffers[1])
            for row in range(rows):
                numbers[place, row] = decimals[start + row]
        elif read == _OCTET:
            bytes_ = octets(buffers[1])
            for row in range(rows):
                small[place, row] = bytes_[start + row]
        elif read == _FLAG:
            bits = octets(buffers[1])
            for row in range(rows):
                at = start + row
                flags[place, row] = ((bits[at >> 3] >> (at & 7)) & 1) != 0
        else:
            values, unsigned = longs(buffers[1]), keys(buffers[1])
            for row in range(rows):
                # As scoring.schema.entity_keys; Numba makes a float64 of "0 if ... else key".
                key = unsigned[start + row]
                value = values[start + row]
                if value == _MISSING:
                    key = np.uint64(0)
                elif value >= 0:
                    key = key + np.uint64(1)
                found[place, row] = key
        if nulls:
            for row in range(rows):
                at = start + row
                if not (valid[at >> 3] >> (at & 7)) & 1:
                    if read == _NUMBER:
                        numbers[place, row] = np.nan
                    elif read > _FLAG:
                        found[place, row] = 0
    return -1
