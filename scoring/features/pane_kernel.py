"""Numba kernel over one entity kind: an entity's panes, each an aggregate of its own events.

Events of panes that hold few stand one by one in a *run* of the entity, by pane and arrival: quiet entities never have
more than that. With its fifth event a pane becomes *busy* and gets a *row*: for every lane the count, sum, central
moments and extremes, and for every telling the set of distinct keys. Its events are kept beside the row, as its *log*,
for as long as one of them may be corrected. When a log reaches 1,024 events it becomes a *part* with a row of its own,
and the next part begins. A correction takes its event out of a log and computes that part anew, then the pane from its
parts, so nothing is ever subtracted and no correction costs more than a part and the merge of the parts.

Distinct keys are exact while the rows of an entity hold at most ``CAP`` of them in all; beyond it every row of the
entity has the registers of a HyperLogLog sketch instead, the same registers as ``datasketches.hll_sketch(12, HLL_8)``
would have, and the caller asks that library for the estimate.

State is reached through a table of addresses, see ``scoring.features.address``; helpers live in this file because
Numba's cache does not see edits of imported modules.
"""

# Array elements are untyped; what they are here is said by the table below.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from scoring.features.address import counts, floats, ints, keys, longs, octets
from scoring.features.prefetch import prefetch

# Entries of the table: state ...
(
    FEW,  # [slot, (index, flags, record, token as int32; values as float64; keys as uint64)]
    FEW_FREE,  # uint8 [slot]: 1 + room where a free run begins
    EVENT,  # int32 [event, (next, flags, row whose log it is in)]; flags: bit of a filter, FRAUD_BIT
    EVENT_VALUE,  # float64 [event, value column]
    EVENT_KEY,  # uint64 [event, key column]
    ROW,  # int32 [row, (next older pane, or next part; first part; log; events in the log; index)]
    ROW_COUNT,  # uint32 [row, counts of the lanes]
    ROW_FLOAT,  # float64 [row, sums, moments and extremes of the lanes]
    ROW_SET,  # int32 [row, telling, (first chunk, keys)]; first chunk -1: empty, -2 - s: sketch s
    CHUNK,  # uint64 [chunk, 8 keys]; the first chunk of a set is the one not yet full
    CHUNK_NEXT,  # int32
    SKETCH,  # uint8 [sketch, register]
    SKETCH_NEXT,  # int32, of freed ones
    ENTITY,  # int32 [entity, (START of its run or -1, -2: no owner; LENGTH; ROOM; newest BUSY row or -1)]
    ENTITY_SKETCHED,  # int32: bit of a telling
    ENTITY_KEYS,  # int32 [entity, telling]: keys in the sets of its rows
    ENTITY_OF,  # int32 per event record: -1 unless its event is in this pool
    EVENT_OF,  # int32 per event record: its event in a log, or -2 - token while it stands in a run
    FLAGS_OF,  # int32 per event record, where outcomes matter
    META,
) = range(20)
# ... the plan (groups, windows and features as in ``kernel``) ...
(
    LANE_VALUE,  # value column, -1: count only
    LANE_BIT,
    LANE_ORDER,  # 0: count, 1: sum, k: central moments up to k
    LANE_EXTREMES,
    LANE_FRAUD,
    LANE_COUNT_AT,
    LANE_FLOAT_AT,
    GROUP_DELAY,
    GROUP_EXCLUDE,
    GROUP_WINDOWS,
    GROUP_LANES,
    LANES_USED,
    GROUP_TELLINGS,
    TELLINGS_USED,
    TELLING_KEY,
    TELLING_BIT,
    WINDOW_WIDTH,
    WINDOW_FEATURES,
    FEATURE_KIND,
    FEATURE_LANE,  # lane, or telling for distinct
    FEATURE_COLUMN,
    FEATURE_EMPTY,
    FEATURE_MOMENT,
) = range(20, 43)
# ... the batch (see ``scoring.features.frame``; values and keys by row) ...
(
    BATCH_ENTITY,
    BATCH_TIME,
    BATCH_VALUE,
    BATCH_FLAGS,
    BATCH_KEY,
    BATCH_DISPOSITION,
    BATCH_RECORD,
    BATCH_SEQUENCE,
    BATCH_OLD_TIME,
    BATCH_FRAUD,
    BATCH_WATERMARK,
    CHANGE_ROW,
    CHANGE_RECORD,
    CHANGE_TIME,
    CHANGE_SEQUENCE,
    CHANGE_FRAUD,
    OUT,
) = range(43, 60)
# ... and room to work in.
(
    STATE,
    TEMPORARY,
    SEEN_KEY,
    SEEN_MARK,
    COUNTS,
    MERGED,
    ESTIMATES,
    ESTIMATE_AT,
    PANE_AHEAD,  # int32 [AHEAD]: how far the panes of rows to come have been asked for
    SCALARS,
) = range(60, 70)
TABLE = 70

# META: tops of the pools, heads of the lists of free places, of parts to be taken apart, and where the sweep stands
FEW_TOP, EVENT_TOP, ROW_TOP, CHUNK_TOP, SKETCH_TOP = range(5)
FREE_EVENT, FREE_ROW, FREE_CHUNK, FREE_SKETCH, GARBAGE, FREE_RUN = range(5, 11)
RUN_SIZES = 26  # runs of 2^0, 2^1, ... places
RUN_BLOCK = 6  # new ones are cut from blocks of 2^6
LIVE_FEW, LIVE_EVENTS, LIVE_ROWS, HAND = range(FREE_RUN + RUN_SIZES, FREE_RUN + RUN_SIZES + 4)
META_LENGTH = FREE_RUN + RUN_SIZES + 4
# SCALARS: settings, widths, lengths
PANE_US, RETENTION, CORRECTION, VALUES, KEYS, LANES, GROUPS, TELLINGS, COUNT_WIDTH, FLOAT_WIDTH = range(10)
HAS_FRAUD, COLUMNS, ROWS, CHANGES, FEW_ROOM, EVENT_ROOM, ROW_ROOM, CHUNK_ROOM, SKETCH_ROOM = range(10, 19)
MARK, SEEN, WAITING, DISTINCTS, SKETCHES_WANTED, FEW_WIDTH, FEW_SPARE = range(19, 26)
SCALARS_LENGTH = 26
START, LENGTH, ROOM, BUSY = range(4)

# A state in the making: count, frauds, sum, M2 to M6, minimum, maximum.
N, FRAUDS, SUM_AT, M2_AT, LOW, HIGH, WIDTH = 0, 1, 2, 3, 8, 9, 10
FEW_MAX = 4  # events a pane holds without a row
PART = 1024  # events in a log
CAP = 1024  # distinct keys in the rows of an entity
REGISTERS = 4096
ESTIMATE_ROOM = 256
SPARE = 8
SPARE_CHUNKS = 2 * (CAP // 8) + 64
FRAUD_BIT = 30
DONE, MORE_ROOM, ESTIMATE = range(3)
(
    COUNT,
    SUM,
    MEAN,
    VARIANCE,
    STD,
    SKEWNESS,
    KURTOSIS,
    MOMENT,
    MIN,
    MAX,
    RANGE,
    RATE,
    DISTINCT,
    SINCE_FIRST,
    SINCE_LAST,
) = range(15)
MISSING_ENTITY, FOREIGN_ENTITY = -1, -2
_TOKENS = (1 << 30) - 1  # of arrival numbers: what tells events of one record apart
AHEAD = 8  # rows looked ahead
_NOISE = 1e-12  # a spread this much smaller than the mean is rounding

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    """A helper that only kernels call (and are cached with)."""
    options = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(_Function, cast(Any, numba.njit)(**options)(function))


def _entry(function: _Function) -> _Function:
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))


@_compiled
def _i4(at: int, entry: int) -> NDArray[np.int32]:
    return ints(longs(at)[entry])


@_compiled
def _i8(at: int, entry: int) -> NDArray[np.int64]:
    return longs(longs(at)[entry])


@_compiled
def _f8(at: int, entry: int) -> NDArray[np.float64]:
    return floats(longs(at)[entry])


@_compiled
def _u8(at: int, entry: int) -> NDArray[np.uint64]:
    return keys(longs(at)[entry])


@_compiled
def _u1(at: int, entry: int) -> NDArray[np.uint8]:
    return octets(longs(at)[entry])


@_compiled
def _scalar(at: int, entry: int) -> int:
    return _i8(at, SCALARS)[entry]


@_compiled
def _place(at: int, entry: int, number: int, width: int) -> int:
    """Address of the ``number``-th group of ``width`` eight-byte values of an array."""
    return longs(at)[entry] + 8 * width * number


# ---- states -------------------------------------------------------------------------------------------------------


@_compiled
def _clear(into: int) -> None:
    state = floats(into)
    for j in range(WIDTH):
        state[j] = 0.0


@_compiled
def _power(x: float, p: int) -> float:
    """``x ** p`` for ``p`` > 1, in the same order of multiplication, without a loop for the usual ones."""
    if p == 2:
        return x * x
    if p == 3:
        return x * (x * x)
    return x**p


@_compiled
def _merge(into: int, source: int, order: int, extremes: int) -> None:
    """Merge one state into another: Pebay (2008), equation 2.1, for central moments of any order."""
    a = floats(into)
    b = floats(source)
    count_a = a[N]
    count_b = b[N]
    if count_b == 0.0:
        return
    if count_a == 0.0:
        for j in range(WIDTH):
            a[j] = b[j]
        return
    count = count_a + count_b
    if order >= 2:
        difference = b[SUM_AT] / count_b - a[SUM_AT] / count_a
        left = -count_b / count * difference
        right = count_a / count * difference
        for p in range(order, 1, -1):
            total = a[M2_AT + p - 2] + b[M2_AT + p - 2]
            choose = 1.0
            left_power = 1.0
            right_power = 1.0
            for k in range(1, p - 1):
                choose = choose * (p - k + 1) / k
                left_power *= left
                right_power *= right
                total += choose * (left_power * a[M2_AT + p - k - 2] + right_power * b[M2_AT + p - k - 2])
            # what the two means alone contribute: every event at its mean
            total += count_a * _power(left, p) + count_b * _power(right, p)
            a[M2_AT + p - 2] = total
    a[N] = count
    a[FRAUDS] += b[FRAUDS]
    a[SUM_AT] += b[SUM_AT]
    if extremes:
        a[LOW] = min(a[LOW], b[LOW])
        a[HIGH] = max(a[HIGH], b[HIGH])


@_compiled
def _add(at: int, lane: int, into: int, flags: int, value_at: int) -> None:
    """Add one event to the state of a lane at ``into``, unless it fails the filter or has no value."""
    if (flags >> _i4(at, LANE_BIT)[lane]) & 1 == 0:
        return
    column = _i4(at, LANE_VALUE)[lane]
    x = floats(value_at)[column] if column >= 0 else 0.0
    if x != x:
        return
    order = _i4(at, LANE_ORDER)[lane]
    if order <= 1:
        state = floats(into)
        if state[N] == 0.0:
            state[LOW] = x
            state[HIGH] = x
        elif x < state[LOW]:
            state[LOW] = x
        elif x > state[HIGH]:
            state[HIGH] = x
        state[N] += 1.0
        state[SUM_AT] += x
        if (flags >> FRAUD_BIT) & 1:
            state[FRAUDS] += 1.0
        return
    single = _f8(at, TEMPORARY)
    for j in range(WIDTH):
        single[WIDTH + j] = 0.0
    single[WIDTH + N] = 1.0
    single[WIDTH + FRAUDS] = float((flags >> FRAUD_BIT) & 1)
    single[WIDTH + SUM_AT] = x
    single[WIDTH + LOW] = x
    single[WIDTH + HIGH] = x
    _merge(into, _place(at, TEMPORARY, 1, WIDTH), order, 1)


@_compiled
def _load(at: int, row: int, lane: int, into: int) -> None:
    """Unpack the state of a row's lane."""
    state = floats(into)
    count_at = row * _scalar(at, COUNT_WIDTH) + _i4(at, LANE_COUNT_AT)[lane]
    float_at = row * _scalar(at, FLOAT_WIDTH) + _i4(at, LANE_FLOAT_AT)[lane]
    order = _i4(at, LANE_ORDER)[lane]
    row_count = counts(longs(at)[ROW_COUNT])
    row_float = _f8(at, ROW_FLOAT)
    state[N] = float(row_count[count_at])
    state[FRAUDS] = float(row_count[count_at + 1]) if _i4(at, LANE_FRAUD)[lane] else 0.0
    for j in range(order):
        state[SUM_AT + j] = row_float[float_at + j]
    if _i4(at, LANE_EXTREMES)[lane]:
        state[LOW] = row_float[float_at + order]
        state[HIGH] = row_float[float_at + order + 1]


@_compiled
def _store(at: int, row: int, lane: int, source: int) -> None:
    state = floats(source)
    count_at = row * _scalar(at, COUNT_WIDTH) + _i4(at, LANE_COUNT_AT)[lane]
    float_at = row * _scalar(at, FLOAT_WIDTH) + _i4(at, LANE_FLOAT_AT)[lane]
    order = _i4(at, LANE_ORDER)[lane]
    row_count = counts(longs(at)[ROW_COUNT])
    row_float = _f8(at, ROW_FLOAT)
    row_count[count_at] = np.uint32(state[N])
    if _i4(at, LANE_FRAUD)[lane]:
        row_count[count_at + 1] = np.uint32(state[FRAUDS])
    for j in range(order):
        row_float[float_at + j] = state[SUM_AT + j]
    if _i4(at, LANE_EXTREMES)[lane]:
        row_float[float_at + order] = state[LOW]
        row_float[float_at + order + 1] = state[HIGH]


# ---- distinct keys ------------------------------------------------------------------------------------------------


@_compiled
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@_compiled
def _finish(x: np.uint64) -> np.uint64:
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


@_compiled
def _register(registers: int, key: np.uint64) -> None:
    """Put a key into HyperLogLog registers as DataSketches does: MurmurHash3 x64 128 of its eight bytes, seed 9001."""
    first = np.uint64(9001)
    first ^= _rotate(key * np.uint64(0x87C37B91114253D5), 31) * np.uint64(0x4CF5AD432745937F)
    second = np.uint64(9001) ^ np.uint64(8)
    first ^= np.uint64(8)
    first += second
    second += first
    first = _finish(first)
    second = _finish(second)
    first += second
    second += first
    zeros = 1
    while zeros < 63 and (second >> np.uint64(64 - zeros)) == np.uint64(0):
        zeros += 1
    place = np.int64(first & np.uint64(REGISTERS - 1))
    own = octets(registers)
    if zeros > own[place]:
        own[place] = np.uint8(zeros)


@_compiled
def _sketch_at(at: int, head: int) -> int:
    """Address of the registers that a set's ``head`` of -2 - s stands for."""
    return longs(at)[SKETCH] + REGISTERS * (-2 - head)


@_compiled
def _union(into: int, source: int) -> None:
    a = octets(into)
    b = octets(source)
    for j in range(REGISTERS):
        if b[j] > a[j]:
            a[j] = b[j]


@_compiled
def _new_sketch(at: int) -> int:
    meta = _i8(at, META)
    sketch = meta[FREE_SKETCH]
    if sketch >= 0:
        meta[FREE_SKETCH] = _i4(at, SKETCH_NEXT)[sketch]
    else:
        sketch = meta[SKETCH_TOP]
        meta[SKETCH_TOP] += 1
    head = -2 - sketch
    registers = octets(_sketch_at(at, head))
    for j in range(REGISTERS):
        registers[j] = np.uint8(0)
    return head


@_compiled
def _see(at: int, stamp: int, key: np.uint64) -> bool:
    """Whether a key is met for the first time under ``stamp``; stamps below MARK are forgotten."""
    if key == np.uint64(0):
        return False
    seen_key = _u8(at, SEEN_KEY)
    seen_mark = _i8(at, SEEN_MARK)
    mark = _scalar(at, MARK)
    size = _scalar(at, SEEN)
    mixed = (key ^ (np.uint64(stamp) << np.uint64(40))) * np.uint64(0x9E3779B97F4A7C15)
    place = np.int64(mixed >> np.uint64(20)) & (size - 1)
    while seen_mark[place] >= mark:
        if seen_mark[place] == stamp and seen_key[place] == key:
            return False
        place = (place + 1) & (size - 1)
    seen_mark[place] = stamp
    seen_key[place] = key
    return True


@_compiled
def _set_append(at: int, entry: int, key: np.uint64) -> None:
    """Put a key that is not in it into the exact set at ``entry`` of ROW_SET."""
    row_set = _i4(at, ROW_SET)
    size = row_set[entry + 1]
    if size & 7 == 0:
        meta = _i8(at, META)
        chunk_next = _i4(at, CHUNK_NEXT)
        chunk = meta[FREE_CHUNK]
        if chunk >= 0:
            meta[FREE_CHUNK] = chunk_next[chunk]
        else:
            chunk = meta[CHUNK_TOP]
            meta[CHUNK_TOP] += 1
        chunk_next[chunk] = row_set[entry]
        row_set[entry] = chunk
    _u8(at, CHUNK)[8 * row_set[entry] + (size & 7)] = key
    row_set[entry + 1] = size + 1


@_compiled
def _set_add(at: int, entry: int, key: np.uint64) -> int:
    """Put a key into the set at ``entry`` of ROW_SET; 1 if the set is exact and did not have it."""
    row_set = _i4(at, ROW_SET)
    head = row_set[entry]
    if key == np.uint64(0):
        return 0
    if head <= -2:
        _register(_sketch_at(at, head), key)
        return 0
    chunk_keys = _u8(at, CHUNK)
    left = row_set[entry + 1]
    chunk = head
    while left > 0:
        inside = (left - 1) % 8 + 1
        for j in range(inside):
            if chunk_keys[8 * chunk + j] == key:
                return 0
        left -= inside
        chunk = _i4(at, CHUNK_NEXT)[chunk]
    _set_append(at, entry, key)
    return 1


@_compiled
def _set_tell(at: int, entry: int, stamp: int, registers: int) -> int:
    """Go through a set: into ``registers`` if that is an address, else how many keys are new under ``stamp``."""
    row_set = _i4(at, ROW_SET)
    head = row_set[entry]
    if head <= -2:
        _union(registers, _sketch_at(at, head))
        return 0
    chunk_keys = _u8(at, CHUNK)
    left = row_set[entry + 1]
    chunk = head
    fresh = 0
    while left > 0:
        inside = (left - 1) % 8 + 1
        for j in range(inside):
            if registers != 0:
                _register(registers, chunk_keys[8 * chunk + j])
            elif _see(at, stamp, chunk_keys[8 * chunk + j]):
                fresh += 1
        left -= inside
        chunk = _i4(at, CHUNK_NEXT)[chunk]
    return fresh


@_compiled
def _set_join(at: int, entry: int, source: int, stamp: int) -> None:
    """Put what the set at ``source`` holds and ``stamp`` has not seen into the one at ``entry``."""
    row_set = _i4(at, ROW_SET)
    if row_set[source] <= -2:
        _union(_sketch_at(at, row_set[entry]), _sketch_at(at, row_set[source]))
        return
    left = row_set[source + 1]
    chunk = row_set[source]
    while left > 0:
        inside = (left - 1) % 8 + 1
        for j in range(inside):
            key = _u8(at, CHUNK)[8 * chunk + j]
            if _see(at, stamp, key):
                _set_append(at, entry, key)
        left -= inside
        chunk = _i4(at, CHUNK_NEXT)[chunk]


@_compiled
def _set_free(at: int, entry: int) -> None:
    """Empty the set at ``entry`` of ROW_SET and give its room back."""
    row_set = _i4(at, ROW_SET)
    meta = _i8(at, META)
    head = row_set[entry]
    if head <= -2:
        _i4(at, SKETCH_NEXT)[-2 - head] = meta[FREE_SKETCH]
        meta[FREE_SKETCH] = -2 - head
    elif head >= 0:
        chunk_next = _i4(at, CHUNK_NEXT)
        last = head
        for _ in range((row_set[entry + 1] - 1) // 8):
            last = chunk_next[last]
        chunk_next[last] = meta[FREE_CHUNK]
        meta[FREE_CHUNK] = head
    row_set[entry] = -1
    row_set[entry + 1] = 0


# ---- the few events of quiet panes --------------------------------------------------------------------------------


@_compiled
def _few_at(at: int, slot: int) -> int:
    """Address of an event of a run: index, flags, record, token; then its values and keys."""
    return longs(at)[FEW] + 8 * _scalar(at, FEW_WIDTH) * slot


@_compiled
def _copy_few(at: int, source: int, target: int) -> None:
    a = longs(_few_at(at, source))
    b = longs(_few_at(at, target))
    for j in range(_scalar(at, FEW_WIDTH)):
        b[j] = a[j]


@_compiled
def _list_run(at: int, start: int, room: int) -> None:
    """Put a run on the list of free ones of its size."""
    heads = _i8(at, META)
    run = longs(_few_at(at, start))
    following = heads[FREE_RUN + room]
    run[0] = following
    run[1] = -1
    if following >= 0:
        longs(_few_at(at, following))[1] = start
    heads[FREE_RUN + room] = start
    _u1(at, FEW_FREE)[start] = np.uint8(room + 1)


@_compiled
def _unlist_run(at: int, start: int, room: int) -> None:
    heads = _i8(at, META)
    run = longs(_few_at(at, start))
    if run[1] >= 0:
        longs(_few_at(at, run[1]))[0] = run[0]
    else:
        heads[FREE_RUN + room] = run[0]
    if run[0] >= 0:
        longs(_few_at(at, run[0]))[1] = run[1]
    _u1(at, FEW_FREE)[start] = np.uint8(0)


@_compiled
def _free_run(at: int, start: int, room: int) -> None:
    """Give back a run of 2^room places, joined with its buddy if that is free (Knowlton 1965)."""
    free = _u1(at, FEW_FREE)
    top = _i8(at, META)[FEW_TOP]
    while room + 1 < RUN_SIZES:
        buddy = start ^ (1 << room)
        if buddy >= top or free[buddy] != room + 1:
            break
        _unlist_run(at, buddy, room)
        start = min(start, buddy)
        room += 1
    _list_run(at, start, room)


@_compiled
def _take_run(at: int, room: int) -> int:
    """A run of 2^room places at a multiple of its size: the half, quarter, ... of a larger free one, or new."""
    meta = _i8(at, META)
    size = max(room, RUN_BLOCK)
    have = room
    while have < RUN_SIZES and meta[FREE_RUN + have] < 0:
        have += 1
    if have < RUN_SIZES:
        start = meta[FREE_RUN + have]
        _unlist_run(at, start, have)
    else:
        have = size
        while meta[FEW_TOP] & ((1 << size) - 1):
            start = meta[FEW_TOP]
            meta[FEW_TOP] += 1 << RUN_BLOCK
            _free_run(at, start, RUN_BLOCK)
        start = meta[FEW_TOP]
        meta[FEW_TOP] += 1 << size
    while have > room:
        have -= 1
        _list_run(at, start + (1 << have), have)
    return start


@_compiled
def _move_run(at: int, entity: int, room: int) -> None:
    """Give an entity's run another size."""
    own = ints(_entity_at(at, entity))
    target = _take_run(at, room)
    for j in range(own[LENGTH]):
        _copy_few(at, own[START] + j, target + j)
    _free_run(at, own[START], own[ROOM])
    own[START] = target
    own[ROOM] = room


@_compiled
def _entity_at(at: int, entity: int) -> int:
    return longs(at)[ENTITY] + 16 * entity


@_compiled
def _cut_run(at: int, entity: int, place: int, count: int) -> None:
    """Take ``count`` events out of an entity's run."""
    own = ints(_entity_at(at, entity))
    start = own[START]
    length = own[LENGTH] - count
    for j in range(place, length):
        _copy_few(at, start + j + count, start + j)
    own[LENGTH] = length
    _i8(at, META)[LIVE_FEW] -= count
    if length == 0:
        _free_run(at, start, own[ROOM])
        own[START] = -1
    elif length * 4 <= 1 << own[ROOM]:
        _move_run(at, entity, own[ROOM] - 1)


@_compiled
def _put_few(at: int, entity: int, place: int, index: int, i: int) -> None:
    """Put row ``i`` at a place of an entity's run."""
    own = ints(_entity_at(at, entity))
    if own[START] < 0:
        own[START] = _take_run(at, 0)
        own[ROOM] = 0
        own[LENGTH] = 0
    elif own[LENGTH] == 1 << own[ROOM]:
        _move_run(at, entity, own[ROOM] + 1)
    start = own[START]
    for j in range(own[LENGTH], place, -1):
        _copy_few(at, start + j - 1, start + j)
    own[LENGTH] += 1
    _i8(at, META)[LIVE_FEW] += 1
    record = _i4(at, BATCH_RECORD)[i]
    token = np.int32(_i8(at, BATCH_SEQUENCE)[i] & _TOKENS)
    here = _few_at(at, start + place)
    head = ints(here)
    head[0] = index
    head[1] = _i4(at, BATCH_FLAGS)[i]
    head[2] = record
    head[3] = token
    _i4(at, EVENT_OF)[record] = -2 - token
    values = _scalar(at, VALUES)
    width = _scalar(at, KEYS)
    into = longs(here + 16)
    value_at = longs(_place(at, BATCH_VALUE, i, values))
    key_at = longs(_place(at, BATCH_KEY, i, width))
    for j in range(values):
        into[j] = value_at[j]
    for j in range(width):
        into[values + j] = key_at[j]


@_compiled
def _find_few(at: int, entity: int, record: int) -> int:
    """The place in an entity's run of the event that a record stands for."""
    own = ints(_entity_at(at, entity))
    token = -2 - _i4(at, EVENT_OF)[record]
    place = own[LENGTH] - 1
    while True:
        head = ints(_few_at(at, own[START] + place))
        if head[2] == record and head[3] == token:
            return place
        place -= 1


# ---- events and rows of busy panes --------------------------------------------------------------------------------


@_compiled
def _log_event(at: int, home: int, flags: int, value_at: int, key_at: int) -> int:
    """Put an event into the log of a row; its number."""
    meta = _i8(at, META)
    events = _i4(at, EVENT)
    rows = _i4(at, ROW)
    event = meta[FREE_EVENT]
    if event >= 0:
        meta[FREE_EVENT] = events[3 * event]
    else:
        event = meta[EVENT_TOP]
        meta[EVENT_TOP] += 1
    meta[LIVE_EVENTS] += 1
    events[3 * event] = rows[5 * home + 2]
    events[3 * event + 1] = flags
    events[3 * event + 2] = home
    rows[5 * home + 2] = event
    rows[5 * home + 3] += 1
    values = _scalar(at, VALUES)
    width = _scalar(at, KEYS)
    for column in range(values):
        _f8(at, EVENT_VALUE)[event * values + column] = floats(value_at)[column]
    for column in range(width):
        _u8(at, EVENT_KEY)[event * width + column] = keys(key_at)[column]
    return event


@_compiled
def _free_event(at: int, event: int) -> None:
    meta = _i8(at, META)
    _i4(at, EVENT)[3 * event] = meta[FREE_EVENT]
    meta[FREE_EVENT] = event
    meta[LIVE_EVENTS] -= 1


@_compiled
def _empty_row(at: int, row: int, entity: int) -> None:
    """Zero the states of a row; its sets become what the entity has, sets or sketches."""
    count_width = _scalar(at, COUNT_WIDTH)
    float_width = _scalar(at, FLOAT_WIDTH)
    row_count = counts(longs(at)[ROW_COUNT])
    row_float = _f8(at, ROW_FLOAT)
    for j in range(row * count_width, (row + 1) * count_width):
        row_count[j] = np.uint32(0)
    for j in range(row * float_width, (row + 1) * float_width):
        row_float[j] = 0.0
    tellings = _scalar(at, TELLINGS)
    for telling in range(tellings):
        entry = 2 * (row * tellings + telling)
        _set_free(at, entry)
        if (_i4(at, ENTITY_SKETCHED)[entity] >> telling) & 1:
            _i4(at, ROW_SET)[entry] = _new_sketch(at)


@_compiled
def _new_row(at: int, entity: int, index: int) -> int:
    meta = _i8(at, META)
    rows = _i4(at, ROW)
    row = meta[FREE_ROW]
    if row >= 0:
        meta[FREE_ROW] = rows[5 * row]
    else:
        row = meta[ROW_TOP]
        meta[ROW_TOP] += 1
    meta[LIVE_ROWS] += 1
    tellings = _scalar(at, TELLINGS)
    for telling in range(tellings):
        _i4(at, ROW_SET)[2 * (row * tellings + telling)] = -1
        _i4(at, ROW_SET)[2 * (row * tellings + telling) + 1] = 0
    for j in range(3):
        rows[5 * row + j] = -1
    rows[5 * row + 3] = 0
    rows[5 * row + 4] = index
    _empty_row(at, row, entity)
    return row


@_compiled
def _free_row(at: int, row: int) -> None:
    """Give a row without log and parts back."""
    meta = _i8(at, META)
    tellings = _scalar(at, TELLINGS)
    for telling in range(tellings):
        _set_free(at, 2 * (row * tellings + telling))
    _i4(at, ROW)[5 * row] = meta[FREE_ROW]
    meta[FREE_ROW] = row
    meta[LIVE_ROWS] -= 1


@_compiled
def _collect(at: int, budget: int) -> None:
    """Free at most ``budget`` events and parts that wait to be taken apart."""
    meta = _i8(at, META)
    rows = _i4(at, ROW)
    events = _i4(at, EVENT)
    for _ in range(budget):
        row = meta[GARBAGE]
        if row < 0:
            return
        event = rows[5 * row + 2]
        if event >= 0:
            rows[5 * row + 2] = events[3 * event]
            _free_event(at, event)
        else:
            meta[GARBAGE] = rows[5 * row]
            _free_row(at, row)


@_compiled
def _seal(at: int, row: int) -> None:
    """No event of this pane can change any more: let go of its parts or its log."""
    meta = _i8(at, META)
    rows = _i4(at, ROW)
    events = _i4(at, EVENT)
    part = rows[5 * row + 1]
    while part >= 0:
        following = rows[5 * part]
        rows[5 * part] = meta[GARBAGE]
        meta[GARBAGE] = part
        part = following
    rows[5 * row + 1] = -1
    event = rows[5 * row + 2]
    while event >= 0:  # no more than a part has
        following = events[3 * event]
        _free_event(at, event)
        event = following
    rows[5 * row + 2] = -1
    rows[5 * row + 3] = 0


@_compiled
def _count_keys(at: int, entity: int) -> None:
    """Recount the keys in the sets of an entity's rows; without a row its next sets begin as exact ones."""
    tellings = _scalar(at, TELLINGS)
    rows = _i4(at, ROW)
    for telling in range(tellings):
        total = 0
        row = ints(_entity_at(at, entity))[BUSY]
        while row >= 0:
            total += _i4(at, ROW_SET)[2 * (row * tellings + telling) + 1]
            row = rows[5 * row]
        _i4(at, ENTITY_KEYS)[entity * tellings + telling] = total
    if tellings and ints(_entity_at(at, entity))[BUSY] < 0:
        _i4(at, ENTITY_SKETCHED)[entity] = 0


@_compiled
def _find_row(at: int, entity: int, index: int) -> int:
    """The row of the pane of that index, or -1."""
    rows = _i4(at, ROW)
    row = ints(_entity_at(at, entity))[BUSY]
    while row >= 0 and rows[5 * row + 4] > index:
        row = rows[5 * row]
    return row if row >= 0 and rows[5 * row + 4] == index else -1


@_compiled
def _replace_row(at: int, entity: int, gone: int, by: int) -> None:
    """In an entity's list of busy panes put ``by`` where ``gone`` is."""
    own = ints(_entity_at(at, entity))
    rows = _i4(at, ROW)
    if own[BUSY] == gone:
        own[BUSY] = by
        return
    row = own[BUSY]
    while rows[5 * row] != gone:
        row = rows[5 * row]
    rows[5 * row] = by


@_compiled
def _tidy(at: int, entity: int, horizon: int, settled: int) -> None:
    """Free the panes that end at or before ``horizon``, seal those that end before ``settled``."""
    own = ints(_entity_at(at, entity))
    rows = _i4(at, ROW)
    width = _scalar(at, PANE_US)
    if own[START] >= 0:
        dead = 0
        while dead < own[LENGTH] and (ints(_few_at(at, own[START] + dead))[0] + 1) * width <= horizon:
            dead += 1
        if dead:
            _cut_run(at, entity, 0, dead)
    before = -1
    row = own[BUSY]
    while row >= 0:
        end = (rows[5 * row + 4] + 1) * width
        if end <= horizon:
            break
        if end < settled and (rows[5 * row + 1] >= 0 or rows[5 * row + 2] >= 0):
            _seal(at, row)
        before = row
        row = rows[5 * row]
    if row < 0:
        return
    if before < 0:
        own[BUSY] = -1
    else:
        rows[5 * before] = -1
    while row >= 0:
        following = rows[5 * row]
        _seal(at, row)
        _free_row(at, row)
        row = following
    _count_keys(at, entity)


@_compiled
def _row_add(at: int, row: int, flags: int, value_at: int, key_at: int, entity: int) -> None:
    """Add one event to a row; ``entity`` >= 0: the row is a pane's, so its entity's keys are counted."""
    state = _place(at, TEMPORARY, 0, WIDTH)
    for lane in range(_scalar(at, LANES)):
        _load(at, row, lane, state)
        _add(at, lane, state, flags, value_at)
        _store(at, row, lane, state)
    tellings = _scalar(at, TELLINGS)
    for telling in range(tellings):
        if (flags >> _i4(at, TELLING_BIT)[telling]) & 1:
            key = keys(key_at)[_i4(at, TELLING_KEY)[telling]]
            fresh = _set_add(at, 2 * (row * tellings + telling), key)
            if entity >= 0:
                _i4(at, ENTITY_KEYS)[entity * tellings + telling] += fresh


@_compiled
def _row_merge(at: int, row: int, source: int) -> None:
    """Merge the states, not the sets, of a row into another."""
    into = _place(at, TEMPORARY, 0, WIDTH)
    other = _place(at, TEMPORARY, 1, WIDTH)
    for lane in range(_scalar(at, LANES)):
        _load(at, row, lane, into)
        _load(at, source, lane, other)
        _merge(into, other, _i4(at, LANE_ORDER)[lane], _i4(at, LANE_EXTREMES)[lane])
        _store(at, row, lane, into)


@_compiled
def _fold_parts(at: int, row: int, entity: int) -> None:
    """Compute a pane's row from its parts."""
    rows = _i4(at, ROW)
    scalars = _i8(at, SCALARS)
    tellings = scalars[TELLINGS]
    _empty_row(at, row, entity)
    scalars[MARK] += tellings
    part = rows[5 * row + 1]
    while part >= 0:
        _row_merge(at, row, part)
        for telling in range(tellings):
            entry = 2 * (row * tellings + telling)
            _set_join(at, entry, 2 * (part * tellings + telling), scalars[MARK] + telling)
        part = rows[5 * part]


@_compiled
def _fold_log(at: int, row: int, entity: int) -> None:
    """Compute a row from the events of its log."""
    events = _i4(at, EVENT)
    _empty_row(at, row, entity)
    event = _i4(at, ROW)[5 * row + 2]
    while event >= 0:
        value_at = _place(at, EVENT_VALUE, event, _scalar(at, VALUES))
        key_at = _place(at, EVENT_KEY, event, _scalar(at, KEYS))
        _row_add(at, row, events[3 * event + 1], value_at, key_at, -1)
        event = events[3 * event]


# ---- changes ------------------------------------------------------------------------------------------------------


@_compiled
def _raise_row(at: int, entity: int, index: int, place: int) -> int:
    """Give the pane whose FEW_MAX events stand in the run from ``place`` a row; they become its log."""
    rows = _i4(at, ROW)
    own = ints(_entity_at(at, entity))
    row = _new_row(at, entity, index)
    values = _scalar(at, VALUES)
    for j in range(FEW_MAX):
        here = _few_at(at, own[START] + place + j)
        head = ints(here)
        event = _log_event(at, row, head[1], here + 16, here + 16 + 8 * values)
        if (
            _i4(at, EVENT_OF)[head[2]] == -2 - head[3]
        ):  # else its record has been forgotten and stands for another
            _i4(at, EVENT_OF)[head[2]] = event
    _fold_log(at, row, entity)
    _cut_run(at, entity, place, FEW_MAX)
    before = -1
    following = own[BUSY]
    while following >= 0 and rows[5 * following + 4] > index:
        before = following
        following = rows[5 * following]
    rows[5 * row] = following
    if before < 0:
        own[BUSY] = row
    else:
        rows[5 * before] = row
    _count_keys(at, entity)
    return row


@_compiled
def _begin_part(at: int, entity: int, row: int) -> int:
    """The log in use of a pane's row is full: begin the next part. The pane's row."""
    rows = _i4(at, ROW)
    if rows[5 * row + 1] < 0:  # the row itself becomes the first part
        total = _new_row(at, entity, rows[5 * row + 4])
        _replace_row(at, entity, row, total)
        rows[5 * total] = rows[5 * row]
        rows[5 * row] = -1
        rows[5 * total + 1] = row
        _fold_parts(at, total, entity)
        row = total
    fresh = _new_row(at, entity, rows[5 * row + 4])
    rows[5 * fresh] = rows[5 * row + 1]
    rows[5 * row + 1] = fresh
    return row


@_compiled
def _insert(at: int, entity: int, i: int) -> None:
    rows = _i4(at, ROW)
    own = ints(_entity_at(at, entity))
    index = (_i8(at, BATCH_TIME)[i] - 1) // _scalar(at, PANE_US)
    record = _i4(at, BATCH_RECORD)[i]
    flags = _i4(at, BATCH_FLAGS)[i]
    _i4(at, ENTITY_OF)[record] = entity
    if _scalar(at, HAS_FRAUD):
        _i4(at, FLAGS_OF)[record] = flags
    row = _find_row(at, entity, index)
    if row < 0:
        place = own[LENGTH] if own[START] >= 0 else 0
        while place > 0 and ints(_few_at(at, own[START] + place - 1))[0] > index:
            place -= 1
        same = 0
        while same < place and ints(_few_at(at, own[START] + place - 1 - same))[0] == index:
            same += 1
        if same < FEW_MAX:
            _put_few(at, entity, place, index, i)
            return
        row = _raise_row(at, entity, index, place - FEW_MAX)
    part = rows[5 * row + 1]
    if rows[5 * (row if part < 0 else part) + 3] == PART:
        row = _begin_part(at, entity, row)
        part = rows[5 * row + 1]
    value_at = _place(at, BATCH_VALUE, i, _scalar(at, VALUES))
    key_at = _place(at, BATCH_KEY, i, _scalar(at, KEYS))
    _row_add(at, row, flags, value_at, key_at, entity)
    if part >= 0:
        _row_add(at, part, flags, value_at, key_at, -1)
    _i4(at, EVENT_OF)[record] = _log_event(at, row if part < 0 else part, flags, value_at, key_at)


@_compiled
def _unlog(at: int, home: int, event: int) -> None:
    """Take an event out of the log of a row."""
    rows = _i4(at, ROW)
    events = _i4(at, EVENT)
    if rows[5 * home + 2] == event:
        rows[5 * home + 2] = events[3 * event]
    else:
        here = rows[5 * home + 2]
        while events[3 * here] != event:
            here = events[3 * here]
        events[3 * here] = events[3 * event]
    rows[5 * home + 3] -= 1
    _free_event(at, event)


@_compiled
def _remove(at: int, record: int, time: int, horizon: int) -> None:
    """Take the event of a record, which is at ``time``, out of its pane."""
    rows = _i4(at, ROW)
    entity = _i4(at, ENTITY_OF)[record]
    index = (time - 1) // _scalar(at, PANE_US)
    if entity < 0 or (index + 1) * _scalar(at, PANE_US) <= horizon:
        return
    event = _i4(at, EVENT_OF)[record]
    if event < 0:
        _cut_run(at, entity, _find_few(at, entity, record), 1)
        return
    row = _find_row(at, entity, index)
    home = _i4(at, EVENT)[3 * event + 2]
    _unlog(at, home, event)
    left = rows[5 * home + 3]
    part = rows[5 * row + 1]
    while part >= 0 and left == 0:
        left += rows[5 * part + 3]
        part = rows[5 * part]
    if left == 0:
        _replace_row(at, entity, row, rows[5 * row])
        _seal(at, row)
        _free_row(at, row)
    else:
        _fold_log(at, home, entity)
        if home != row:
            _fold_parts(at, row, entity)
    _count_keys(at, entity)


@_compiled
def _recount_fraud(at: int, row: int, flags: int, fraud: int) -> None:
    for lane in range(_scalar(at, LANES)):
        if _i4(at, LANE_FRAUD)[lane] and (flags >> _i4(at, LANE_BIT)[lane]) & 1:
            count_at = row * _scalar(at, COUNT_WIDTH) + _i4(at, LANE_COUNT_AT)[lane] + 1
            row_count = counts(longs(at)[ROW_COUNT])
            row_count[count_at] = np.uint32(np.int64(row_count[count_at]) + (1 if fraud else -1))


@_compiled
def _change_outcome(at: int, record: int, time: int, fraud: int, horizon: int) -> None:
    """The outcome of an event at ``time`` is now the opposite. Counts of events can be corrected one by one."""
    entity = _i4(at, ENTITY_OF)[record]
    index = (time - 1) // _scalar(at, PANE_US)
    if entity < 0 or (index + 1) * _scalar(at, PANE_US) <= horizon:
        return
    event = _i4(at, EVENT_OF)[record]
    if event < 0:
        place = ints(_entity_at(at, entity))[START] + _find_few(at, entity, record)
        head = ints(_few_at(at, place))
        head[1] = (head[1] & ~(1 << FRAUD_BIT)) | (fraud << FRAUD_BIT)
        return
    rows = _i4(at, ROW)
    row = _find_row(at, entity, index)
    _recount_fraud(at, row, _i4(at, FLAGS_OF)[record], fraud)
    if rows[5 * row + 1] < 0 and rows[5 * row + 2] < 0:
        return  # sealed: the event itself is gone
    events = _i4(at, EVENT)
    home = events[3 * event + 2]
    if home != row:
        _recount_fraud(at, home, _i4(at, FLAGS_OF)[record], fraud)
    events[3 * event + 1] = (events[3 * event + 1] & ~(1 << FRAUD_BIT)) | (fraud << FRAUD_BIT)


@_compiled
def _convert(at: int, entity: int) -> bool:
    """Turn the sets of an entity that have grown beyond the cap into sketches; false when there is no room yet."""
    scalars = _i8(at, SCALARS)
    meta = _i8(at, META)
    rows = _i4(at, ROW)
    row_set = _i4(at, ROW_SET)
    tellings = scalars[TELLINGS]
    for telling in range(tellings):
        if _i4(at, ENTITY_KEYS)[entity * tellings + telling] <= CAP:
            continue
        for sure in range(2):
            wanted = 0
            busy = ints(_entity_at(at, entity))[BUSY]
            while busy >= 0:
                row = busy
                part = rows[5 * row + 1]
                while row >= 0:
                    wanted += 1
                    if sure:
                        entry = 2 * (row * tellings + telling)
                        head = _new_sketch(at)
                        _set_tell(at, entry, 0, _sketch_at(at, head))
                        _set_free(at, entry)
                        row_set[entry] = head
                    row = part
                    part = rows[5 * part] if part >= 0 else -1
                busy = rows[5 * busy]
            if not sure and meta[SKETCH_TOP] + wanted + SPARE * tellings > scalars[SKETCH_ROOM]:
                scalars[SKETCHES_WANTED] = wanted
                return False
        _i4(at, ENTITY_SKETCHED)[entity] |= 1 << telling
        _i4(at, ENTITY_KEYS)[entity * tellings + telling] = 0
    return True


# ---- queries ------------------------------------------------------------------------------------------------------


@_compiled
def _tell(at: int, entity: int, telling: int, key: np.uint64) -> None:
    """Count one key for the query at hand."""
    if (_i4(at, ENTITY_SKETCHED)[entity] >> telling) & 1:
        if key != np.uint64(0):
            _register(longs(at)[MERGED] + REGISTERS * telling, key)
    elif _see(at, _scalar(at, MARK) + telling, key):
        _i8(at, COUNTS)[telling] += 1


@_compiled
def _gather_event(at: int, entity: int, group: int, flags: int, value_at: int, key_at: int) -> None:
    group_lanes = _i4(at, GROUP_LANES)
    for k in range(group_lanes[group], group_lanes[group + 1]):
        lane = _i4(at, LANES_USED)[k]
        _add(at, lane, _place(at, STATE, lane, WIDTH), flags, value_at)
    group_tellings = _i4(at, GROUP_TELLINGS)
    for k in range(group_tellings[group], group_tellings[group + 1]):
        telling = _i4(at, TELLINGS_USED)[k]
        if (flags >> _i4(at, TELLING_BIT)[telling]) & 1:
            _tell(at, entity, telling, keys(key_at)[_i4(at, TELLING_KEY)[telling]])


@_compiled
def _gather_row(at: int, entity: int, group: int, row: int) -> None:
    group_lanes = _i4(at, GROUP_LANES)
    other = _place(at, TEMPORARY, 0, WIDTH)
    for k in range(group_lanes[group], group_lanes[group + 1]):
        lane = _i4(at, LANES_USED)[k]
        _load(at, row, lane, other)
        _merge(_place(at, STATE, lane, WIDTH), other, _i4(at, LANE_ORDER)[lane], _i4(at, LANE_EXTREMES)[lane])
    group_tellings = _i4(at, GROUP_TELLINGS)
    tellings = _scalar(at, TELLINGS)
    for k in range(group_tellings[group], group_tellings[group + 1]):
        telling = _i4(at, TELLINGS_USED)[k]
        sketched = (_i4(at, ENTITY_SKETCHED)[entity] >> telling) & 1
        registers = longs(at)[MERGED] + REGISTERS * telling if sketched else 0
        entry = 2 * (row * tellings + telling)
        _i8(at, COUNTS)[telling] += _set_tell(at, entry, _scalar(at, MARK) + telling, registers)


@_compiled
def _value(kind: int, state_at: int, moment: int, time: int, empty: float) -> float:
    """A feature of the state of a lane; see ``scoring.features.spec`` for the formulas."""
    state = floats(state_at)
    n = state[N]
    if n == 0.0:
        return empty
    if kind == COUNT:
        return n
    if kind == RATE:
        return state[FRAUDS] / n
    if kind == SUM:
        return state[SUM_AT]
    mean = state[SUM_AT] / n
    if kind == MEAN:
        return mean
    if kind == MIN:
        return state[LOW]
    if kind == MAX:
        return state[HIGH]
    if kind == RANGE:
        return state[HIGH] - state[LOW]
    if kind == SINCE_FIRST:
        return (float(time) - state[LOW]) / 1e6
    if kind == SINCE_LAST:
        return (float(time) - state[HIGH]) / 1e6
    if kind == MOMENT:
        return state[M2_AT + moment - 2] / n
    if kind in (VARIANCE, STD):
        if n < 2.0:
            return empty
        variance = state[M2_AT] / (n - 1.0)
        return variance if kind == VARIANCE else np.sqrt(variance)
    second = state[M2_AT] / n
    if second <= (_NOISE * mean) ** 2:
        return empty
    if kind == SKEWNESS:
        return state[M2_AT + 1] / n / (second * np.sqrt(second))
    return state[M2_AT + 2] / n / (second * second) - 3.0


@_compiled
def _emit(at: int, i: int, entity: int, window: int) -> None:
    window_features = _i4(at, WINDOW_FEATURES)
    scalars = _i8(at, SCALARS)
    time = _i8(at, BATCH_TIME)[i]
    for f in range(window_features[window], window_features[window + 1]):
        kind = _i4(at, FEATURE_KIND)[f]
        lane = _i4(at, FEATURE_LANE)[f]
        value = _f8(at, FEATURE_EMPTY)[f]
        if kind != DISTINCT:
            state = _place(at, STATE, lane, WIDTH)
            value = _value(kind, state, _i4(at, FEATURE_MOMENT)[f], time, value)
        elif entity >= 0 and (_i4(at, ENTITY_SKETCHED)[entity] >> lane) & 1:
            source = octets(longs(at)[MERGED] + REGISTERS * lane)
            target = octets(longs(at)[ESTIMATES] + REGISTERS * scalars[WAITING])
            for j in range(REGISTERS):
                target[j] = source[j]
            _i8(at, ESTIMATE_AT)[2 * scalars[WAITING]] = i
            _i8(at, ESTIMATE_AT)[2 * scalars[WAITING] + 1] = f
            scalars[WAITING] += 1
        elif _i8(at, COUNTS)[lane] > 0:
            value = float(_i8(at, COUNTS)[lane])
        _f8(at, OUT)[i * scalars[COLUMNS] + _i4(at, FEATURE_COLUMN)[f]] = value


@_compiled
def _query(at: int, i: int, entity: int, horizon: int) -> None:
    """Write all features of row ``i``."""
    scalars = _i8(at, SCALARS)
    rows = _i4(at, ROW)
    width = scalars[PANE_US]
    tellings = scalars[TELLINGS]
    group_lanes = _i4(at, GROUP_LANES)
    group_windows = _i4(at, GROUP_WINDOWS)
    window_features = _i4(at, WINDOW_FEATURES)
    time = _i8(at, BATCH_TIME)[i]
    for group in range(scalars[GROUPS]):
        end = time - _i8(at, GROUP_DELAY)[group]
        for k in range(group_lanes[group], group_lanes[group + 1]):
            _clear(_place(at, STATE, _i4(at, LANES_USED)[k], WIDTH))
        scalars[MARK] += tellings
        for k in range(_i4(at, GROUP_TELLINGS)[group], _i4(at, GROUP_TELLINGS)[group + 1]):
            telling = _i4(at, TELLINGS_USED)[k]
            _i8(at, COUNTS)[telling] = 0
            if entity >= 0 and (_i4(at, ENTITY_SKETCHED)[entity] >> telling) & 1:
                registers = octets(longs(at)[MERGED] + REGISTERS * telling)
                for j in range(REGISTERS):
                    registers[j] = np.uint8(0)
        row = -1
        few = -1
        if entity >= 0:
            if not _u1(at, GROUP_EXCLUDE)[group]:
                value_at = _place(at, BATCH_VALUE, i, scalars[VALUES])
                key_at = _place(at, BATCH_KEY, i, scalars[KEYS])
                _gather_event(at, entity, group, _i4(at, BATCH_FLAGS)[i], value_at, key_at)
            own = ints(_entity_at(at, entity))
            newest = (end - 1) // width
            row = own[BUSY]
            while row >= 0 and rows[5 * row + 4] > newest:
                row = rows[5 * row]
            if own[START] >= 0:
                few = own[LENGTH] - 1
                while few >= 0 and ints(_few_at(at, own[START] + few))[0] > newest:
                    few -= 1
        for window in range(group_windows[group], group_windows[group + 1]):
            after = end - _i8(at, WINDOW_WIDTH)[window]
            if after < horizon:  # a correction from so far back that this window is not kept whole
                for f in range(window_features[window], window_features[window + 1]):
                    _f8(at, OUT)[i * scalars[COLUMNS] + _i4(at, FEATURE_COLUMN)[f]] = np.nan
                continue
            while row >= 0 and rows[5 * row + 4] >= after // width:
                _gather_row(at, entity, group, row)
                row = rows[5 * row]
            while few >= 0:
                here = _few_at(at, ints(_entity_at(at, entity))[START] + few)
                if ints(here)[0] < after // width:
                    break
                key_at = here + 16 + 8 * scalars[VALUES]
                _gather_event(at, entity, group, ints(here)[1], here + 16, key_at)
                few -= 1
            _emit(at, i, entity, window)


@_compiled
def _look_ahead(at: int, i: int) -> None:
    """Ask for the memory of rows to come: an entity first, then its run, then one busy pane after the other.

    Panes are a list: each is found in the one before it, so every row to come is a step further than at the last call.
    """
    entities = _i4(at, BATCH_ENTITY)
    rows = _scalar(at, ROWS)
    pane = _i4(at, PANE_AHEAD)
    if i + 2 * AHEAD < rows and entities[i + 2 * AHEAD] >= 0:
        prefetch(_entity_at(at, entities[i + 2 * AHEAD]))
    pane[(i + AHEAD) % AHEAD] = -1
    for ahead in range(1, AHEAD):
        row = pane[(i + ahead) % AHEAD]
        if row >= 0:
            row = _i4(at, ROW)[5 * row]
            pane[(i + ahead) % AHEAD] = row
            if row >= 0:
                _fetch_pane(at, row)
    if i + AHEAD < rows and entities[i + AHEAD] >= 0:
        own = ints(_entity_at(at, entities[i + AHEAD]))
        if own[START] >= 0:
            here = _few_at(at, own[START])
            for line in range(min(8, 1 + own[LENGTH] * _scalar(at, FEW_WIDTH) // 8)):
                prefetch(here + 64 * line)
        if own[BUSY] >= 0:
            pane[(i + AHEAD) % AHEAD] = own[BUSY]
            _fetch_pane(at, own[BUSY])


@_compiled
def _fetch_pane(at: int, row: int) -> None:
    """Ask for a busy pane's row."""
    prefetch(longs(at)[ROW] + 20 * row)
    prefetch(longs(at)[ROW_COUNT] + 4 * row * _scalar(at, COUNT_WIDTH))
    here = longs(at)[ROW_FLOAT] + 8 * row * _scalar(at, FLOAT_WIDTH)
    prefetch(here)
    prefetch(here + 8 * (_scalar(at, FLOAT_WIDTH) - 1))


@_entry
def advance(at: int, begin: int, change: int) -> tuple[int, int, int]:
    """Process rows from ``begin`` and outcome changes from ``change`` in order.

    Returns how far both have come and DONE, or what the caller must do before it continues from there: make room in
    the pools, or take the estimates that wait. Nothing has happened yet for the row it stops at.
    """
    scalars = _i8(at, SCALARS)
    meta = _i8(at, META)
    tellings = scalars[TELLINGS]
    for ahead in range(AHEAD):
        _i4(at, PANE_AHEAD)[ahead] = -1
    for i in range(begin, scalars[ROWS]):
        entity = _i4(at, BATCH_ENTITY)[i]
        if (
            meta[FEW_TOP] + scalars[FEW_SPARE] > scalars[FEW_ROOM]
            or meta[EVENT_TOP] + SPARE > scalars[EVENT_ROOM]
            or meta[ROW_TOP] + SPARE > scalars[ROW_ROOM]
            or meta[CHUNK_TOP] + SPARE_CHUNKS * tellings > scalars[CHUNK_ROOM]
            or meta[SKETCH_TOP] + SPARE * tellings > scalars[SKETCH_ROOM]
        ):
            return i, change, MORE_ROOM
        if scalars[WAITING] + scalars[DISTINCTS] > ESTIMATE_ROOM:
            return i, change, ESTIMATE
        _look_ahead(at, i)
        if entity >= 0 and ints(_entity_at(at, entity))[START] == -2:
            ints(_entity_at(at, entity))[START] = -1  # a swept slot has a new owner
        applied = _u1(at, BATCH_DISPOSITION)[i] <= 1
        if applied and entity >= 0 and tellings and not _convert(at, entity):
            return i, change, MORE_ROOM
        watermark = _i8(at, BATCH_WATERMARK)[i]
        horizon = watermark - scalars[RETENTION]
        while change < scalars[CHANGES] and _i8(at, CHANGE_ROW)[change] <= i:
            if scalars[HAS_FRAUD]:
                record = _i4(at, CHANGE_RECORD)[change]
                fraud = 1 if _u1(at, CHANGE_FRAUD)[change] else 0
                _change_outcome(at, record, _i8(at, CHANGE_TIME)[change], fraud, horizon)
            change += 1
        if not applied:
            continue
        record = _i4(at, BATCH_RECORD)[i]
        if _u1(at, BATCH_DISPOSITION)[i] == 1:
            _remove(at, record, _i8(at, BATCH_OLD_TIME)[i], horizon)
        _i4(at, ENTITY_OF)[record] = -1
        _collect(at, 8)
        if entity == FOREIGN_ENTITY:
            continue
        if entity >= 0:
            _tidy(at, entity, horizon, watermark - scalars[CORRECTION])
        _query(at, i, entity, horizon)
        if entity >= 0:
            width = scalars[PANE_US]
            if ((_i8(at, BATCH_TIME)[i] - 1) // width + 1) * width > horizon:
                _insert(at, entity, i)
    return scalars[ROWS], change, DONE


@_entry
def sweep(at: int, entities: int, horizon: int, settled: int, budget: int) -> NDArray[np.int32]:
    """Tidy the next ``budget`` of the entity slots [0, entities); the slots that have become free, int32."""
    meta = _i8(at, META)
    freed = np.empty(budget, np.int32)
    count = 0
    for _ in range(budget if entities > 0 else 0):
        hand = meta[HAND]
        if hand >= entities:
            hand = 0
        own = ints(_entity_at(at, hand))
        if own[START] >= 0 or own[BUSY] >= 0:
            _tidy(at, hand, horizon, settled)
        if own[START] == -1 and own[BUSY] < 0:
            own[START] = -2  # free: its key is gone
            freed[count] = hand
            count += 1
        meta[HAND] = hand + 1
    _collect(at, 16 * budget)
    return freed[:count]
