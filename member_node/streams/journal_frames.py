"""The journal's bytes: segment headers, frames and marks, all little endian and aligned to 8.

A segment starts with 32 bytes: ``"SRJRNL02" | first sequence u64 | zeros [12] | crc32 of these 28 bytes``. Records
follow, each with a 32-byte header::

    "SJ02" | type u8 | schema u8 | remaining u16 | sequence u64 | durable u64 | length u32 | crc32 of the header u32

``durable`` is the newest frame that was known to be on disk when the record was written: a damaged frame that a
later record calls durable was lost after it had been answered, one that none does was cut off by a crash.
``remaining`` frames of the same append follow. A *frame* (type 1) has a payload of ``length`` bytes and a trailer
``crc32 of the payload u32 | "2JSF"``. The payload is ``length of the facts u32 | length of the schema u32 | facts |
schema | record batch``; the facts are JSON, the schema and the batch messages of the Arrow IPC format. A schema stands
in a segment once, in the first frame that uses its number. *Marks* (types 2 and 3) have no payload and the sequence
of the last frame before them: the journal was closed, or goes on in the next segment; all before them is on disk.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

SEGMENT_MAGIC = b"SRJRNL02"
MAGIC = b"SJ02"
END = b"2JSF"
FRAME, CLOSED, CONTINUED = 1, 2, 3
HEADER_BYTES = 32
TRAILER_BYTES = 8
MAX_PAYLOAD = 1 << 30
MAX_SCHEMAS = 255
MAX_DRAFTS = 1 << 16
_SEGMENT = struct.Struct("<8sQ12x")
_HEADER = struct.Struct("<4sBBHQQI")
_LENGTHS = struct.Struct("<II")
_CRC = struct.Struct("<I")
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True)
class Draft:
    """A frame yet to be appended. ``rows`` without dictionary columns; metadata of its schema is not kept."""

    kind: str
    rows: pa.RecordBatch
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """One frame: its number, what it is (``kind``), small facts about it, and its rows."""

    sequence: int
    kind: str
    facts: Mapping[str, str]
    rows: pa.RecordBatch


class Header(NamedTuple):
    """A record's header; ``length`` of the payload in bytes."""

    type: int
    schema: int
    remaining: int
    sequence: int
    durable: int
    length: int

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return HEADER_BYTES if self.type != FRAME else HEADER_BYTES + self.length + TRAILER_BYTES


class _Facts(msgspec.Struct, array_like=True, frozen=True):
    kind: str
    facts: dict[str, str]


_DECODER = msgspec.json.Decoder(_Facts)


def segment_header(first: int) -> bytes:
    """The 32 bytes before a segment's first record; ``first``: the number its first frame has or will have."""
    start = _SEGMENT.pack(SEGMENT_MAGIC, first)
    return start + _CRC.pack(zlib.crc32(start))


def read_segment_header(raw: bytes) -> int | None:
    """The number of a segment's first frame; None for anything but a segment header."""
    if len(raw) != HEADER_BYTES or raw[:8] != SEGMENT_MAGIC or _crc_at_end(raw) != zlib.crc32(raw[:-4]):
        return None
    first: int = _SEGMENT.unpack(raw[:-4])[1]
    return first


def header(
    kind: int, sequence: int, durable: int, *, schema: int = 0, remaining: int = 0, length: int = 0
) -> bytes:
    """A record's 32 bytes of header."""
    start = _HEADER.pack(MAGIC, kind, schema, remaining, sequence, durable, length)
    return start + _CRC.pack(zlib.crc32(start))


def read_header(raw: bytes) -> Header | None:
    """A record's header; None for anything else."""
    if len(raw) != HEADER_BYTES or raw[:4] != MAGIC or _crc_at_end(raw) != zlib.crc32(raw[:-4]):
        return None
    _, kind, schema, remaining, sequence, durable, length = _HEADER.unpack(raw[:-4])
    if kind not in (FRAME, CLOSED, CONTINUED) or length > MAX_PAYLOAD or length % 8:
        return None
    return Header(kind, schema, remaining, sequence, durable, length)


class SchemaTable:
    """The schemas of one segment by their number."""

    def __init__(self) -> None:
        self._schemas: list[pa.Schema] = []

    def __len__(self) -> int:
        return len(self._schemas)

    def __getitem__(self, number: int) -> pa.Schema:
        return self._schemas[number]

    def number_of(self, schema: pa.Schema) -> int | None:
        """The number under which the segment holds the schema, None if it does not."""
        for number, known in enumerate(self._schemas):
            if known.equals(schema, check_metadata=True):
                return number
        return None

    def add(self, schema: pa.Schema) -> int:
        """Give a schema the next number."""
        self._schemas.append(schema)
        return len(self._schemas) - 1

    def cut(self, count: int) -> None:
        """Forget all but the first ``count``: the frames that held the others were not written."""
        del self._schemas[count:]


def plain_rows(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows as they are written: without metadata of the schema. Raises ValueError for dictionary columns."""
    schema = rows.schema
    for kind in schema.types:
        if pa.types.is_dictionary(kind):
            raise ValueError("a journal frame holds no dictionary columns: decode them first")
    return rows if schema.metadata is None else rows.replace_schema_metadata(None)


def frame_parts(draft: Draft, rows: pa.RecordBatch, new_schema: bool) -> tuple[list[Any], int, bytes]:
    """The payload's buffers in order, their bytes in all, and the trailer; ``rows`` from :func:`plain_rows`."""
    facts = _ENCODER.encode((draft.kind, draft.facts))
    facts += b" " * (-len(facts) % 8)  # white space after JSON is JSON
    described = rows.schema.serialize() if new_schema else b""
    body = rows.serialize()
    start = _LENGTHS.pack(len(facts), len(described)) + facts + described
    crc = zlib.crc32(body, zlib.crc32(start))
    return [start, body], len(start) + len(body), _CRC.pack(crc) + END


def payload_holds(payload: bytes | memoryview, trailer: bytes | memoryview) -> bool:
    """Whether a payload is the one its trailer was written for."""
    return bytes(trailer) == _CRC.pack(zlib.crc32(payload)) + END


def learn_schema(found: Header, payload: bytes, schemas: SchemaTable) -> None:
    """Take over the schema that a frame introduces, if it does. Raises ValueError for numbers out of order."""
    facts, described = _LENGTHS.unpack_from(payload)
    if not described:
        if found.schema >= len(schemas):
            raise ValueError(f"schema {found.schema} was never introduced")
        return
    start = _LENGTHS.size + facts
    read = pa.ipc.read_schema(pa.py_buffer(payload).slice(start, described))
    if schemas.add(read) != found.schema:
        raise ValueError(f"schema {found.schema} is out of order")


def read_frame(found: Header, payload: bytes, schemas: SchemaTable) -> Frame:
    """A frame from a payload that holds; its schema was learnt."""
    facts, described = _LENGTHS.unpack_from(payload)
    start = _LENGTHS.size + facts + described
    about = _DECODER.decode(payload[_LENGTHS.size : _LENGTHS.size + facts])
    rows = pa.ipc.read_record_batch(pa.py_buffer(payload).slice(start), schemas[found.schema])
    return Frame(found.sequence, about.kind, about.facts, rows)


def has_unwritten_sector(raw: bytes | memoryview, position: int, *, sector: int = 512) -> bool:
    """Whether a disk sector's part of ``raw`` (which starts at ``position`` of its file) is nothing but zeros.

    That is what a file system shows where the power failed between making a file longer and writing its content.
    A record ends with bytes other than zero, so a sector that was written never looks so at its end.
    """
    start = 0
    while start < len(raw):
        end = min(len(raw), start + sector - (position + start) % sector)
        if not any(raw[start:end]):
            return True
        start = end
    return False


def later_records(raw: Sequence[int] | bytes, after: int) -> list[Header]:
    """Headers of the whole records that start somewhere behind the first byte of ``raw``; numbers from ``after``."""
    raw = bytes(raw)
    found: list[Header] = []
    place = raw.find(MAGIC, 1)
    while place >= 0:
        known = read_header(raw[place : place + HEADER_BYTES])
        if known is not None and known.sequence >= after:
            payload = raw[place + HEADER_BYTES : place + HEADER_BYTES + known.length]
            trailer = raw[place + HEADER_BYTES + known.length : place + known.size]
            if known.type != FRAME or payload_holds(payload, trailer):
                found.append(known)
        place = raw.find(MAGIC, place + 1)
    return found


def _crc_at_end(raw: bytes) -> int:
    crc: int = _CRC.unpack_from(raw, len(raw) - 4)[0]
    return crc
