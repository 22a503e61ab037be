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

from scoring.features.pool import Pool
from scoring.features.prefetch import prefetch

_GROWTH = 1 << 15
_AHEAD = 8  # keys looked ahead: a chain's head has come from memory when its slot is asked for
_BUMP, _FREE, _COUNT, _BUCKETS = 0, 1, 2, 3

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
        self.remove(
            np.empty(0, np.int32)
        )  # a first call loads machine code, 4 ms that no event should wait for

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
        self._keys.grow(int(self._meta[_BUMP]) + len(keys))
        self._next.grow(int(self._meta[_BUMP]) + len(keys))
        self._heads.grow(int(self._meta[_BUCKETS]) + len(keys))
        return _resolve(self._heads.array, self._keys.array, self._next.array, self._meta, keys)

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Slots int32 [n]; -1 where the key is unknown."""
        return _find(self._heads.array, self._keys.array, self._next.array, self._meta, keys)

    def remove(self, slots: NDArray[np.int32]) -> None:
        """Forget the keys of these slots (each in use, none twice)."""
        _remove(self._heads.array, self._keys.array, self._next.array, self._meta, slots)

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the arrays, enough for ``restore``."""
        bound, buckets = self.bound, int(self._meta[_BUCKETS])
        return {
            "heads": self._heads.array[:buckets].copy(),
            "keys": self._keys.array[:bound].copy(),
            "next": self._next.array[:bound].copy(),
            "meta": self._meta.copy(),
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        self._heads = Pool.of(state["heads"], fill=-1)
        self._keys = Pool.of(state["keys"])
        self._next = Pool.of(state["next"], fill=-1)
        self._meta = state["meta"].copy()


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
def _bucket(mixed: np.uint64, buckets: int) -> int:
    mask = buckets - 1  # to the next power of two, less one
    mask |= mask >> 1
    mask |= mask >> 2
    mask |= mask >> 4
    mask |= mask >> 8
    mask |= mask >> 16
    place = np.int64(mixed) & mask
    return int(place if place < buckets else place & (mask >> 1))


@_compiled
def _look(
    heads: NDArray[np.int32],
    keys: NDArray[np.uint64],
    chain: NDArray[np.int32],
    buckets: int,
    key: np.uint64,
    mixed: np.uint64,
) -> int:
    slot = heads[_bucket(mixed, buckets)]
    while slot >= 0 and keys[slot] != key:
        slot = chain[slot]
    return int(slot)


@_compiled
def _mix_all(wanted: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = np.empty(len(wanted), np.uint64)
    for i in range(len(wanted)):
        mixed[i] = _mixed(wanted[i])
    return mixed


@_compiled
def _fetch(
    heads: NDArray[np.int32],
    keys: NDArray[np.uint64],
    chain: NDArray[np.int32],
    buckets: int,
    mixed: NDArray[np.uint64],
    i: int,
) -> None:
    """Ask for what the keys after ``i`` will read."""
    if i + 2 * _AHEAD < len(mixed):
        prefetch(heads.ctypes.data + 4 * _bucket(mixed[i + 2 * _AHEAD], buckets))
    if i + _AHEAD < len(mixed):
        slot = heads[_bucket(mixed[i + _AHEAD], buckets)]
        if slot >= 0:
            prefetch(keys.ctypes.data + 8 * slot)
            prefetch(chain.ctypes.data + 4 * slot)


@_compiled
def _split(
    heads: NDArray[np.int32], keys: NDArray[np.uint64], chain: NDArray[np.int32], meta: NDArray[np.int64]
) -> None:
    buckets = meta[_BUCKETS]
    power = 64
    while power * 2 <= buckets:
        power *= 2
    source = buckets - power
    meta[_BUCKETS] = buckets + 1
    heads[buckets] = -1
    slot = heads[source]
    heads[source] = -1
    while slot >= 0:
        following = chain[slot]
        place = _bucket(_mixed(keys[slot]), buckets + 1)
        chain[slot] = heads[place]
        heads[place] = slot
        slot = following


@_compiled
def _resolve(
    heads: NDArray[np.int32],
    keys: NDArray[np.uint64],
    chain: NDArray[np.int32],
    meta: NDArray[np.int64],
    wanted: NDArray[np.uint64],
) -> NDArray[np.int32]:
    slots = np.empty(len(wanted), np.int32)
    mixed = _mix_all(wanted)
    for i in range(len(wanted)):
        _fetch(heads, keys, chain, meta[_BUCKETS], mixed, i)
        key = wanted[i]
        if key == 0:
            slots[i] = -1
            continue
        slot = _look(heads, keys, chain, meta[_BUCKETS], key, mixed[i])
        if slot < 0:
            slot = meta[_FREE]
            if slot >= 0:
                meta[_FREE] = chain[slot]
            else:
                slot = meta[_BUMP]
                meta[_BUMP] += 1
            meta[_COUNT] += 1
            keys[slot] = key
            place = _bucket(mixed[i], meta[_BUCKETS])
            chain[slot] = heads[place]
            heads[place] = slot
            if meta[_COUNT] > meta[_BUCKETS]:
                _split(heads, keys, chain, meta)
        slots[i] = slot
    return slots


@_compiled
def _find(
    heads: NDArray[np.int32],
    keys: NDArray[np.uint64],
    chain: NDArray[np.int32],
    meta: NDArray[np.int64],
    wanted: NDArray[np.uint64],
) -> NDArray[np.int32]:
    slots = np.empty(len(wanted), np.int32)
    mixed = _mix_all(wanted)
    for i in range(len(wanted)):
        _fetch(heads, keys, chain, meta[_BUCKETS], mixed, i)
        found = _look(heads, keys, chain, meta[_BUCKETS], wanted[i], mixed[i])
        slots[i] = -1 if wanted[i] == 0 else found
    return slots


@_compiled
def _remove(
    heads: NDArray[np.int32],
    keys: NDArray[np.uint64],
    chain: NDArray[np.int32],
    meta: NDArray[np.int64],
    slots: NDArray[np.int32],
) -> None:
    for i in range(len(slots)):
        if i + 2 * _AHEAD < len(slots):
            prefetch(keys.ctypes.data + 8 * slots[i + 2 * _AHEAD])
            prefetch(chain.ctypes.data + 4 * slots[i + 2 * _AHEAD])
        if i + _AHEAD < len(slots):
            prefetch(heads.ctypes.data + 4 * _bucket(_mixed(keys[slots[i + _AHEAD]]), meta[_BUCKETS]))
        slot = slots[i]
        place = _bucket(_mixed(keys[slot]), meta[_BUCKETS])
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
