"""Reading a journal's segments: what is whole, what a crash cut off, and what was damaged after it had been safe."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from member_node.streams.durable import sync_directory, write_all
from member_node.streams.journal_frames import (
    CLOSED,
    CONTINUED,
    FRAME,
    HEADER_BYTES,
    TRAILER_BYTES,
    Frame,
    Header,
    SchemaTable,
    has_unwritten_sector,
    later_records,
    learn_schema,
    payload_holds,
    read_frame,
    read_header,
    read_segment_header,
    segment_header,
)

SUFFIX = ".journal"
LOCK_FILE = "lock"
RESTORE = "restore the file from a copy, what was answered later depends on it"


class JournalError(RuntimeError):
    """The journal cannot be used as it is; the message names the file, the place and what to do."""


@dataclass(frozen=True)
class Segment:
    """A segment's file; ``first``: the number of its first frame, which is also its name."""

    path: Path
    first: int


@dataclass(frozen=True)
class Scan:
    """What a segment holds: whole frames up to ``last`` and byte ``end``; what follows was cut off (``torn`` bytes).

    ``closed``: a mark at the end says that the journal was closed; ``continued``: that another segment follows.
    """

    last: int
    end: int
    torn: int
    closed: bool
    continued: bool
    schemas: SchemaTable


@dataclass(frozen=True)
class Chain:
    """A journal's segments in order and what the newest holds.

    ``unused``: a segment whose creation a crash cut off before anything followed the older one; to be removed.
    """

    segments: list[Segment]
    newest: Scan
    unused: Segment | None


@dataclass(frozen=True)
class JournalReport:
    """What a check of a whole journal found: frames ``first`` to ``last`` (0 and 0: none), bytes cut off at the end."""

    segments: int
    first: int
    last: int
    nbytes: int
    torn: int


def segment_path(directory: Path, first: int) -> Path:
    """The file of the segment that starts with frame ``first``."""
    return directory / f"{first:010d}{SUFFIX}"


def list_segments(directory: Path) -> list[Segment]:
    """The segments by number. Raises :class:`JournalError` for a file that no journal wrote."""
    found = []
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        if not path.stem.isdecimal():
            raise JournalError(
                f"{path}: this is no segment of the journal (a journal of version 0.1 cannot be taken over): start "
                "with an empty data directory and replay the stream's source into it, or finish with that version"
            )
        found.append(Segment(path, int(path.stem)))
    return sorted(found, key=lambda each: each.first)


def records(segment: Segment, end: int | None = None) -> Iterator[tuple[int, Header, bytes]]:
    """Whole records (position, header, payload) up to byte ``end``, as far as they hold; raises only for the header.

    It ends without a word at the first record that does not hold: :func:`scan` says what that means.
    """
    with open(segment.path, "rb") as file:
        size = os.fstat(file.fileno()).st_size if end is None else end
        first = read_segment_header(file.read(HEADER_BYTES))
        if first != segment.first:
            raise JournalError(f"{segment.path}: its header at byte 0 is damaged; {RESTORE}")
        position, expected = HEADER_BYTES, first
        while position < size:
            found = read_header(file.read(HEADER_BYTES))
            if found is None:
                return
            if found.sequence != (expected if found.type == FRAME else expected - 1):
                return
            payload = b""
            if found.type == FRAME:
                payload = file.read(found.length)
                if len(payload) != found.length or not payload_holds(payload, file.read(TRAILER_BYTES)):
                    return
                expected += 1
            yield position, found, payload
            position += found.size


def scan(segment: Segment) -> Scan:
    """Read a segment whole. Raises :class:`JournalError` for damage, as opposed to a tail that a crash cut off."""
    schemas = SchemaTable()
    size = segment.path.stat().st_size
    last = whole = segment.first - 1
    end = position = HEADER_BYTES
    kept, kind = 0, FRAME
    for start, found, payload in records(segment):
        position, kind = start + found.size, found.type
        if found.type == FRAME:
            try:
                learn_schema(found, payload, schemas)
            except (ValueError, OSError) as error:
                raise damaged(segment, found.sequence, start, str(error)) from error
            last = found.sequence
        if found.remaining == 0:  # an append is taken whole or not at all
            end, kept, whole = position, len(schemas), last
    if position < size:
        _check_torn(segment, position, last + 1)
    schemas.cut(kept)
    torn = size - end
    return Scan(whole, end, torn, not torn and kind == CLOSED, not torn and kind == CONTINUED, schemas)


def read_chain(directory: Path) -> Chain | None:
    """The journal below ``directory`` without changing it, its newest segment read whole; None for an empty one.

    Raises :class:`JournalError` for damage and holes.
    """
    segments = list_segments(directory)
    if not segments:
        return None
    unused = None
    if _is_unused(segments):
        unused = segments.pop()
    for older, newer in pairwise(segments):
        mark = _last_mark(older)
        if mark is None:
            found = scan(older)
            raise damaged(older, found.last + 1, found.end, "the segment is cut off")
        if mark.sequence + 1 != newer.first:
            raise missing(directory, mark.sequence + 1)
    if not segments:  # nothing was ever appended
        return Chain([], Scan(0, 0, 0, False, False, SchemaTable()), unused)
    newest = scan(segments[-1])
    if newest.continued:
        raise missing(directory, newest.last + 1)
    return Chain(segments, newest, unused)


def verify(directory: Path) -> JournalReport:
    """Read every byte of a journal without changing it. Raises :class:`JournalError` naming the segment and the byte.

    A journal that is being written may seem cut off at its end for a moment.
    """
    chain = read_chain(directory)
    if chain is None or not chain.segments:
        return JournalReport(0, 0, 0, 0, 0)
    for older, newer in pairwise(chain.segments):
        found = scan(older)
        if found.last + 1 != newer.first:
            raise damaged(older, found.last + 1, found.end, "the segment is cut off")
    first, last = chain.segments[0].first, chain.newest.last
    nbytes = sum(each.path.stat().st_size for each in chain.segments)
    return JournalReport(len(chain.segments), min(first, last), last, nbytes, chain.newest.torn)


def read_frames(segment: Segment, following: int, end: int | None, wanted: int) -> Iterator[Frame]:
    """A segment's frames from number ``wanted`` up to ``following`` (not included), which must all be there."""
    schemas = SchemaTable()
    position, expected = HEADER_BYTES, segment.first
    try:
        for start, found, payload in records(segment, end):
            position = start + found.size
            if found.type == FRAME:
                learn_schema(found, payload, schemas)
                expected = found.sequence + 1
                if found.sequence >= wanted:
                    yield read_frame(found, payload, schemas)
    except (ValueError, OSError) as error:
        raise damaged(segment, expected, position, str(error)) from error
    if expected != following:
        raise damaged(segment, expected, position, "its checksum does not hold")


def missing(directory: Path, first: int) -> JournalError:
    """The error for a segment that must exist and does not."""
    return JournalError(
        f"{segment_path(directory, first)}: this segment of the journal is missing; {RESTORE}"
    )


def hold(directory: Path) -> int:
    """The descriptor of the journal's lock, held until it is closed. Raises :class:`JournalError`."""
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise JournalError(f"{directory}: another process has this journal open; stop it first") from error
    return descriptor


def create_segment(segment: Segment) -> int:
    """A new segment with its header, both on disk. Raises OSError; nothing is left behind then."""
    descriptor = os.open(segment.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(descriptor, [segment_header(segment.first)])
        os.fsync(descriptor)
        sync_directory(segment.path.parent)
    except OSError:
        os.close(descriptor)
        segment.path.unlink()
        raise
    return descriptor


def _last_mark(segment: Segment) -> Header | None:
    """The mark that ends a segment which another one follows; None if it does not end with one."""
    with open(segment.path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 2 * HEADER_BYTES:
            return None
        file.seek(size - HEADER_BYTES)
        found = read_header(file.read(HEADER_BYTES))
    return found if found is not None and found.type == CONTINUED else None


def damaged(segment: Segment, sequence: int, position: int, why: str) -> JournalError:
    """The error for a frame that does not hold although it once did."""
    return JournalError(
        f"{segment.path}: frame {sequence} at byte {position} is damaged ({why}) and no crash left it so; {RESTORE}"
    )


def _is_unused(segments: list[Segment]) -> bool:
    """Whether the newest segment holds nothing yet and the one before it (if any) does not say that it goes on."""
    newest = segments[-1]
    raw = newest.path.read_bytes()[: HEADER_BYTES + 1]
    if len(raw) > HEADER_BYTES or (
        len(raw) == HEADER_BYTES and any(raw) and read_segment_header(raw) is None
    ):
        return False
    if len(segments) == 1:
        return read_segment_header(raw) is None
    return _last_mark(segments[-2]) is None


def _check_torn(segment: Segment, position: int, sequence: int) -> None:
    """Return if the rest of a segment is what a crash leaves; raise :class:`JournalError` if it was safe before."""
    with open(segment.path, "rb") as file:
        file.seek(position)
        rest = file.read()
    for later in later_records(rest, sequence):
        if later.durable >= sequence:
            raise damaged(
                segment, sequence, position, f"frame {later.sequence} was written when it was on disk"
            )
    if len(rest) < HEADER_BYTES:
        return
    found = read_header(rest[:HEADER_BYTES])
    if found is None:
        if not has_unwritten_sector(rest[:HEADER_BYTES], position):
            raise damaged(segment, sequence, position, "its header does not hold")
        return
    if found.type == FRAME and found.sequence == sequence:
        if found.size > len(rest) or has_unwritten_sector(rest[: found.size], position):
            return
        raise damaged(segment, sequence, position, "its checksum does not hold")
    raise damaged(segment, sequence, position, f"frame {found.sequence} stands in its place")
