"""Handing a batch to the panes' kernel: where its columns are, and which slots begin anew.

In compiled code, since NumPy takes a microsecond for the address of one array and a batch has sixteen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.features import pane_kernel as kernel


@compiled
def place_rows(
    table: NDArray[np.int64],
    entity: NDArray[np.int32],
    time_us: NDArray[np.int64],
    value: NDArray[np.float64],
    flags: NDArray[np.int32],
    key: NDArray[np.uint64],
    out: NDArray[np.float64],
) -> None:
    """Write where a batch's columns are."""
    table[kernel.BATCH_ENTITY] = entity.ctypes.data
    table[kernel.BATCH_TIME] = time_us.ctypes.data
    table[kernel.BATCH_VALUE] = value.ctypes.data
    table[kernel.BATCH_FLAGS] = flags.ctypes.data
    table[kernel.BATCH_KEY] = key.ctypes.data
    table[kernel.OUT] = out.ctypes.data


@compiled
def place_admitted(
    table: NDArray[np.int64],
    disposition: NDArray[np.uint8],
    record: NDArray[np.int32],
    sequence: NDArray[np.int64],
    old_time: NDArray[np.int64],
    watermark: NDArray[np.int64],
    change_row: NDArray[np.int64],
    change_record: NDArray[np.int32],
    change_time: NDArray[np.int64],
    change_fraud: NDArray[np.bool_],
) -> None:
    """Write where the decisions on a batch are."""
    table[kernel.BATCH_DISPOSITION] = disposition.ctypes.data
    table[kernel.BATCH_RECORD] = record.ctypes.data
    table[kernel.BATCH_SEQUENCE] = sequence.ctypes.data
    table[kernel.BATCH_OLD_TIME] = old_time.ctypes.data
    table[kernel.BATCH_WATERMARK] = watermark.ctypes.data
    table[kernel.CHANGE_ROW] = change_row.ctypes.data
    table[kernel.CHANGE_RECORD] = change_record.ctypes.data
    table[kernel.CHANGE_TIME] = change_time.ctypes.data
    table[kernel.CHANGE_FRAUD] = change_fraud.ctypes.data


@compiled
def renew(entities: NDArray[np.int32], rows: NDArray[np.int32]) -> None:
    """Swept slots that have a new owner begin anew."""
    for row in range(len(rows)):
        slot = rows[row]
        if slot >= 0 and entities[slot, kernel.START] == -2:
            entities[slot, kernel.START] = -1
