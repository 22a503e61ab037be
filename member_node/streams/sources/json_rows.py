"""Rows as JSON: one object a body, or one a line (NDJSON), decoded by type straight into columns.

An object has ``event_id``, ``time`` (RFC 3339 with ``Z`` or an offset) or ``time_us`` (UTC microseconds), ``amount``,
``channel`` (a word; where the stream has a constant one it may be left out), and as far as the stream has them: its
entities, numeric attributes, ``correction`` (true or false) and ``device_components`` (an object). Unknown fields are
refused, so that a misspelt one is noticed; ``null`` means not given.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta
from numpy.typing import NDArray

from governance.messages.problems import RequestError
from member_node.streams.components import MAX_COMPONENTS, component_fault
from member_node.streams.events import CORRECTION, DEVICE_COMPONENTS
from member_node.streams.sources.rows import (
    MAX_ROWS,
    Faults,
    Incoming,
    RowForm,
    RowRefusal,
    arrow_of,
    checked_rows,
    refusals_of,
)
from scoring.row_codes import RowCode
from scoring.schema import MAX_TEXT_LENGTH

_WHOLE = Annotated[int, Meta(gt=-(2**63), le=2**63 - 1)]  # int64's minimum means "missing" in the engine
_TEXT = Annotated[str, Meta(max_length=MAX_TEXT_LENGTH)]
_MOMENT = Annotated[dt.datetime, Meta(tz=True)]
_NO_COMPONENTS = msgspec.Raw()
_EPOCH, _MICROSECOND = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.timedelta(microseconds=1)
_SHOWN = 64  # characters of an unknown field's name that are repeated to its sender


class JsonRows:
    """Decodes the rows of one stream. Holds no state; may be shared by threads."""

    def __init__(self, form: RowForm) -> None:
        self._form = form
        fields: list[Any] = [
            ("event_id", _WHOLE if form.integer_ids else _TEXT),
            ("amount", float),
            ("time_us", _WHOLE | None, None),
            ("time", _MOMENT | None, None),
            ("channel", _TEXT) if not form.channel else ("channel", _TEXT | None, None),
        ]
        fields += [(name, (_WHOLE if whole else _TEXT) | None, None) for name, whole in form.entities.items()]
        fields += [(name, float | None, None) for name in form.numbers]
        if form.corrections:
            fields.append((CORRECTION, bool | None, None))
        if form.components:
            fields.append((DEVICE_COMPONENTS, msgspec.Raw, _NO_COMPONENTS))
        self._names = [each[0] for each in fields]
        # gc=False: rows hold no cycles, and thousands of them should not wake the collector.
        row = msgspec.defstruct(
            "EventRow", fields, forbid_unknown_fields=True, kw_only=True, frozen=True, gc=False
        )
        self._decoder = msgspec.json.Decoder(row)

    def one(self, body: bytes) -> object:
        """One object, decoded or refused: an item of :meth:`columns`."""
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return self._refused(body)

    def lines(self, body: bytes) -> Sequence[object]:
        """The objects of NDJSON, decoded or refused each. Raises ``RequestError`` where there are too many."""
        breaks = body.count(b"\n") + 1
        if breaks <= MAX_ROWS:
            try:
                decoded = self._decoder.decode_lines(body)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                decoded = []
            # An object that runs over several lines would shift the places of those after it.
            if len(decoded) in (breaks, breaks - 1) and len(decoded) == sum(1 for _ in _lines(body)):
                return decoded
        lines = list(_lines(body))
        if len(lines) > MAX_ROWS:
            raise RequestError("too-large", f"a delivery has at most {MAX_ROWS} rows")
        return [self.one(line) for line in lines]

    def rows(self, items: Sequence[object], now_us: int) -> Incoming:
        """The rows of decoded or refused items, in their order."""
        refused = [item for item in items if isinstance(item, RowRefusal)]
        places = [place for place, item in enumerate(items) if not isinstance(item, RowRefusal)]
        good = [items[place] for place in places] if refused else items
        faults = Faults(len(good))
        cells = self._cells(good)
        columns = self._columns(cells, faults)
        times = _times(cells["time_us"], cells["time"], faults)
        channels = np.array(_codes(cells["channel"], self._form), np.uint8)
        amounts = np.array(cells["amount"], np.float64)
        events, kept = checked_rows(columns, times, channels, amounts, faults, self._form, now_us)
        if not refused and len(kept) == len(items):
            return Incoming(events, kept, (), len(items))
        where = np.array(places, dtype=np.int64)
        refusals = [_at(item, place) for place, item in enumerate(items) if isinstance(item, RowRefusal)]
        refusals += [_at(each, int(where[each.row])) for each in refusals_of(faults, columns["event_id"])]
        return Incoming(events, where[kept], tuple(sorted(refusals, key=lambda each: each.row)), len(items))

    def _cells(self, rows: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
        if not rows:
            return dict.fromkeys(self._names, ())
        return dict(zip(self._names, zip(*map(msgspec.structs.astuple, rows), strict=True), strict=True))

    def _columns(self, cells: Mapping[str, Sequence[Any]], faults: Faults) -> dict[str, pa.Array]:
        form = self._form
        columns = {"event_id": _array(cells["event_id"], form.integer_ids)}
        for name, whole in form.entities.items():
            columns[name] = _array(cells[name], whole)
        for name in form.numbers:
            columns[name] = _floats(cells[name])
        if form.corrections:
            columns[CORRECTION] = pa.array([bool(cell) for cell in cells[CORRECTION]], pa.bool_())
        if form.components:
            columns[DEVICE_COMPONENTS] = _bundles(cells[DEVICE_COMPONENTS], faults)
        return columns

    def _refused(self, line: bytes) -> RowRefusal:
        """What is wrong with an object that does not decode: the slow path, taken for refused rows only."""
        try:
            row = json.loads(line)  # unlike the decoder it takes NaN and 1e999, which then can be named
        except (ValueError, RecursionError):
            return RowRefusal(0, None, RowCode.MALFORMED, "")
        if not isinstance(row, dict):
            return RowRefusal(0, None, RowCode.WRONG_TYPE, "")
        event_id = row.get("event_id")
        shown = event_id if _fault_of("event_id", event_id, self._form) is RowCode.ACCEPTABLE else None
        for name in row:
            if name not in self._names:
                return RowRefusal(0, shown, RowCode.FIELD_UNKNOWN, _printable(name))
        for name in self._names:
            if (code := _fault_of(name, row.get(name), self._form)) is not RowCode.ACCEPTABLE:
                return RowRefusal(0, shown, code, name)
        return RowRefusal(0, shown, RowCode.MALFORMED, "")


def _lines(body: bytes) -> Iterator[bytes]:
    return (line for line in body.split(b"\n") if line.strip())


def _at(refusal: RowRefusal, row: int) -> RowRefusal:
    return RowRefusal(row, refusal.event_id, refusal.code, refusal.field)


def _printable(name: str) -> str:
    return name[:_SHOWN].encode("ascii", "backslashreplace").decode()


def _array(cells: Sequence[Any], whole: bool) -> pa.Array:
    if whole:
        if None in cells:
            return pa.array(cells, pa.int64())
        return arrow_of(np.array(cells, np.int64), pa.int64())
    # Without the white space around them, as files are read.
    return pa.array([cell.strip() or None if cell else None for cell in cells], pa.string())


def _floats(cells: Sequence[float | None]) -> pa.Array:
    if None in cells:
        return pa.array(cells, pa.float64())
    return arrow_of(np.array(cells, np.float64), pa.float64())


def _times(
    micros: Sequence[int | None], moments: Sequence[dt.datetime | None], faults: Faults
) -> NDArray[np.int64]:
    if None not in micros and not any(moments):
        return np.array(micros, np.int64)
    times = np.zeros(len(micros), np.int64)
    for row, (micro, moment) in enumerate(zip(micros, moments, strict=True)):
        if (micro is None) == (moment is None):
            code = RowCode.FIELD_MISSING if moment is None else RowCode.FIELD_UNKNOWN  # one time too many
            faults.code[row], faults.field[row] = code, "time"
        else:
            times[row] = (moment - _EPOCH) // _MICROSECOND if moment is not None else micro or 0
    return times


def _codes(words: Sequence[str | None], form: RowForm) -> list[int]:
    known: Mapping[str, int] = form.channels
    return [
        form.channel if word is None else known.get(word) or known.get(word.strip().lower(), 0)
        for word in words
    ]


def _bundles(cells: Sequence[msgspec.Raw], faults: Faults) -> pa.Array:
    texts: list[str | None] = []
    for row, cell in enumerate(cells):
        content = bytes(cell)
        if not content or content == b"null":
            texts.append(None)
            continue
        fault = component_fault(content)
        if fault and not faults.code[row]:
            faults.code[row], faults.field[row] = fault, DEVICE_COMPONENTS
        texts.append(None if fault else content.decode())
    return pa.array(texts, pa.string())


def _fault_of(name: str, value: object, form: RowForm) -> RowCode:
    """What is wrong with one decoded cell."""
    if value is None:
        if name == "event_id":
            return RowCode.EVENT_ID_MISSING
        required = name == "amount" or (name == "channel" and not form.channel)
        return RowCode.FIELD_MISSING if required else RowCode.ACCEPTABLE
    if name == "amount" or name in form.numbers:
        return _number_fault(name, value)
    if name == CORRECTION:
        return RowCode.ACCEPTABLE if isinstance(value, bool) else RowCode.WRONG_TYPE
    if name == DEVICE_COMPONENTS:
        return _components_fault(value)
    if name == "time_us" or form.entities.get(name, name == "event_id" and form.integer_ids):
        if isinstance(value, bool) or not isinstance(value, int):
            return RowCode.WRONG_TYPE
        wide = not -(2**63) < value < 2**63
        return (
            (RowCode.TIME_OUT_OF_RANGE if name == "time_us" else RowCode.WRONG_TYPE) if wide else RowCode(0)
        )
    return _text_fault(name, value)


def _number_fault(name: str, value: object) -> RowCode:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return RowCode.WRONG_TYPE
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if np.isfinite(number):
        return RowCode.ACCEPTABLE
    if name != "amount":
        return RowCode.NUMBER_NOT_FINITE
    return RowCode.AMOUNT_NOT_A_NUMBER if np.isnan(number) else RowCode.AMOUNT_INFINITE


def _components_fault(value: object) -> RowCode:
    if not isinstance(value, dict):
        return RowCode.WRONG_TYPE
    return RowCode.TEXT_TOO_LONG if len(json.dumps(value)) > MAX_COMPONENTS else RowCode.ACCEPTABLE


def _text_fault(name: str, value: object) -> RowCode:
    if not isinstance(value, str):
        return RowCode.WRONG_TYPE
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        return RowCode.MALFORMED
    if name == "time":
        try:
            return RowCode.ACCEPTABLE if dt.datetime.fromisoformat(value).tzinfo else RowCode.WRONG_TYPE
        except ValueError:
            return RowCode.WRONG_TYPE
    return RowCode.TEXT_TOO_LONG if len(value) > MAX_TEXT_LENGTH else RowCode.ACCEPTABLE
