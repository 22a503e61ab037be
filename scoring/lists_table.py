"""A persistent map from 64-bit keys to 64-bit numbers: readers hold a version, writers make the next one cheaply.

The bulk lies in one table in order of hash (ordered linear probing, Amble and Knuth 1974), so that two versions merge
in one sequential pass without hashing or sorting anything again. Recent changes lie in a small table of the same form
in front of it, which is all a change of one key copies. Both are never written again once they are built, so that any
number of threads read a version while the next is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from scoring.compiled import compiled, compiled_brief
from scoring.features.address import longs, octets

ABSENT = np.iinfo(np.int64).min
# Recent changes are merged into the bulk when there are more of them than this, or than 1/64 of the bulk.
RECENT = 1024
_SLACK = 256
_BLOCK = 64
_STRIDE = 3


@dataclass(frozen=True, eq=False)
class _Ordered:
    """``slots`` int64 [m, 2]: (hash, value) in order of hash, hash 0 where empty.

    ``sieve`` uint8 [homes]: one bit for each eighth of a home, set where a hash falls; most keys that are not in the
    table are told by it, which is small enough to stay in the processor's cache.
    """

    slots: NDArray[np.int64]
    sieve: NDArray[np.uint8]
    count: int


class KeyMap:
    """An immutable map from non-zero uint64 keys to int64 values other than ``ABSENT``. Make one with :meth:`of`."""

    __slots__ = ("_bulk", "_count", "_recent")

    def __init__(self, bulk: _Ordered, recent: _Ordered, count: int) -> None:
        self._bulk = bulk
        self._recent = recent
        self._count = count

    @classmethod
    def of(cls, keys: NDArray[np.uint64], values: NDArray[np.int64]) -> KeyMap:
        """The map of these pairs; of equal keys the last counts, key 0 is left out."""
        return cls(_EMPTY, _EMPTY, 0).changed(keys, values)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return sum(t.slots.nbytes + t.sieve.nbytes for t in (self._bulk, self._recent))

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Values int64 [n], ``ABSENT`` where the key is not in the map (key 0 never is)."""
        return _find(
            self._bulk.slots,
            self._bulk.sieve,
            self._recent.slots,
            self._recent.sieve,
            keys,
        )

    def changed(self, keys: NDArray[np.uint64], values: NDArray[np.int64]) -> KeyMap:
        """The map with these pairs set, those of value ``ABSENT`` removed; this one stays as it is."""
        hashes = _hash(keys)
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        last = np.ones(len(order), np.bool_)
        last[:-1] = hashes[1:] != hashes[:-1]
        last &= hashes != 0
        order, hashes = order[last], hashes[last]
        if not len(order):
            return self
        values = values[order]
        there = self.find(keys[order]) != ABSENT
        count = self._count + int(np.count_nonzero((values != ABSENT) & ~there))
        count -= int(np.count_nonzero((values == ABSENT) & there))
        change = _Ordered(np.column_stack((hashes.view(np.int64), values)), _EMPTY.sieve, len(order))
        limit = max(RECENT, self._bulk.count // 64)
        if self._recent.count + change.count <= limit:
            return KeyMap(self._bulk, _merged(self._recent, change, keep_absent=True), count)
        if self._recent.count:
            change = _merged(self._recent, change, keep_absent=True)
        return KeyMap(_merged(self._bulk, change, keep_absent=False), _EMPTY, count)


class KeyMaps:
    """Several maps that are asked together, one compiled call for all: of a single event the calls are the cost."""

    def __init__(self, maps: Sequence[KeyMap], rows: Sequence[int]) -> None:
        """``rows``: which row of a matrix of keys each map is asked."""
        self._maps = tuple(maps)  # they own the memory whose addresses follow
        tables = [
            [row, *(each for part in (held._bulk, held._recent) for each in _address(part))]
            for held, row in zip(maps, rows, strict=True)
        ]
        self._tables = np.array(tables, np.int64).reshape(len(maps), 9)

    def beyond(self, keys: NDArray[np.uint64], bounds: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [maps, n]: whether each map has the key of its row in ``keys`` uint64 [m, n], at a greater value than
        ``bounds`` int64 [n]."""
        flags = bounds.flags
        own = bounds if flags.c_contiguous and flags.writeable else bounds.copy()
        return _beyond(self._tables, keys, own)


def _address(table: _Ordered) -> tuple[int, int, int, int]:
    return table.slots.ctypes.data, len(table.slots), table.sieve.ctypes.data, len(table.sieve)


_EMPTY = _Ordered(np.zeros((_SLACK, 2), np.int64), np.zeros(1, np.uint8), 0)


def _merged(old: _Ordered, new: _Ordered, *, keep_absent: bool) -> _Ordered:
    """Both in one table; ``new`` wins. Entries of value ``ABSENT`` are kept as a mark that hides an older table's."""
    most = old.count + new.count
    homes = most + most // 2 + 16
    slack = _SLACK
    while True:
        slots, sieve = np.zeros((homes + slack, 2), np.int64), np.zeros(homes, np.uint8)
        count = _merge(old.slots, new.slots, slots, sieve, keep_absent)
        if count >= 0:
            return _Ordered(slots, sieve, count)
        slack *= 8  # the last homes are crowded; there is always room for all beyond them


@compiled
def _mix(key: np.uint64) -> np.uint64:
    # The finaliser of SplitMix64 (Steele, Lea, Flood 2014) is a bijection that keeps 0: equal hashes are equal keys.
    h = key
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@compiled
def _hash(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    hashes = np.empty(len(keys), np.uint64)
    for i in range(len(keys)):
        hashes[i] = _mix(keys[i])
    return hashes


@compiled
def _home(hashed: np.uint64, homes: int) -> int:
    return np.int64(((hashed >> np.uint64(32)) * np.uint64(homes)) >> np.uint64(32))  # type: ignore[return-value]


@compiled
def _walk(slots: NDArray[np.int64], place: int, wanted: np.uint64) -> int:
    """The slot of a hash at or after ``place``, -1 where it has none. The last slot of a table is always empty."""
    while True:
        held = np.uint64(slots[place, 0])
        if held == wanted:
            return place
        if held == 0 or held > wanted:
            return -1
        place += 1


@compiled
def _maybe(sieve: NDArray[np.uint8], hashed: np.uint64) -> Any:
    place = _home(hashed, 8 * len(sieve))
    return (sieve[place >> 3] >> (place & 7)) & 1


@compiled
def _find(
    bulk: NDArray[np.int64],
    bulk_sieve: NDArray[np.uint8],
    recent: NDArray[np.int64],
    recent_sieve: NDArray[np.uint8],
    keys: NDArray[np.uint64],
) -> NDArray[np.int64]:
    values = np.empty(len(keys), np.int64)
    hashes = np.empty(_BLOCK, np.uint64)
    firsts = np.empty(_BLOCK, np.uint64)
    starts = np.empty(_BLOCK, np.int64)
    homes, recent_homes = len(bulk_sieve), len(recent_sieve)
    for begin in range(0, len(keys), _BLOCK):
        many = min(_BLOCK, len(keys) - begin)
        # Without branches on what is loaded, so that the cache misses of a block overlap instead of queueing up.
        for i in range(many):
            hashes[i] = _mix(keys[begin + i])
            starts[i] = _maybe(bulk_sieve, hashes[i])
        for i in range(many):
            home = starts[i] * _home(hashes[i], homes)
            # All that lies between a hash's home and the hash itself is smaller, without a gap.
            beyond = np.uint64(bulk[home + _STRIDE, 0])
            firsts[i] = np.uint64(starts[i]) * np.uint64(bulk[home, 0])
            starts[i] = home + _STRIDE * (np.int64(beyond != 0) & np.int64(beyond <= hashes[i]))
        for i in range(many):
            value, hashed, place = ABSENT, hashes[i], -1
            if hashed != 0:
                if _maybe(recent_sieve, hashed):
                    place = _walk(recent, _home(hashed, recent_homes), hashed)
                if place >= 0:
                    value = recent[place, 1]
                elif firsts[i] != 0 and firsts[i] <= hashed:
                    place = _walk(bulk, starts[i], hashed)
                    if place >= 0:
                        value = bulk[place, 1]
            values[begin + i] = value
    return values


@compiled_brief
def _beyond(
    tables: NDArray[np.int64], keys: NDArray[np.uint64], bounds: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """``tables`` int64 [maps, 9]: the row of ``keys``, then address and length of slots and sieve, bulk and recent."""
    found = np.empty((len(tables), len(bounds)), np.bool_)
    for place in range(len(tables)):
        table = tables[place]
        values = _find(
            carray(longs(table[1]), (table[2], 2)),
            carray(octets(table[3]), (table[4],)),
            carray(longs(table[5]), (table[6], 2)),
            carray(octets(table[7]), (table[8],)),
            keys[table[0]],
        )
        for row in range(len(bounds)):
            found[place, row] = values[row] > bounds[row]
    return found


@compiled
def _merge(
    old: NDArray[np.int64],
    new: NDArray[np.int64],
    into: NDArray[np.int64],
    sieve: NDArray[np.uint8],
    keep_absent: bool,
) -> int:
    """Merge two runs in order of hash (empty slots between them) into a table; entries written, -1 for no room."""
    i = j = count = 0
    following = 0
    while True:
        while i < len(old) and old[i, 0] == 0:
            i += 1
        while j < len(new) and new[j, 0] == 0:
            j += 1
        if i == len(old) and j == len(new):
            return count
        if j == len(new) or (i < len(old) and np.uint64(old[i, 0]) < np.uint64(new[j, 0])):
            held, value = old[i, 0], old[i, 1]
            i += 1
        else:
            held, value = new[j, 0], new[j, 1]
            if i < len(old) and old[i, 0] == held:
                i += 1
            j += 1
        if value == ABSENT and not keep_absent:
            continue
        bit = _home(np.uint64(held), 8 * len(sieve))
        sieve[bit >> 3] |= np.uint8(1 << (bit & 7))
        place = bit >> 3
        if place < following:
            place = following
        if place >= len(into) - 1:
            return -1
        into[place, 0] = held
        into[place, 1] = value
        following = place + 1
        count += 1
