"""Snapshots of an engine's state: arrays in one checksummed file, so that a restart replays only the journal's end.

A file ``NNNNNNNNNN.snapshot`` is named by the newest journal frame whose effect it holds: ``"SRSNAP01" | length of
the header u32 | crc32 of the header u32 | header | arrays``. The header is JSON (sequence, digest of the spec, and
for every array its name, type, shape, place and crc32); arrays stand at multiples of 64 bytes, C order, little endian.
Nothing in it is code, and it is read by mapping the file.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from member_node.streams.durable import sync_directory, write_all

LOGGER = logging.getLogger(__name__)
MAGIC = b"SRSNAP01"
SUFFIX = ".snapshot"
KEPT = 2
EVERY_EVENTS = 5_000_000
EVERY_SECONDS = 300.0
_START = struct.Struct("<8sII")
_ALIGNMENT = 64
_KINDS = "biuf"  # booleans, integers, floats: what an array of bytes fully describes

Arrays = Mapping[str, NDArray[Any]]


class SnapshotError(RuntimeError):
    """A snapshot cannot be written or must not be used; the message names the file and what to do."""


class _Array(msgspec.Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    crc: int


class _Header(msgspec.Struct, frozen=True):
    sequence: int
    digest: str
    size: int
    arrays: tuple[_Array, ...]


class SnapshotStore:
    """The newest two snapshots below a directory. ``digest`` names the spec (and shard) whose state they hold."""

    def __init__(self, directory: Path, digest: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._digest = directory, digest
        for leftover in directory.glob("*.part"):
            leftover.unlink()

    @property
    def sequences(self) -> list[int]:
        """The journal frames up to which there are snapshots, oldest first."""
        return [int(path.stem) for path in self._paths()]

    @property
    def covered(self) -> int:
        """The frame up to which the journal is needed no more even if the newest snapshot is damaged; 0 until then."""
        found = self.sequences
        return found[-KEPT] if len(found) >= KEPT else 0

    def newest(self) -> tuple[int, float] | None:
        """Frame and time of writing (unix seconds) of the newest snapshot, unread; None without one."""
        for path in reversed(self._paths()):
            try:
                return int(path.stem), path.stat().st_mtime
            except FileNotFoundError:  # replaced by a newer one meanwhile
                continue
        return None

    def save(self, sequence: int, arrays: Arrays) -> Path:
        """Write a snapshot: whole and on disk when this returns, or not there at all.

        All but the two newest are removed. Raises :class:`SnapshotError` when the disk does not take it, ValueError for
        arrays of objects or texts.
        """
        path = self._directory / f"{sequence:010d}{SUFFIX}"
        part = path.with_name(path.name + ".part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                write_all(descriptor, _parts(sequence, self._digest, arrays))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            part.replace(path)
            sync_directory(self._directory)
            for old in self._paths()[:-KEPT]:
                old.unlink()
        except OSError as error:
            part.unlink(missing_ok=True)
            raise SnapshotError(
                f"{path}: cannot be written: {error}; the ones before it stay, free some room on this disk"
            ) from error
        return path

    def latest(self) -> tuple[int, dict[str, NDArray[Any]]] | None:
        """The newest whole snapshot: its frame and its arrays (read-only, mapped from the file); None without one.

        A damaged one is set aside with a warning and the one before it taken. Raises :class:`SnapshotError` when it is
        another spec's.
        """
        for path in reversed(self._paths()):
            try:
                found, arrays = _read(path)
            except ValueError as error:
                aside = path.with_name(path.name + ".damaged")
                path.replace(aside)
                LOGGER.warning("%s is damaged (%s): kept as %s, not used", path, error, aside.name)
                continue
            if found.digest != self._digest:
                raise SnapshotError(
                    f"{path}: holds the state of another feature spec or shard; remove the snapshots to rebuild "
                    "the state from the journal"
                )
            return found.sequence, arrays
        return None

    def _paths(self) -> list[Path]:
        paths = (path for path in self._directory.glob(f"*{SUFFIX}") if path.stem.isdecimal())
        return sorted(paths, key=lambda path: int(path.stem))


class SnapshotKeeper:
    """Decides when to take a snapshot and writes it in a thread of its own; the stream waits only for the copy.

    ``state`` copies the engine's arrays. ``before(sequence)`` runs first in the thread and must leave everything up to
    the frame in the history; ``after(sequence)`` runs when journal frames up to it are covered by two snapshots.
    A failure is logged, kept in ``last_error`` and tried again when the next one is due: the journal has it all.
    """

    def __init__(
        self,
        store: SnapshotStore,
        state: Callable[[], Arrays],
        *,
        before: Callable[[int], object],
        after: Callable[[int], object],
        every_events: int = EVERY_EVENTS,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self._store, self._state = store, state
        self._before, self._after = before, after
        self._every_events, self._every_seconds = every_events, every_seconds
        self._events = 0
        self._since: float | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._writing: Future[None] | None = None
        self.last_error = ""
        self.copy_seconds = 0.0
        self.write_seconds = 0.0

    def applied(self, sequence: int, events: int, now_seconds: float) -> bool:
        """Say that the engine holds everything up to a frame **that is on disk**; whether a snapshot was begun.

        Called by the thread of the stream after each batch; ``now_seconds`` of any steady clock.
        """
        self._events += events
        if self._since is None:
            self._since = now_seconds
        old = now_seconds - self._since >= self._every_seconds
        if not self._events or not (old or self._events >= self._every_events):
            return False
        if self._writing is not None and not self._writing.done():
            return False
        self._events, self._since = 0, now_seconds
        self._begin(sequence)
        return True

    def save(self, sequence: int) -> None:
        """Take a snapshot now and wait for it (at a clean stop). Raises what writing it raises."""
        self._begin(sequence).result()
        if self.last_error:
            raise SnapshotError(self.last_error)

    def close(self) -> None:
        """Wait for the one that is being written."""
        self._thread.shutdown()

    def _begin(self, sequence: int) -> Future[None]:
        start = time.perf_counter()
        arrays = self._state()
        self.copy_seconds = time.perf_counter() - start
        self._writing = self._thread.submit(self._write, sequence, arrays)
        return self._writing

    def _write(self, sequence: int, arrays: Arrays) -> None:
        start = time.perf_counter()
        try:
            self._before(sequence)
            self._store.save(sequence, arrays)
            self._after(self._store.covered)
        except Exception as error:  # whatever it is, the stream goes on without a snapshot and says so
            self.last_error = f"no snapshot at frame {sequence}: {error}"
            LOGGER.exception("%s", self.last_error)
            return
        self.last_error = ""
        self.write_seconds = time.perf_counter() - start


def verify_snapshots(directory: Path) -> list[tuple[int, int]]:
    """Read every byte of the snapshots below ``directory`` without changing it: their frames and sizes in bytes, oldest
    first. Raises :class:`SnapshotError` naming a damaged one."""
    found: list[tuple[int, int]] = []
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        try:
            found.append((_read(path)[0].sequence, path.stat().st_size))
        except FileNotFoundError:  # replaced by a newer one meanwhile
            continue
        except ValueError as error:
            raise SnapshotError(
                f"{path}: is damaged ({error}); the next start sets it aside and takes the one before it"
            ) from error
    return found


def _parts(sequence: int, digest: str, arrays: Arrays) -> list[Any]:
    """The file's buffers in order."""
    whole: list[NDArray[Any]] = []
    described: list[_Array] = []
    place = 0
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS or not array.dtype.isnative:
            raise ValueError(f"array {name!r} holds {array.dtype}: a snapshot holds numbers only")
        flat = np.ascontiguousarray(array).reshape(-1)
        raw = flat.view(np.uint8)
        described.append(_Array(name, array.dtype.str, array.shape, place, zlib.crc32(raw.data)))
        whole += [raw, np.zeros(-len(raw) % _ALIGNMENT, np.uint8)]
        place += len(raw) + len(whole[-1])
    header = msgspec.json.encode(_Header(sequence, digest, place, tuple(described)))
    header += b" " * (-(_START.size + len(header)) % _ALIGNMENT)
    return [_START.pack(MAGIC, len(header), zlib.crc32(header)), header, *whole]


def _read(path: Path) -> tuple[_Header, dict[str, NDArray[Any]]]:
    """Header and arrays of a file. Raises ValueError saying what is wrong with it."""
    with open(path, "rb") as file:
        start = file.read(_START.size)
        if len(start) < _START.size:
            raise ValueError("it is cut off")
        magic, length, crc = _START.unpack(start)
        header = file.read(length)
        if magic != MAGIC or len(header) != length or zlib.crc32(header) != crc:
            raise ValueError("its header does not hold")
        found = msgspec.json.decode(header, type=_Header)
        base = _START.size + length
        if os.fstat(file.fileno()).st_size != base + found.size:
            raise ValueError("it is cut off")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if found.sequence != int(path.stem):
        raise ValueError(f"it holds frame {found.sequence}")
    arrays: dict[str, NDArray[Any]] = {}
    for each in found.arrays:
        dtype = np.dtype(each.dtype)
        count = int(np.prod(each.shape, dtype=np.int64))
        flat = np.frombuffer(content, dtype, count, base + each.offset)
        if zlib.crc32(flat.view(np.uint8).data) != each.crc:
            raise ValueError(f"array {each.name!r} does not hold")
        arrays[each.name] = flat.reshape(each.shape)
    return found, arrays
