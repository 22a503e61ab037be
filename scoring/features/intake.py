"""How a batch reaches one table: slots of its entities, and its columns as rows, at the addresses its kernel reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.features import frame as batch
from scoring.features.address import floats, ints, keys, longs, octets
from scoring.features.frame import Frame
from scoring.features.index import KeyIndex

_PLACED = batch.OUT + 1  # entries of the frame that a kernel's table has too
(
    _ENTRIES,  # address of the kernel's entries for a batch, _PLACED in the frame's order
    _ROWS,  # addresses of the kernel's scalars
    _CHANGES,
    _COLUMNS,
    _VALUES,  # how many, and the address of the place of each in the frame
    _VALUE_PLACE,
    _KEYS,
    _KEY_PLACE,
    _BITS,  # how many filters are told apart; -1: the frame's own flags
    _BIT,  # address of (bit in the frame, bit here)
    _FRAUD_BIT,
    _ENTITY,  # addresses of the room for a batch's rows
    _VALUE,
    _KEY,
    _FLAGS,
) = range(15)
_LENGTH = 15


class Intake:
    """Hands batches to one kernel, whose ``table`` and ``scalars`` stay where they are."""

    def __init__(
        self,
        index: KeyIndex,
        table: NDArray[np.int64],
        scalars: NDArray[np.int64],
        *,
        first: int,
        lengths: tuple[int, int, int],
    ) -> None:
        """``first``: the kernel's entry for a batch's entities, after which the others follow in the frame's order;
        ``lengths``: its scalars for rows, changes and columns."""
        self._index = index
        self._block = np.zeros(_LENGTH, np.int64)
        self._at = int(self._block.ctypes.data)
        base = int(scalars.ctypes.data)
        self._block[_ENTRIES] = int(table.ctypes.data) + 8 * first
        self._block[_ROWS : _COLUMNS + 1] = [base + 8 * scalar for scalar in lengths]
        self._block[_BITS] = -1
        self._entity = 0
        self._room = -1
        self._kept: list[NDArray[Any]] = [table, scalars]  # what addresses point to

    def bind(
        self,
        frame: Frame,
        entity: str,
        numbers: Sequence[str],
        categories: Sequence[str],
        places: Mapping[str, int],
    ) -> None:
        """Say where in ``frame`` the table's columns are; ``places`` of numbers that are not the batch's own."""
        values = [places[name] if name in places else frame.number(name) for name in numbers]
        told = [frame.category(name) for name in categories]
        self._entity = frame.category(entity)
        self._block[_VALUES], self._block[_KEYS] = len(values), len(told)
        self._block[_VALUE_PLACE] = self._keep(np.array(values, np.int64))
        self._block[_KEY_PLACE] = self._keep(np.array(told, np.int64))

    def narrow(self, bits: Sequence[tuple[int, int]], fraud_bit: int) -> None:
        """Give the kernel flags of 32 bits: bit 0, those named by (bit in the frame, bit here), and the outcome's."""
        self._block[_BITS] = len(bits)
        self._block[_BIT] = self._keep(np.array(bits, np.int64).reshape(-1, 2))
        self._block[_FRAUD_BIT] = fraud_bit

    def read(self, frame: Frame) -> int:
        """Place the frame's batch; every entity slot is below the result."""
        if frame.rows > self._room:
            self._widen(frame.rows)
        bound = self._index.fill(
            frame.keys_at + 8 * frame.rows * self._entity,
            self._slots_at,
            frame.rows,
            shard=frame.shard,
            shards=frame.shards,
        )
        _hand_over(self._at, frame.at)
        return bound

    def _widen(self, rows: int) -> None:
        values, told = int(self._block[_VALUES]), int(self._block[_KEYS])
        narrowed = rows if self._block[_BITS] >= 0 else 0
        self._rooms = (
            np.empty(rows, np.int32),
            np.empty((rows, values), np.float64),
            np.empty((rows, told), np.uint64),
            np.empty(narrowed, np.int32),
        )
        self._room = rows
        self._block[_ENTITY : _FLAGS + 1] = [room.ctypes.data for room in self._rooms]
        self._slots_at = int(self._block[_ENTITY])

    def _keep(self, array: NDArray[Any]) -> int:
        self._kept.append(array)
        return int(array.ctypes.data)


@compiled
def _hand_over(at: int, frame_at: int) -> None:
    own = longs(at)
    frame = longs(frame_at)
    rows = frame[batch.ROWS]
    entries = longs(own[_ENTRIES])
    for entry in range(_PLACED):
        entries[entry] = frame[entry]
    longs(own[_ROWS])[0] = rows
    longs(own[_CHANGES])[0] = frame[batch.CHANGES]
    longs(own[_COLUMNS])[0] = frame[batch.COLUMNS]
    entries[batch.ENTITY] = own[_ENTITY]
    entries[batch.VALUE] = own[_VALUE]
    entries[batch.KEY] = own[_KEY]
    value = floats(own[_VALUE])
    width = own[_VALUES]
    for column in range(width):
        place = longs(own[_VALUE_PLACE])[column]
        if place >= 0:
            number = floats(frame[batch.VALUE] + 8 * rows * place)
            for row in range(rows):
                value[row * width + column] = number[row]
        else:
            time = longs(frame[batch.TIME])
            for row in range(rows):
                value[row * width + column] = float(time[row]) if place == batch.TIME_NUMBER else 0.0
    key = keys(own[_KEY])
    width = own[_KEYS]
    for column in range(width):
        told = keys(frame[batch.KEY] + 8 * rows * longs(own[_KEY_PLACE])[column])
        for row in range(rows):
            key[row * width + column] = told[row]
    if own[_BITS] < 0:
        return
    entries[batch.FLAGS] = own[_FLAGS]
    narrow = ints(own[_FLAGS])
    wide = longs(frame[batch.FLAGS])
    fraud = octets(frame[batch.FRAUD])
    bits = longs(own[_BIT])
    for row in range(rows):
        word = 1 | (np.int64(fraud[row]) << own[_FRAUD_BIT])
        for each in range(own[_BITS]):
            word |= ((wide[row] >> bits[2 * each]) & 1) << bits[2 * each + 1]
        narrow[row] = word
