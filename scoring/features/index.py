"""From 64-bit keys to dense slots: linear hashing (Litwin 1980), which grows one bucket at a time.

An open-addressing table that doubles would stop the stream for as long as it takes to rehash twenty million
entities; here an insertion splits at most one bucket, and the pools do not move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from scoring.features.address import ints, longs, octets
from scoring.features.address import keys as keys_there
from scoring.features.pool import Pool
from scoring.features.prefetch import prefetch

_GROWTH = 1 << 15
_AHEAD = 8  # keys looked ahead: a chain's head has come from memory when its slot is asked for
_BUMP, _FREE, _COUNT, _BUCKETS = 0, 1, 2, 3
_HEADS, _KEYS, _NEXT, _META, _HEAD_ROOM, _KEY_ROOM = range(6)  # addresses, and lengths, of the arrays
_FOREIGN = -2

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))


def grow(array: NDArray[Any], rows: int) -> bool:
    """Lengthen ``array`` in place (zero-filled) so that it has at least ``rows`` rows; whether it changed.

    In steps of 2^15 rows or a sixteenth, so that one step stays short. The caller holds no view of the array.
    """
    if len(array) >= rows:
        return False
    length = max(rows, len(array) + max(min(len(array), _GROWTH), len(array) // 16), 64)
    array.resize((length, *array.shape[1:]), refcheck=False)
    return True


class KeyIndex:
    """Dense slot numbers (int32, reused after ``remove``) for non-zero uint64 keys."""

    def __init__(self) -> None:
        self._heads = Pool((), np.int32, fill=-1)
        self._keys = Pool((), np.uint64)
        self._next = Pool((), np.int32, fill=-1)
        self._meta = np.array([0, -1, 0, 64], np.int64)
        self._table = np.zeros(6, np.int64)
        self._at = int(self._table.ctypes.data)
        self._point()
        # a first call loads machine code, 4 ms that no event should wait for
        self.remove(np.empty(0, np.int32))

    def __len__(self) -> int:
        return int(self._meta[_COUNT])

    @property
    def bound(self) -> int:
        """Every slot in use is below this."""
        return int(self._meta[_BUMP])

    @property
    def nbytes(self) -> int:
        return self._heads.nbytes + self._keys.nbytes + self._next.nbytes

    def resolve(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Slots int32 [n], created where the key is new; -1 for key 0."""
        slots = np.empty(len(keys), np.int32)
        wanted = np.ascontiguousarray(keys)
        self.fill(int(wanted.ctypes.data), int(slots.ctypes.data), len(keys))
        return slots

    def fill(
        self, keys_at: int, slots_at: int, rows: int, *, skip_at: int = 0, shard: int = 0, shards: int = 1
    ) -> int:
        """Write the slots int32 of ``rows`` keys at one address to another, as :meth:`resolve`; the new bound.

        -1 also where the octet at ``skip_at`` is not 0; -2 for keys that belong to another of ``shards``.
        """
        bound = _fill(self._at, keys_at, slots_at, rows, skip_at, shard, shards)
        if bound < 0:
            self._reserve(rows)
            bound = _fill(self._at, keys_at, slots_at, rows, skip_at, shard, shards)
        return bound

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Slots int32 [n]; -1 where the key is unknown."""
        return _find(self._at, keys)

    def remove(self, slots: NDArray[np.int32]) -> None:
        """Forget the keys of these slots (each in use, none twice)."""
        _remove(self._at, slots)

    def state(self) -> dict[str, NDArray[Any]]:
        """The arrays, enough for ``restore``: views, good until the next change."""
        bound, buckets = self.bound, int(self._meta[_BUCKETS])
        return {
            "heads": self._heads.array[:buckets],
            "keys": self._keys.array[:bound],
            "next": self._next.array[:bound],
            "meta": self._meta,
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        self._heads = Pool.of(state["heads"], fill=-1)
        self._keys = Pool.of(state["keys"])
        self._next = Pool.of(state["next"], fill=-1)
        self._meta = state["meta"].copy()
        self._point()

    def _reserve(self, count: int) -> None:
        """Make room for so many new keys."""
        self._keys.grow(int(self._meta[_BUMP]) + count)
        self._next.grow(int(self._meta[_BUMP]) + count)
        self._heads.grow(int(self._meta[_BUCKETS]) + count)
        self._point()

    def _point(self) -> None:
        self._table[:_HEAD_ROOM] = (
            self._heads.address,
            self._keys.address,
            self._next.address,
            self._meta.ctypes.data,
        )
        self._table[_HEAD_ROOM:] = len(self._heads), min(len(self._keys), len(self._next))


@_compiled
def _mixed(key: np.uint64) -> np.uint64:
    """Finaliser of SplitMix64 (Steele, Lea, Flood 2014): neighbouring integers must not share a bucket's neighbours."""
    h = key
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    return h


@_compiled
def _mask(buckets: int) -> int:
    """The next power of two, less one."""
    mask = buckets - 1
    mask |= mask >> 1
    mask |= mask >> 2
    mask |= mask >> 4
    mask |= mask >> 8
    mask |= mask >> 16
    return mask


@_compiled
def _bucket(mixed: np.uint64, buckets: int, mask: int) -> int:
    place = np.int64(mixed) & mask
    return int(place if place < buckets else place & (mask >> 1))


@_compiled
def _look(at: int, bucket: int, key: np.uint64) -> int:
    """The slot of a key in the chain of its bucket, or -1."""
    table = longs(at)
    keys = keys_there(table[_KEYS])
    chain = ints(table[_NEXT])
    slot = ints(table[_HEADS])[bucket]
    while slot >= 0 and keys[slot] != key:
        slot = chain[slot]
    return int(slot)


@_compiled
def _mix_all(wanted: NDArray[np.uint64], rows: int) -> NDArray[np.uint64]:
    mixed = np.empty(rows, np.uint64)
    for i in range(rows):
        mixed[i] = _mixed(wanted[i])
    return mixed


@_compiled
def _fetch(at: int, buckets: int, mask: int, mixed: NDArray[np.uint64], i: int) -> None:
    """Ask for what the keys after ``i`` will read."""
    table = longs(at)
    if i + 2 * _AHEAD < len(mixed):
        prefetch(table[_HEADS] + 4 * _bucket(mixed[i + 2 * _AHEAD], buckets, mask))
    if i + _AHEAD < len(mixed):
        _fetch_slot(at, _bucket(mixed[i + _AHEAD], buckets, mask))


@_compiled
def _fetch_slot(at: int, bucket: int) -> None:
    """Ask for the first key of a bucket."""
    table = longs(at)
    slot = ints(table[_HEADS])[bucket]
    if slot >= 0:
        prefetch(table[_KEYS] + 8 * slot)
        prefetch(table[_NEXT] + 4 * slot)


@_compiled
def _split(at: int) -> None:
    table = longs(at)
    heads = ints(table[_HEADS])
    keys = keys_there(table[_KEYS])
    chain = ints(table[_NEXT])
    meta = longs(table[_META])
    buckets = meta[_BUCKETS]
    mask = _mask(buckets + 1)
    source = buckets & (mask >> 1)
    if source + _AHEAD < buckets:
        _fetch_slot(at, source + _AHEAD)  # it is split soon
    meta[_BUCKETS] = buckets + 1
    heads[buckets] = -1
    slot = heads[source]
    heads[source] = -1
    while slot >= 0:
        following = chain[slot]
        place = _bucket(_mixed(keys[slot]), buckets + 1, mask)
        chain[slot] = heads[place]
        heads[place] = slot
        slot = following


@_compiled
def _enter(at: int, bucket: int, key: np.uint64) -> int:
    """A slot for a new key; to split a bucket after it is the caller's part."""
    table = longs(at)
    chain = ints(table[_NEXT])
    heads = ints(table[_HEADS])
    meta = longs(table[_META])
    slot = meta[_FREE]
    if slot >= 0:
        meta[_FREE] = chain[slot]
    else:
        slot = meta[_BUMP]
        meta[_BUMP] += 1
    meta[_COUNT] += 1
    keys_there(table[_KEYS])[slot] = key
    chain[slot] = heads[bucket]
    heads[bucket] = slot
    return int(slot)


@_compiled
def _fill(at: int, keys_at: int, slots_at: int, rows: int, skip_at: int, shard: int, shards: int) -> int:
    """See ``KeyIndex.fill``; -1 when there is not enough room, and then nothing has changed."""
    table = longs(at)
    meta = longs(table[_META])
    if meta[_BUMP] + rows > table[_KEY_ROOM] or meta[_BUCKETS] + rows > table[_HEAD_ROOM]:
        return -1
    wanted = keys_there(keys_at)
    slots = ints(slots_at)
    skip = octets(skip_at)
    mixed = _mix_all(wanted, rows)
    buckets = meta[_BUCKETS]
    mask = _mask(buckets)
    for i in range(rows):
        _fetch(at, buckets, mask, mixed, i)
        key = wanted[i]
        if shards > 1 and _owner(key, shards) != shard:
            slots[i] = _FOREIGN
            continue
        if key == 0 or (skip_at != 0 and skip[i] != 0):
            slots[i] = -1
            continue
        bucket = _bucket(mixed[i], buckets, mask)
        slot = _look(at, bucket, key)
        if slot < 0:
            slot = _enter(at, bucket, key)
            if meta[_COUNT] > buckets:
                _split(at)
                buckets += 1
                mask = _mask(buckets)
        slots[i] = slot
    return int(meta[_BUMP])


@_compiled
def _find(at: int, wanted: NDArray[np.uint64]) -> NDArray[np.int32]:
    slots = np.empty(len(wanted), np.int32)
    mixed = _mix_all(wanted, len(wanted))
    buckets = longs(longs(at)[_META])[_BUCKETS]
    mask = _mask(buckets)
    for i in range(len(wanted)):
        _fetch(at, buckets, mask, mixed, i)
        found = _look(at, _bucket(mixed[i], buckets, mask), wanted[i])
        slots[i] = -1 if wanted[i] == 0 else found
    return slots


@_compiled
def _remove(at: int, slots: NDArray[np.int32]) -> None:
    table = longs(at)
    heads = ints(table[_HEADS])
    keys = keys_there(table[_KEYS])
    chain = ints(table[_NEXT])
    meta = longs(table[_META])
    buckets = meta[_BUCKETS]
    mask = _mask(buckets)
    for i in range(len(slots)):
        if i + 2 * _AHEAD < len(slots):
            prefetch(table[_KEYS] + 8 * slots[i + 2 * _AHEAD])
            prefetch(table[_NEXT] + 4 * slots[i + 2 * _AHEAD])
        if i + _AHEAD < len(slots):
            prefetch(table[_HEADS] + 4 * _bucket(_mixed(keys[slots[i + _AHEAD]]), buckets, mask))
        slot = slots[i]
        place = _bucket(_mixed(keys[slot]), buckets, mask)
        here = heads[place]
        if here == slot:
            heads[place] = chain[slot]
        else:
            while chain[here] != slot:
                here = chain[here]
            chain[here] = chain[slot]
        keys[slot] = 0
        chain[slot] = meta[_FREE]
        meta[_FREE] = slot
        meta[_COUNT] -= 1


@_compiled
def _owner(key: np.uint64, shards: int) -> int:
    if key == 0:
        return 0
    mixed = (key ^ (key >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return int(((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(3)) % np.uint64(shards))


@_compiled
def owners(keys: NDArray[np.uint64], shards: int) -> NDArray[np.int64]:
    """The shard 0..shards-1 that owns each key, int64 [n]; 0 belongs to shard 0."""
    owner = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        owner[i] = _owner(keys[i], shards)
    return owner
