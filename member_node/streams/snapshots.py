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
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from member_node.streams.durable import sync_directory, write_all
from member_node.streams.images import ForkError, Image, ImageError, freeze

LOGGER = logging.getLogger(__name__)
MAGIC = b"SRSNAP01"
SUFFIX = ".snapshot"
KEPT = 2
_START = struct.Struct("<8sII")
_ALIGNMENT = 64
_ANY_CRC = 0xFFFFFFFF  # as long in decimals as any other
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


@dataclass(frozen=True, eq=False)
class Begun:
    """A snapshot whose arrays a child is writing to a file of its own."""

    sequence: int
    described: list[_Array]
    size: int
    head: int
    image: Image


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
        part = self._part(sequence)
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                write_all(descriptor, _parts(sequence, self._digest, arrays))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            return self._put(part)
        except OSError as error:
            raise self._refused(part, error) from error

    def begin(self, sequence: int, arrays: Arrays) -> Begun:
        """Have a child write a snapshot; the arrays may change when this returns. See :meth:`commit`.

        Raises :class:`ForkError` when there can be no child, else what :meth:`save` raises.
        """
        flat, described, size = _described(arrays)
        head = len(_head(sequence, self._digest, size, described))
        part = self._part(sequence)
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                image = freeze(descriptor, [head + each.offset for each in described], flat)
            finally:
                os.close(descriptor)
        except ForkError:
            part.unlink()
            raise
        except OSError as error:
            raise self._refused(part, error) from error
        return Begun(sequence, described, size, head, image)

    def commit(self, begun: Begun) -> Path:
        """Wait for the child and put its file into place: whole and on disk when this returns, or not there at all.

        Raises :class:`SnapshotError` saying how the child ended or what the disk said.
        """
        part = self._part(begun.sequence)
        try:
            crcs = begun.image.wait()
            described = [
                msgspec.structs.replace(each, crc=crc)
                for each, crc in zip(begun.described, crcs, strict=True)
            ]
            descriptor = os.open(part, os.O_WRONLY)
            try:
                os.ftruncate(descriptor, begun.head + begun.size)
                write_all(
                    descriptor, [_head(begun.sequence, self._digest, begun.size, described, begun.head)]
                )
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            return self._put(part)
        except (OSError, ImageError) as error:
            raise self._refused(part, error) from error

    def abandon(self, begun: Begun) -> None:
        """End the child and remove what it wrote."""
        begun.image.abandon()
        self._part(begun.sequence).unlink(missing_ok=True)

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
                    f"{path}: holds the state of another feature spec, shard or version; remove the snapshots to "
                    "rebuild the state from the journal"
                )
            return found.sequence, arrays
        return None

    def _part(self, sequence: int) -> Path:
        return self._directory / f"{sequence:010d}{SUFFIX}.part"

    def _put(self, part: Path) -> Path:
        path = part.with_suffix("")
        part.replace(path)
        sync_directory(self._directory)
        for old in self._paths()[:-KEPT]:
            old.unlink()
        return path

    def _refused(self, part: Path, error: Exception) -> SnapshotError:
        part.unlink(missing_ok=True)
        advice = ", free some room on this disk" if isinstance(error, OSError) else ""
        path = part.with_suffix("")
        return SnapshotError(f"{path}: cannot be written: {error}; the ones before it stay{advice}")

    def _paths(self) -> list[Path]:
        paths = (path for path in self._directory.glob(f"*{SUFFIX}") if path.stem.isdecimal())
        return sorted(paths, key=lambda path: int(path.stem))


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
    flat, described, size = _described(arrays)
    whole: list[Any] = []
    for place, raw in enumerate(flat):
        described[place] = msgspec.structs.replace(described[place], crc=zlib.crc32(raw.data))
        whole += [raw, bytes(-len(raw) % _ALIGNMENT)]
    return [_head(sequence, digest, size, described), *whole]


def _described(arrays: Arrays) -> tuple[list[NDArray[np.uint8]], list[_Array], int]:
    """The bytes of each array (views where it is contiguous), what the header says of it but for its crc, and how
    long all are."""
    flat: list[NDArray[np.uint8]] = []
    described: list[_Array] = []
    place = 0
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS or not array.dtype.isnative:
            raise ValueError(f"array {name!r} holds {array.dtype}: a snapshot holds numbers only")
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        flat.append(raw)
        described.append(_Array(name, array.dtype.str, array.shape, place, _ANY_CRC))
        place += -(-len(raw) // _ALIGNMENT) * _ALIGNMENT
    return flat, described, place


def _head(sequence: int, digest: str, size: int, described: list[_Array], length: int = 0) -> bytes:
    """Everything before the arrays, at least ``length`` bytes."""
    header = msgspec.json.encode(_Header(sequence, digest, size, tuple(described)))
    header = header.ljust(length - _START.size)
    header += b" " * (-(_START.size + len(header)) % _ALIGNMENT)
    return _START.pack(MAGIC, len(header), zlib.crc32(header)) + header


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
