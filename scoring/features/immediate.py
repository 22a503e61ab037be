"""What an event itself tells: which filters it passes, its calendar features and fields; nothing is remembered.

A spec is laid out as tables once, so that a batch costs a few compiled passes and not some NumPy calls for each
condition of each filter: those are most of what a single event would cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.features.calendar import fill_calendar, local_times
from scoring.features.columns import entity_column, field_column, number_column
from scoring.features.spec_model import (
    DAY_US,
    HOUR_US,
    Calendar,
    CalendarFeature,
    Clock,
    FeatureSpec,
    FieldFeature,
    Filter,
)
from scoring.schema import SchemaError, TransactionBatch


class FilterTable:
    """Filters as tables; ``bits`` gives the bit (from 1) of a flag word that each sets."""

    def __init__(self, filters: Sequence[Filter], bits: Mapping[str, int], clocks: Sequence[Clock]) -> None:
        """``clocks``: whose local times :meth:`flags` is given."""
        self._filters = tuple(filters)
        count = len(filters)
        self._bit = np.array([bits[each.name] for each in filters], np.int64)
        self._low = np.array([each.amount_min for each in filters], np.float64)
        self._high = np.array([each.amount_max for each in filters], np.float64)
        self._clock = np.full(count, -1, np.int64)
        self._channels = np.ones((count, 256), np.bool_)
        self._hours = np.ones((count, 24), np.bool_)
        self._weekdays = np.ones((count, 7), np.bool_)
        for place, each in enumerate(filters):
            if each.channels is not None:
                self._channels[place] = _among(each.channels, 256)
            if each.hours is not None:
                self._hours[place] = _among(each.hours, 24)
            if each.weekdays is not None:
                self._weekdays[place] = _among(each.weekdays, 7)
            if _reads_clock(each):
                self._clock[place] = clocks.index(each.clock)
        self._further = [
            (place, each) for place, each in enumerate(filters) if each.spans or each.present or each.absent
        ]

    def flags(self, batch: TransactionBatch, local: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flag words int64 [n]: bit 0 always, and the bit of each filter the row passes.

        ``local`` int64 [clocks, n]: microseconds of local time. Raises SchemaError for a number the batch lacks.
        """
        flags = np.ones(len(batch), np.int64)
        if not self._filters:
            return flags
        _set_flags(
            batch.amount,
            batch.channel,
            local,
            self._low,
            self._high,
            self._channels,
            self._clock,
            self._hours,
            self._weekdays,
            self._bit,
            flags,
        )
        for place, each in self._further:
            bit = int(self._bit[place])
            for span in each.spans:
                _clear_outside(flags, bit, number_column(batch, span.number), span.low, span.high)
            for name in each.present:
                _clear_where(flags, bit, entity_column(batch, name), False)
            for name in each.absent:
                _clear_where(flags, bit, entity_column(batch, name), True)
        return flags


class Immediate:
    """The filters, calendar features and fields of a spec."""

    def __init__(self, spec: FeatureSpec, bits: Mapping[str, int]) -> None:
        """``bits``: the flag bit of each filter name, those that are given with every batch included."""
        calendars = [(p, f) for p, f in enumerate(spec.features) if isinstance(f, CalendarFeature)]
        clocks = dict.fromkeys(feature.clock for _, feature in calendars)
        clocks |= dict.fromkeys(each.clock for each in spec.filters if _reads_clock(each))
        self._clocks = tuple(clocks)
        self._filters = FilterTable(spec.filters, bits, self._clocks)
        defined = {each.name for each in spec.filters}
        self._given = [(name, bit) for name, bit in bits.items() if name not in defined]
        self._fields = [(p, f) for p, f in enumerate(spec.features) if isinstance(f, FieldFeature)]
        parts = list(Calendar)
        self._calendars = np.array(
            [
                (place, parts.index(each.part), self._clocks.index(each.clock), each.last_hour)
                for place, each in calendars
            ],
            np.int64,
        ).reshape(-1, 4)

    def fill(
        self,
        batch: TransactionBatch,
        given: Mapping[str, NDArray[np.bool_]],
        values: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Write calendar features and fields to their columns of ``values`` float64 [n, f]; flag words int64 [n].

        ``given``: bool [n] for every filter that the spec uses and does not define. Raises SchemaError.
        """
        local = np.empty((len(self._clocks), len(batch)), np.int64)
        for place, clock in enumerate(self._clocks):
            local[place] = local_times(clock, batch.time_us)
        flags = self._filters.flags(batch, local)
        for name, bit in self._given:
            if name not in given:
                raise SchemaError(
                    name, "is a filter that the spec does not define: give it as a boolean column"
                )
            column = given[name]
            if column.shape != (len(batch),) or column.dtype != np.bool_:
                raise SchemaError(name, f"must be a boolean column of {len(batch)} rows")
            flags |= column.astype(np.int64) << bit
        if len(self._calendars):
            fill_calendar(self._calendars, local, values)
        for place, feature in self._fields:
            values[:, place] = field_column(batch, feature)
        return flags


def _reads_clock(condition: Filter) -> bool:
    return condition.hours is not None or condition.weekdays is not None


def _among(chosen: Sequence[int], size: int) -> NDArray[np.bool_]:
    table = np.zeros(size, np.bool_)
    table[list(chosen)] = True
    return table


@compiled
def _set_flags(
    amount: NDArray[np.float64],
    channel: NDArray[np.uint8],
    local: NDArray[np.int64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    channels: NDArray[np.bool_],
    clock: NDArray[np.int64],
    hours: NDArray[np.bool_],
    weekdays: NDArray[np.bool_],
    bit: NDArray[np.int64],
    flags: NDArray[np.int64],
) -> None:
    for row in range(len(flags)):
        word = flags[row]
        for place in range(len(bit)):
            if not low[place] <= amount[row] <= high[place] or not channels[place, channel[row]]:
                continue
            if clock[place] >= 0:
                at = local[clock[place], row]
                if not hours[place, at % DAY_US // HOUR_US] or not weekdays[place, (at // DAY_US + 3) % 7]:
                    continue
            word |= 1 << bit[place]
        flags[row] = word


@compiled
def _clear_outside(
    flags: NDArray[np.int64], bit: int, values: NDArray[np.float64], low: float, high: float
) -> None:
    for row in range(len(flags)):
        if not low <= values[row] <= high:
            flags[row] &= ~(1 << bit)


@compiled
def _clear_where(flags: NDArray[np.int64], bit: int, keys: NDArray[np.uint64], given: bool) -> None:
    """Clear the bit of rows whose entity is given, or is not."""
    for row in range(len(flags)):
        if (keys[row] != 0) == given:
            flags[row] &= ~(1 << bit)
