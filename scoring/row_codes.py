"""What may be wrong with one row, by code, and the check of a whole batch for what would spoil the engine's state."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.schema import MAX_TIME_US, MISSING_INT, Channel, TransactionBatch


class RowCode(IntEnum):
    """Why a row is refused before it touches any state (0: it is acceptable).

    ``validate`` gives those up to EVENT_ID_MISSING; the others are found where rows are read, of any field.
    """

    ACCEPTABLE = 0
    AMOUNT_NOT_A_NUMBER = 1
    AMOUNT_INFINITE = 2
    AMOUNT_NEGATIVE = 3
    UNKNOWN_CHANNEL = 4
    TIME_OUT_OF_RANGE = 5
    EVENT_ID_MISSING = 6
    MALFORMED = 7
    FIELD_MISSING = 8
    FIELD_UNKNOWN = 9
    WRONG_TYPE = 10
    TEXT_TOO_LONG = 11
    TIME_IN_FUTURE = 12
    NUMBER_NOT_FINITE = 13

    @property
    def text(self) -> str:
        return self.name.lower().replace("_", "-")

    @property
    def field(self) -> str:
        """The column at fault (empty for an acceptable row, and where it differs from row to row)."""
        return _FIELDS.get(self, "")


_FIELDS = {
    RowCode.AMOUNT_NOT_A_NUMBER: "amount",
    RowCode.AMOUNT_INFINITE: "amount",
    RowCode.AMOUNT_NEGATIVE: "amount",
    RowCode.UNKNOWN_CHANNEL: "channel",
    RowCode.TIME_OUT_OF_RANGE: "time_us",
    RowCode.EVENT_ID_MISSING: "event_id",
    RowCode.TIME_IN_FUTURE: "time_us",
}


# Compiled loops read plain numbers only.
_NOT_A_NUMBER, _INFINITE = int(RowCode.AMOUNT_NOT_A_NUMBER), int(RowCode.AMOUNT_INFINITE)
_NEGATIVE, _UNKNOWN_CHANNEL = int(RowCode.AMOUNT_NEGATIVE), int(RowCode.UNKNOWN_CHANNEL)
_OUT_OF_RANGE, _ID_MISSING = int(RowCode.TIME_OUT_OF_RANGE), int(RowCode.EVENT_ID_MISSING)
_FIRST_CHANNEL, _LAST_CHANNEL = int(min(Channel)), int(max(Channel))


def validate(batch: TransactionBatch) -> NDArray[np.uint8]:
    """``RowCode`` uint8 [n] per row; when several things are wrong the first in the order of ``RowCode`` is named."""
    if batch.event_id.dtype == object:
        missing = np.fromiter(
            (not (value and value.rstrip("\0")) for value in batch.event_id.tolist()), np.bool_, len(batch)
        )
    else:
        missing = batch.event_id == MISSING_INT
    return _row_codes(missing, batch.time_us, batch.channel, batch.amount)


@compiled
def _row_codes(
    missing: NDArray[np.bool_],
    time_us: NDArray[np.int64],
    channel: NDArray[np.uint8],
    amount: NDArray[np.float64],
) -> NDArray[np.uint8]:
    codes = np.zeros(len(missing), np.uint8)
    for row in range(len(missing)):
        if np.isnan(amount[row]):
            codes[row] = _NOT_A_NUMBER
        elif np.isinf(amount[row]):
            codes[row] = _INFINITE
        elif amount[row] < 0:
            codes[row] = _NEGATIVE
        elif not _FIRST_CHANNEL <= channel[row] <= _LAST_CHANNEL:
            codes[row] = _UNKNOWN_CHANNEL
        elif not 0 <= time_us[row] <= MAX_TIME_US:
            codes[row] = _OUT_OF_RANGE
        elif missing[row]:
            codes[row] = _ID_MISSING
    return codes
