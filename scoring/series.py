"""Counts per entity of a public directory and day, summed over windows of whole, completely matured days."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

DAY_US = 86_400_000_000
DayOf: TypeAlias = Callable[[NDArray[np.int64]], NDArray[np.int64]]


class SeriesError(ValueError):
    """A day is missing, repeated with other counts, or does not have the directory's length."""


def utc_day(time_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Days since 1970-01-01 in UTC of microseconds since then."""
    return np.floor_divide(time_us, DAY_US)


class DailyCounts:
    """Non-negative counts per cell and day, appended day by day without gaps.

    ``entities``: uint64 [cells], the entity keys in the public directory's order; ``first_day``: days since
    1970-01-01 of the first day that can be added; ``day_of`` maps event times to days in the data set's time zone.
    Sums over days come from prefix sums in int64, so they are exact. ``retain_days`` bounds the memory: older days
    fall out (and a window that reaches back to them is refused).
    """

    def __init__(
        self, entities: NDArray[np.uint64], first_day: int, *, day_of: DayOf = utc_day, retain_days: int = 120
    ) -> None:
        if len(np.unique(entities)) != len(entities):
            raise SeriesError("the directory names an entity twice")
        if retain_days < 1:
            raise SeriesError(f"retain_days must be at least 1, not {retain_days}")
        self._order = np.argsort(entities, kind="stable")
        self._sorted = np.asarray(entities, dtype=np.uint64)[self._order]
        self._day_of = day_of
        self._retain = retain_days
        self._first_day = first_day
        self._oldest_day = first_day
        # Row k is the sum of all days before the k-th retained one; one spare row is allocated ahead.
        self._prefix = np.zeros((2, len(entities)), dtype=np.int64)
        self._days = 0

    @property
    def cells(self) -> int:
        """Length of the directory."""
        return len(self._sorted)

    @property
    def next_day(self) -> int:
        """The day that must be added next."""
        return self._oldest_day + self._days

    def day(self, day: int) -> NDArray[np.int64]:
        """The counts of one retained day, int64 [cells]."""
        position = day - self._oldest_day
        if not 0 <= position < self._days:
            raise SeriesError(f"day {day} is not held; {self._oldest_day} to {self.next_day - 1} are")
        counts: NDArray[np.int64] = self._prefix[position + 1] - self._prefix[position]
        return counts

    def add_day(self, day: int, counts: NDArray[np.int64]) -> None:
        """Append one day's counts (integers >= 0, [cells]).

        A day that is held already is accepted again only with the same counts, so that a restart may repeat itself.
        """
        values = np.asarray(counts)
        if values.shape != (self.cells,) or values.dtype.kind not in "iu":
            raise SeriesError(f"day {day}: expected {self.cells} integers, got {values.dtype} {values.shape}")
        if values.size and int(values.min()) < 0:
            raise SeriesError(f"day {day}: counts must not be negative")
        if self._oldest_day <= day < self.next_day:
            if not np.array_equal(self.day(day), values):
                raise SeriesError(f"day {day} is held with other counts")
            return
        if day != self.next_day:
            raise SeriesError(f"day {day} cannot be added: day {self.next_day} comes next")
        if self._days + 1 >= len(self._prefix):
            self._make_room()
        self._prefix[self._days + 1] = self._prefix[self._days] + values
        self._days += 1

    def _make_room(self) -> None:
        kept = min(self._days, self._retain)
        old = self._prefix[self._days - kept : self._days + 1]
        grown = np.zeros((max(2 * kept, 8) + 2, self.cells), dtype=np.int64)
        grown[: kept + 1] = old - old[0]
        self._oldest_day += self._days - kept
        self._days = kept
        self._prefix = grown

    def window(
        self, keys: NDArray[np.uint64], time_us: NDArray[np.int64], days: int, delay_days: int
    ) -> NDArray[np.float64]:
        """For each event the sum over days [D - delay - days, D - delay - 1], D being the event's own day.

        With labels known after ``delay_days``, day D - delay - 1 is the last one whose labels are all known whatever
        the hour of the event. Days before the first and days not yet added count as zero, as do entities outside the
        directory; ``keys`` uint64 [n], ``time_us`` int64 [n], result float64 [n].
        """
        if days < 1 or delay_days < 0:
            raise SeriesError(f"a window needs days >= 1 and delay_days >= 0, not {days} and {delay_days}")
        last = self._day_of(np.asarray(time_us, dtype=np.int64)) - delay_days - self._oldest_day
        first = last - days
        if self._oldest_day > self._first_day and first.size and int(first.min()) < 0:
            raise SeriesError(
                f"a window of {days} days reaches before day {self._oldest_day}, the oldest one held"
            )
        if self.cells == 0:
            return np.zeros(len(keys), dtype=np.float64)
        position = np.minimum(np.searchsorted(self._sorted, keys), self.cells - 1)
        known = self._sorted[position] == keys
        cell = self._order[position]
        high = np.clip(last, 0, self._days)
        low = np.clip(first, 0, self._days)
        sums = self._prefix[high, cell] - self._prefix[low, cell]
        return np.where(known, sums, 0).astype(np.float64)
