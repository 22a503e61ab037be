"""Rows as an Arrow IPC stream, from senders that are known but not trusted: sizes, types and contents are checked.

Columns by the names of JSON rows in any order: ``event_id``, ``time_us`` (an integer) or ``time`` (a timestamp with a
zone), ``amount``, ``channel`` (words, or codes of ``scoring.schema.Channel``), entities, numeric attributes,
``correction``, ``device_components`` (text). Texts may be dictionary-encoded, numbers narrower than the stream's.
Compressed buffers are refused: the size they grow to is whatever the sender claims.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from governance.messages.problems import RequestError
from member_node.streams.components import component_fault
from member_node.streams.events import CORRECTION, DEVICE_COMPONENTS, FIXED, EventBatch
from member_node.streams.sources.rows import (
    MAX_ROWS,
    Faults,
    Incoming,
    RowForm,
    checked_rows,
    missing_of,
    refusals_of,
)
from scoring.row_codes import RowCode
from scoring.schema import MAX_TEXT_LENGTH

MAX_BATCHES = 256
_MISSING = -(2**63)  # means "missing" in the engine
_MOST_BYTES = 4 * MAX_TEXT_LENGTH  # of a text in UTF-8


class ArrowRows:
    """Reads the rows of one stream. Holds no state; may be shared by threads."""

    def __init__(self, form: RowForm) -> None:
        self._form = form
        self._known = {*form.schema.names, "time"}

    def rows(self, body: bytes, now_us: int) -> Incoming:
        """The rows of an IPC stream. Raises ``RequestError`` where it is none, too large or of other types."""
        table = read_stream(body)
        return self.table_rows(table, now_us)

    def table_rows(self, table: pa.Table, now_us: int) -> Incoming:
        """The rows of a table whose contents are sound. Raises ``RequestError`` where it has other types."""
        form = self._form
        self._check_names(table.schema.names)
        faults = Faults(table.num_rows)
        columns: dict[str, pa.Array] = {}
        for target in form.schema:
            source = "time" if target.name == "time_us" and "time" in table.schema.names else target.name
            if source in table.schema.names:
                given = table.column(source).combine_chunks()
                columns[target.name] = self._column(source, given, target.type, faults)
            else:
                columns[target.name] = self._absent(target, table.num_rows)
        for name in FIXED[1:]:
            if columns[name].null_count:
                faults.mark(missing_of(columns[name]), RowCode.FIELD_MISSING, name.removesuffix("_us"))
                columns[name] = pc.fill_null(columns[name], 0)
        # Arrow's memory is read-only, to compiled loops another type: copied.
        times, channels, amounts = (
            np.array(columns.pop(name).to_numpy(zero_copy_only=False)) for name in FIXED[1:]
        )
        events, places = checked_rows(columns, times, channels, amounts, faults, form, now_us)
        return Incoming(events, places, refusals_of(faults, columns["event_id"]), table.num_rows)

    def _check_names(self, names: Sequence[str]) -> None:
        if len(set(names)) != len(names):
            raise RequestError("malformed", "two columns have one name")
        unknown = [name for name in names if name not in self._known]
        if unknown:
            raise RequestError("malformed", f"{len(unknown)} columns are not of this stream")
        if ("time" in names) == ("time_us" in names):
            raise RequestError("malformed", "give either a column time or a column time_us")
        needed = ["event_id", "amount", *([] if self._form.channel else ["channel"])]
        for name in needed:
            if name not in names:
                raise RequestError("malformed", f"the column {name} is missing")

    def _absent(self, target: pa.Field, rows: int) -> pa.Array:
        if target.name == "channel":
            return pa.array(np.full(rows, self._form.channel, np.uint8))
        if target.name == CORRECTION:
            return pa.array(np.zeros(rows, np.bool_))
        return pa.nulls(rows, target.type)

    def _column(self, name: str, given: pa.Array, wanted: pa.DataType, faults: Faults) -> pa.Array:
        kind = given.type
        if name == "channel":
            return self._channels(given)
        if name == "time":
            if not pa.types.is_timestamp(kind) or kind.tz is None:
                raise _wrong_type(name, kind, "a timestamp with a zone")
            return _micros(given, faults)
        if name == CORRECTION:
            if not pa.types.is_boolean(kind):
                raise _wrong_type(name, kind, "bool")
            return pc.fill_null(given, False)
        if wanted == pa.float64():
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal128(kind)):
                raise _wrong_type(name, kind, "a number")
            return given.cast(pa.float64(), safe=False)
        if wanted == pa.int64():
            if not pa.types.is_integer(kind) or kind == pa.uint64():
                raise _wrong_type(name, kind, "an integer of 64 bits")
            given = given.cast(pa.int64())
            least = pc.fill_null(pc.equal(given, _MISSING), False).to_numpy(zero_copy_only=False)
            faults.mark(least, RowCode.WRONG_TYPE, name)
            return given
        if name == DEVICE_COMPONENTS:
            return _bundles(given, faults)
        return _texts(name, given, faults)

    def _channels(self, given: pa.Array) -> pa.Array:
        kind = given.type
        if pa.types.is_integer(kind):
            codes = pc.fill_null(given, self._form.channel)
            wide = pc.or_(pc.less(codes, 0), pc.greater(codes, 255)) if kind != pa.uint8() else None
            if wide is not None:
                codes = pc.if_else(wide, pa.scalar(0, kind), codes)
            return codes.cast(pa.uint8())
        if not _is_text(kind):
            raise _wrong_type("channel", kind, "words or codes")
        encoded = given if pa.types.is_dictionary(kind) else pc.dictionary_encode(given)
        words = encoded.dictionary.to_pylist()
        known = [0 if word is None else self._form.channels.get(word.strip().lower(), 0) for word in words]
        codes = np.array([*known, self._form.channel], np.uint8)
        places = pc.fill_null(encoded.indices.cast(pa.int64()), len(known)).to_numpy(zero_copy_only=False)
        return pa.array(codes[places])


def read_stream(body: bytes) -> pa.Table:
    """A table of at most ``MAX_ROWS`` rows whose offsets, indices and texts are valid; ``RequestError`` otherwise."""
    try:
        # Sizes first: nothing of a batch is read before they are known.
        rows = 0
        for count, compressed in _batch_sizes(body):
            rows += count
            if compressed:
                raise RequestError("malformed", "buffers are compressed: send them as they are")
            if not 0 <= rows <= MAX_ROWS:
                raise RequestError("too-large", f"a delivery has at most {MAX_ROWS} rows")
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            for each in reader.schema:
                if not _is_flat(each.type):
                    raise RequestError("malformed", f"a column holds {each.type}, which no attribute does")
            batches: list[EventBatch] = []
            for batch in reader:
                batch.validate(full=True)
                batches.append(batch)
            table = pa.Table.from_batches(batches, schema=reader.schema)
            return table.unify_dictionaries()
    except (pa.ArrowException, struct.error, OSError, ValueError, MemoryError) as error:
        raise RequestError("malformed", "the body is no sound Arrow IPC stream") from error


def _batch_sizes(body: bytes) -> Iterator[tuple[int, bool]]:
    """Rows and whether buffers are compressed, of each record batch; dictionaries count only if they are compressed.

    Arrow checks that a message's metadata is sound when it reads the message. The offsets are those of Arrow's
    flatbuffer schemas ``Message.fbs`` (Message: header_type 6, header 8; RecordBatch: length 4, compression 10;
    DictionaryBatch: data 6).
    """
    count = 0
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
        count += 1
        if count > MAX_BATCHES:
            raise RequestError("too-large", f"a delivery has at most {MAX_BATCHES} messages")
        if message.type == "schema":
            continue
        metadata = message.metadata.to_pybytes()
        header = _pointer(metadata, _slot(metadata, struct.unpack_from("<I", metadata)[0], 8))
        if message.type == "dictionary":
            header = _pointer(metadata, _slot(metadata, header, 6))
        elif message.type != "record batch":
            raise RequestError("malformed", "the stream has messages that are no record batches")
        length = _slot(metadata, header, 4)
        rows = struct.unpack_from("<q", metadata, length)[0] if length else 0
        compressed = bool(_slot(metadata, header, 10))
        yield (rows if message.type == "record batch" else 0), compressed


def _slot(metadata: bytes, table: int, slot: int) -> int:
    """Where a flatbuffer table keeps a field; 0 if it has none."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if slot >= struct.unpack_from("<H", metadata, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", metadata, vtable + slot)[0]
    return table + offset if offset else 0


def _pointer(metadata: bytes, place: int) -> int:
    if not place:
        raise ValueError("a message without a header")
    offset: int = struct.unpack_from("<I", metadata, place)[0]
    return place + offset


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_flat(kind: pa.DataType) -> bool:
    return bool(
        _is_text(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_timestamp(kind)
        or pa.types.is_decimal128(kind)
    )


def _wrong_type(name: str, kind: pa.DataType, wanted: str) -> RequestError:
    return RequestError("malformed", f"the column {name} holds {kind}, not {wanted}")


def _micros(given: pa.Array, faults: Faults) -> pa.Array:
    """UTC microseconds; times that do not fit into them are refused."""
    units: Mapping[str, tuple[int, int]] = {
        "s": (1_000_000, 1),
        "ms": (1_000, 1),
        "us": (1, 1),
        "ns": (1, 1000),
    }
    times, per = units[given.type.unit]
    raw = pc.fill_null(given.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    outside = np.abs(raw // per) > (2**62) // times
    faults.mark(outside, RowCode.TIME_OUT_OF_RANGE, "time")
    values = np.where(outside, 0, raw // per * times)
    return pa.array(values, mask=_nulls(given))


def _nulls(given: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(given.is_null().to_numpy(zero_copy_only=False))


def _texts(name: str, given: pa.Array, faults: Faults) -> pa.Array:
    kind = given.type
    if not _is_text(kind):
        raise _wrong_type(name, kind, "text")
    if pa.types.is_dictionary(kind):
        # Lengths before the dictionary is spread over the rows, which could make much of little.
        short, long = _within(given.dictionary)
        if long.any():
            places = pc.fill_null(given.indices.cast(pa.int64()), len(long)).to_numpy(zero_copy_only=False)
            faults.mark(np.append(long, False)[places], RowCode.TEXT_TOO_LONG, name)
        given = pa.DictionaryArray.from_arrays(given.indices, short).dictionary_decode()
    else:
        given, long = _within(given)
        faults.mark(long, RowCode.TEXT_TOO_LONG, name)
    return _clean(given.cast(pa.string()))


def _within(texts: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """The texts with null in place of those that are too long, and which those are."""
    size = pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False)
    long = np.asarray(size > MAX_TEXT_LENGTH)
    if long.any():
        letters = pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False)
        long = np.asarray((letters > MAX_TEXT_LENGTH) | (size > _MOST_BYTES))
        texts = pc.if_else(pa.array(long), pa.scalar(None, texts.type), texts)
    return texts, long


def _bundles(given: pa.Array, faults: Faults) -> pa.Array:
    if not (pa.types.is_string(given.type) or pa.types.is_large_string(given.type)):
        raise _wrong_type(DEVICE_COMPONENTS, given.type, "text that is not dictionary-encoded")
    texts: list[Any] = given.to_pylist()
    for row, text in enumerate(texts):
        fault = RowCode.ACCEPTABLE if text is None else component_fault(text)
        if fault:
            faults.mark(np.arange(len(texts)) == row, fault, DEVICE_COMPONENTS)
            texts[row] = None
    return pa.array(texts, pa.string())


def _clean(column: pa.Array) -> pa.Array:
    """Texts without the white space around them, as files are read; null where nothing is left."""
    trimmed = pc.utf8_trim_whitespace(column)
    empty = pc.equal(pc.binary_length(trimmed), 0)
    if pc.any(empty).as_py():
        return pc.if_else(empty, pa.scalar(None, pa.string()), trimmed)
    return trimmed
