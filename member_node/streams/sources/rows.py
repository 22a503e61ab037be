"""Rows that arrive at a running stream: what each must hold, and which are refused, one by one, with code and field.

A *delivery* is what a source hands over at once: the body of a request, a message of a broker, a stretch of a file.
A row that is refused never stops the rows around it; a delivery that cannot be read as rows is refused as a whole
(``RequestError``). Reports name fields and never repeat a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from member_node.streams.events import (
    CORRECTION,
    DEVICE_COMPONENTS,
    EventBatch,
    numbers_of,
)
from member_node.streams.mapping import StreamMapping, channel_words
from scoring.compiled import compiled
from scoring.row_codes import RowCode
from scoring.schema import CHANNELS, ENTITIES, MAX_TIME_US, Channel

MAX_ROWS = 10_000
# A clock that is further ahead than this is wrong: one event from next week would make all of today's late.
MAX_FUTURE_US = 300_000_000
_FIRST_CHANNEL, _LAST_CHANNEL = int(min(Channel)), int(max(Channel))
_TIME_OUT_OF_RANGE, _TIME_IN_FUTURE = int(RowCode.TIME_OUT_OF_RANGE), int(RowCode.TIME_IN_FUTURE)
_UNKNOWN_CHANNEL, _AMOUNT_NOT_A_NUMBER = int(RowCode.UNKNOWN_CHANNEL), int(RowCode.AMOUNT_NOT_A_NUMBER)
_AMOUNT_INFINITE, _AMOUNT_NEGATIVE = int(RowCode.AMOUNT_INFINITE), int(RowCode.AMOUNT_NEGATIVE)
# Refusals name fields as senders do.
_FIELDS = {
    RowCode.TIME_OUT_OF_RANGE: "time",
    RowCode.TIME_IN_FUTURE: "time",
    RowCode.UNKNOWN_CHANNEL: "channel",
    RowCode.AMOUNT_NOT_A_NUMBER: "amount",
    RowCode.AMOUNT_INFINITE: "amount",
    RowCode.AMOUNT_NEGATIVE: "amount",
}


@dataclass(frozen=True, eq=False)
class RowForm:
    """What rows of one stream hold. ``schema``: that of its events; ``channels``: lower-case word -> code.

    ``channel``: the code of rows that name none (0: they must); ``max_future_us``: how far an event's time may be
    ahead of the clock (None: a replay, where any time may come).
    """

    schema: pa.Schema
    channels: Mapping[str, int]
    channel: int = 0
    max_future_us: int | None = MAX_FUTURE_US

    @classmethod
    def of(
        cls, mapping: StreamMapping, schema: pa.Schema, max_future_us: int | None = MAX_FUTURE_US
    ) -> RowForm:
        """The form of a mapped stream whose events have ``schema``."""
        channel = CHANNELS[mapping.channel] if mapping.channel else 0
        return cls(schema, channel_words(mapping), int(channel), max_future_us)

    @cached_property
    def integer_ids(self) -> bool:
        """Whether event ids are integers."""
        return bool(self.schema.field("event_id").type == pa.int64())

    @cached_property
    def entities(self) -> Mapping[str, bool]:
        """The entities in column order, and whether each holds integers."""
        return {
            name: self.schema.field(name).type == pa.int64() for name in self.schema.names if name in ENTITIES
        }

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """The further numeric attributes."""
        return numbers_of(self.schema)

    @cached_property
    def corrections(self) -> bool:
        """Whether rows may be corrections."""
        return CORRECTION in self.schema.names

    @cached_property
    def components(self) -> bool:
        """Whether rows may carry device components."""
        return DEVICE_COMPONENTS in self.schema.names


@dataclass(frozen=True)
class RowRefusal:
    """One refused row: its place in the delivery (from 0), its event id where it could be read, code and field."""

    row: int
    event_id: int | str | None
    code: RowCode
    field: str


@dataclass(frozen=True, eq=False)
class Incoming:
    """What a delivery of ``rows`` rows held: the acceptable ``events`` in order, where each stood (``places`` int64
    [n]), and the other rows in order."""

    events: EventBatch
    places: NDArray[np.int64]
    refusals: tuple[RowRefusal, ...]
    rows: int


@dataclass(eq=False)
class Faults:
    """The first fault found of each of ``rows`` rows: code uint8 [n] and field."""

    rows: int
    code: NDArray[np.uint8] = field(init=False)
    field: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.code = np.zeros(self.rows, np.uint8)
        self.field = [""] * self.rows

    def mark(self, bad: NDArray[np.bool_], code: RowCode, name: str) -> None:
        """Refuse the rows of a mask that were acceptable so far."""
        if bad.any():
            for row in np.flatnonzero(bad & (self.code == 0)).tolist():
                self.code[row] = code
                self.field[row] = name


def checked_rows(
    columns: Mapping[str, pa.Array],
    times: NDArray[np.int64],
    channels: NDArray[np.uint8],
    amounts: NDArray[np.float64],
    faults: Faults,
    form: RowForm,
    now_us: int,
) -> tuple[EventBatch, NDArray[np.int64]]:
    """The acceptable rows and where they stood.

    ``times`` int64 [n] (UTC microseconds), ``channels`` uint8 [n] (0: unknown) and ``amounts`` float64 [n];
    ``columns``: the other columns of the form's schema, with its types and clean texts. ``faults`` says what is known
    already, missing cells among them; checked here are ids and the ranges of times, channels, amounts and numbers.
    """
    if columns["event_id"].null_count:
        faults.mark(missing_of(columns["event_id"]), RowCode.EVENT_ID_MISSING, "event_id")
    latest = MAX_TIME_US if form.max_future_us is None else now_us + form.max_future_us
    if _find_faults(times, channels, amounts, latest, faults.code):
        for row in np.flatnonzero(faults.code).tolist():
            faults.field[row] = faults.field[row] or _FIELDS.get(RowCode(int(faults.code[row])), "")
    for name in form.numbers:
        column = columns[name]
        if column.null_count < len(column):
            wrong = ~np.isfinite(column.to_numpy(zero_copy_only=False))
            if column.null_count:
                wrong &= ~missing_of(column)
            faults.mark(wrong, RowCode.NUMBER_NOT_FINITE, name)
    whole = {
        **columns,
        "time_us": arrow_of(times, pa.int64()),
        "channel": arrow_of(channels, pa.uint8()),
        "amount": arrow_of(amounts, pa.float64()),
    }
    events = pa.RecordBatch.from_arrays([whole[name] for name in form.schema.names], schema=form.schema)
    if not faults.code.any():
        return events, np.arange(faults.rows, dtype=np.int64)
    places = np.flatnonzero(faults.code == 0)
    return events.take(pa.array(places)), places


@compiled
def _find_faults(
    times: NDArray[np.int64],
    channels: NDArray[np.uint8],
    amounts: NDArray[np.float64],
    latest: int,
    codes: NDArray[np.uint8],
) -> bool:
    """Write the code of each row that is at fault and has none yet; whether any was. One pass, since a single event
    pays for each."""
    found = False
    for row in range(len(codes)):
        if codes[row] != 0:
            continue
        if times[row] < 0 or times[row] > MAX_TIME_US:
            codes[row] = _TIME_OUT_OF_RANGE
        elif times[row] > latest:
            codes[row] = _TIME_IN_FUTURE
        elif channels[row] < _FIRST_CHANNEL or channels[row] > _LAST_CHANNEL:
            codes[row] = _UNKNOWN_CHANNEL
        elif np.isnan(amounts[row]):
            codes[row] = _AMOUNT_NOT_A_NUMBER
        elif np.isinf(amounts[row]):
            codes[row] = _AMOUNT_INFINITE
        elif amounts[row] < 0:
            codes[row] = _AMOUNT_NEGATIVE
        else:
            continue
        found = True
    return found


def refusals_of(faults: Faults, ids: pa.Array) -> tuple[RowRefusal, ...]:
    """The refused rows of ``faults``; ``ids``: the event ids as far as they could be read."""
    return tuple(
        RowRefusal(row, ids[row].as_py(), RowCode(int(faults.code[row])), faults.field[row])
        for row in np.flatnonzero(faults.code).tolist()
    )


def arrow_of(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """The same memory as an Arrow array without nulls, at a third of what ``pa.array`` takes for a few values."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)], 0)


def missing_of(column: pa.Array) -> NDArray[np.bool_]:
    """Where a column is null, bool [n]."""
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False))
