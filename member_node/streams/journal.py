"""The journal: every event a bank accepted and every verdict it gave, on disk before the verdict leaves.

Segments ``NNNNNNNNNN.journal`` named by their first frame (see ``journal_frames`` for the bytes); frames are numbered
from 1 without gaps. A tail that a crash cut off is moved aside with a warning when the journal is opened: nothing in
it was ever forced to disk, so no verdict on it had left. Damage anywhere else is refused, because later state
depends on it.

Appending and forcing to disk are apart, so that a batch costs one ``fsync`` (decision 0013), and threads that wait
for the disk at the same time share it. A full disk refuses an append whole and takes later ones once there is room.
After a failed ``fsync`` nobody knows what is on disk: what was not yet safe is cut off and the journal takes nothing
more; the process has to be restarted.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from member_node.streams.durable import sync_directory, sync_file, write_all
from member_node.streams.journal_frames import (
    CLOSED,
    CONTINUED,
    FRAME,
    HEADER_BYTES,
    MAX_DRAFTS,
    MAX_PAYLOAD,
    MAX_SCHEMAS,
    Draft,
    Frame,
    SchemaTable,
    frame_parts,
    header,
    plain_rows,
)
from member_node.streams.journal_segments import (
    JournalError,
    JournalReport,
    Scan,
    Segment,
    create_segment,
    hold,
    read_chain,
    read_frames,
    segment_path,
    verify,
)

__all__ = ["Draft", "Frame", "Journal", "JournalError", "JournalReport", "verify"]

LOGGER = logging.getLogger(__name__)
SEGMENT_BYTES = 128 * 2**20
RESERVE_BYTES = 16 * 2**20


class Journal:
    """Appends and replays frames; thread safe. One process at a time may hold a journal open."""

    def __init__(
        self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        """Open or create the journal below ``directory``; raises :class:`JournalError`.

        ``segment_bytes``: a segment that has grown beyond it is followed by the next one. ``reserve_bytes``: what
        an append leaves free on the disk for those that finish accepted work.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._segment_bytes, self._reserve_bytes = segment_bytes, reserve_bytes
        self._changed = threading.Condition()
        self._syncing = False
        self._failure = ""
        self._segments: list[Segment] = []
        self._schemas = SchemaTable()
        self._last = self._durable = self._end = self._durable_end = 0
        self._held = hold(directory)
        self._descriptor = -1
        try:
            self._open_segments()
        except BaseException:
            self._release()
            raise

    @property
    def first_sequence(self) -> int:
        """The oldest frame that is still held (one above the newest when there is none)."""
        return self._segments[0].first

    @property
    def last_sequence(self) -> int:
        """The newest frame, 0 before the first ever."""
        return self._last

    @property
    def durable_sequence(self) -> int:
        """The newest frame that is known to be on disk."""
        return self._durable

    @property
    def segments(self) -> int:
        """How many segments are held."""
        return len(self._segments)

    @property
    def nbytes(self) -> int:
        """Bytes of all segments."""
        with self._changed:
            return self._end + sum(each.path.stat().st_size for each in self._segments[:-1])

    def append(self, drafts: Sequence[Draft], *, sync: bool = True, finishing: bool = False) -> int:
        """Write frames, all of them or none; the number of the first (``last_sequence`` for no drafts).

        With ``sync`` they are on disk when this returns, with everything before them; else see :meth:`sync`. A full
        disk refuses new frames while there is still room to finish what was accepted: frames that do so
        (verdicts) say ``finishing``. Raises :class:`JournalError`: nothing was appended.
        """
        if not drafts:
            return self._last
        if len(drafts) > MAX_DRAFTS:
            raise JournalError(f"{len(drafts)} frames are too many for one append: at most {MAX_DRAFTS}")
        with self._changed:
            self._check()
            full = self._end >= self._segment_bytes or len(self._schemas) + len(drafts) > MAX_SCHEMAS
            if full and self._end > HEADER_BYTES:
                self._continue()
            known = len(self._schemas)
            try:
                parts, size = self._encode(drafts)
                self._check_room(0 if finishing else self._reserve_bytes, size)
                write_all(self._descriptor, parts)
            except BaseException as error:
                self._schemas.cut(known)
                self._cut(self._end)  # what was written in part must not stand before the next frame
                if isinstance(error, OSError):
                    raise JournalError(
                        f"{self._path}: cannot be written: {error}; nothing was accepted. Free some room on this "
                        "disk; the journal takes new frames as soon as there is"
                    ) from error
                raise
            first = self._last + 1
            self._last += len(drafts)
            self._end += size
        if sync:
            self.sync()
        return first

    def sync(self) -> None:
        """Return when everything appended so far is on disk; threads that wait together share one ``fsync``.

        Raises :class:`JournalError`; what was not on disk is cut off then and the journal takes nothing more.
        """
        with self._changed:
            self._check()
            wanted = self._last
            while self._durable < wanted:
                if self._syncing:
                    self._changed.wait()
                    self._check()
                else:
                    self._sync_appended()

    def frames(self, from_sequence: int = 0) -> Iterator[Frame]:
        """All frames from a number on (default: from the first ever), checked again while they are read.

        Raises :class:`JournalError` for damage, when older ones than are held are asked for, and when what should
        come before ``from_sequence`` (a snapshot knows it) is not there.
        """
        wanted = max(1, from_sequence)
        with self._changed:
            segments, end, last = list(self._segments), self._end, self._last
        if wanted < segments[0].first:
            raise JournalError(
                f"{self.directory}: frames {wanted} to {segments[0].first - 1} were retired: without a snapshot "
                "that covers them the state cannot be rebuilt. Restore a snapshot or the segments from a copy"
            )
        if wanted > last + 1:
            raise JournalError(
                f"{self.directory}: ends with frame {last}, and a snapshot knows of frame {wanted - 1}: the end of the "
                "journal is missing. Restore it from a copy; to go on without, remove the snapshots that know more"
            )
        for place, segment in enumerate(segments):
            newest = place == len(segments) - 1
            following = last + 1 if newest else segments[place + 1].first
            if following > wanted:
                yield from read_frames(segment, following, end if newest else None, wanted)

    def retire(self, before_sequence: int) -> int:
        """Remove segments all of whose frames are older than ``before_sequence``; the bytes freed.

        The newest segment always stays. Raises :class:`JournalError`.
        """
        freed = 0
        with self._changed:
            self._check()
            try:
                while len(self._segments) > 1 and self._segments[1].first <= before_sequence:
                    size = self._segments[0].path.stat().st_size
                    self._segments[0].path.unlink()  # oldest first: a crash leaves a journal without a hole
                    del self._segments[0]
                    freed += size
                if freed:
                    sync_directory(self.directory)
            except OSError as error:
                raise JournalError(f"{self.directory}: old segments cannot be removed: {error}") from error
        return freed

    def close(self) -> None:
        """Force everything to disk, mark the journal as closed and release it; harmless a second time."""
        with self._changed:
            while self._syncing:
                self._changed.wait()
            if self._descriptor < 0:
                return
            try:
                if not self._failure and self._end != self._marked_end:
                    os.fdatasync(self._descriptor)
                    write_all(self._descriptor, [header(CLOSED, self._last, self._last)])
                    os.fdatasync(self._descriptor)
            except OSError as error:
                LOGGER.warning("%s: could not be marked as closed: %s", self._path, error)
            finally:
                self._release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _path(self) -> Path:
        return self._segments[-1].path

    def _check(self) -> None:
        if self._descriptor < 0:
            raise JournalError(f"{self.directory}: the journal is closed")
        if self._failure:
            raise JournalError(self._failure)

    def _encode(self, drafts: Sequence[Draft]) -> tuple[list[Any], int]:
        parts: list[Any] = []
        size = 0
        for number, draft in enumerate(drafts):
            rows = draft.rows
            schema = self._schemas.number_of(rows.schema)
            if schema is None:
                rows = plain_rows(rows)
                schema = self._schemas.number_of(rows.schema)
            introduces = schema is None
            if schema is None:
                schema = self._schemas.add(rows.schema)
            payload, length, trailer = frame_parts(draft, rows, introduces)
            if length > MAX_PAYLOAD:
                raise JournalError(f"a frame of {length} bytes is too large; append smaller batches")
            start = header(
                FRAME,
                self._last + 1 + number,
                self._durable,
                schema=schema,
                remaining=len(drafts) - 1 - number,
                length=length,
            )
            parts += [start, *payload, trailer]
            size += len(start) + length + len(trailer)
        return parts, size

    def _check_room(self, reserve: int, size: int) -> None:
        if reserve:
            disk = os.fstatvfs(self._descriptor)
            free = disk.f_bavail * disk.f_frsize
            if free < reserve + size:
                raise JournalError(
                    f"{self._path}: only {free} bytes are free on this disk and {reserve} are kept to finish what "
                    "was accepted; nothing was accepted. Free some room: the journal goes on by itself"
                )

    def _cut(self, end: int) -> None:
        try:
            os.ftruncate(self._descriptor, end)
        except OSError as error:
            raise self._fail(error) from error

    def _fail(self, error: OSError) -> JournalError:
        """Stop for good, with nothing in the file that was not safe: it might seem safe to the next start."""
        with self._changed:
            self._failure = (
                f"{self._path}: the disk did not take what was written ({error}); frames {self._durable + 1} to "
                f"{self._last} were not accepted. Check the disk and restart the member node"
            )
            try:
                os.ftruncate(self._descriptor, self._durable_end)
            except OSError as again:
                self._failure += f" (nor could they be cut off: {again})"
            LOGGER.critical("%s", self._failure)
            return JournalError(self._failure)

    def _sync_appended(self) -> None:
        """One ``fsync`` for what everybody has appended by now; the lock is free while the disk works."""
        reached, end, path = self._last, self._end, self._path
        descriptor = os.dup(self._descriptor)  # a new segment may take its place meanwhile
        self._syncing = True
        self._changed.release()
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            raise self._fail(error) from error
        finally:
            self._changed.acquire()
            os.close(descriptor)
            self._syncing = False
            self._changed.notify_all()
        if reached > self._durable:
            self._durable = reached
            if path == self._path:
                self._durable_end = end

    def _continue(self) -> None:
        """Start the next segment. The mark that says so is written last: until then the old one is the newest."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise self._fail(error) from error
        self._durable, self._durable_end = self._last, self._end
        following = Segment(segment_path(self.directory, self._last + 1), self._last + 1)
        try:
            descriptor = create_segment(following)
            try:
                write_all(self._descriptor, [header(CONTINUED, self._last, self._last)])
                os.fdatasync(self._descriptor)
            except OSError:
                os.close(descriptor)
                following.path.unlink()
                raise
        except OSError as error:
            self._cut(self._end)
            raise JournalError(
                f"{following.path}: the next segment cannot be started: {error}; nothing was accepted. Free some room "
                "on this disk; the journal takes new frames as soon as there is"
            ) from error
        os.close(self._descriptor)
        self._segments.append(following)
        self._take(descriptor, HEADER_BYTES, SchemaTable())

    def _take(self, descriptor: int, end: int, schemas: SchemaTable) -> None:
        self._descriptor, self._schemas = descriptor, schemas
        self._end = self._durable_end = end
        self._marked_end = -1

    def _open_segments(self) -> None:
        chain = read_chain(self.directory)
        if chain is not None and chain.unused is not None:
            chain.unused.path.unlink()
            sync_directory(self.directory)
        if chain is None or not chain.segments:
            first = Segment(segment_path(self.directory, 1), 1)
            self._segments, self._last, self._durable = [first], 0, 0
            self._take(create_segment(first), HEADER_BYTES, SchemaTable())
            return
        newest = chain.newest
        self._segments = chain.segments
        self._take(os.open(self._path, os.O_RDWR | os.O_APPEND), newest.end, newest.schemas)
        if newest.torn:
            self._move_aside(newest)
        os.fdatasync(self._descriptor)  # a process that was killed may have left whole frames in memory only
        self._last = self._durable = newest.last
        if newest.closed:
            self._marked_end = newest.end

    def _move_aside(self, newest: Scan) -> None:
        rest = os.pread(self._descriptor, newest.torn, newest.end)
        kept = self._path.with_name(f"{self._path.name}.torn-{newest.last + 1}")
        kept.write_bytes(rest)
        sync_file(kept)
        os.ftruncate(self._descriptor, newest.end)
        LOGGER.warning(
            "%s: the end from frame %d on was cut off when the process or the machine died; its %d bytes are kept in "
            "%s. No verdict on its events had left, they may be sent again.",
            self._path,
            newest.last + 1,
            newest.torn,
            kept.name,
        )

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        os.close(self._held)
