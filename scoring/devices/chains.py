"""Devices by bucket: doubly linked chains, newest first, and one chain of all devices by when they were last seen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.devices.fingerprint import BUCKETS
from scoring.features.index import KeyIndex, grow

_OLDEST, _NEWEST = 0, 1


class Chains:
    """A device's slot may stand in ``BUCKETS`` chains at once, one a kind of key; a member is slot * BUCKETS + kind.

    Links hold a member plus one, so that fresh (zero) memory means "none".
    """

    def __init__(self) -> None:
        self._index = KeyIndex()
        self._heads = np.zeros(64, np.int32)
        self.after = np.zeros(64 * BUCKETS, np.int32)
        self._before = np.zeros(64 * BUCKETS, np.int32)
        self._older = np.zeros(64, np.int32)
        self._newer = np.zeros(64, np.int32)
        self._ends = np.zeros(2, np.int32)

    @property
    def nbytes(self) -> int:
        arrays = (self._heads, self.after, self._before, self._older, self._newer)
        return self._index.nbytes + sum(array.nbytes for array in arrays)

    @property
    def oldest(self) -> int:
        """The slot that was seen longest ago, -1 where there is none."""
        return int(self._ends[_OLDEST]) - 1

    def first(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The first member int64 [BUCKETS] of each key's chain, -1 where there is none."""
        buckets = self._index.find(keys)
        return np.where(buckets >= 0, self._heads[buckets].astype(np.int64) - 1, -1)

    def grow(self, slots: int) -> None:
        """Make room for slots below ``slots``."""
        for array in (self.after, self._before):
            grow(array, slots * BUCKETS)
        for array in (self._older, self._newer):
            grow(array, slots)

    def put(self, slot: int, keys: NDArray[np.uint64]) -> None:
        """Enter a slot into the chain of each of its keys (0: none)."""
        buckets = self._index.resolve(keys)
        grow(self._heads, self._index.bound)
        _put(self._heads, self.after, self._before, buckets, slot)

    def take(self, slot: int, keys: NDArray[np.uint64]) -> None:
        """Take a slot out of the chains of these keys, which it was entered with."""
        buckets = self._index.find(keys)
        empty = _take(self._heads, self.after, self._before, buckets, slot)
        self._index.remove(buckets[empty])

    def seen(self, slot: int, *, is_new: bool) -> None:
        """Make a slot the one that was seen last."""
        _seen(self._older, self._newer, self._ends, slot, is_new)

    def forget(self, slot: int) -> None:
        """Take a slot out of the chain of all devices."""
        _leave(self._older, self._newer, self._ends, slot)

    def state(self, slots: int) -> dict[str, NDArray[Any]]:
        """The arrays for slots below ``slots``: views, good until the next change."""
        index = {f"index_{name}": array for name, array in self._index.state().items()}
        return index | {
            "heads": self._heads[: self._index.bound],
            "after": self.after[: slots * BUCKETS],
            "before": self._before[: slots * BUCKETS],
            "older": self._older[:slots],
            "newer": self._newer[:slots],
            "ends": self._ends,
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over a :meth:`state`."""
        index = {
            name.removeprefix("index_"): array for name, array in state.items() if name.startswith("index_")
        }
        self._index.restore(index)
        self._heads, self.after, self._before = (state[name].copy() for name in ("heads", "after", "before"))
        # The state of a linker without devices has no heads, and looking for one takes one.
        grow(self._heads, 1)
        self._older, self._newer, self._ends = (state[name].copy() for name in ("older", "newer", "ends"))


@compiled
def _put(
    heads: NDArray[np.int32],
    after: NDArray[np.int32],
    before: NDArray[np.int32],
    buckets: NDArray[np.int32],
    slot: int,
) -> None:
    for kind in range(len(buckets)):
        bucket = buckets[kind]
        if bucket < 0:
            continue
        member = slot * len(buckets) + kind
        head = heads[bucket]
        after[member] = head
        before[member] = 0
        if head:
            before[head - 1] = member + 1
        heads[bucket] = member + 1


@compiled
def _take(
    heads: NDArray[np.int32],
    after: NDArray[np.int32],
    before: NDArray[np.int32],
    buckets: NDArray[np.int32],
    slot: int,
) -> NDArray[np.bool_]:
    """Whether each bucket's chain is empty now."""
    empty = np.zeros(len(buckets), np.bool_)
    for kind in range(len(buckets)):
        bucket = buckets[kind]
        if bucket < 0:
            continue
        member = slot * len(buckets) + kind
        previous, following = before[member], after[member]
        if previous:
            after[previous - 1] = following
        else:
            heads[bucket] = following
            empty[kind] = following == 0
        if following:
            before[following - 1] = previous
        after[member] = 0
        before[member] = 0
    return empty


@compiled
def _leave(older: NDArray[np.int32], newer: NDArray[np.int32], ends: NDArray[np.int32], slot: int) -> None:
    previous, following = older[slot], newer[slot]
    if previous:
        newer[previous - 1] = following
    else:
        ends[_OLDEST] = following
    if following:
        older[following - 1] = previous
    else:
        ends[_NEWEST] = previous
    older[slot] = 0
    newer[slot] = 0


@compiled
def _seen(
    older: NDArray[np.int32], newer: NDArray[np.int32], ends: NDArray[np.int32], slot: int, is_new: bool
) -> None:
    if not is_new:
        if ends[_NEWEST] == slot + 1:
            return
        _leave(older, newer, ends, slot)
    newest = ends[_NEWEST]
    older[slot] = newest
    newer[slot] = 0
    if newest:
        newer[newest - 1] = slot + 1
    else:
        ends[_OLDEST] = slot + 1
    ends[_NEWEST] = slot + 1
