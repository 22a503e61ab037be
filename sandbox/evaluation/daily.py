"""Confirmed frauds per bank, directory cell and whole day, in the clear: what the encrypted sums must equal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class BankDayCounts:
    """Prefix sums of frauds per bank, cell and day; ``cell``: directory position, negative where the row has none."""

    def __init__(
        self, bank: Ints, cell: Ints, day: Ints, fraud: npt.NDArray[np.int8], banks: int, cells: int
    ) -> None:
        self._bank, self._cell, self._day = bank, cell, day
        self._first = int(day.min()) if len(day) else 0
        self._days = (int(day.max()) - self._first + 1) if len(day) else 0
        counts = np.zeros((banks, cells + 1, self._days + 1), np.int32)  # the spare last cell stays zero
        known = (fraud == 1) & (cell >= 0)
        np.add.at(counts, (bank[known], cell[known], day[known] - self._first + 1), 1)
        self._prefix = counts.cumsum(axis=2, dtype=np.int32)  # [:, :, k]: days before first + k

    def of_banks(self, window_days: int, delay_days: int) -> Ints:
        """Counts per bank over days ``[D - delay - window, D - delay - 1]`` of each row's day D; ``[banks, n]``.

        Every day in it is completely matured: its last transaction's label is known when day D begins.
        """
        end = np.clip(self._day - self._first - delay_days, 0, self._days)
        start = np.clip(end - window_days, 0, self._days)
        counts: Ints = self._prefix[:, self._cell, end] - self._prefix[:, self._cell, start]
        return counts.astype(np.int64)


def admitted(banks: int, members: int) -> npt.NDArray[np.bool_]:
    """Whose counts a bank has in a consortium of ``members``: itself and the first ``members - 1`` others.

    Shape ``[banks (viewer), banks (contributor)]``.
    """
    table = np.zeros((banks, banks), bool)
    for viewer in range(banks):
        others = [b for b in range(banks) if b != viewer][: max(0, members - 1)]
        table[viewer, [viewer, *others]] = True
    return table
