"""The journal: every event a bank accepted, on disk before its verdict leaves.

One append-only file of frames, each a 28-byte header and a payload::

    magic "SJ01" | sequence u64 | length u32 | crc32 of payload u32 | reserved u32 (0) | crc32 of the header u32

A payload is one Arrow IPC stream with one record batch; the schema's metadata says what the frame is. Frames are
numbered from 1 without gaps. A frame that a crash cut off at the end is moved aside with a warning when the journal
is opened; damage anywhere before the last frame is refused, because later accepted events depend on it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pyarrow as pa

LOGGER = logging.getLogger(__name__)
MAGIC = b"SJ01"
FILE_NAME = "events.journal"
MAX_PAYLOAD = 1 << 30
_HEADER = struct.Struct("<4sQIIII")


class JournalError(RuntimeError):
    """The journal cannot be used as it is; the message names the file, the place and what to do."""


@dataclass(frozen=True)
class Frame:
    """One frame: its number, what it is (``kind``), small facts about it, and its rows."""

    sequence: int
    kind: str
    facts: Mapping[str, str]
    rows: pa.RecordBatch


@dataclass(frozen=True)
class Draft:
    """A frame yet to be appended."""

    kind: str
    rows: pa.RecordBatch
    facts: Mapping[str, str] = field(default_factory=dict)


class Journal:
    """Appends and replays frames. One process at a time may hold a journal open."""

    def __init__(self, directory: Path) -> None:
        """Open or create the journal below ``directory``; raises :class:`JournalError`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / FILE_NAME
        created = not self.path.exists()
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - lives as long as the journal
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise JournalError(
                f"{self.path}: another process has this journal open; stop it first"
            ) from error
        try:
            if created:
                _sync_directory(directory)
            self.last_sequence, self._end = self._recover()
        except BaseException:
            self._file.close()
            raise

    def append(self, drafts: Sequence[Draft]) -> int:
        """Write all frames and force them to disk once; the sequence of the last. All of them or none survive."""
        if not drafts:
            return self.last_sequence
        sequence = self.last_sequence
        parts: list[bytes] = []
        for draft in drafts:
            sequence += 1
            payload = _payload(draft)
            if len(payload) > MAX_PAYLOAD:
                raise JournalError(f"a frame of {len(payload)} bytes is too large; append smaller batches")
            parts += [_header(sequence, payload), payload]
        content = b"".join(parts)
        try:
            written = 0
            while written < len(content):
                written += self._file.write(memoryview(content)[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            # What was written in part must not stand before the next frame.
            os.ftruncate(self._file.fileno(), self._end)
            raise JournalError(f"{self.path}: cannot be written: {error}; nothing was accepted") from error
        self._end += len(content)
        self.last_sequence = sequence
        return sequence

    def frames(self) -> Iterator[Frame]:
        """All frames from the first, checked again while they are read."""
        with open(self.path, "rb") as file:
            position = 0
            expected = 1
            while position < self._end:
                header = _read_header(file.read(_HEADER.size))
                if header is None or header.sequence != expected:
                    raise self._damaged(position, expected)
                payload = file.read(header.length)
                if len(payload) != header.length or zlib.crc32(payload) != header.crc:
                    raise self._damaged(position, expected)
                yield _frame(expected, payload)
                position += _HEADER.size + header.length
                expected += 1

    def close(self) -> None:
        """Release the file and its lock."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _damaged(self, position: int, sequence: int) -> JournalError:
        return JournalError(
            f"{self.path}: frame {sequence} at byte {position} is damaged and valid frames follow it; "
            "restore the file from a copy, later state depends on it"
        )

    def _recover(self) -> tuple[int, int]:
        size = os.fstat(self._file.fileno()).st_size
        position, sequence = 0, 0
        with open(self.path, "rb") as file:
            while position < size:
                file.seek(position)
                header = _read_header(file.read(_HEADER.size))
                end = position + _HEADER.size + (header.length if header else 0)
                if header is None or header.sequence != sequence + 1 or end > size:
                    break
                if zlib.crc32(file.read(header.length)) != header.crc:
                    break
                position, sequence = end, sequence + 1
            if position < size:
                file.seek(position)
                rest = file.read()
                if _has_later_frame(rest, sequence + 1):
                    raise self._damaged(position, sequence + 1)
                self._move_aside(rest, position, sequence + 1)
        return sequence, position

    def _move_aside(self, rest: bytes, position: int, sequence: int) -> None:
        torn = self.path.with_name(f"{FILE_NAME}.torn-{sequence}")
        torn.write_bytes(rest)
        os.ftruncate(self._file.fileno(), position)
        os.fsync(self._file.fileno())
        LOGGER.warning(
            "%s: frame %d was cut off when the process died; its %d bytes are kept in %s. "
            "No verdict on its events had left, they may be sent again.",
            self.path,
            sequence,
            len(rest),
            torn.name,
        )


@dataclass(frozen=True)
class _Header:
    sequence: int
    length: int
    crc: int


def _header(sequence: int, payload: bytes) -> bytes:
    start = struct.pack("<4sQIII", MAGIC, sequence, len(payload), zlib.crc32(payload), 0)
    return start + struct.pack("<I", zlib.crc32(start))


def _read_header(raw: bytes) -> _Header | None:
    if len(raw) != _HEADER.size:
        return None
    magic, sequence, length, crc, reserved, check = _HEADER.unpack(raw)
    if magic != MAGIC or reserved != 0 or length > MAX_PAYLOAD or zlib.crc32(raw[:-4]) != check:
        return None
    return _Header(sequence, length, crc)


def _has_later_frame(rest: bytes, sequence: int) -> bool:
    """Whether a whole frame with a number above ``sequence`` starts somewhere in ``rest``."""
    place = rest.find(MAGIC, 1)
    while place >= 0:
        header = _read_header(rest[place : place + _HEADER.size])
        if header is not None and header.sequence > sequence:
            payload = rest[place + _HEADER.size : place + _HEADER.size + header.length]
            if len(payload) == header.length and zlib.crc32(payload) == header.crc:
                return True
        place = rest.find(MAGIC, place + 1)
    return False


def _payload(draft: Draft) -> bytes:
    facts = {
        "subrosa.kind": draft.kind,
        **{f"subrosa.fact.{key}": value for key, value in draft.facts.items()},
    }
    rows = draft.rows.replace_schema_metadata(facts)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _frame(sequence: int, payload: bytes) -> Frame:
    with pa.ipc.open_stream(payload) as reader:
        rows = reader.read_next_batch()
    metadata = {key.decode(): value.decode() for key, value in (rows.schema.metadata or {}).items()}
    prefix = "subrosa.fact."
    facts = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    return Frame(sequence, metadata.get("subrosa.kind", ""), facts, rows.replace_schema_metadata(None))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
