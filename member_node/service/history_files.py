"""The files of a history and which of them count: a manifest swapped at once makes several files one change.

Every change writes its new files as ``*.part``, then the manifest, then gives the files their names and removes those
that count no more. Whoever opens the folder after a crash finishes that: the manifest says what is right.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from member_node.service.history_index import IdIndex, hash_ids, index_parts
from member_node.streams.durable import replace_file, sync_directory, sync_file

MANIFEST = "manifest.json"
# Measured on 79 features: lz4 1.2 us and 238 bytes an event, zstd 2.4 us and 160 bytes.
FAST, SMALL = "lz4", "zstd"
_EPOCH = dt.date(1970, 1, 1)


class HistoryError(RuntimeError):
    """The history cannot be read or written; the message names the file and what to do."""


class HistoryFile(msgspec.Struct, frozen=True):
    """Rows of one UTC day (days since 1970-01-01) from journal frames ``first`` to ``last``."""

    day: int
    first: int
    last: int
    rows: int

    @property
    def stem(self) -> str:
        """Its name without suffix: by day, then by frame, also when sorted as text."""
        return f"{_EPOCH + dt.timedelta(days=self.day)}_{self.first:010d}-{self.last:010d}"

    @property
    def name(self) -> str:
        """The Parquet file's name."""
        return f"{self.stem}.parquet"

    @property
    def index_name(self) -> str:
        """The name of its index of event ids."""
        return f"{self.stem}.ids"


class Manifest(msgspec.Struct, frozen=True):
    """Which files count, and that every frame up to ``flushed`` is in them (or was, before it expired)."""

    flushed: int = 0
    files: tuple[HistoryFile, ...] = ()


class HistoryFolder:
    """Reads and changes a history's files. Parts may be written at any time; one thread at a time makes them count."""

    def __init__(self, directory: Path) -> None:
        """Open or create; finishes what a crash interrupted. Raises :class:`HistoryError`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        path = directory / MANIFEST
        if path.exists():
            try:
                self.manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
            except msgspec.DecodeError as error:
                raise HistoryError(f"{path} is damaged ({error}): restore it from a copy") from error
        elif any(directory.glob("*.parquet")):
            raise HistoryError(
                f"{directory}: holds Parquet files and no {MANIFEST} (a history of version 0.1 cannot be taken over): "
                "start with an empty data directory, or restore the manifest from a copy"
            )
        else:
            self.manifest = Manifest()
        self._indexes: dict[str, IdIndex] = {}
        # Parts that somebody is writing at this moment: another change leaves them alone.
        self._under_way: set[str] = set()
        self.settle()

    def path(self, file: HistoryFile) -> Path:
        """Where a file is."""
        return self.directory / file.name

    def index(self, file: HistoryFile) -> IdIndex:
        """A file's index of event ids, made again from the file if it is damaged or gone."""
        found = self._indexes.get(file.stem)
        if found is None:
            path = self.directory / file.index_name
            try:
                found = IdIndex(path)
            except (OSError, ValueError):
                replace_file(path, b"".join(_index_of(self.path(file))))
                found = IdIndex(path)
            self._indexes[file.stem] = found
        return found

    def write_part(
        self,
        file: HistoryFile,
        tables: Iterable[pa.Table],
        schema: pa.Schema,
        compression: str,
        between: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Write a file and its index as parts, on disk when this returns; they count from :meth:`commit` on.

        Each table is one row group, forced to disk before the next one: the journal's own ``fsync`` may have to wait
        for what another file has under way, which is little then. ``between`` hears what a row group took. The index
        need not be forced: one that does not hold is made again.
        """
        part, index = (self.directory / f"{name}.part" for name in (file.name, file.index_name))
        self._under_way |= {part.name, index.name}
        hashes: list[NDArray[np.uint64]] = []
        began = 0.0
        with pq.ParquetWriter(
            part,
            schema,
            compression=compression,
            use_dictionary=[field.name for field in schema if _repeats(field)],
            # Whether a row group may be left out is asked of times and ids. Of features it would be wasted: any row
            # group has about the same.
            write_statistics=[field.name for field in schema if not pa.types.is_floating(field.type)],
            write_page_checksum=True,
        ) as writer:
            for table in tables:
                if began:
                    sync_file(part)
                    between(time.perf_counter() - began)
                began = time.perf_counter()
                writer.write_table(table, row_group_size=len(table))
                hashes += [hash_ids(chunk) for chunk in table.column("event_id").chunks]
        sync_file(part)
        with open(index, "wb") as opened:
            opened.writelines(index_parts(hashes))

    def drop_parts(self, files: Iterable[HistoryFile]) -> None:
        """Remove what was written of these files and never committed."""
        wanted = self._names()
        for name in (name for file in files for name in (file.name, file.index_name)):
            part = self.directory / f"{name}.part"
            self._under_way.discard(part.name)
            if name not in wanted:
                part.unlink(missing_ok=True)

    def commit(self, manifest: Manifest) -> None:
        """Make a manifest count: its new files are there as parts, and get their names from :meth:`settle`."""
        replace_file(self.directory / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        self.manifest = manifest
        self._under_way -= {f"{name}.part" for name in self._names()}
        for stem in set(self._indexes) - {file.stem for file in manifest.files}:
            del self._indexes[stem]

    def settle(self) -> None:
        """Give committed parts their names; remove what counts no more."""
        wanted = self._names()
        changed = False
        for part in self.directory.glob("*.part"):
            if part.name in self._under_way:
                continue
            changed = True
            if part.stem in wanted:
                part.replace(part.with_suffix(""))
            else:
                part.unlink()
        for pattern in ("*.parquet", "*.ids"):
            for path in self.directory.glob(pattern):
                if path.name not in wanted:
                    path.unlink()
                    changed = True
        if changed:
            sync_directory(self.directory)
        for file in self.manifest.files:
            if not self.path(file).exists():
                raise HistoryError(
                    f"{self.path(file)} is missing: restore it from a copy, or take it out of {MANIFEST} and do without"
                )

    def _names(self) -> set[str]:
        return {name for file in self.manifest.files for name in (file.name, file.index_name)}


def in_order(files: Sequence[HistoryFile]) -> tuple[HistoryFile, ...]:
    """Files by day, then by frame."""
    return tuple(sorted(files, key=lambda file: (file.day, file.first)))


def _index_of(path: Path) -> list[Any]:
    column = pq.read_table(path, columns=["event_id"]).column("event_id")
    return index_parts([hash_ids(chunk) for chunk in column.chunks])


def _repeats(field: pa.Field) -> bool:
    """Whether a column is worth a dictionary: texts, but for the ids; looking for one in numbers costs more than it
    saves once they are compressed."""
    return field.name != "event_id" and not (
        pa.types.is_floating(field.type) or pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)
    )
