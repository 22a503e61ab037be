"""The bank's scored history: Parquet files by UTC day, written in large pieces, exact about which frames they hold.

Columns: event_id, time_us, channel, amount, every entity and attribute as it came; what was decided (see
``service.decisions``); the features. The truth about fraud is never in it: see ``storage.outcomes``.

Frames are given in the order of the journal and wait in memory until there are enough of them; what a crash takes from
there the journal gives again. So ``flushed_sequence`` bounds what the journal may retire and what a snapshot may skip.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from member_node.service.decisions import CORRECTED, FRAME
from member_node.service.history_files import (
    FAST,
    SMALL,
    HistoryError,
    HistoryFile,
    HistoryFolder,
    Manifest,
    in_order,
)
from member_node.service.history_index import as_ids, hash_ids

__all__ = ["HistoryError", "HistoryStore"]

FLUSH_ROWS = 131_072
# Rows of a row group: few while events are being scored, so that none takes processor or disk for long.
FLUSH_GROUP, MERGED_GROUP = 16_384, 65_536
# Waiting tables with fewer rows are put together, at the latest when there are so many of them.
TABLE_ROWS, SMALL_TABLES = 4096, 64
# A merge rests this many times as long as it works: it has all day.
REST, MAX_REST_SECONDS = 2.0, 1.0
FILE_ROWS = 2_000_000
SMALL_FILES = 16
_DAY_US = 86_400_000_000
_READ_ERRORS = (OSError, pa.ArrowInvalid)


class HistoryStore:
    """Files ``YYYY-MM-DD_FIRST-LAST.parquet`` below a directory, named by day and journal frames. Thread safe."""

    def __init__(
        self,
        directory: Path,
        *,
        flush_rows: int = FLUSH_ROWS,
        file_rows: int = FILE_ROWS,
        small_files: int = SMALL_FILES,
    ) -> None:
        """Raises :class:`HistoryError`. ``flush_rows``: rows that wait at most.

        :meth:`merge` puts a day's files together (up to ``file_rows``) when there are ``small_files`` of them.
        """
        self._folder = HistoryFolder(directory)
        self._flush_rows, self._file_rows, self._small_files = flush_rows, file_rows, small_files
        # ``_disk`` before ``_lock``; a merge holds ``_merging`` while it works and the others only to make it count.
        self._lock, self._disk, self._merging = threading.RLock(), threading.RLock(), threading.Lock()
        self._closed = threading.Event()
        self._waiting: list[tuple[int, pa.Table]] = []
        self._waiting_rows = 0
        self._flushing = 0
        self._written = self._folder.manifest.flushed

    @property
    def flushed_sequence(self) -> int:
        """Every frame up to this one is in the files."""
        return self._folder.manifest.flushed

    @property
    def waiting_rows(self) -> int:
        """Rows that are in memory only."""
        return self._waiting_rows

    def has(self, sequence: int) -> bool:
        """Whether the frame's rows were given, now or before a restart that kept them."""
        return sequence <= self._written

    def write(self, sequence: int, table: pa.Table) -> None:
        """Take one frame's rows, in the order of the frames; a frame that was given before is left as it is.

        Raises :class:`HistoryError` when earlier rows cannot be written; the frame was not taken then.
        """
        if self.has(sequence):
            return
        if self.waiting_rows >= self._flush_rows:
            self.flush()
        with self._lock:
            self._waiting.append((sequence, table))
            self._waiting_rows += table.num_rows
            self._written = sequence
            self._gather()

    def flush(self) -> None:
        """Write what waits and return when it is on disk. Raises :class:`HistoryError`; nothing is lost then."""
        with self._disk:
            with self._lock:
                frames = list(self._waiting)
                self._flushing = len(frames)
            if not frames:
                return
            last = frames[-1][0]
            new: list[HistoryFile] = []
            try:
                for day, part in _by_day(_joined([table for _, table in frames])):
                    new.append(HistoryFile(day, frames[0][0], last, part.num_rows))
                    groups = (part.slice(at, FLUSH_GROUP) for at in range(0, part.num_rows, FLUSH_GROUP))
                    self._folder.write_part(new[-1], groups, part.schema, FAST)
                self._commit(Manifest(last, in_order([*self._folder.manifest.files, *new])), len(frames))
            except OSError as error:
                raise self._refused(error, new) from error
            finally:
                self._flushing = 0

    def merge(self) -> None:
        """Put small files of days that have many of them together, resting in between. Raises :class:`HistoryError`.

        What is scored meanwhile is written as ever.
        """
        self._merge(self._small_files, REST)

    def compact(self) -> None:
        """Put every day's small files together at once. Raises :class:`HistoryError`."""
        self._merge(2, 0.0)

    def stop_merging(self) -> None:
        """Give up a merge that is under way (within a second), and begin none any more."""
        self._closed.set()

    def expire(self, before_day: int) -> int:
        """Remove the days before a day (since 1970-01-01); rows removed. What waits is kept."""
        with self._disk:
            manifest = self._folder.manifest
            old = [file for file in manifest.files if file.day < before_day]
            if old:
                kept = tuple(file for file in manifest.files if file.day >= before_day)
                try:
                    self._commit(Manifest(manifest.flushed, kept))
                except OSError as error:
                    raise self._refused(error, ()) from error
            return sum(file.rows for file in old)

    def files(self, first_day: int | None = None, last_day: int | None = None) -> list[Path]:
        """The files of a range of days, by day and frame."""
        with self._lock:
            return [
                self._folder.path(file)
                for file in self._folder.manifest.files
                if (first_day is None or file.day >= first_day) and (last_day is None or file.day <= last_day)
            ]

    def held(
        self, first_day: int | None = None, last_day: int | None = None
    ) -> tuple[list[Path], list[pa.Table]]:
        """:meth:`files` and :meth:`waiting` at one moment: together they hold every row once."""
        with self._lock:
            return self.files(first_day, last_day), self.waiting()

    def waiting(self) -> list[pa.Table]:
        """The rows that are in memory only, by frame."""
        with self._lock:
            return [table for _, table in self._waiting]

    def rows(self) -> int:
        """Scored events that are held."""
        with self._lock:
            return sum(file.rows for file in self._folder.manifest.files) + self._waiting_rows

    def nbytes(self) -> int:
        """Bytes of the Parquet files."""
        return sum(path.stat().st_size for path in self.files())

    def find(self, event_ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """``columns`` of the events with these ids (as text), null where a file lacks one.

        Rows come in the order they were scored: of an event that was corrected, the last one counts. Raises
        :class:`HistoryError` for a file that cannot be read.
        """
        wanted = list(dict.fromkeys(["event_id", *columns]))
        read = list(dict.fromkeys([*wanted, FRAME, CORRECTED]))
        while True:
            with self._lock:
                manifest, waiting = self._folder.manifest, self.waiting()
            try:
                found = [part for file in manifest.files for part in self._find_in(file, event_ids, read)]
                found += [
                    _chosen(table.filter(pc.is_in(table.column("event_id"), value_set=ids)), read)
                    for table in waiting
                    if len(ids := as_ids(event_ids, table.schema.field("event_id").type))
                ]
                break
            except HistoryError:
                if manifest is self._folder.manifest:  # else a file was replaced while it was being read
                    raise
        found = [table for table in found if table.num_rows]
        if not found:
            return pa.table({name: pa.array([], type=pa.string()) for name in wanted})
        joined = _in_scored_order(_joined(found))
        for name in wanted:
            if name not in joined.schema.names:
                joined = joined.append_column(name, pa.nulls(joined.num_rows))
        return joined.select(wanted)

    def close(self) -> None:
        """Write what waits, and merge no more."""
        self.stop_merging()
        with self._merging:
            self.flush()

    def _find_in(self, file: HistoryFile, event_ids: Sequence[str], wanted: list[str]) -> Iterator[pa.Table]:
        path = self._folder.path(file)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
                ids = as_ids(event_ids, parquet.schema_arrow.field("event_id").type)
                rows = self._folder.index(file).rows(hash_ids(ids)) if len(ids) else np.empty(0, np.int64)
                held = [name for name in wanted if name in parquet.schema_arrow.names]
                start = 0
                for group in range(parquet.num_row_groups if len(rows) else 0):
                    end = start + parquet.metadata.row_group(group).num_rows
                    here = rows[(rows >= start) & (rows < end)] - start
                    if len(here):
                        table = parquet.read_row_group(group, columns=held).take(pa.array(here))
                        yield table.filter(pc.is_in(table.column("event_id"), value_set=ids))
                    start = end
        except _READ_ERRORS as error:
            raise HistoryError(f"{path} cannot be read ({error}): restore it from a copy") from error

    def _gather(self) -> None:
        """Put small tables at the end of what waits together, except what is being written."""
        first, rows = len(self._waiting), 0
        while first > self._flushing and self._waiting[first - 1][1].num_rows < TABLE_ROWS:
            first -= 1
            rows += self._waiting[first][1].num_rows
        small = self._waiting[first:]
        if len(small) > 1 and (rows >= TABLE_ROWS or len(small) >= SMALL_TABLES):
            self._waiting[first:] = [(small[-1][0], _joined([table for _, table in small]).combine_chunks())]

    def _merge(self, least: int, rest: float) -> None:
        with self._merging:
            files = self._folder.manifest.files
            for day in sorted({file.day for file in files}):
                small = [file for file in files if file.day == day and file.rows < self._file_rows // 2]
                if len(small) < least:
                    continue
                try:
                    groups = [group for group in self._groups(small) if len(group) > 1]
                except _READ_ERRORS as error:
                    raise self._refused(error, ()) from error
                for group in groups:
                    if self._closed.is_set():
                        return
                    self._merge_group(group, rest)

    def _merge_group(self, group: list[HistoryFile], rest: float) -> None:
        whole = HistoryFile(group[0].day, group[0].first, group[-1].last, sum(each.rows for each in group))
        paths = [self._folder.path(each) for each in group]

        def pause(seconds: float) -> None:
            if self._closed.wait(min(rest * seconds, MAX_REST_SECONDS)):
                raise _StoppedError

        try:
            tables = _regrouped(_row_groups(paths), MERGED_GROUP)
            self._folder.write_part(whole, tables, pq.read_schema(paths[0]), SMALL, pause)
            with self._disk:
                manifest = self._folder.manifest
                if set(group) - set(manifest.files):  # they expired meanwhile
                    raise _StoppedError
                files = [file for file in manifest.files if file not in group]
                self._commit(Manifest(manifest.flushed, in_order([*files, whole])))
        except _StoppedError:
            self._folder.drop_parts([whole])
        except _READ_ERRORS as error:
            refused = self._refused(error, [whole])
            if set(group) <= set(self._folder.manifest.files):
                raise refused from error

    def _groups(self, small: list[HistoryFile]) -> Iterator[list[HistoryFile]]:
        """Neighbours with the same columns that make no more than one file's rows together."""
        for _, alike in groupby(small, key=lambda file: pq.read_schema(self._folder.path(file))):
            group: list[HistoryFile] = []
            for file in alike:
                if sum(each.rows for each in group) + file.rows > self._file_rows:
                    yield group
                    group = []
                group.append(file)
            yield group

    def _commit(self, manifest: Manifest, frames: int = 0) -> None:
        with self._lock:
            self._folder.commit(manifest)
            self._waiting_rows -= sum(table.num_rows for _, table in self._waiting[:frames])
            del self._waiting[:frames]
            self._folder.settle()

    def _refused(self, error: Exception, files: Sequence[HistoryFile]) -> HistoryError:
        self._folder.drop_parts(files)
        return HistoryError(
            f"{self._folder.directory}: cannot be written: {error}; what waits is in the journal and is written later"
        )


class _StoppedError(Exception):
    """A merge is given up."""


def _by_day(rows: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    days = np.asarray(rows.column("time_us").to_numpy()) // _DAY_US
    for day in np.unique(days).tolist():
        places = np.flatnonzero(days == day)
        first, end = int(places[0]), int(places[-1]) + 1
        # Events come almost by time: mostly a day is a run, which needs no copy.
        run = len(places) == end - first
        yield day, rows.slice(first, end - first) if run else rows.filter(pa.array(days == day))


def _row_groups(paths: Sequence[Path]) -> Iterator[pa.Table]:
    for path in paths:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group, use_threads=False)


def _regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``rows`` each, and a last one."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(each.num_rows for each in held) >= rows:
            joined = pa.concat_tables(held)
            yield joined.slice(0, rows)
            held = [joined.slice(rows)]
    if sum(each.num_rows for each in held):
        yield pa.concat_tables(held)


def _joined(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive")


def _in_scored_order(rows: pa.Table) -> pa.Table:
    """By journal frame, since a correction may lie in the file of another day; within a frame corrections come last."""
    if rows.num_rows < 2 or FRAME not in rows.schema.names:
        return rows
    frame = pc.fill_null(rows.column(FRAME), -1).to_numpy()
    corrected = pc.fill_null(rows.column(CORRECTED), False).to_numpy()
    return rows.take(pa.array(np.lexsort((corrected, frame))))


def _chosen(table: pa.Table, wanted: list[str]) -> pa.Table:
    return table.select([name for name in wanted if name in table.schema.names])
