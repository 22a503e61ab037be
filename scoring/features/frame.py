"""What an engine reads of a batch and decides about it, where every table finds it: columns, and the address of each.

A batch has two dozen columns, an engine a dozen tables, and NumPy takes most of a microsecond for the address of one
array. So columns are copied together and placed once, and compiled code reaches them through one block of addresses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.features.columns import category_column, number_column
from scoring.row_codes import validate
from scoring.schema import TransactionBatch, entity_keys

# Addresses in the block, in the order of a kernel's own entries for a batch ...
(
    ENTITY,  # each table has its own
    TIME,  # int64 [row]
    VALUE,  # float64 [number, row]
    FLAGS,  # int64 [row]: bit 0, and the bit of every filter passed
    KEY,  # uint64 [category, row]
    DISPOSITION,  # uint8 [row] of Disposition
    RECORD,  # int32 [row]: slot of the event's record
    SEQUENCE,  # int64 [row]: place in arrival order, kept by corrections
    OLD_TIME,  # int64 [row]: the replaced time
    FRAUD,  # uint8 [row]: outcome already known of a corrected event
    WATERMARK,  # int64 [row]: after the row
    CHANGE_ROW,  # int64 [change]: an outcome that changes before this row, of
    CHANGE_RECORD,  # int32
    CHANGE_TIME,  # int64
    CHANGE_SEQUENCE,  # int64
    CHANGE_FRAUD,  # uint8
    OUT,  # float64 [row, feature]
) = range(17)
# ... then those of what decides, and lengths.
(
    CHANNEL,  # uint8 [row]
    CORRECTION,  # uint8 [row]
    REFUSAL,  # uint8 [row] of RowCode
    OUTCOME_RECORD,  # int32 [outcome]
    OUTCOME_FRAUD,  # uint8 [outcome]
    OUTCOME_KNOWN,  # int64 [outcome]
    ROWS,
    COLUMNS,  # of OUT
    OUTCOMES,
    CHANGES,
    CONSUMED,  # outcomes that have been taken
) = range(17, 28)
_LENGTH = 28
_NO_VALUES = np.empty((0, 0))
NO_NUMBER, TIME_NUMBER = (
    -1,
    -2,
)  # places of what is no number of the batch: nothing (0.0), and the event's time


class Frame:
    """The batch at hand. ``rows``: its length; ``at``: address of the block; ``keys_at``, ``ids_at``, ``record_at``,
    ``refusal_at``: of columns, ids and keys as ``entity_keys`` gives them.

    ``values`` float64 [n, f] is the matrix to be filled; ``flags``, ``record``, ``disposition`` and ``refusal`` are as
    above.
    ``records`` bounds the slots of event records. Addresses hold until the next :meth:`read`.
    """

    def __init__(
        self,
        numbers: Sequence[str],
        categories: Sequence[str],
        features: int,
        *,
        shard: int = 0,
        shards: int = 1,
    ) -> None:
        """``numbers`` beside the amount, and ``categories``: what is read of batches."""
        self._numbers = tuple(dict.fromkeys(("amount", *numbers)))
        self._categories = tuple(dict.fromkeys(categories))
        self._features = features
        self.shard, self.shards = shard, shards
        self.block = np.zeros(_LENGTH, np.int64)
        self.at = int(self.block.ctypes.data)
        self.rows = self.records = 0
        self.keys_at = self.ids_at = self.record_at = self.refusal_at = 0

    def number(self, name: str) -> int:
        """The place of a number among the rows of VALUE."""
        return self._numbers.index(name)

    def category(self, name: str) -> int:
        """The place of a category among the rows of KEY."""
        return self._categories.index(name)

    def read(self, batch: TransactionBatch) -> None:
        """Take the columns of a batch. Raises SchemaError when one is missing, or ids are not of one type."""
        rows = self.rows = len(batch)
        self._read_numbers(batch)
        keys = self._keys = np.empty((len(self._categories), rows), np.uint64)
        for place, name in enumerate(self._categories):
            keys[place] = category_column(batch, name)
        self._ids = entity_keys(batch.event_id, column="event_id")
        self.refusal = validate(batch)
        words = self._words = np.empty((5, rows), np.int64)
        words[0] = batch.time_us
        self.flags = words[1]
        octets = self._octets = np.empty((4, rows), np.uint8)
        self.disposition = octets[0]
        octets[1] = batch.channel
        octets[2] = False if batch.correction is None else batch.correction
        self.record = np.empty(rows, np.int32)
        self.values = np.empty((rows, self._features))
        self.keys_at, self.ids_at, self.record_at, self.refusal_at = _place(
            self.block,
            words,
            octets,
            self.record,
            self._values,
            keys,
            self._ids,
            self.refusal,
            self.values,
        )

    def place_outcomes(
        self, record: NDArray[np.int32], fraud: NDArray[np.bool_], known_us: NDArray[np.int64]
    ) -> None:
        """Outcomes that may become visible within the batch, and room for the changes that follow."""
        count = len(record)
        if not count:
            self.block[OUTCOMES] = self.block[CHANGES] = self.block[CONSUMED] = 0
            return
        self._outcomes = (record, fraud.view(np.uint8), np.ascontiguousarray(known_us))
        self._changes = (
            np.empty((3, count), np.int64),
            np.empty(count, np.int32),
            np.empty(count, np.uint8),
        )
        _place_outcomes(self.block, *self._outcomes, *self._changes)

    def release(self) -> NDArray[np.float64]:
        """The matrix, from here on the caller's alone: it may be large, and the next batch may be long in coming."""
        values, self.values = self.values, _NO_VALUES
        return values

    def _read_numbers(self, batch: TransactionBatch) -> None:
        self._values = np.empty((len(self._numbers), self.rows))
        for place, name in enumerate(self._numbers):
            self._values[place] = number_column(batch, name)


@compiled
def _place(
    block: NDArray[np.int64],
    words: NDArray[np.int64],
    octets: NDArray[np.uint8],
    record: NDArray[np.int32],
    numbers: NDArray[np.float64],
    keys: NDArray[np.uint64],
    ids: NDArray[np.uint64],
    refusal: NDArray[np.uint8],
    out: NDArray[np.float64],
) -> tuple[int, int, int, int]:
    """Write where the columns are, and begin the matrix with NaN."""
    rows = len(record)
    block[TIME] = words.ctypes.data
    block[FLAGS] = words.ctypes.data + 8 * rows
    block[SEQUENCE] = words.ctypes.data + 16 * rows
    block[OLD_TIME] = words.ctypes.data + 24 * rows
    block[WATERMARK] = words.ctypes.data + 32 * rows
    block[DISPOSITION] = octets.ctypes.data
    block[CHANNEL] = octets.ctypes.data + rows
    block[CORRECTION] = octets.ctypes.data + 2 * rows
    block[FRAUD] = octets.ctypes.data + 3 * rows
    block[REFUSAL] = refusal.ctypes.data
    block[RECORD] = record.ctypes.data
    block[VALUE] = numbers.ctypes.data
    block[KEY] = keys.ctypes.data
    block[OUT] = out.ctypes.data
    block[ROWS] = rows
    block[COLUMNS] = out.shape[1]
    out[:] = np.nan
    return keys.ctypes.data, ids.ctypes.data, record.ctypes.data, refusal.ctypes.data


@compiled
def _place_outcomes(
    block: NDArray[np.int64],
    record: NDArray[np.int32],
    fraud: NDArray[np.uint8],
    known_us: NDArray[np.int64],
    change: NDArray[np.int64],
    change_record: NDArray[np.int32],
    change_fraud: NDArray[np.uint8],
) -> None:
    count = len(record)
    block[OUTCOME_RECORD] = record.ctypes.data
    block[OUTCOME_FRAUD] = fraud.ctypes.data
    block[OUTCOME_KNOWN] = known_us.ctypes.data
    block[CHANGE_ROW] = change.ctypes.data
    block[CHANGE_TIME] = change.ctypes.data + 8 * count
    block[CHANGE_SEQUENCE] = change.ctypes.data + 16 * count
    block[CHANGE_RECORD] = change_record.ctypes.data
    block[CHANGE_FRAUD] = change_fraud.ctypes.data
    block[OUTCOMES] = count
    block[CHANGES] = 0
    block[CONSUMED] = 0
