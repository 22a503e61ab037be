"""Which known device a fingerprint belongs to: rules after FP-STALKER (Vastel, Laperdrix, Rudametkin, Rouvoy 2018).

A candidate has the same immutable components and one whole group of the changeable ones (see ``fingerprint``). Then:

1. versions of browser and system do not go down;
2. rendering (canvas, audio, WebGL extensions, math) changes only together with a version: at most two of its four;
3. changed fonts, plugins and user agents resemble the old ones: Tanimoto coefficient of their bitmaps >= 0.75;
4. at most two settings differ, and at most two components in all, three with a newer version;
5. the weighted similarity is >= 0.8, and the next best candidate's is lower by more than 0.02.

Without exactly one best candidate the fingerprint is a new device's: a wrong link costs an honest customer more than
a missed one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.devices.fingerprint import BUCKETS, COMPONENTS, FIRST_SETTING, FONTS, SETS, WEIGHTS

# Candidates looked at in one bucket, from the one that changed last.
MOST_CANDIDATES = 64
LEAST_SIMILARITY = 0.8
LEAST_MARGIN = 0.02
LEAST_RESEMBLANCE = 0.75
MOST_CHANGES = 2
MOST_RENDERING_CHANGES = 2
MOST_SETTINGS_CHANGES = 2

NEW, BY_IDENTIFIER, EXACTLY, BY_SIMILARITY = range(4)
_PARTS = len(COMPONENTS)
_RENDERING = FONTS
_SET_OF = np.full(_PARTS, -1)
_SET_OF[[place for place, _, _ in SETS]] = np.arange(len(SETS))
_SET_BOUNDS = np.array([(begin, end) for _, begin, end in SETS])


@compiled
def _bits(word: np.uint64) -> int:
    count = 0
    while word != 0:
        word &= word - np.uint64(1)
        count += 1
    return count


@compiled
def resemblance(a: NDArray[np.uint64], b: NDArray[np.uint64], begin: int, end: int) -> float:
    """Tanimoto coefficient of two bitmaps: common bits over bits in either."""
    common = either = 0
    for word in range(begin, end):
        common += _bits(a[word] & b[word])
        either += _bits(a[word] | b[word])
    return common / either if either else 1.0


@compiled
def similarity(
    hashes: NDArray[np.uint32],
    sets: NDArray[np.uint64],
    versions: NDArray[np.int64],
    old_hashes: NDArray[np.uint32],
    old_sets: NDArray[np.uint64],
    old_versions: NDArray[np.int64],
) -> float:
    """Weighted similarity in [0, 1] of a fingerprint to a known one, -1 where a rule forbids the link."""
    newer = 0
    for i in range(2):
        if versions[i] < old_versions[i]:
            return -1.0
        if versions[i] > old_versions[i]:
            newer = 1
    changes = rendering = settings = 0
    agreed = total = 0.0
    for part in range(_PARTS):
        if hashes[part] == 0 and old_hashes[part] == 0:
            continue
        total += WEIGHTS[part]
        if hashes[part] == old_hashes[part]:
            agreed += WEIGHTS[part]
            continue
        changes += 1
        if part < _RENDERING:
            rendering += 1
        elif part >= FIRST_SETTING:
            settings += 1
        if _SET_OF[part] >= 0:
            alike = 0.0
            if hashes[part] != 0 and old_hashes[part] != 0:
                bounds = _SET_BOUNDS[_SET_OF[part]]
                alike = resemblance(sets, old_sets, bounds[0], bounds[1])
            if alike < LEAST_RESEMBLANCE:
                return -1.0
            agreed += alike * WEIGHTS[part]
    if rendering > MOST_RENDERING_CHANGES * newer or settings > MOST_SETTINGS_CHANGES:
        return -1.0
    if changes > MOST_CHANGES + newer:
        return -1.0
    return agreed / total if total else -1.0


@compiled
def choose(
    found: NDArray[np.int64],
    after: NDArray[np.int32],
    immutable: np.uint64,
    hashes: NDArray[np.uint32],
    sets: NDArray[np.uint64],
    versions: NDArray[np.int64],
    known_immutable: NDArray[np.uint64],
    known_hashes: NDArray[np.uint32],
    known_sets: NDArray[np.uint64],
    known_versions: NDArray[np.int64],
) -> tuple[Any, int, bool]:
    """Slot of the device (-1: new), how it was found, and whether an identifier belongs to another kind of device.

    ``found`` int64 [6]: the first member of each bucket (slot * 6 + bucket), -1 for none; ``after`` int32 [slots * 6]:
    the member that follows, plus one, 0 for none.
    """
    moved = False
    for bucket in range(BUCKETS - 2, BUCKETS):
        member = found[bucket]
        for _ in range(MOST_CANDIDATES):
            if member < 0:
                break
            slot = member // BUCKETS
            if known_immutable[slot] == immutable:
                return slot, BY_IDENTIFIER, moved
            moved = True
            member = np.int64(after[member]) - 1
    if found[0] >= 0:
        return found[0] // BUCKETS, EXACTLY, moved
    best, second, chosen = -1.0, -1.0, np.int64(-1)
    for bucket in range(1, BUCKETS - 2):
        member = found[bucket]
        for _ in range(MOST_CANDIDATES):
            if member < 0:
                break
            slot = member // BUCKETS
            if known_immutable[slot] == immutable and slot != chosen:
                alike = similarity(
                    hashes, sets, versions, known_hashes[slot], known_sets[slot], known_versions[slot]
                )
                if alike > best:
                    # The one that was best before may come again in a later group, so it counts by its own number.
                    best, second, chosen = alike, best, slot
                elif alike > second:
                    second = alike
            member = np.int64(after[member]) - 1
    if chosen >= 0 and best >= LEAST_SIMILARITY and best - second > LEAST_MARGIN:
        return chosen, BY_SIMILARITY, moved
    return -1, NEW, moved


@compiled
def count_customer(people: NDArray[np.uint64], exact: int, customer: np.uint64) -> int:
    """Note a customer of a device; how many are held one by one, -1 once they are a bitmap.

    ``people`` uint64 [8]: up to eight keys, then a bitmap of 512 bits (linear counting; Whang et al. 1990).
    """
    if exact >= 0:
        for i in range(exact):
            if people[i] == customer:
                return exact
        if exact < len(people):
            people[exact] = customer
            return exact + 1
        held = people.copy()
        people[:] = 0
        for i in range(len(held)):
            _mark(people, held[i])
    _mark(people, customer)
    return -1


@compiled
def _mark(people: NDArray[np.uint64], customer: np.uint64) -> None:
    h = customer
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    people[np.int64(h & np.uint64(7))] |= np.uint64(1) << ((h >> np.uint64(3)) & np.uint64(63))


@compiled
def customers(people: NDArray[np.uint64], exact: int) -> float:
    """Distinct customers: exact up to eight, then -512 ln(share of bits that are not set).

    The standard error is 3 % at 200 customers, 4 % at 500 and 8 % at 2,000; a full bitmap counts as 3,194.
    """
    if exact >= 0:
        return float(exact)
    bits = 64 * len(people)
    free = bits
    for word in people:
        free -= _bits(word)
    # More than are held one by one there must be.
    return max(float(len(people) + 1), float(-bits * np.log(max(free, 1) / bits)))
