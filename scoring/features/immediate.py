"""What an event itself tells: which filters it passes, its calendar features and fields; nothing is remembered.

A spec is laid out as tables once, so that a batch costs a few compiled passes and not some calls for each condition of
each filter: those are most of what a single event would cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.features import frame as places
from scoring.features.address import floats, keys, longs, octets
from scoring.features.calendar import fill_calendar, local_times
from scoring.features.columns import field_column
from scoring.features.frame import Frame
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

# Of what a filter allows: 256 channels, then hours and weekdays.
_HOURS, _WEEKDAYS, _ALLOWED = 256, 280, 287


class FilterTable:
    """Filters as tables; ``bits`` gives the bit (from 1) of a flag word that each sets."""

    def __init__(self, filters: Sequence[Filter], bits: Mapping[str, int], clocks: Sequence[Clock]) -> None:
        """``clocks``: whose local times :meth:`flags` is given."""
        self._filters = tuple(filters)
        count = len(filters)
        self._bounds = np.array([(each.amount_min, each.amount_max) for each in filters], np.float64)
        self._codes = np.array([(bits[each.name], -1) for each in filters], np.int64)
        self._allowed = np.ones((count, _ALLOWED), np.bool_)
        for place, each in enumerate(filters):
            if each.channels is not None:
                self._allowed[place, :_HOURS] = _among(each.channels, _HOURS)
            if each.hours is not None:
                self._allowed[place, _HOURS:_WEEKDAYS] = _among(each.hours, 24)
            if each.weekdays is not None:
                self._allowed[place, _WEEKDAYS:] = _among(each.weekdays, 7)
            if _reads_clock(each):
                self._codes[place, 1] = clocks.index(each.clock)

    @property
    def numbers(self) -> list[str]:
        """What the filters read of a frame's numbers."""
        return [span.number for each in self._filters for span in each.spans]

    @property
    def categories(self) -> list[str]:
        """The entities that they want present or absent."""
        return [name for each in self._filters for name in (*each.present, *each.absent)]

    def bind(self, frame: Frame) -> None:
        """Say whose batches are to come."""
        spans = [
            (int(self._codes[place, 0]), frame.number(span.number), span.low, span.high)
            for place, each in enumerate(self._filters)
            for span in each.spans
        ]
        self._spans = np.array([span[:2] for span in spans], np.int64).reshape(-1, 2)
        self._span_bounds = np.array([span[2:] for span in spans], np.float64).reshape(-1, 2)
        given = [
            (int(self._codes[place, 0]), frame.category(name), wanted)
            for place, each in enumerate(self._filters)
            for names, wanted in ((each.present, 1), (each.absent, 0))
            for name in names
        ]
        self._given = np.array(given, np.int64).reshape(-1, 3)

    def flags(self, frame: Frame, local: NDArray[np.int64]) -> None:
        """Write the frame's flag words: bit 0 always, and the bit of each filter the row passes.

        ``local`` int64 [clocks, n]: microseconds of local time.
        """
        if not self._filters:
            frame.flags.fill(1)
            return
        _set_flags(
            frame.at,
            local,
            self._bounds,
            self._codes,
            self._allowed,
            self._spans,
            self._span_bounds,
            self._given,
        )


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

    @property
    def numbers(self) -> list[str]:
        """What is read of a frame's numbers."""
        return self._filters.numbers

    @property
    def categories(self) -> list[str]:
        """What is read of its categories."""
        return self._filters.categories

    def bind(self, frame: Frame) -> None:
        """Say whose batches are to come; once, before the first."""
        self._filters.bind(frame)

    def fill(self, batch: TransactionBatch, given: Mapping[str, NDArray[np.bool_]], frame: Frame) -> None:
        """Write calendar features and fields to the matrix of ``frame``, which has read the batch, and its flag words.

        ``given``: bool [n] for every filter that the spec uses and does not define. Raises SchemaError.
        """
        local = np.empty((len(self._clocks), len(batch)), np.int64)
        for place, clock in enumerate(self._clocks):
            local[place] = local_times(clock, batch.time_us)
        self._filters.flags(frame, local)
        for name, bit in self._given:
            if name not in given:
                raise SchemaError(
                    name, "is a filter that the spec does not define: give it as a boolean column"
                )
            column = given[name]
            if column.shape != (len(batch),) or column.dtype != np.bool_:
                raise SchemaError(name, f"must be a boolean column of {len(batch)} rows")
            frame.flags |= column.astype(np.int64) << bit
        if len(self._calendars):
            fill_calendar(self._calendars, local, frame.values)
        for place, feature in self._fields:
            frame.values[:, place] = field_column(batch, feature)


def _reads_clock(condition: Filter) -> bool:
    return condition.hours is not None or condition.weekdays is not None


def _among(chosen: Sequence[int], size: int) -> NDArray[np.bool_]:
    table = np.zeros(size, np.bool_)
    table[list(chosen)] = True
    return table


@compiled
def _set_flags(
    at: int,
    local: NDArray[np.int64],
    bounds: NDArray[np.float64],
    codes: NDArray[np.int64],
    allowed: NDArray[np.bool_],
    spans: NDArray[np.int64],
    span_bounds: NDArray[np.float64],
    given: NDArray[np.int64],
) -> None:
    frame = longs(at)
    rows = frame[places.ROWS]
    amount = floats(frame[places.VALUE])
    channel = octets(frame[places.CHANNEL])
    flags = longs(frame[places.FLAGS])
    for row in range(rows):
        word = 1
        for place in range(len(codes)):
            if not bounds[place, 0] <= amount[row] <= bounds[place, 1] or not allowed[place, channel[row]]:
                continue
            clock = codes[place, 1]
            if clock >= 0:
                at_local = local[clock, row]
                hour, day = at_local % DAY_US // HOUR_US, (at_local // DAY_US + 3) % 7
                if not allowed[place, _HOURS + hour] or not allowed[place, _WEEKDAYS + day]:
                    continue
            word |= 1 << codes[place, 0]
        flags[row] = word
    for span in range(len(spans)):
        number = floats(frame[places.VALUE] + 8 * rows * spans[span, 1])
        for row in range(rows):
            if not span_bounds[span, 0] <= number[row] <= span_bounds[span, 1]:
                flags[row] &= ~(1 << spans[span, 0])
    for place in range(len(given)):
        key = keys(frame[places.KEY] + 8 * rows * given[place, 1])
        for row in range(rows):
            if (key[row] != 0) != (given[place, 2] != 0):
                flags[row] &= ~(1 << given[place, 0])
