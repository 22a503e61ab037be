"""Numba kernels over one entity kind: every entity's events in a B+ tree of pooled arrays with cached aggregates.

An entity's tree holds its events by (time, arrival). Leaves are runs of 4, 16 or 64 slots; inner nodes have up to 32
children; every node caches a state per *lane*. A lane is a value column (or none, or a pair, or a category) seen
through a filter, and its state has only the parts that some feature needs:

    count, sum                      always (no sum in a lane without values)
    M2 .. M6                        sums of powers about the mean (Chan, Golub, LeVeque 1979; Pebay 2008)
    extremes                        least and greatest value
    clock, ends                     times, values of the first and the last event
    runs                            strictly rising and falling runs: at the start, at the end, the longest
    trend                           mean age, its M2 and its co-moment with the value; ages are from the last event

States of neighbouring stretches of time combine into that of both, so a window is the combination of O(32 levels)
cached states and two partly covered leaves. Nothing is ever subtracted from a float, a late event or a correction is
as local as a new one, and no event waits for the size of its entity. The shape is that of FiBA (Tangwongsan, Hirzel,
Schneider 2019) with wide leaves for the cache lines.

Three aggregations do not combine. Distinct values, entropy and quantiles are exact, by a scan, while a window has at
most SCAN events with a value. Beyond, distinct values are estimated by HyperLogLog (Flajolet and others 2007; 2^11
registers in inner nodes of at least SKETCH_FROM events; standard error 1.04 / sqrt(2^11) = 2.3 %; estimator of Ertl
2017), entropy and quantiles from a sample: every event has a lot, a hash of its place in arrival order, and a window of
n events takes those whose lots are below a limit that depends on n alone and lets through SAMPLE of them on average, or
up to a 32nd of an octave more (Bernoulli sampling; nodes keep lists of their events with the lowest lots). A quantile's
rank is then off by more than e with probability at most 2 exp(-SAMPLE (1 - exp(-2 e^2))) (Hoeffding 1963, over the
sample's size; e = 0.05: 3.4e-8); entropy over m categories has a bias of about log(1 + (m - 1) / SAMPLE), before the
Miller-Madow term, and a deviation of about log(SAMPLE) / sqrt(SAMPLE) (Paninski 2003).

Collecting thousands of events anew for every event of a hot entity would cost a tenth of a millisecond a window. What
was collected stays on a *shelf* (per window and lane) for the entity's next event, which takes off what the window left
behind and adds what is new; an event that came late moves it back, and the next one forth. The answer is to the bit
what collecting anew gives, so shelves are no state: nothing of them is saved.

What an entity's tree looks like depends on its own events alone, not on batches or shards: results are bit-identical
however a stream is cut.

All state is reached through one *table of addresses* (``at``): passing arrays, or tuples of them, to a helper makes
Numba copy their headers and count references, which cost ten times the work itself. The caller owns the arrays, keeps
them alive during a call and renews the table when one has moved. All helpers live in this file because Numba's cache
does not see edits of imported modules.
"""

# Array elements and Numba's code generators are untyped; what they are here is said by the table below.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core import types
from numpy.typing import NDArray

from scoring.features.prefetch import prefetch

LEAF = 64
FANOUT = 32
DEPTH = 16
SCAN = 4096  # events with a value that a window may have for an exact distinct count, entropy or quantile
SAMPLE = 3584  # events drawn on average, or somewhat more, where it has more
ALL = 1 << 32  # above every event's lot
STEPS = 32  # limits of the lots drawn fall by 2 ^ (-1 / STEPS)
LIST = 512  # events that a node keeps drawn
FEW = 12  # values up to which it is cheaper to move one by one
BACK = 192  # events that a shelf goes back by for one that came late
SHORT = 512  # events from which what is told of a window is carried over to its entity's next event
REGISTER_BITS = 11
REGISTERS = 1 << REGISTER_BITS
SKETCH_FROM = 512  # events from which an inner node keeps registers and lists

# Entries of the table: state ...
(
    SLOT,  # words of 8 bytes; a run of R slots: R times, R sequences, [R flags], then R of each value and key column
    NODE,  # [node, NODE_WORDS] words: see below
    CHILD,
    SKETCH_OF,  # a node's block in SKETCH, or -1
    SKETCH,  # [block, byte]: the registers of each distinct count, then each list of drawn events
    ENTITY_ROOT,  # -1: no events, -2: no owner
    ENTITY_OF,  # -1: the record's event is not in this pool
    META,
) = range(8)
# ... the plan: lanes are what nodes cache; a group is one (delay, exclude_current) pair, its windows ascend in width;
# a telling is what a distinct count, an entropy or a quantile of a group collects; an absent part's offset is -1 ...
(
    LANE_VALUE,  # value column, -1: none
    LANE_SECOND,  # second value column, -1: none
    LANE_KEY,  # key column of a category, -1: none
    LANE_BIT,
    LANE_PLAIN,  # no filter and no missing values: every event counts
    LANE_RICH,  # has parts beyond count, sum and M2
    LANE_AT,  # where its state begins, in floats
    LANE_SIZE,
    LANE_ORDER,  # highest power sum: 1 to 6 (0: count only)
    LANE_EXTREMES,
    LANE_CLOCK,
    LANE_ENDS,
    LANE_LAST_SECOND,
    LANE_RUNS,
    LANE_TREND,
    SKETCH_LANE,  # the lane that each distinct count's registers follow
    GROUP_DELAY,
    GROUP_EXCLUDE,
    GROUP_WINDOWS,  # [groups + 1] offsets into WINDOW_WIDTH
    GROUP_LANES,  # [groups + 1] offsets into LANES_USED
    LANES_USED,
    GROUP_TELLINGS,  # [groups + 1] offsets into TELLING_*
    TELLING_LANE,
    TELLING_SKETCH,  # place in SKETCH_LANE, -1: no distinct count
    TELLING_LIST,  # place in LIST_LANE, -1: no entropy or quantile
    LIST_LANE,  # the lane that each list of drawn events follows
    WINDOW_SHELF,  # [window, telling of its group]: shelf, -1: no feature of the window reads it
    SHELF_LANE,
    SHELF_DISTINCT,  # whether a distinct count is wanted
    SHELF_DRAWN,  # whether an entropy or a quantile is wanted
    LIMITS,  # [MOST_STEPS]
    WINDOW_WIDTH,
    WINDOW_FEATURES,  # [windows + 1] offsets into FEATURE_*
    FEATURE_KIND,
    FEATURE_LANE,
    FEATURE_TELLING,  # place among its group's, -1: none
    FEATURE_PARAMETER,  # power of a moment, q of a quantile
    FEATURE_COLUMN,
    FEATURE_EMPTY,
    COUNT_LOGS,  # [SCAN + 1] c log c in units of 1 / LOG_UNIT, whole: sums do not depend on their order
) = range(8, 48)
# ... the batch (see ``scoring.features.frame``; values and keys by row) ...
(
    ROW_ENTITY,  # slot of the entity, or MISSING_ENTITY, FOREIGN_ENTITY
    ROW_TIME,
    ROW_VALUE,  # [row, value column]
    ROW_FLAGS,
    ROW_KEY,  # [row, key column]
    ROW_DISPOSITION,
    ROW_RECORD,
    ROW_SEQUENCE,
    ROW_OLD_TIME,
    ROW_FRAUD,
    ROW_WATERMARK,
    CHANGE_ROW,
    CHANGE_RECORD,
    CHANGE_TIME,
    CHANGE_SEQUENCE,
    CHANGE_FRAUD,
    OUT,  # [row, feature]
) = range(48, 65)
# ... and room to work in.
(
    PATH_NODE,
    PATH_PLACE,
    CURSOR,  # [4, DEPTH]: starts and places of a walk over a group's windows, and of one within it
    QUERY,  # the state of every lane
    SCRATCH,  # two states of one lane
    PICKED_VALUE,  # [LEAF] values, second values and times of the events of one leaf that a lane counts
    PICKED_SECOND,
    PICKED_TIME,
    TELLING_COUNT,  # different keys, or values, collected
    TELLING_SIZE,  # events collected
    TELLING_SHELF,  # the shelf that has the answer, -1: it was collected
    TELLING_MARK,
    TELLING_TIME,  # how far back a telling has come
    TELLING_SEQUENCE,
    TELLING_BEGUN,  # whether it has registers
    SEEN_KEY,  # [telling, 2 SCAN]: an open-addressed set
    SEEN_MARK,  # mark << 16 | count
    SEEN_PLACE,  # [telling, SCAN]: where its keys are
    TOLD_VALUE,  # [telling, SCAN]
    RANKED,  # [SCAN] to select and sort in
    COMING,  # [SCAN] values to add to a shelf, and to take off it, together
    GOING,
    MOVING,  # how many of both
    TOLD_REGISTER,  # [telling, register]
    SHELF,  # [shelf, SHELF_WORDS]
    SHELF_KEY,  # [shelf, 2 SCAN]: an open-addressed set of categories; 0: empty
    SHELF_COUNT,
    SHELF_SORTED,  # [shelf, SCAN] values as integers of the same order
    SHELF_REGISTER,  # [shelf, register]
    SCALARS,
) = range(65, 95)
TABLE = 95

# words of a node, before its state
FIRST_TIME, FIRST_SEQUENCE, LAST_TIME, LAST_SEQUENCE, PLACE, STATE = range(6)
# PLACE is start << 24 | level << 16 | room << 8 | length; FIRST_SEQUENCE of a freed node is the next one in its list
# entries of META: tops of the pools, heads of the lists of free room, what is in use, and where the sweep stands
SLOT_BUMP, NODE_BUMP, CHILD_BUMP, SKETCH_BUMP = range(4)
FREE_NODE, FREE_CHILD, FREE_SKETCH, GARBAGE, FREE_4, FREE_16, FREE_64 = range(4, 11)
LIVE_SLOTS, LIVE_NODES, HAND = range(11, 14)
META_LENGTH = 14
# entries of SCALARS: widths, lengths and settings
FRAUD_COLUMN, RETENTION, VALUES, KEYS, LANES, GROUPS, SKETCHES, COLUMNS = range(8)
SLOT_WORDS, NODE_WORDS, FLAG_FIELD, VALUE_FIELD, KEY_FIELD, TOTAL_LANE, ORDERED = range(8, 15)
ROWS, CHANGES, SLOTS, NODES, CHILDREN, BLOCKS = range(15, 21)
LISTS, SHELVES, TELLINGS, BLOCK_BYTES = range(21, 25)
SCALARS_LENGTH = 25
# words of a shelf: whose it is, who asked last, the stretch (from, to] and the lots it holds, of how many events, keys
# and weight; whether it holds them, and registers; the stretch that those are of; and all events of its last window
OWNER, CANDIDATE, FROM, TO_TIME, TO_SEQUENCE, BELOW, SIZE, DIFFERENT, WEIGHT = range(9)
HOLDS, HAS_REGISTERS, REGISTERS_FROM, REGISTERS_TIME, REGISTERS_SEQUENCE, IN_WINDOW = range(9, 15)
SHELF_WORDS = 15
LIST_BYTES = 16 + LIST * 12  # length, limit of the lots, then values and lots in the order of the lots
LOG_UNIT = 1 << 46
MOST_STEPS = 24 * STEPS + 1

# a row needs at most this much fresh room
SPARE_SLOTS = 4 * LEAF
SPARE_NODES = 4 * DEPTH
DONE, MORE_ROOM = range(2)
(COUNT, SUM, MEAN, VARIANCE, STD, SINCE_LAST, SINCE_FIRST) = range(7)
(SKEWNESS, KURTOSIS, MOMENT, MIN, MAX, RANGE) = range(7, 13)
(FIRST, LAST, RUN_UP, RUN_DOWN, LONGEST_UP, LONGEST_DOWN, SLOPE, VELOCITY) = range(13, 21)
(DISTINCT, ENTROPY, QUANTILE) = range(21, 24)
MISSING_ENTITY, FOREIGN_ENTITY = -1, -2
RUNS = 6  # floats of the part: rising start, end, longest; falling start, end, longest
_END = (1 << 63) - 1
_PLAIN, _ADD, _APPEND, _REMOVE = range(4)
_EARTH_KM = 6371.0088  # mean radius of WGS-84 (IUGG 1980)
_US_PER_HOUR = 3.6e9

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    """A helper that only kernels call (and are cached with): no wrapper for callers in Python, no cache of its own."""
    options = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy"}
    return cast(_Function, cast(Any, numba.njit)(**options)(function))


def _entry(function: _Function) -> _Function:
    return cast(_Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


# ---- views of the table -------------------------------------------------------------------------------------------


def _view_of(dtype: Any) -> Any:
    """A Numba function (address) -> pointer there: indexed without bounds, owner or wrap-around."""
    kind = types.CPointer(dtype)

    def typed(context: Any, address: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(kind))

        return kind(types.int64), make

    return numba.extending.intrinsic(typed)


_floats = _view_of(types.float64)
_longs = _view_of(types.int64)
_keys = _view_of(types.uint64)
_ints = _view_of(types.int32)
_shorts = _view_of(types.uint32)
_bytes = _view_of(types.uint8)


@_compiled
def _i8(at: int, entry: int) -> NDArray[np.int64]:
    return _longs(_longs(at)[entry])


@_compiled
def _f8(at: int, entry: int) -> NDArray[np.float64]:
    return _floats(_longs(at)[entry])


@_compiled
def _u8(at: int, entry: int) -> NDArray[np.uint64]:
    return _keys(_longs(at)[entry])


@_compiled
def _i4(at: int, entry: int) -> NDArray[np.int32]:
    return _ints(_longs(at)[entry])


@_compiled
def _u1(at: int, entry: int) -> NDArray[np.uint8]:
    return _bytes(_longs(at)[entry])


@_compiled
def _scalar(at: int, entry: int) -> int:
    return _i8(at, SCALARS)[entry]


@_compiled
def _node(at: int, node: int) -> int:
    """Address of a node's words."""
    return _longs(at)[NODE] + 8 * node * _scalar(at, NODE_WORDS)


@_compiled
def _place(at: int, node: int) -> int:
    return _longs(_node(at, node))[PLACE]


@_compiled
def _start(place: int) -> int:
    return place >> 24


@_compiled
def _level(place: int) -> int:
    return (place >> 16) & 255


@_compiled
def _room(place: int) -> int:
    return (place >> 8) & 255


@_compiled
def _length(place: int) -> int:
    return place & 255


@_compiled
def _field(at: int, place: int, field: int) -> int:
    """Address of one field of a leaf's slots."""
    return _longs(at)[SLOT] + 8 * (_start(place) * _scalar(at, SLOT_WORDS) + field * _room(place))


@_compiled
def _times(at: int, place: int) -> NDArray[np.int64]:
    return _longs(_field(at, place, 0))


@_compiled
def _sequences(at: int, place: int) -> NDArray[np.int64]:
    return _longs(_field(at, place, 1))


@_compiled
def _node_lane(at: int, node: int, lane: int) -> int:
    """Address of a node's cached state of a lane."""
    return _node(at, node) + 8 * (STATE + _i4(at, LANE_AT)[lane])


@_compiled
def _query_lane(at: int, lane: int) -> int:
    """Address of the state of a lane in the query at hand."""
    return _longs(at)[QUERY] + 8 * _i4(at, LANE_AT)[lane]


@_compiled
def _scratch(at: int, which: int) -> int:
    """Address of one of the two spare states."""
    return _longs(at)[SCRATCH] + 8 * which * 32


# ---- lists of free room -------------------------------------------------------------------------------------------


@_compiled
def _free_list(room: int) -> int:
    return FREE_4 if room == 4 else (FREE_16 if room == 16 else FREE_64)


@_compiled
def _take_run(at: int, room: int) -> int:
    """First slot of a free run; the run's first word links the free list."""
    meta = _i8(at, META)
    head = _free_list(room)
    start = meta[head]
    if start >= 0:
        meta[head] = _i8(at, SLOT)[start * _scalar(at, SLOT_WORDS)]
        return start
    start = meta[SLOT_BUMP]
    meta[SLOT_BUMP] += room
    return start


@_compiled
def _free_run(at: int, start: int, room: int) -> None:
    meta = _i8(at, META)
    head = _free_list(room)
    _i8(at, SLOT)[start * _scalar(at, SLOT_WORDS)] = meta[head]
    meta[head] = start


@_compiled
def _new_node(at: int, level: int, room: int) -> int:
    meta = _i8(at, META)
    child = _i4(at, CHILD)
    node = meta[FREE_NODE]
    if node >= 0:
        meta[FREE_NODE] = _longs(_node(at, node))[FIRST_SEQUENCE]
    else:
        node = meta[NODE_BUMP]
        meta[NODE_BUMP] += 1
    meta[LIVE_NODES] += 1
    if level == 0:
        start = _take_run(at, room)
    else:
        start = meta[FREE_CHILD]
        if start >= 0:
            meta[FREE_CHILD] = child[start]
        else:
            start = meta[CHILD_BUMP]
            meta[CHILD_BUMP] += FANOUT
    _longs(_node(at, node))[PLACE] = (start << 24) | (level << 16) | (room << 8)
    if _scalar(at, BLOCK_BYTES) > 0:
        _i4(at, SKETCH_OF)[node] = -1
    return node


@_compiled
def _free_node(at: int, node: int) -> None:
    meta = _i8(at, META)
    child = _i4(at, CHILD)
    words = _longs(_node(at, node))
    place = words[PLACE]
    if _level(place) == 0:
        _free_run(at, _start(place), _room(place))
        meta[LIVE_SLOTS] -= _length(place)
    else:
        child[_start(place)] = meta[FREE_CHILD]
        meta[FREE_CHILD] = _start(place)
        if _scalar(at, BLOCK_BYTES) > 0:
            _free_sketch(at, node)
    words[FIRST_SEQUENCE] = meta[FREE_NODE]
    meta[FREE_NODE] = node
    meta[LIVE_NODES] -= 1


@_compiled
def _discard(at: int, node: int) -> None:
    """Give a whole subtree to the garbage list in constant time."""
    meta = _i8(at, META)
    _longs(_node(at, node))[FIRST_SEQUENCE] = meta[GARBAGE]
    meta[GARBAGE] = node


@_compiled
def _collect_garbage(at: int, budget: int) -> int:
    """Free at most ``budget`` nodes of the garbage list; how many."""
    meta = _i8(at, META)
    child = _i4(at, CHILD)
    done = 0
    while done < budget and meta[GARBAGE] >= 0:
        node = meta[GARBAGE]
        words = _longs(_node(at, node))
        meta[GARBAGE] = words[FIRST_SEQUENCE]
        place = words[PLACE]
        if _level(place) > 0:
            for j in range(_length(place)):
                _discard(at, child[_start(place) + j])
        _free_node(at, node)
        done += 1
    return done


# ---- states -------------------------------------------------------------------------------------------------------


@_compiled
def _clear(at: int, lane: int, into: int) -> None:
    """The empty state: a count of zero says that nothing else in it is meant."""
    state = _floats(into)
    state[0] = 0.0
    if _i4(at, LANE_ORDER)[lane] > 0:
        state[1] = 0.0
        if _i4(at, LANE_ORDER)[lane] > 1:
            state[2] = 0.0


@_compiled
def _copy_state(at: int, lane: int, source: int, into: int) -> None:
    a = _floats(source)
    b = _floats(into)
    for j in range(_i4(at, LANE_SIZE)[lane]):
        b[j] = a[j]


@_compiled
def _combine_plain(at: int, lane: int, count: float, total: float, m2: float, into: int) -> None:
    """Merge (count, sum, M2) into a lane that has no other parts (Chan, Golub, LeVeque 1979)."""
    if count == 0.0:
        return
    order = _i4(at, LANE_ORDER)[lane]
    state = _floats(into)
    have = state[0]
    state[0] = have + count
    if order == 0:
        return
    if order > 1:
        if have == 0.0:
            state[2] = m2
        else:
            difference = total * have - state[1] * count  # of the means, times both counts: one division
            state[2] += m2 + difference * difference / (have * count * (have + count))
    state[1] += total


@_compiled
def _combine(at: int, lane: int, older: int, newer: int, into: int) -> None:
    """The state of two neighbouring stretches of time; ``into`` may be one of them."""
    a = _floats(older)
    b = _floats(newer)
    state = _floats(into)
    if a[0] == 0.0:
        if into != newer:
            _copy_state(at, lane, newer, into)
        return
    if b[0] == 0.0:
        if into != older:
            _copy_state(at, lane, older, into)
        return
    have = a[0]
    count = b[0]
    both = have + count
    order = _i4(at, LANE_ORDER)[lane]
    difference = 0.0
    if order > 0:
        difference = b[1] / count - a[1] / have
        for power in range(order, 2, -1):
            _combine_power(a, b, state, power, difference)
        if order > 1:
            state[2] = a[2] + b[2] + difference * difference * (have * (count / both))
    part = _i4(at, LANE_TREND)[lane]
    if part >= 0:
        clock = _i4(at, LANE_CLOCK)[lane]
        age = a[part] + (
            b[clock + 1] - a[clock + 1]
        )  # mean age of the older, from the last event of the newer
        apart = age - b[part]
        weight = have * (count / both)
        state[part + 2] = a[part + 2] + b[part + 2] - apart * difference * weight
        state[part + 1] = a[part + 1] + b[part + 1] + apart * apart * weight
        state[part] = b[part] + apart * (have / both)
    part = _i4(at, LANE_EXTREMES)[lane]
    if part >= 0:
        state[part] = min(a[part], b[part])
        state[part + 1] = max(a[part + 1], b[part + 1])
    part = _i4(at, LANE_RUNS)[lane]
    if part >= 0:
        ends = _i4(at, LANE_ENDS)[lane]
        last = a[ends + 1]
        first = b[ends]
        _combine_runs(a, b, state, part, last < first, have, count)
        _combine_runs(a, b, state, part + 3, last > first, have, count)
    part = _i4(at, LANE_CLOCK)[lane]
    if part >= 0:
        state[part] = a[part]
        state[part + 1] = b[part + 1]
    part = _i4(at, LANE_ENDS)[lane]
    if part >= 0:
        state[part] = a[part]
        state[part + 1] = b[part + 1]
    part = _i4(at, LANE_LAST_SECOND)[lane]
    if part >= 0:
        state[part] = b[part]
    if order > 0:
        state[1] = a[1] + b[1]
    state[0] = both


@_compiled
def _combine_power(
    a: NDArray[np.float64], b: NDArray[np.float64], state: NDArray[np.float64], power: int, difference: float
) -> None:
    """M_power of both: binomial expansion about the common mean (Pebay 2008, equation 2.1)."""
    both = a[0] + b[0]
    shift_a = -difference * (b[0] / both)
    shift_b = difference * (a[0] / both)
    total = a[power] + b[power]
    choose = 1.0
    raised_a = 1.0
    raised_b = 1.0
    for k in range(1, power - 1):
        choose = choose * (power - k + 1) / k
        raised_a *= shift_a
        raised_b *= shift_b
        total += choose * (raised_a * a[power - k] + raised_b * b[power - k])
    state[power] = total + (a[0] * (raised_a * shift_a * shift_a) + b[0] * (raised_b * shift_b * shift_b))


@_compiled
def _combine_runs(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    state: NDArray[np.float64],
    part: int,
    joined: bool,
    have: float,
    count: float,
) -> None:
    start = a[part]
    end = b[part + 1]
    longest = max(a[part + 2], b[part + 2])
    if joined:
        longest = max(longest, a[part + 1] + b[part])
        if start == have:
            start = have + b[part]
        if end == count:
            end = count + a[part + 1]
    state[part] = start
    state[part + 1] = end
    state[part + 2] = longest


@_compiled
def _row_counts(at: int, i: int, lane: int) -> bool:
    """Whether a lane counts row ``i``."""
    if (_i8(at, ROW_FLAGS)[i] >> _i4(at, LANE_BIT)[lane]) & 1 == 0:
        return False
    key = _i4(at, LANE_KEY)[lane]
    if key >= 0 and _u8(at, ROW_KEY)[i * _scalar(at, KEYS) + key] == np.uint64(0):
        return False
    x = _row_value(at, i, _i4(at, LANE_VALUE)[lane])
    y = _row_value(at, i, _i4(at, LANE_SECOND)[lane])
    return x == x and y == y


@_compiled
def _row_value(at: int, i: int, column: int) -> float:
    if column < 0:
        return 0.0
    if column == _scalar(at, FRAUD_COLUMN):
        return 1.0 if _u1(at, ROW_FRAUD)[i] else 0.0
    return _f8(at, ROW_VALUE)[i * _scalar(at, VALUES) + column]


@_compiled
def _single(at: int, lane: int, time: int, x: float, y: float, into: int) -> None:
    """The state of one event."""
    state = _floats(into)
    for j in range(_i4(at, LANE_SIZE)[lane]):
        state[j] = 0.0
    state[0] = 1.0
    if _i4(at, LANE_ORDER)[lane] > 0:
        state[1] = x
    part = _i4(at, LANE_EXTREMES)[lane]
    if part >= 0:
        state[part] = x
        state[part + 1] = x
    part = _i4(at, LANE_CLOCK)[lane]
    if part >= 0:
        state[part] = float(time)
        state[part + 1] = float(time)
    part = _i4(at, LANE_ENDS)[lane]
    if part >= 0:
        state[part] = x
        state[part + 1] = x
    part = _i4(at, LANE_LAST_SECOND)[lane]
    if part >= 0:
        state[part] = y
    part = _i4(at, LANE_RUNS)[lane]
    if part >= 0:
        for j in range(RUNS):
            state[part + j] = 1.0


@_compiled
def _append_row(at: int, i: int, lane: int, into: int) -> None:
    """Add row ``i``, newer than all in it, to a lane's state."""
    if not _row_counts(at, i, lane):
        return
    x = _row_value(at, i, _i4(at, LANE_VALUE)[lane])
    if not _u1(at, LANE_RICH)[lane]:
        _combine_plain(at, lane, 1.0, x, 0.0, into)
        return
    one = _scratch(at, 0)
    y = _row_value(at, i, _i4(at, LANE_SECOND)[lane])
    _single(at, lane, _i8(at, ROW_TIME)[i], x, y, one)
    _combine(at, lane, into, one, into)


# ---- scans of a leaf ----------------------------------------------------------------------------------------------


@_compiled
def _sum(values: int, count: int) -> float:
    """Sum of ``count`` floats at an address, in eight chains so that additions need not wait for each other."""
    x = _floats(values)
    a = b = c = d = e = f = g = h = 0.0
    j = 0
    while j + 8 <= count:
        a += x[j]
        b += x[j + 1]
        c += x[j + 2]
        d += x[j + 3]
        e += x[j + 4]
        f += x[j + 5]
        g += x[j + 6]
        h += x[j + 7]
        j += 8
    total = ((a + e) + (c + g)) + ((b + f) + (d + h))
    while j < count:
        total += x[j]
        j += 1
    return total


@_compiled
def _spread(values: int, count: int, mean: float) -> float:
    """Sum of squared distances from ``mean``, in eight chains."""
    x = _floats(values)
    a = b = c = d = e = f = g = h = 0.0
    j = 0
    while j + 8 <= count:
        a += (x[j] - mean) * (x[j] - mean)
        b += (x[j + 1] - mean) * (x[j + 1] - mean)
        c += (x[j + 2] - mean) * (x[j + 2] - mean)
        d += (x[j + 3] - mean) * (x[j + 3] - mean)
        e += (x[j + 4] - mean) * (x[j + 4] - mean)
        f += (x[j + 5] - mean) * (x[j + 5] - mean)
        g += (x[j + 6] - mean) * (x[j + 6] - mean)
        h += (x[j + 7] - mean) * (x[j + 7] - mean)
        j += 8
    total = ((a + e) + (c + g)) + ((b + f) + (d + h))
    while j < count:
        total += (x[j] - mean) * (x[j] - mean)
        j += 1
    return total


@_compiled
def _slot_counts(at: int, lane: int, place: int, j: int) -> bool:
    """Whether a lane counts slot ``j`` of a leaf."""
    field = _scalar(at, FLAG_FIELD)
    if field >= 0 and (_longs(_field(at, place, field))[j] >> _i4(at, LANE_BIT)[lane]) & 1 == 0:
        return False
    column = _i4(at, LANE_KEY)[lane]
    if column >= 0 and _longs(_field(at, place, _scalar(at, KEY_FIELD) + column))[j] == 0:
        return False
    column = _i4(at, LANE_VALUE)[lane]
    if column >= 0:
        x = _floats(_field(at, place, _scalar(at, VALUE_FIELD) + column))[j]
        if x != x:
            return False
        column = _i4(at, LANE_SECOND)[lane]
        if column >= 0:
            y = _floats(_field(at, place, _scalar(at, VALUE_FIELD) + column))[j]
            return y == y
    return True


@_compiled
def _pick(at: int, lane: int, place: int, low: int, high: int) -> int:
    """Copy what a lane counts of slots [low, high) to PICKED_*; how many."""
    value = _i4(at, LANE_VALUE)[lane]
    flag = _scalar(at, FLAG_FIELD)
    to_value = _f8(at, PICKED_VALUE)
    count = 0
    if not _u1(at, LANE_RICH)[lane] and value >= 0:
        values = _floats(_field(at, place, _scalar(at, VALUE_FIELD) + value))
        if flag < 0:
            for j in range(low, high):
                x = values[j]
                to_value[count] = x
                count += 1 if x == x else 0
            return count
        flags = _longs(_field(at, place, flag))
        bit = _i4(at, LANE_BIT)[lane]
        for j in range(low, high):
            x = values[j]
            to_value[count] = x
            count += (flags[j] >> bit) & (1 if x == x else 0)
        return count
    to_second = _f8(at, PICKED_SECOND)
    to_time = _f8(at, PICKED_TIME)
    second = _i4(at, LANE_SECOND)[lane]
    times = _times(at, place)
    if _u1(at, LANE_PLAIN)[lane] and second < 0:
        for j in range(low, high):
            to_time[j - low] = float(times[j])
        if value >= 0:
            values = _floats(_field(at, place, _scalar(at, VALUE_FIELD) + value))
            for j in range(low, high):
                to_value[j - low] = values[j]
        return high - low
    for j in range(low, high):
        if not _slot_counts(at, lane, place, j):
            continue
        if value >= 0:
            to_value[count] = _floats(_field(at, place, _scalar(at, VALUE_FIELD) + value))[j]
            if second >= 0:
                to_second[count] = _floats(_field(at, place, _scalar(at, VALUE_FIELD) + second))[j]
        to_time[count] = float(times[j])
        count += 1
    return count


@_compiled
def _prepend_slots(at: int, lane: int, place: int, low: int, high: int, into: int) -> None:
    """Add slots [low, high) of a leaf, older than all in it, to a lane's state: the spread about their own mean."""
    if high <= low:
        return
    value = _i4(at, LANE_VALUE)[lane]
    order = _i4(at, LANE_ORDER)[lane]
    rich = _u1(at, LANE_RICH)[lane]
    if _u1(at, LANE_PLAIN)[lane] and not rich:
        count = float(high - low)
        if value < 0:
            _combine_plain(at, lane, count, 0.0, 0.0, into)
            return
        values = _field(at, place, _scalar(at, VALUE_FIELD) + value) + 8 * low
        total = _sum(values, high - low)
        m2 = _spread(values, high - low, total / count) if order > 1 else 0.0
        _combine_plain(at, lane, count, total, m2, into)
        return
    if value < 0 and not rich:
        found = 0
        if _i4(at, LANE_KEY)[lane] < 0:
            flags = _longs(_field(at, place, _scalar(at, FLAG_FIELD)))
            bit = _i4(at, LANE_BIT)[lane]
            for j in range(low, high):
                found += (flags[j] >> bit) & 1
        else:
            for j in range(low, high):
                found += 1 if _slot_counts(at, lane, place, j) else 0
        _combine_plain(at, lane, float(found), 0.0, 0.0, into)
        return
    found = _pick(at, lane, place, low, high)
    if found == 0:
        return
    values = _longs(at)[PICKED_VALUE]
    total = 0.0
    if value >= 0:
        total = _sum(values, found)
    if not rich:
        m2 = _spread(values, found, total / float(found)) if order > 1 else 0.0
        _combine_plain(at, lane, float(found), total, m2, into)
        return
    one = _scratch(at, 0)
    _picked_state(at, lane, found, total, one)
    _combine(at, lane, one, into, into)


@_compiled
def _picked_state(at: int, lane: int, found: int, total: float, into: int) -> None:
    """The state of the events in PICKED_*, ``found`` > 0, in order of time."""
    x = _f8(at, PICKED_VALUE)
    t = _f8(at, PICKED_TIME)
    state = _floats(into)
    order = _i4(at, LANE_ORDER)[lane]
    count = float(found)
    state[0] = count
    mean = total / count
    if order > 0:
        state[1] = total
    if order > 1:
        state[2] = _spread(_longs(at)[PICKED_VALUE], found, mean)
    if order > 2:
        for power in range(3, order + 1):
            state[power] = 0.0
        for j in range(found):
            d = x[j] - mean
            raised = d * d
            for power in range(3, order + 1):
                raised *= d
                state[power] += raised
    part = _i4(at, LANE_EXTREMES)[lane]
    if part >= 0:
        least = x[0]
        greatest = x[0]
        for j in range(1, found):
            least = min(least, x[j])
            greatest = max(greatest, x[j])
        state[part] = least
        state[part + 1] = greatest
    part = _i4(at, LANE_CLOCK)[lane]
    if part >= 0:
        state[part] = t[0]
        state[part + 1] = t[found - 1]
    part = _i4(at, LANE_ENDS)[lane]
    if part >= 0:
        state[part] = x[0]
        state[part + 1] = x[found - 1]
    part = _i4(at, LANE_LAST_SECOND)[lane]
    if part >= 0:
        state[part] = _f8(at, PICKED_SECOND)[found - 1]
    part = _i4(at, LANE_RUNS)[lane]
    if part >= 0:
        _picked_runs(x, found, state, part, 1.0)
        _picked_runs(x, found, state, part + 3, -1.0)
    part = _i4(at, LANE_TREND)[lane]
    if part >= 0:
        ages = 0.0
        for j in range(found):
            ages += t[found - 1] - t[j]
        age = ages / count
        squares = 0.0
        products = 0.0
        for j in range(found):
            apart = (t[found - 1] - t[j]) - age
            squares += apart * apart
            products += apart * (x[j] - mean)
        state[part] = age
        state[part + 1] = squares
        state[part + 2] = products


@_compiled
def _picked_runs(
    x: NDArray[np.float64], found: int, state: NDArray[np.float64], part: int, sign: float
) -> None:
    start = 0
    longest = 1
    run = 1
    for j in range(1, found):
        if sign * x[j] > sign * x[j - 1]:
            run += 1
        else:
            if start == 0:
                start = run
            run = 1
        longest = max(longest, run)
    state[part] = float(start if start > 0 else run)
    state[part + 1] = float(run)
    state[part + 2] = float(longest)


@_compiled
def _refresh_lane(at: int, node: int, lane: int) -> None:
    """Recompute a node's state of a lane from its content."""
    place = _place(at, node)
    into = _node_lane(at, node, lane)
    _clear(at, lane, into)
    if _level(place) == 0:
        _prepend_slots(at, lane, place, 0, _length(place), into)
        return
    child = _i4(at, CHILD)
    rich = _u1(at, LANE_RICH)[lane]
    order = _i4(at, LANE_ORDER)[lane]
    for j in range(_length(place) - 1, -1, -1):
        other = _node_lane(at, child[_start(place) + j], lane)
        if rich:
            _combine(at, lane, other, into, into)
        else:
            state = _floats(other)
            _combine_plain(
                at, lane, state[0], state[1] if order > 0 else 0.0, state[2] if order > 1 else 0.0, into
            )


@_compiled
def _refresh(at: int, node: int) -> None:
    """Recompute a node's bounds, states, registers and lists from its own content (never empty)."""
    _refresh_states(at, node)
    if _scalar(at, BLOCK_BYTES) > 0 and _level(_place(at, node)) > 0:
        _refresh_sketch(at, node, True)


@_compiled
def _refresh_states(at: int, node: int) -> None:
    words = _longs(_node(at, node))
    place = words[PLACE]
    start = _start(place)
    last = _length(place) - 1
    if _level(place) == 0:
        times = _times(at, place)
        sequences = _sequences(at, place)
        words[FIRST_TIME] = times[0]
        words[FIRST_SEQUENCE] = sequences[0]
        words[LAST_TIME] = times[last]
        words[LAST_SEQUENCE] = sequences[last]
    else:
        child = _i4(at, CHILD)
        other = _longs(_node(at, child[start]))
        words[FIRST_TIME] = other[FIRST_TIME]
        words[FIRST_SEQUENCE] = other[FIRST_SEQUENCE]
        other = _longs(_node(at, child[start + last]))
        words[LAST_TIME] = other[LAST_TIME]
        words[LAST_SEQUENCE] = other[LAST_SEQUENCE]
    for lane in range(_scalar(at, LANES)):
        _refresh_lane(at, node, lane)


# ---- registers of distinct counts ---------------------------------------------------------------------------------


@_compiled
def _mixed(key: np.uint64) -> np.uint64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) after one step of its sequence."""
    h = key + np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@_compiled
def _note(registers: NDArray[np.uint8], key: np.uint64) -> None:
    """Show a key to HyperLogLog registers."""
    h = _mixed(key)
    place = np.int64(h >> np.uint64(64 - REGISTER_BITS))
    rest = (h << np.uint64(REGISTER_BITS)) | np.uint64(1 << (REGISTER_BITS - 1))
    rank = 1
    while np.int64(rest) > 0:  # leading zeros
        rest = rest << np.uint64(1)
        rank += 1
    if rank > registers[place]:
        registers[place] = rank


@_compiled
def _sketch(at: int, node: int, sketch: int) -> NDArray[np.uint8]:
    """The registers of a node for one distinct count."""
    return _bytes(_block(at, _i4(at, SKETCH_OF)[node]) + sketch * REGISTERS)


@_compiled
def _block(at: int, block: int) -> int:
    return _longs(at)[SKETCH] + np.int64(block) * _scalar(at, BLOCK_BYTES)


@_compiled
def _free_sketch(at: int, node: int) -> None:
    owner = _i4(at, SKETCH_OF)
    meta = _i8(at, META)
    block = owner[node]
    if block < 0:
        return
    _longs(_block(at, block))[0] = meta[FREE_SKETCH]
    meta[FREE_SKETCH] = block
    owner[node] = -1


@_compiled
def _refresh_sketch(at: int, node: int, lists: bool) -> None:
    """Recompute an inner node's registers, and its ``lists``, or give all up when it has few events."""
    owner = _i4(at, SKETCH_OF)
    meta = _i8(at, META)
    if _floats(_node_lane(at, node, _scalar(at, TOTAL_LANE)))[0] < SKETCH_FROM:
        _free_sketch(at, node)
        return
    if owner[node] < 0:
        block = meta[FREE_SKETCH]
        if block >= 0:
            meta[FREE_SKETCH] = _longs(_block(at, block))[0]
        else:
            block = meta[SKETCH_BUMP]
            meta[SKETCH_BUMP] += 1
        owner[node] = block
        lists = True
    if lists:
        for which in range(_scalar(at, LISTS)):
            _refresh_list(at, node, which)
    lanes = _i4(at, SKETCH_LANE)
    for sketch in range(_scalar(at, SKETCHES)):
        registers = _sketch(at, node, sketch)
        for j in range(REGISTERS):
            registers[j] = 0
        place = _place(at, node)
        child = _i4(at, CHILD)
        for j in range(_length(place)):
            _note_below(at, child[_start(place) + j], sketch, lanes[sketch], registers)


@_compiled
def _note_below(at: int, root: int, sketch: int, lane: int, registers: NDArray[np.uint8]) -> None:
    """Show the keys of a whole subtree to registers."""
    owner = _i4(at, SKETCH_OF)
    child = _i4(at, CHILD)
    starts = _longs(_longs(at)[CURSOR] + 8 * 2 * DEPTH)
    places = _longs(_longs(at)[CURSOR] + 8 * 3 * DEPTH)
    depth = -1
    node = root
    while True:
        place = _place(at, node)
        if _level(place) > 0 and owner[node] < 0:
            depth += 1
            starts[depth] = _start(place)
            places[depth] = _length(place) - 1
            node = child[_start(place) + _length(place) - 1]
            continue
        if _level(place) > 0:
            _note_all(registers, _sketch(at, node, sketch))
        else:
            _note_slots(at, lane, place, 0, _length(place), False, registers)
        while depth >= 0 and places[depth] == 0:
            depth -= 1
        if depth < 0:
            return
        places[depth] -= 1
        node = child[starts[depth] + places[depth]]


@_compiled
def _note_all(registers: NDArray[np.uint8], others: NDArray[np.uint8]) -> None:
    for j in range(REGISTERS):
        registers[j] = max(registers[j], others[j])


@_compiled
def _note_slots(
    at: int, lane: int, place: int, low: int, high: int, full: bool, registers: NDArray[np.uint8]
) -> None:
    keys = _keys(_field(at, place, _scalar(at, KEY_FIELD) + _i4(at, LANE_KEY)[lane]))
    for j in range(low, high):
        if full or _slot_counts(at, lane, place, j):
            _note(registers, keys[j])


@_compiled
def _estimate(registers: NDArray[np.uint8]) -> float:
    """Distinct keys shown to the registers: improved raw estimator (Ertl 2017, algorithm 6), to a whole number."""
    ranks = 64 - REGISTER_BITS
    counts = np.zeros(66, np.int64)
    for j in range(REGISTERS):
        counts[registers[j]] += 1
    m = float(REGISTERS)
    x = 1.0 - counts[ranks + 1] / m
    z = 0.0
    if x != 0.0 and x != 1.0:  # tau
        y = 1.0
        z = 1.0 - x
        while True:
            x = np.sqrt(x)
            before = z
            y *= 0.5
            z -= (1.0 - x) * (1.0 - x) * y
            if z == before:
                break
        z /= 3.0
    z *= m
    for rank in range(ranks, 0, -1):
        z = 0.5 * (z + counts[rank])
    x = counts[0] / m
    if x == 1.0:
        return 0.0
    y = 1.0  # sigma
    s = x
    while True:
        x *= x
        before = s
        s += x * y
        y += y
        if s == before:
            break
    z += m * s
    return float(np.rint(m * m / (2.0 * np.log(2.0) * z)))


# ---- lists of drawn events ----------------------------------------------------------------------------------------


@_compiled
def _lot(sequence: int) -> int:
    """An event's lot, below ALL: an event is drawn when its lot is below a limit, whoever asks and whenever."""
    return int(_mixed(np.uint64(sequence)) >> np.uint64(32))


@_compiled
def _limit(at: int, total: int) -> int:
    """The limit of the lots that draws SAMPLE of ``total`` events on average, to a step above; ALL if few."""
    if total <= SCAN:
        return ALL
    limits = _i8(at, LIMITS)
    wanted = (SAMPLE << 32) // total
    low = 0
    high = MOST_STEPS - 1
    while low < high:  # the last step not below
        middle = (low + high + 1) // 2
        if limits[middle] >= wanted:
            low = middle
        else:
            high = middle - 1
    return limits[low]


@_compiled
def _list(at: int, node: int, which: int) -> int:
    """Address of a node's list: all events of a lane with lots below its limit, or the list's own limit."""
    return _block(at, _i4(at, SKETCH_OF)[node]) + _scalar(at, SKETCHES) * REGISTERS + which * LIST_BYTES


@_compiled
def _list_lots(drawn: int) -> NDArray[np.uint32]:
    return _shorts(drawn + 16 + 8 * LIST)


@_compiled
def _list_upper(drawn: int, lot: int) -> int:
    """How many events of a list have lots up to ``lot``."""
    lots = _list_lots(drawn)
    low = 0
    high = _longs(drawn)[0]
    while low < high:
        middle = (low + high) // 2
        if np.int64(lots[middle]) <= lot:
            low = middle + 1
        else:
            high = middle
    return low


@_compiled
def _list_add(drawn: int, lot: int, bits: np.uint64) -> None:
    words = _longs(drawn)
    lots = _list_lots(drawn)
    values = _keys(drawn + 16)
    if lot >= words[1]:
        return
    if words[0] == LIST:  # full: a quarter goes, and with it all of the same lot
        words[1] = np.int64(lots[LIST - LIST // 4])
        words[0] = _list_upper(drawn, words[1] - 1)
        if lot >= words[1]:
            return
    where = _list_upper(drawn, lot)
    for j in range(words[0] - 1, where - 1, -1):
        lots[j + 1] = lots[j]
    for j in range(words[0] - 1, where - 1, -1):
        values[j + 1] = values[j]
    lots[where] = lot
    values[where] = bits
    words[0] += 1


@_compiled
def _list_remove(drawn: int, lot: int, bits: np.uint64) -> None:
    words = _longs(drawn)
    lots = _list_lots(drawn)
    values = _keys(drawn + 16)
    if lot >= words[1]:
        return
    where = _list_upper(drawn, lot) - 1
    while where >= 0 and values[where] != bits:  # one of the same lot
        where -= 1
    if where < 0:
        return
    for j in range(where, words[0] - 1):
        lots[j] = lots[j + 1]
        values[j] = values[j + 1]
    words[0] -= 1


@_compiled
def _slot_bits(at: int, lane: int, place: int, j: int) -> np.uint64:
    """What a telling tells of a slot: its key, or the bits of its value."""
    column = _i4(at, LANE_KEY)[lane]
    if column >= 0:
        return _keys(_field(at, place, _scalar(at, KEY_FIELD) + column))[j]
    return _rank_bits(_floats(_field(at, place, _scalar(at, VALUE_FIELD) + _i4(at, LANE_VALUE)[lane]))[j])


@_compiled
def _row_bits(at: int, i: int, lane: int) -> np.uint64:
    column = _i4(at, LANE_KEY)[lane]
    if column >= 0:
        return _u8(at, ROW_KEY)[i * _scalar(at, KEYS) + column]
    return _rank_bits(_row_value(at, i, _i4(at, LANE_VALUE)[lane]))


@_compiled
def _refresh_list(at: int, node: int, which: int) -> None:
    """Recompute a list from what is below: no event below has a lot under its limit and is missing."""
    owner = _i4(at, SKETCH_OF)
    child = _i4(at, CHILD)
    lane = _i4(at, LIST_LANE)[which]
    place = _place(at, node)
    drawn = _list(at, node, which)
    words = _longs(drawn)
    count = np.int64(_floats(_node_lane(at, node, lane))[0])
    words[0] = 0
    words[1] = ALL if count <= LIST else ((LIST - LIST // 4) << 32) // count
    for j in range(_length(place)):
        other = child[_start(place) + j]
        if _level(place) > 1 and owner[other] >= 0:
            words[1] = min(words[1], _longs(_list(at, other, which))[1])
    for j in range(_length(place)):
        _list_below(at, child[_start(place) + j], which, lane, drawn)


@_compiled
def _list_below(at: int, root: int, which: int, lane: int, drawn: int) -> None:
    """Add the events of a whole subtree to a list."""
    owner = _i4(at, SKETCH_OF)
    child = _i4(at, CHILD)
    limit = _longs(drawn)
    starts = _longs(_longs(at)[CURSOR] + 8 * 2 * DEPTH)
    places = _longs(_longs(at)[CURSOR] + 8 * 3 * DEPTH)
    depth = -1
    node = root
    while True:
        place = _place(at, node)
        if _level(place) > 0 and owner[node] < 0:
            depth += 1
            starts[depth] = _start(place)
            places[depth] = _length(place) - 1
            node = child[_start(place) + _length(place) - 1]
            continue
        if _level(place) > 0:
            other = _list(at, node, which)
            lots = _list_lots(other)
            values = _keys(other + 16)
            for j in range(_longs(other)[0]):
                if np.int64(lots[j]) >= limit[1]:
                    break
                _list_add(drawn, int(lots[j]), values[j])
        else:
            sequences = _sequences(at, place)
            for j in range(_length(place)):
                lot = _lot(sequences[j])
                if lot < limit[1] and _slot_counts(at, lane, place, j):
                    _list_add(drawn, lot, _slot_bits(at, lane, place, j))
        while depth >= 0 and places[depth] == 0:
            depth -= 1
        if depth < 0:
            return
        places[depth] -= 1
        node = child[starts[depth] + places[depth]]


@_compiled
def _rank_bits(x: float) -> np.uint64:
    """Unsigned integers in the order of the floats."""
    bits = np.float64(x).view(np.int64)
    return np.uint64(bits ^ (-1 if bits < 0 else -9223372036854775808))


@_compiled
def _value_of(bits: np.uint64) -> float:
    signed = np.int64(bits)
    return np.int64(signed ^ (-1 if signed >= 0 else -9223372036854775808)).view(np.float64)


# ---- the tree -----------------------------------------------------------------------------------------------------


@_compiled
def _descend(at: int, root: int, time: int, sequence: int) -> int:
    """Fill the path to the leaf where (time, sequence) belongs; its depth (the leaf is ``path_node[depth]``)."""
    path_node = _i8(at, PATH_NODE)
    path_place = _i8(at, PATH_PLACE)
    child = _i4(at, CHILD)
    words = _longs(_node(at, root))
    newest = words[LAST_TIME] < time or (words[LAST_TIME] == time and words[LAST_SEQUENCE] <= sequence)
    depth = 0
    node = root
    place = words[PLACE]
    while _level(place) > 0:
        start = _start(place)
        low = 1
        high = _length(place)
        if newest:
            low = high
        while low < high:  # the first child beyond the key
            middle = (low + high) // 2
            other = _longs(_node(at, child[start + middle]))
            first = other[FIRST_TIME]
            if first > time or (first == time and other[FIRST_SEQUENCE] > sequence):
                high = middle
            else:
                low = middle + 1
        path_node[depth] = node
        path_place[depth] = low - 1
        node = child[start + low - 1]
        place = _place(at, node)
        depth += 1
    path_node[depth] = node
    return depth


@_compiled
def _up_to(at: int, place: int, time: int, length: int) -> int:
    """How many of a leaf's first ``length`` events are at or before ``time``; no step waits for a prediction."""
    times = _times(at, place)
    count = 0
    for j in range(length):
        count += 1 if times[j] <= time else 0
    return count


@_compiled
def _upper(at: int, place: int, time: int, sequence: int) -> int:
    """How many events of a leaf are at or before (time, sequence)."""
    times = _times(at, place)
    length = _length(place)
    below = 0
    same = 0
    for j in range(length):
        below += 1 if times[j] < time else 0
        same += 1 if times[j] == time else 0
    if same == 0:
        return below + same
    sequences = _sequences(at, place)
    for j in range(below, below + same):
        if sequences[j] > sequence:
            return j
    return below + same


@_compiled
def _move(at: int, source: int, low: int, target: int, place: int, count: int) -> None:
    """Copy ``count`` slots of the leaf run ``source`` from ``low`` to those of ``target`` from ``place``."""
    for field in range(_scalar(at, SLOT_WORDS)):
        a = _longs(_field(at, source, field))
        b = _longs(_field(at, target, field))
        if place > low:
            for j in range(count - 1, -1, -1):
                b[place + j] = a[low + j]
        else:
            for j in range(count):
                b[place + j] = a[low + j]


@_compiled
def _put(at: int, leaf: int, where: int, i: int) -> None:
    """Write row ``i`` at a place of a leaf that has room."""
    words = _longs(_node(at, leaf))
    place = words[PLACE]
    values = _scalar(at, VALUES)
    keys = _scalar(at, KEYS)
    if where < _length(place):
        _move(at, place, where, place, where + 1, _length(place) - where)
    _times(at, place)[where] = _i8(at, ROW_TIME)[i]
    _sequences(at, place)[where] = _i8(at, ROW_SEQUENCE)[i]
    if _scalar(at, FLAG_FIELD) >= 0:
        _longs(_field(at, place, _scalar(at, FLAG_FIELD)))[where] = _i8(at, ROW_FLAGS)[i]
    for column in range(values):
        _floats(_field(at, place, _scalar(at, VALUE_FIELD) + column))[where] = _row_value(at, i, column)
    row_key = _u8(at, ROW_KEY)
    for column in range(keys):
        _keys(_field(at, place, _scalar(at, KEY_FIELD) + column))[where] = row_key[i * keys + column]
    words[PLACE] = place + 1
    _i8(at, META)[LIVE_SLOTS] += 1


@_compiled
def _add_row(at: int, node: int, i: int) -> None:
    """Widen a node's bounds, states, registers and lists by row ``i``, which is in it already."""
    words = _longs(_node(at, node))
    time = _i8(at, ROW_TIME)[i]
    sequence = _i8(at, ROW_SEQUENCE)[i]
    if time < words[FIRST_TIME] or (time == words[FIRST_TIME] and sequence < words[FIRST_SEQUENCE]):
        words[FIRST_TIME] = time
        words[FIRST_SEQUENCE] = sequence
    newest = time > words[LAST_TIME] or (time == words[LAST_TIME] and sequence > words[LAST_SEQUENCE])
    if newest:
        words[LAST_TIME] = time
        words[LAST_SEQUENCE] = sequence
    for lane in range(_scalar(at, LANES)):
        if newest or not _u1(at, LANE_RICH)[lane]:
            _append_row(at, i, lane, _node_lane(at, node, lane))
        else:
            _refresh_lane(at, node, lane)
    if _scalar(at, BLOCK_BYTES) == 0 or _level(words[PLACE]) == 0:
        return
    if _i4(at, SKETCH_OF)[node] < 0:
        _refresh_sketch(at, node, True)
        return
    for which in range(_scalar(at, LISTS)):
        lane = _i4(at, LIST_LANE)[which]
        if _row_counts(at, i, lane):
            _list_add(_list(at, node, which), _lot(sequence), _row_bits(at, i, lane))
    for sketch in range(_scalar(at, SKETCHES)):
        lane = _i4(at, SKETCH_LANE)[sketch]
        if _row_counts(at, i, lane):
            key = _u8(at, ROW_KEY)[i * _scalar(at, KEYS) + _i4(at, LANE_KEY)[lane]]
            _note(_sketch(at, node, sketch), key)


@_compiled
def _widen(at: int, leaf: int) -> None:
    """Move a full leaf to the next size of run."""
    words = _longs(_node(at, leaf))
    place = words[PLACE]
    room = _room(place) * 4
    target = (_take_run(at, room) << 24) | (room << 8) | _length(place)
    _move(at, place, 0, target, 0, _length(place))
    _free_run(at, _start(place), _room(place))
    words[PLACE] = target


@_compiled
def _insert(at: int, entity: int, i: int) -> None:
    path_node = _i8(at, PATH_NODE)
    path_place = _i8(at, PATH_PLACE)
    entity_root = _i4(at, ENTITY_ROOT)
    child = _i4(at, CHILD)
    _shelve_row(at, entity, i)
    root = entity_root[entity]
    if root < 0:
        leaf = _new_node(at, 0, 4)
        _put(at, leaf, 0, i)
        _refresh(at, leaf)
        entity_root[entity] = leaf
        return
    time = _i8(at, ROW_TIME)[i]
    sequence = _i8(at, ROW_SEQUENCE)[i]
    depth = _descend(at, root, time, sequence)
    leaf = path_node[depth]
    words = _longs(_node(at, leaf))
    length = _length(words[PLACE])
    where = length
    if words[LAST_TIME] > time or (words[LAST_TIME] == time and words[LAST_SEQUENCE] > sequence):
        where = _upper(at, words[PLACE], time, sequence)
    if length < LEAF:
        if length == _room(words[PLACE]):
            _widen(at, leaf)
        _put(at, leaf, where, i)
        for d in range(depth, -1, -1):
            _add_row(at, path_node[d], i)
        return
    took = where < LEAF  # whether ``fresh`` takes events that its neighbour had
    if not took:  # in order: leave the full leaf packed
        fresh = _new_node(at, 0, 4)
        _put(at, fresh, 0, i)
    else:
        fresh = _new_node(at, 0, LEAF)
        half = LEAF // 2
        _move(at, words[PLACE], half, _place(at, fresh), 0, half)
        words[PLACE] -= half
        _longs(_node(at, fresh))[PLACE] += half
        if where <= half:
            _put(at, leaf, where, i)
        else:
            _put(at, fresh, where - half, i)
        _refresh(at, leaf)
    _refresh(at, fresh)
    for d in range(depth - 1, -1, -1):
        parent = path_node[d]
        if fresh < 0:
            _add_row(at, parent, i)
            continue
        beside = path_place[d] + 1
        fresh = _adopt(at, parent, beside, fresh)
        took = took or beside < FANOUT
        if fresh < 0:
            _add_row(at, parent, i)
        elif took:  # it gave half of its children away, or half of its last child
            _refresh(at, parent)
    if fresh >= 0:
        top = _new_node(at, _level(_place(at, root)) + 1, 0)
        words = _longs(_node(at, top))
        child[_start(words[PLACE])] = root
        child[_start(words[PLACE]) + 1] = fresh
        words[PLACE] += 2
        _refresh(at, top)
        entity_root[entity] = top


@_compiled
def _place_child(at: int, parent: int, where: int, node: int) -> None:
    child = _i4(at, CHILD)
    words = _longs(_node(at, parent))
    start = _start(words[PLACE])
    for j in range(_length(words[PLACE]), where, -1):
        child[start + j] = child[start + j - 1]
    child[start + where] = node
    words[PLACE] += 1


@_compiled
def _adopt(at: int, parent: int, where: int, node: int) -> int:
    """Insert a child; when the parent is full, the new (refreshed) sibling that took a part of it, else -1."""
    child = _i4(at, CHILD)
    place = _place(at, parent)
    if _length(place) < FANOUT:
        _place_child(at, parent, where, node)
        return -1
    sibling = _new_node(at, _level(place), 0)
    if where == FANOUT:
        _place_child(at, sibling, 0, node)
    else:
        half = FANOUT // 2
        start = _start(_place(at, sibling))
        for j in range(half):
            child[start + j] = child[_start(place) + half + j]
        _longs(_node(at, parent))[PLACE] -= half
        _longs(_node(at, sibling))[PLACE] += half
        if where <= half:
            _place_child(at, parent, where, node)
        else:
            _place_child(at, sibling, where - half, node)
    _refresh(at, sibling)
    return sibling


@_compiled
def _drop_children(at: int, node: int, where: int, count: int) -> None:
    child = _i4(at, CHILD)
    words = _longs(_node(at, node))
    start = _start(words[PLACE])
    for j in range(where + count, _length(words[PLACE])):
        child[start + j - count] = child[start + j]
    words[PLACE] -= count


@_compiled
def _lower_root(at: int, entity: int) -> None:
    entity_root = _i4(at, ENTITY_ROOT)
    child = _i4(at, CHILD)
    root = entity_root[entity]
    while root >= 0:
        place = _place(at, root)
        if _level(place) == 0 or _length(place) > 1:
            return
        entity_root[entity] = child[_start(place)]
        _free_node(at, root)
        root = entity_root[entity]


@_compiled
def _find(at: int, entity: int, time: int, sequence: int) -> int:
    """Depth of the leaf that holds exactly (time, sequence), its place in ``path_place[depth]``; -1 if none does."""
    path_node = _i8(at, PATH_NODE)
    path_place = _i8(at, PATH_PLACE)
    root = _i4(at, ENTITY_ROOT)[entity]
    if root < 0:
        return -1
    depth = _descend(at, root, time, sequence)
    place = _place(at, path_node[depth])
    where = _upper(at, place, time, sequence) - 1
    if where < 0 or _times(at, place)[where] != time or _sequences(at, place)[where] != sequence:
        return -1
    path_place[depth] = where
    return depth


@_compiled
def _unlist_slot(at: int, node: int, place: int, j: int) -> None:
    """Take slot ``j`` of a leaf, still in its place, out of the lists of a node above."""
    if _i4(at, SKETCH_OF)[node] < 0:
        return
    for which in range(_scalar(at, LISTS)):
        lane = _i4(at, LIST_LANE)[which]
        if _slot_counts(at, lane, place, j):
            _list_remove(
                _list(at, node, which), _lot(_sequences(at, place)[j]), _slot_bits(at, lane, place, j)
            )


@_compiled
def _lists_are_short(at: int, node: int) -> bool:
    """Whether removals have left a list, that has a limit, so short that it should be made anew."""
    if _i4(at, SKETCH_OF)[node] < 0:
        return False
    for which in range(_scalar(at, LISTS)):
        words = _longs(_list(at, node, which))
        if words[0] < LIST // 4 and words[1] < ALL:
            return True
    return False


@_compiled
def _remove(at: int, entity: int, time: int, sequence: int) -> None:
    path_node = _i8(at, PATH_NODE)
    path_place = _i8(at, PATH_PLACE)
    entity_root = _i4(at, ENTITY_ROOT)
    depth = _find(at, entity, time, sequence)
    if depth < 0:  # evicted already, or the slot has a new owner
        return
    words = _longs(_node(at, path_node[depth]))
    where = path_place[depth]
    if _scalar(at, BLOCK_BYTES) > 0:
        _unshelve_slot(at, entity, words[PLACE], where)
        for d in range(depth):
            _unlist_slot(at, path_node[d], words[PLACE], where)
    _move(at, words[PLACE], where + 1, words[PLACE], where, _length(words[PLACE]) - where - 1)
    words[PLACE] -= 1
    _i8(at, META)[LIVE_SLOTS] -= 1
    for d in range(depth, -1, -1):
        node = path_node[d]
        if _length(_place(at, node)) > 0:
            _refresh_states(at, node)
            if d < depth and _scalar(at, BLOCK_BYTES) > 0:
                _refresh_sketch(at, node, _lists_are_short(at, node))
            continue
        _free_node(at, node)
        if d > 0:
            _drop_children(at, path_node[d - 1], path_place[d - 1], 1)
        else:
            entity_root[entity] = -1
    _lower_root(at, entity)


@_compiled
def _evict(at: int, entity: int, horizon: int) -> None:
    """Discard every leaf and subtree whose events are all at or before ``horizon``."""
    path_node = _i8(at, PATH_NODE)
    entity_root = _i4(at, ENTITY_ROOT)
    child = _i4(at, CHILD)
    root = entity_root[entity]
    if root < 0:
        return
    words = _longs(_node(at, root))
    if words[FIRST_TIME] > horizon:
        return
    if words[LAST_TIME] <= horizon:
        entity_root[entity] = -1
        _discard(at, root)
        return
    depth = 0
    deepest = -1
    node = root
    place = words[PLACE]
    while _level(place) > 0:
        start = _start(place)
        dead = 0
        while _longs(_node(at, child[start + dead]))[LAST_TIME] <= horizon:  # the last child lives
            _discard(at, child[start + dead])
            dead += 1
        if dead:
            _drop_children(at, node, 0, dead)
            deepest = depth
        path_node[depth] = node
        depth += 1
        node = child[start]
        place = _place(at, node)
    for d in range(deepest, -1, -1):
        _refresh(at, path_node[d])
    if deepest >= 0:
        _lower_root(at, entity)


@_compiled
def _change_outcome(at: int, entity: int, time: int, sequence: int, fraud: bool) -> None:
    """Set an event's outcome; sums of outcomes are whole numbers, so that they may be changed by one exactly."""
    path_node = _i8(at, PATH_NODE)
    path_place = _i8(at, PATH_PLACE)
    column = _scalar(at, FRAUD_COLUMN)
    depth = _find(at, entity, time, sequence)
    if depth < 0:
        return
    place = _place(at, path_node[depth])
    where = path_place[depth]
    values = _floats(_field(at, place, _scalar(at, VALUE_FIELD) + column))
    change = (1.0 if fraud else 0.0) - values[where]
    values[where] += change
    for lane in range(_scalar(at, LANES)):
        if _i4(at, LANE_VALUE)[lane] != column or not _slot_counts(at, lane, place, where):
            continue
        for d in range(depth + 1):
            _floats(_node_lane(at, path_node[d], lane))[1] += change


# ---- what is told apart, or ordered -------------------------------------------------------------------------------


@_compiled
def _begin_telling(at: int, k: int) -> None:
    _i8(at, TELLING_COUNT)[k] = 0
    _i8(at, TELLING_SIZE)[k] = 0
    _i8(at, TELLING_MARK)[k] += 1


@_compiled
def _home(key: np.uint64) -> int:
    """Where an open-addressed set looks for a key first."""
    return int(_mixed(key) >> np.uint64(32)) & (2 * SCAN - 1)


@_compiled
def _see(at: int, k: int, key: np.uint64) -> None:
    """Count a key; a telling never collects more than SCAN, so its set stays half empty."""
    base = k * 2 * SCAN
    keys = _u8(at, SEEN_KEY)
    marks = _i8(at, SEEN_MARK)
    count = _i8(at, TELLING_COUNT)
    mark = _i8(at, TELLING_MARK)[k]
    place = base + _home(key)
    while (marks[place] >> 16) == mark:
        if keys[place] == key:
            marks[place] += 1
            return
        place += 1
        if place == base + 2 * SCAN:
            place = base
    keys[place] = key
    marks[place] = (mark << 16) | 1
    _i4(at, SEEN_PLACE)[k * SCAN + count[k]] = place
    count[k] += 1


@_compiled
def _tell(at: int, k: int, lane: int, bits: np.uint64) -> None:
    """Collect one event."""
    sizes = _i8(at, TELLING_SIZE)
    if sizes[k] == SCAN:  # lots so uneven that the sample does not fit: its end is left out
        return
    if _i4(at, LANE_KEY)[lane] >= 0:
        _see(at, k, bits)
    else:
        _u8(at, TOLD_VALUE)[k * SCAN + sizes[k]] = bits
        _i8(at, TELLING_COUNT)[k] += 1
    sizes[k] += 1


@_compiled
def _register(
    at: int,
    telling: int,
    registers: NDArray[np.uint8],
    root: int,
    after: int,
    after_sequence: int,
    time: int,
    sequence: int,
) -> None:
    """Show registers the events after (after, after_sequence) and at or before (time, sequence)."""
    starts = _longs(_longs(at)[CURSOR] + 8 * 2 * DEPTH)
    places = _longs(_longs(at)[CURSOR] + 8 * 3 * DEPTH)
    child = _i4(at, CHILD)
    lane = _i4(at, TELLING_LANE)[telling]
    sketch = _i4(at, TELLING_SKETCH)[telling]
    depth = -1
    node = root
    while True:
        words = _longs(_node(at, node))
        place = words[PLACE]
        first = words[FIRST_TIME]
        last = words[LAST_TIME]
        if last < after or (last == after and words[LAST_SEQUENCE] <= after_sequence):
            return
        begins = first > after or (first == after and words[FIRST_SEQUENCE] > after_sequence)
        ends = last < time or (last == time and words[LAST_SEQUENCE] <= sequence)
        count = np.int64(_floats(_node_lane(at, node, lane))[0])
        if count == 0 or first > time or (first == time and words[FIRST_SEQUENCE] > sequence):
            pass
        elif _level(place) > 0:
            if begins and ends and _i4(at, SKETCH_OF)[node] >= 0:
                _note_all(registers, _sketch(at, node, sketch))
            else:
                depth += 1
                starts[depth] = _start(place)
                places[depth] = _length(place) - 1
                node = child[_start(place) + _length(place) - 1]
                continue
        else:
            low = 0 if begins else _upper(at, place, after, after_sequence)
            high = _length(place) if ends else _upper(at, place, time, sequence)
            _note_slots(at, lane, place, low, high, count == _length(place), registers)
        while depth >= 0 and places[depth] == 0:
            depth -= 1
        if depth < 0:
            return
        places[depth] -= 1
        node = child[starts[depth] + places[depth]]


@_compiled
def _sift(
    at: int,
    how: int,
    to: int,
    lane: int,
    which: int,
    root: int,
    after: int,
    after_sequence: int,
    time: int,
    sequence: int,
    least: int,
    limit: int,
) -> None:
    """Tell, or shelve, the events after (after, after_sequence), up to (time, sequence), with lots in [least, limit).

    ``to``: the telling, or the shelf that they are added to or removed from; ``which``: the lane's list, -1: none.
    """
    starts = _longs(_longs(at)[CURSOR] + 8 * 2 * DEPTH)
    places = _longs(_longs(at)[CURSOR] + 8 * 3 * DEPTH)
    child = _i4(at, CHILD)
    every = least == 0 and limit == ALL
    depth = -1
    node = root
    while True:
        words = _longs(_node(at, node))
        place = words[PLACE]
        first = words[FIRST_TIME]
        last = words[LAST_TIME]
        if last < after or (last == after and words[LAST_SEQUENCE] <= after_sequence):
            return
        begins = first > after or (first == after and words[FIRST_SEQUENCE] > after_sequence)
        ends = last < time or (last == time and words[LAST_SEQUENCE] <= sequence)
        count = np.int64(_floats(_node_lane(at, node, lane))[0])
        if count == 0 or first > time or (first == time and words[FIRST_SEQUENCE] > sequence):
            pass
        elif _level(place) > 0:
            drawn = 0
            if which >= 0 and begins and ends and _i4(at, SKETCH_OF)[node] >= 0:
                drawn = _list(at, node, which)
                if _longs(drawn)[1] < limit:
                    drawn = 0
            if drawn == 0:
                depth += 1
                starts[depth] = _start(place)
                places[depth] = _length(place) - 1
                node = child[_start(place) + _length(place) - 1]
                continue
            lots = _list_lots(drawn)
            values = _keys(drawn + 16)
            for j in range(0 if least == 0 else _list_upper(drawn, least - 1), _longs(drawn)[0]):
                if np.int64(lots[j]) >= limit:
                    break
                _sifted(at, how, to, lane, values[j])
        else:
            low = 0 if begins else _upper(at, place, after, after_sequence)
            high = _length(place) if ends else _upper(at, place, time, sequence)
            full = count == _length(place)
            sequences = _sequences(at, place)
            for j in range(high - 1, low - 1, -1):
                if not every:
                    lot = _lot(sequences[j])
                    if lot < least or lot >= limit:
                        continue
                if full or _slot_counts(at, lane, place, j):
                    _sifted(at, how, to, lane, _slot_bits(at, lane, place, j))
        while depth >= 0 and places[depth] == 0:
            depth -= 1
        if depth < 0:
            return
        places[depth] -= 1
        node = child[starts[depth] + places[depth]]


@_compiled
def _sifted(at: int, how: int, to: int, lane: int, bits: np.uint64) -> None:
    if how == _PLAIN:
        _tell(at, to, lane, bits)
    elif how == _APPEND:
        words = _longs(_shelf(at, to))
        if words[SIZE] < SCAN:
            _u8(at, SHELF_SORTED)[to * SCAN + words[SIZE]] = bits
            words[SIZE] += 1
        else:
            words[OWNER] = -1
    elif _i4(at, LANE_KEY)[lane] >= 0:
        _shelve(at, to, lane, bits, how == _ADD)
    else:
        moving = _i8(at, MOVING)
        which = 0 if how == _ADD else 1
        if moving[which] == SCAN:
            _longs(_shelf(at, to))[OWNER] = -1
            return
        _u8(at, COMING if how == _ADD else GOING)[moving[which]] = bits
        moving[which] += 1


# ---- shelves: what is told of a window, carried over from one event of its entity to the next -----------------------
#
# One entity has a shelf at a time. What a shelf answers is what collecting anew would: sets, whole sums and order
# statistics do not depend on the way that led to them, and registers only grow (removals make them anew).


@_compiled
def _shelf(at: int, shelf: int) -> int:
    """Address of a shelf's words."""
    return _longs(at)[SHELF] + 8 * SHELF_WORDS * shelf


@_compiled
def _shelve(at: int, shelf: int, lane: int, bits: np.uint64, add: bool) -> None:
    """Add an event to a shelf, or remove one that is there."""
    words = _longs(_shelf(at, shelf))
    if add and words[SIZE] == SCAN:  # no room: it is given up
        words[OWNER] = -1
        return
    if words[OWNER] < 0:
        return
    if _i4(at, LANE_KEY)[lane] >= 0:
        _shelve_key(at, shelf, bits, add)
    else:
        _shelve_value(at, shelf, bits, add)
    words[SIZE] += 1 if add else -1


@_compiled
def _shelve_key(at: int, shelf: int, key: np.uint64, add: bool) -> None:
    words = _longs(_shelf(at, shelf))
    keys = _keys(_longs(at)[SHELF_KEY] + 8 * shelf * 2 * SCAN)
    counts = _ints(_longs(at)[SHELF_COUNT] + 4 * shelf * 2 * SCAN)
    logs = _i8(at, COUNT_LOGS)
    mask = 2 * SCAN - 1
    place = _home(key)
    while keys[place] != key and keys[place] != np.uint64(0):
        place = (place + 1) & mask
    if add:
        if keys[place] != key:
            keys[place] = key
            counts[place] = 0
            words[DIFFERENT] += 1
        counts[place] += 1
        words[WEIGHT] += logs[counts[place]] - logs[counts[place] - 1]
        return
    if keys[place] != key:  # never; but room is not checked elsewhere
        words[OWNER] = -1
        return
    counts[place] -= 1
    words[WEIGHT] -= logs[counts[place] + 1] - logs[counts[place]]
    if counts[place] > 0:
        return
    words[DIFFERENT] -= 1
    hole = place
    while True:  # close the gap: Knuth 1998, 6.4, algorithm R
        place = (place + 1) & mask
        if keys[place] == np.uint64(0):
            break
        if ((place - _home(keys[place])) & mask) >= ((place - hole) & mask):
            keys[hole] = keys[place]
            counts[hole] = counts[place]
            hole = place
    keys[hole] = np.uint64(0)


@_compiled
def _shelve_value(at: int, shelf: int, bits: np.uint64, add: bool) -> None:
    size = _longs(_shelf(at, shelf))[SIZE]
    values = _keys(_longs(at)[SHELF_SORTED] + 8 * shelf * SCAN)
    low = 0
    high = size
    while low < high:
        middle = (low + high) // 2
        if values[middle] < bits:
            low = middle + 1
        else:
            high = middle
    if add:
        for j in range(size - 1, low - 1, -1):
            values[j + 1] = values[j]
        values[low] = bits
        return
    for j in range(low, size - 1):
        values[j] = values[j + 1]


@_compiled
def _holds(words: NDArray[np.int64], first: int, time: int, sequence: int) -> bool:
    """Whether an event at (time, sequence) is in a stretch, of which ``first`` is the first of three words."""
    last = words[first + 1]
    return time > words[first] and (time < last or (time == last and sequence <= words[first + 2]))


@_compiled
def _shelve_row(at: int, entity: int, i: int) -> None:
    """Tell the shelves of an entity of row ``i``, which goes into its tree."""
    lanes = _i4(at, SHELF_LANE)
    sequence = _i8(at, ROW_SEQUENCE)[i]
    time = _i8(at, ROW_TIME)[i]
    for shelf in range(_scalar(at, SHELVES)):
        words = _longs(_shelf(at, shelf))
        if words[OWNER] != entity or not _row_counts(at, i, lanes[shelf]):
            continue
        bits = _row_bits(at, i, lanes[shelf])
        if words[HAS_REGISTERS] and _holds(words, REGISTERS_FROM, time, sequence):
            _note(_bytes(_longs(at)[SHELF_REGISTER] + shelf * REGISTERS), bits)
        if words[HOLDS] and _lot(sequence) < words[BELOW] and _holds(words, FROM, time, sequence):
            _shelve(at, shelf, lanes[shelf], bits, True)


@_compiled
def _unshelve_slot(at: int, entity: int, place: int, j: int) -> None:
    """Tell the shelves of an entity that slot ``j`` of a leaf, still in its place, goes."""
    lanes = _i4(at, SHELF_LANE)
    sequence = _sequences(at, place)[j]
    time = _times(at, place)[j]
    for shelf in range(_scalar(at, SHELVES)):
        words = _longs(_shelf(at, shelf))
        if words[OWNER] != entity or not _slot_counts(at, lanes[shelf], place, j):
            continue
        if _holds(words, REGISTERS_FROM, time, sequence):
            words[HAS_REGISTERS] = 0
        if words[HOLDS] and _lot(sequence) < words[BELOW] and _holds(words, FROM, time, sequence):
            _shelve(at, shelf, lanes[shelf], _slot_bits(at, lanes[shelf], place, j), False)


@_compiled
def _fill_shelf(
    at: int, shelf: int, lane: int, which: int, root: int, after: int, time: int, sequence: int, limit: int
) -> None:
    """Put all that a shelf is to hold on it."""
    words = _longs(_shelf(at, shelf))
    words[SIZE] = 0
    words[DIFFERENT] = 0
    words[WEIGHT] = 0
    words[HOLDS] = 1
    if _i4(at, LANE_KEY)[lane] >= 0:
        keys = _keys(_longs(at)[SHELF_KEY] + 8 * shelf * 2 * SCAN)
        for j in range(2 * SCAN):
            keys[j] = np.uint64(0)
        _sift(at, _ADD, shelf, lane, which, root, after, _END, time, sequence, 0, limit)
        return
    _sift(at, _APPEND, shelf, lane, which, root, after, _END, time, sequence, 0, limit)
    _sort(at, _longs(at)[SHELF_SORTED] + 8 * shelf * SCAN, words[SIZE])


@_compiled
def _sort(at: int, address: int, count: int) -> None:
    """Sort integers by their bytes, least first; a byte that all share costs one pass."""
    source = address
    target = _longs(at)[RANKED]
    counts = np.zeros(256, np.int64)
    for shift in range(0, 64, 8):
        a = _keys(source)
        for j in range(256):
            counts[j] = 0
        for j in range(count):
            counts[np.int64(a[j] >> np.uint64(shift)) & 255] += 1
        if count == 0 or counts[np.int64(a[0] >> np.uint64(shift)) & 255] == count:
            continue
        below = 0
        for j in range(256):
            here = counts[j]
            counts[j] = below
            below += here
        b = _keys(target)
        for j in range(count):
            digit = np.int64(a[j] >> np.uint64(shift)) & 255
            b[counts[digit]] = a[j]
            counts[digit] += 1
        source, target = target, source
    if source != address:
        a = _keys(source)
        b = _keys(address)
        for j in range(count):
            b[j] = a[j]


@_compiled
def _bring_shelf(
    at: int,
    i: int,
    shelf: int,
    telling: int,
    window: int,
    root: int,
    after: int,
    time: int,
    sequence: int,
    total: int,
) -> bool:
    """Bring a shelf to the window (after, (time, sequence)] of row ``i``, without the row; whether it is there.

    It is not for the first event of another entity: a shelf changes hands when the same entity asks twice.
    """
    words = _longs(_shelf(at, shelf))
    entity = int(_i4(at, ROW_ENTITY)[i])
    lane = _i4(at, TELLING_LANE)[telling]
    which = _i4(at, TELLING_LIST)[telling]
    limit = _limit(at, total)
    held = total <= SCAN or _u1(at, SHELF_DRAWN)[shelf]
    if words[OWNER] == entity:
        leap = after - words[FROM]
        # What left the tree cannot be taken off the shelf, and a leap may cost more than to begin anew.
        kept = _i8(at, ROW_WATERMARK)[i] - _scalar(at, RETENTION)
        if words[FROM] < kept or leap > _i8(at, WINDOW_WIDTH)[window] >> 3:
            words[OWNER] = -1
        elif time < words[TO_TIME] or (time == words[TO_TIME] and sequence < words[TO_SEQUENCE]):  # late
            if not held or not words[HOLDS]:
                return False
            # to go back and forth again may cost more than to collect anew, and leave the shelf to the next event
            share = float(-leap) / _i8(at, WINDOW_WIDTH)[window]
            passed = max(share * total, float(abs(total - words[IN_WINDOW])))
            cut = float(abs(limit - words[BELOW])) / words[BELOW]
            if passed * limit / ALL + cut * words[SIZE] > BACK or share > 0.125:
                return False
    if words[OWNER] != entity:
        if words[CANDIDATE] != entity:
            words[CANDIDATE] = entity
            return False
        words[OWNER] = entity
        words[HOLDS] = 0
        words[HAS_REGISTERS] = 0
    words[CANDIDATE] = entity
    if not held:
        words[HOLDS] = 0
    elif words[HOLDS]:
        _slide(at, shelf, lane, which, root, after, time, sequence, limit)
    else:
        _fill_shelf(at, shelf, lane, which, root, after, time, sequence, limit)
    words[FROM] = after
    words[TO_TIME] = time
    words[TO_SEQUENCE] = sequence
    words[BELOW] = limit
    words[IN_WINDOW] = total
    return words[OWNER] == entity


@_compiled
def _slide(
    at: int, shelf: int, lane: int, which: int, root: int, after: int, time: int, sequence: int, limit: int
) -> None:
    """Take off a shelf what a window has no more, and add what it has; both overlap. It never holds too much."""
    words = _longs(_shelf(at, shelf))
    moving = _i8(at, MOVING)
    moving[0] = 0
    moving[1] = 0
    begin = words[FROM]
    end = words[TO_TIME]
    end_sequence = words[TO_SEQUENCE]
    below = words[BELOW]
    if limit < below:
        _sift(at, _REMOVE, shelf, lane, which, root, begin, _END, end, end_sequence, limit, below)
        below = limit
    later = time > end or (time == end and sequence > end_sequence)
    if after > begin:
        _sift(at, _REMOVE, shelf, lane, which, root, begin, _END, after, _END, 0, below)
    if not later:
        _sift(at, _REMOVE, shelf, lane, which, root, time, sequence, end, end_sequence, 0, below)
    if limit > below:
        to_time = end if later else time
        to_sequence = end_sequence if later else sequence
        _sift(at, _ADD, shelf, lane, which, root, max(after, begin), _END, to_time, to_sequence, below, limit)
    if after < begin:
        _sift(at, _ADD, shelf, lane, which, root, after, _END, begin, _END, 0, limit)
    if later:
        _sift(at, _ADD, shelf, lane, which, root, end, end_sequence, time, sequence, 0, limit)
    if moving[0] + moving[1] > FEW:
        _move_values(at, shelf)
        return
    for j in range(moving[1]):
        _shelve(at, shelf, lane, _u8(at, GOING)[j], False)
    for j in range(moving[0]):
        _shelve(at, shelf, lane, _u8(at, COMING)[j], True)


@_compiled
def _move_values(at: int, shelf: int) -> None:
    """Add COMING to a shelf's values and take GOING off, in one pass; all of GOING is there."""
    words = _longs(_shelf(at, shelf))
    moving = _i8(at, MOVING)
    size = words[SIZE]
    if size + moving[0] - moving[1] > SCAN:  # no room: it is given up
        words[OWNER] = -1
    if words[OWNER] < 0:
        return
    _sort(at, _longs(at)[COMING], moving[0])
    _sort(at, _longs(at)[GOING], moving[1])
    coming = _u8(at, COMING)
    going = _u8(at, GOING)
    values = _keys(_longs(at)[SHELF_SORTED] + 8 * shelf * SCAN)
    ranked = _u8(at, RANKED)
    kept = 0
    gone = 0
    come = 0
    for j in range(size):
        x = values[j]
        if gone < moving[1] and going[gone] == x:
            gone += 1
            continue
        if (
            kept + moving[0] - come >= SCAN
        ):  # never, as all of GOING is there; but room is not checked elsewhere
            words[OWNER] = -1
            return
        while come < moving[0] and coming[come] < x:
            ranked[kept] = coming[come]
            kept += 1
            come += 1
        ranked[kept] = x
        kept += 1
    while come < moving[0]:
        ranked[kept] = coming[come]
        kept += 1
        come += 1
    for j in range(kept):
        values[j] = ranked[j]
    words[SIZE] = kept


@_compiled
def _bring_registers(
    at: int, k: int, shelf: int, telling: int, window: int, root: int, after: int, time: int, sequence: int
) -> bool:
    """The registers of a window from those of its shelf; not for a late one: registers cannot go back.

    Those of the shelf leave out the window's oldest events, so that it may move on by some before they are made anew.
    """
    words = _longs(_shelf(at, shelf))
    kept = _bytes(_longs(at)[SHELF_REGISTER] + shelf * REGISTERS)
    registers = _bytes(_longs(at)[TOLD_REGISTER] + k * REGISTERS)
    end = words[REGISTERS_TIME]
    end_sequence = words[REGISTERS_SEQUENCE]
    if words[HAS_REGISTERS] and (time < end or (time == end and sequence < end_sequence)):
        return False
    if words[HAS_REGISTERS] and words[REGISTERS_FROM] >= after:
        _register(at, telling, kept, root, end, end_sequence, time, sequence)
    else:
        total = int(_floats(_query_lane(at, _i4(at, TELLING_LANE)[telling]))[0])
        words[REGISTERS_FROM] = (
            after + _i8(at, WINDOW_WIDTH)[window] // total * 256
        )  # total > SCAN: before the end
        words[HAS_REGISTERS] = 1
        for j in range(REGISTERS):
            kept[j] = 0
        _register(at, telling, kept, root, words[REGISTERS_FROM], _END, time, sequence)
    words[REGISTERS_TIME] = time
    words[REGISTERS_SEQUENCE] = sequence
    for j in range(REGISTERS):
        registers[j] = kept[j]
    _register(at, telling, registers, root, after, _END, words[REGISTERS_FROM], _END)
    return True


@_compiled
def _plain_registers(at: int, k: int, telling: int, root: int, after: int, time: int, sequence: int) -> None:
    """The registers of a window, from those of a narrower one of the same event where there are any."""
    registers = _bytes(_longs(at)[TOLD_REGISTER] + k * REGISTERS)
    far_time = _i8(at, TELLING_TIME)
    far_sequence = _i8(at, TELLING_SEQUENCE)
    begun = _i8(at, TELLING_BEGUN)
    if begun[k] == 0:
        begun[k] = 1
        far_time[k] = time
        far_sequence[k] = sequence
        for j in range(REGISTERS):
            registers[j] = 0
    _register(at, telling, registers, root, after, _END, far_time[k], far_sequence[k])
    far_time[k] = after
    far_sequence[k] = _END


@_compiled
def _tell_window(
    at: int,
    i: int,
    k: int,
    telling: int,
    window: int,
    own: bool,
    root: int,
    after: int,
    time: int,
    sequence: int,
) -> None:
    """Bring a telling up to the window that begins after ``after``; the group's windows end at (time, sequence)."""
    lane = _i4(at, TELLING_LANE)[telling]
    shelf = _i4(at, WINDOW_SHELF)[window * _scalar(at, TELLINGS) + k]
    _i8(at, TELLING_SHELF)[k] = -1
    if shelf < 0 or root < 0:
        return
    total = int(_floats(_query_lane(at, lane))[0])
    which = _i4(at, TELLING_LIST)[telling]
    far_time = _i8(at, TELLING_TIME)
    far_sequence = _i8(at, TELLING_SEQUENCE)
    if total <= SHORT:
        _sift(at, _PLAIN, k, lane, which, root, after, _END, far_time[k], far_sequence[k], 0, ALL)
        far_time[k] = after
        far_sequence[k] = _END
        return
    own = own and _row_counts(at, i, lane)
    own_drawn = own and _lot(_i8(at, ROW_SEQUENCE)[i]) < _limit(at, total)
    shelved = _bring_shelf(at, i, shelf, telling, window, root, after, time, sequence, total)
    if total > SCAN and _u1(at, SHELF_DISTINCT)[shelf]:
        begun = _i8(at, TELLING_BEGUN)
        if shelved and _bring_registers(at, k, shelf, telling, window, root, after, time, sequence):
            begun[k] = 0
        else:
            _plain_registers(at, k, telling, root, after, time, sequence)
        if own:
            _note(_bytes(_longs(at)[TOLD_REGISTER] + k * REGISTERS), _row_bits(at, i, lane))
    if total > SCAN and not _u1(at, SHELF_DRAWN)[shelf]:
        return
    words = _longs(_shelf(at, shelf))
    if shelved and own_drawn:
        _shelve(at, shelf, lane, _row_bits(at, i, lane), True)
        shelved = words[OWNER] >= 0
    if shelved:
        _i8(at, TELLING_SHELF)[k] = shelf
        return
    _begin_telling(at, k)
    if own_drawn:
        _tell(at, k, lane, _row_bits(at, i, lane))
    _sift(at, _PLAIN, k, lane, which, root, after, _END, time, sequence, 0, _limit(at, total))


@_compiled
def _tidy_shelves(at: int, i: int, group: int, own: bool) -> None:
    """Take row ``i`` off the shelves again that it was put on for its own windows."""
    tellings = _i4(at, GROUP_TELLINGS)
    low = tellings[group]
    for telling in range(low, tellings[group + 1]):
        shelf = _i8(at, TELLING_SHELF)[telling - low]
        if shelf < 0 or not own:
            continue
        lane = _i4(at, TELLING_LANE)[telling]
        words = _longs(_shelf(at, shelf))
        if _row_counts(at, i, lane) and _lot(_i8(at, ROW_SEQUENCE)[i]) < words[BELOW]:
            _shelve(at, shelf, lane, _row_bits(at, i, lane), False)


@_compiled
def _entropy(at: int, k: int, total: int) -> float:
    """Shannon entropy (nats) of what a telling has collected; of a sample with the Miller-Madow term."""
    logs = _i8(at, COUNT_LOGS)
    shelf = _i8(at, TELLING_SHELF)[k]
    if shelf >= 0:
        words = _longs(_shelf(at, shelf))
        count = words[DIFFERENT]
        size = words[SIZE]
        weight = words[WEIGHT]
    else:
        marks = _i8(at, SEEN_MARK)
        places = _i4(at, SEEN_PLACE)
        count = _i8(at, TELLING_COUNT)[k]
        size = _i8(at, TELLING_SIZE)[k]
        weight = 0
        for j in range(count):
            weight += logs[marks[places[k * SCAN + j]] & 0xFFFF]
    if size == 0:
        return 0.0
    entropy = float(logs[size] - weight) / LOG_UNIT / size
    return max(0.0, entropy) if total <= SCAN else max(0.0, entropy) + (count - 1.0) / (2.0 * size)


@_compiled
def _select(at: int, k: int, count: int, rank: int) -> float:
    """The value of ``rank`` (from 0) among those told, by radix selection: at most eight passes."""
    values = _u8(at, TOLD_VALUE)
    ranked = _u8(at, RANKED)
    for j in range(count):
        ranked[j] = values[k * SCAN + j]
    counts = np.zeros(256, np.int64)
    shift = 56
    while count > 1 and shift >= 0:
        for j in range(256):
            counts[j] = 0
        for j in range(count):
            counts[np.int64(ranked[j] >> np.uint64(shift)) & 255] += 1
        digit = 0
        while rank >= counts[digit]:
            rank -= counts[digit]
            digit += 1
        kept = 0
        for j in range(count):
            if np.int64(ranked[j] >> np.uint64(shift)) & 255 == digit:
                ranked[kept] = ranked[j]
                kept += 1
        count = kept
        shift -= 8
    return _value_of(ranked[0])


@_compiled
def _quantile(at: int, k: int, q: float) -> float:
    """Linear between order statistics (Hyndman and Fan 1996, type 7)."""
    shelf = _i8(at, TELLING_SHELF)[k]
    count = _longs(_shelf(at, shelf))[SIZE] if shelf >= 0 else _i8(at, TELLING_COUNT)[k]
    if count == 0:
        return np.nan
    place = (count - 1) * q
    low = int(place)
    part = place - low
    if shelf >= 0:
        ordered = _keys(_longs(at)[SHELF_SORTED] + 8 * shelf * SCAN)
        below = _value_of(ordered[low])
        if part == 0.0 or low + 1 >= count:
            return below
        return below + part * (_value_of(ordered[low + 1]) - below)
    below = _select(at, k, count, low)
    if part == 0.0 or low + 1 >= count:
        return below
    values = _u8(at, TOLD_VALUE)
    bits = _rank_bits(below)
    least = np.uint64(0xFFFFFFFFFFFFFFFF)
    up_to = 0
    for j in range(count):
        x = values[k * SCAN + j]
        if x <= bits:
            up_to += 1
        else:
            least = min(least, x)
    above = below if up_to > low + 1 else _value_of(least)
    return below + part * (above - below)


# ---- queries ------------------------------------------------------------------------------------------------------


@_compiled
def _walk(
    at: int,
    i: int,
    group: int,
    window: int,
    beyond: int,
    own: bool,
    root: int,
    time: int,
    sequence: int,
) -> None:
    """Answer windows [window, beyond) of a group: one walk from (time, sequence) back, merging into its lanes."""
    starts = _longs(_longs(at)[CURSOR])
    places = _longs(_longs(at)[CURSOR] + 8 * DEPTH)
    child = _i4(at, CHILD)
    widths = _i8(at, WINDOW_WIDTH)
    used = _i4(at, LANES_USED)
    lane_low = _i4(at, GROUP_LANES)[group]
    lane_high = _i4(at, GROUP_LANES)[group + 1]
    rich = _u1(at, LANE_RICH)
    orders = _i4(at, LANE_ORDER)
    end = _i8(at, ROW_TIME)[i] - _i8(at, GROUP_DELAY)[group]
    after = end - widths[window]
    depth = -1
    node = root
    while node >= 0:
        words = _longs(_node(at, node))
        place = words[PLACE]
        first = words[FIRST_TIME]
        last = words[LAST_TIME]
        if first > time or (first == time and words[FIRST_SEQUENCE] > sequence):
            pass  # newer than the window
        else:
            while last <= after:
                _close(at, i, group, window, own, root, after, time, sequence)
                window += 1
                if window == beyond:
                    return
                after = end - widths[window]
            whole = last < time or (last == time and words[LAST_SEQUENCE] <= sequence)
            if whole and first > after:
                for n in range(lane_low, lane_high):
                    lane = used[n]
                    state = _node_lane(at, node, lane)
                    if rich[lane]:
                        _combine(at, lane, state, _query_lane(at, lane), _query_lane(at, lane))
                    else:
                        f = _floats(state)
                        order = orders[lane]
                        _combine_plain(
                            at,
                            lane,
                            f[0],
                            f[1] if order > 0 else 0.0,
                            f[2] if order > 1 else 0.0,
                            _query_lane(at, lane),
                        )
            elif _level(place) > 0:
                depth += 1
                starts[depth] = _start(place)
                places[depth] = _length(place) - 1
                node = child[_start(place) + _length(place) - 1]
                continue
            else:
                high = _length(place) if whole else _upper(at, place, time, sequence)
                while True:
                    low = 0 if first > after else _up_to(at, place, after, high)
                    for n in range(lane_low, lane_high):
                        _prepend_slots(at, used[n], place, low, high, _query_lane(at, used[n]))
                    if low == 0:
                        break
                    _close(at, i, group, window, own, root, after, time, sequence)
                    window += 1
                    if window == beyond:
                        return
                    after = end - widths[window]
                    high = low
        while depth >= 0 and places[depth] == 0:
            depth -= 1
        if depth < 0:
            break
        places[depth] -= 1
        node = child[starts[depth] + places[depth]]
    while window < beyond:
        _close(at, i, group, window, own, root, end - widths[window], time, sequence)
        window += 1


@_compiled
def _close(
    at: int, i: int, group: int, window: int, own: bool, root: int, after: int, time: int, sequence: int
) -> None:
    """A window is complete: write its features."""
    tellings = _i4(at, GROUP_TELLINGS)
    low = tellings[group]
    for telling in range(low, tellings[group + 1]):
        _tell_window(at, i, telling - low, telling, window, own, root, after, time, sequence)
    features = _i4(at, WINDOW_FEATURES)
    kinds = _i4(at, FEATURE_KIND)
    lanes = _i4(at, FEATURE_LANE)
    columns = _i4(at, FEATURE_COLUMN)
    empty = _f8(at, FEATURE_EMPTY)
    out = _f8(at, OUT)
    base = i * _scalar(at, COLUMNS)
    for f in range(features[window], features[window + 1]):
        kind = kinds[f]
        lane = lanes[f]
        state = _floats(_query_lane(at, lane))
        count = state[0]
        value = empty[f]
        if kind == COUNT:
            if count > 0.0:
                value = count
        elif kind == SUM:
            if count > 0.0:
                value = state[1]
        elif kind == MEAN:
            if count > 0.0:
                value = state[1] / count
        elif kind in (VARIANCE, STD):
            if count > 1.0:
                value = state[2] / (count - 1.0)
                if kind == STD:
                    value = np.sqrt(value)
        elif count > 0.0:
            value = _rich_value(at, i, kind, lane, f, value)
        out[base + columns[f]] = value
    _tidy_shelves(at, i, group, own)


@_compiled
def _rich_value(at: int, i: int, kind: int, lane: int, f: int, empty: float) -> float:
    """One of the rarer aggregations of a window that is not empty."""
    state = _floats(_query_lane(at, lane))
    count = state[0]
    parameter = _f8(at, FEATURE_PARAMETER)[f]
    k = _i4(at, FEATURE_TELLING)[f]
    clock = _i4(at, LANE_CLOCK)[lane]
    ends = _i4(at, LANE_ENDS)[lane]
    extremes = _i4(at, LANE_EXTREMES)[lane]
    runs = _i4(at, LANE_RUNS)[lane]
    trend = _i4(at, LANE_TREND)[lane]
    time = float(_i8(at, ROW_TIME)[i])
    if kind == DISTINCT:
        if count > SCAN:
            return _estimate(_bytes(_longs(at)[TOLD_REGISTER] + k * REGISTERS))
        shelf = _i8(at, TELLING_SHELF)[k]
        return float(_longs(_shelf(at, shelf))[DIFFERENT] if shelf >= 0 else _i8(at, TELLING_COUNT)[k])
    if kind == ENTROPY:
        return _entropy(at, k, int(count))
    if kind == QUANTILE:
        return _quantile(at, k, parameter)
    if kind == SINCE_LAST:
        return (time - state[clock + 1]) / 1e6
    if kind == SINCE_FIRST:
        return (time - state[clock]) / 1e6
    if kind == MOMENT:
        return state[np.int64(parameter)] / count
    if kind in (SKEWNESS, KURTOSIS):
        if state[extremes] == state[extremes + 1] or state[2] <= 0.0:
            return empty
        variance = state[2] / count
        if kind == SKEWNESS:
            return state[3] / count / (variance * np.sqrt(variance))
        return state[4] / count / (variance * variance) - 3.0
    if kind == MIN:
        return state[extremes]
    if kind == MAX:
        return state[extremes + 1]
    if kind == RANGE:
        return state[extremes + 1] - state[extremes]
    if kind == FIRST:
        return state[ends]
    if kind == LAST:
        return state[ends + 1]
    if kind == RUN_UP:
        return state[runs + 1]
    if kind == RUN_DOWN:
        return state[runs + 4]
    if kind == LONGEST_UP:
        return state[runs + 2]
    if kind == LONGEST_DOWN:
        return state[runs + 5]
    if kind == SLOPE:
        if state[clock] == state[clock + 1]:
            return empty
        return -state[trend + 2] / state[trend + 1] * _US_PER_HOUR
    if not _row_counts(at, i, lane):  # velocity, from here on
        return empty
    latitude = np.radians(_row_value(at, i, _i4(at, LANE_VALUE)[lane]))
    before = np.radians(state[ends + 1])
    turn = np.radians(_row_value(at, i, _i4(at, LANE_SECOND)[lane]) - state[_i4(at, LANE_LAST_SECOND)[lane]])
    north = np.sin((latitude - before) / 2.0)
    east = np.sin(turn / 2.0)
    chord = north * north + np.cos(latitude) * np.cos(before) * east * east
    kilometres = 2.0 * _EARTH_KM * np.arcsin(min(1.0, np.sqrt(chord)))
    return kilometres / (max(time - state[clock + 1], 1e6) / _US_PER_HOUR)


@_compiled
def _answer(at: int, i: int, group: int, entity: int, root: int, horizon: int) -> None:
    """Write all features of a group for row ``i``."""
    delay = _i8(at, GROUP_DELAY)[group]
    low = _i4(at, GROUP_WINDOWS)[group]
    high = _i4(at, GROUP_WINDOWS)[group + 1]
    widths = _i8(at, WINDOW_WIDTH)
    used = _i4(at, LANES_USED)
    time = _i8(at, ROW_TIME)[i] - delay
    sequence = _i8(at, ROW_SEQUENCE)[i] if delay == 0 else _END
    own = entity >= 0 and delay == 0 and not _u1(at, GROUP_EXCLUDE)[group]
    for n in range(_i4(at, GROUP_LANES)[group], _i4(at, GROUP_LANES)[group + 1]):
        _clear(at, used[n], _query_lane(at, used[n]))
        if own:
            _append_row(at, i, used[n], _query_lane(at, used[n]))
    tellings = _i4(at, GROUP_TELLINGS)
    for telling in range(tellings[group], tellings[group + 1]):
        k = telling - tellings[group]
        lane = _i4(at, TELLING_LANE)[telling]
        _begin_telling(at, k)
        _i8(at, TELLING_TIME)[k] = time
        _i8(at, TELLING_SEQUENCE)[k] = sequence
        _i8(at, TELLING_BEGUN)[k] = 0
        if own and _row_counts(at, i, lane):
            _tell(at, k, lane, _row_bits(at, i, lane))
    beyond = high
    while beyond > low and time - widths[beyond - 1] < horizon:
        # a correction from so far back that this window is not kept whole
        beyond -= 1
        for f in range(_i4(at, WINDOW_FEATURES)[beyond], _i4(at, WINDOW_FEATURES)[beyond + 1]):
            _f8(at, OUT)[i * _scalar(at, COLUMNS) + _i4(at, FEATURE_COLUMN)[f]] = np.nan
    if beyond > low:
        _walk(at, i, group, low, beyond, own, root, time, sequence)


@_compiled
def _fetch_leaf(at: int, node: int) -> None:
    """Ask for the times and values of a leaf."""
    place = _place(at, node)
    if _level(place) > 0:
        return
    size = 8 * _length(place)
    for field in range(_scalar(at, SLOT_WORDS)):
        address = _field(at, place, field)
        if field == 1:  # sequences: only where the next event goes
            prefetch(address + size)
            continue
        for offset in range(0, size + 8, 64):
            prefetch(address + offset)


@_compiled
def _fetch_ahead(at: int, i: int, rows: int) -> None:
    """Ask for what later rows will read, so that the memory answers while this row is computed.

    A step of the way from entity to leaves is asked for when the step before it has had time to arrive.
    """
    row_entity = _i4(at, ROW_ENTITY)
    entity_root = _i4(at, ENTITY_ROOT)
    child = _i4(at, CHILD)
    nodes = _longs(at)[NODE]
    size = 8 * _scalar(at, NODE_WORDS)
    if i + 10 < rows and row_entity[i + 10] >= 0:
        prefetch(_longs(at)[ENTITY_ROOT] + 4 * row_entity[i + 10])
    if i + 8 < rows and row_entity[i + 8] >= 0:
        root = entity_root[row_entity[i + 8]]
        if root >= 0:
            prefetch(nodes + size * root)
            prefetch(nodes + size * root + size - 8)
    if i + 6 < rows and row_entity[i + 6] >= 0:
        root = entity_root[row_entity[i + 6]]
        if root >= 0:
            place = _place(at, root)
            if _level(place) > 0:
                prefetch(_longs(at)[CHILD] + 4 * _start(place))
                prefetch(_longs(at)[CHILD] + 4 * (_start(place) + _length(place) - 1))
    if i + 4 < rows and row_entity[i + 4] >= 0:
        root = entity_root[row_entity[i + 4]]
        if root >= 0:
            place = _place(at, root)
            if _level(place) > 0:
                for j in range(max(0, _length(place) - 4), _length(place)):
                    prefetch(nodes + size * child[_start(place) + j])
                prefetch(nodes + size * child[_start(place)])
    if i + 2 < rows and row_entity[i + 2] >= 0:
        root = entity_root[row_entity[i + 2]]
        if root >= 0:
            place = _place(at, root)
            if _level(place) > 0:
                newest = child[_start(place) + _length(place) - 1]
                _fetch_leaf(at, newest)
                if _length(_place(at, newest)) < LEAF // 2:
                    _fetch_leaf(at, child[_start(place) + _length(place) - 2])
                if _length(place) > 2:
                    _fetch_leaf(at, child[_start(place)])
            else:
                _fetch_leaf(at, root)


@_entry
def advance(at: int, begin: int, change: int) -> tuple[int, int, int]:
    """Process rows from ``begin`` and outcome changes from ``change`` in order.

    Returns how far both have come and DONE, or MORE_ROOM: the caller enlarges the pools and continues from there.
    """
    meta = _i8(at, META)
    scalars = _i8(at, SCALARS)
    change_row = _i8(at, CHANGE_ROW)
    entity_of = _i4(at, ENTITY_OF)
    row_disposition = _u1(at, ROW_DISPOSITION)
    row_record = _i4(at, ROW_RECORD)
    row_entity = _i4(at, ROW_ENTITY)
    entity_root = _i4(at, ENTITY_ROOT)
    for i in range(begin, scalars[ROWS]):
        if (
            meta[SLOT_BUMP] + SPARE_SLOTS > scalars[SLOTS]
            or meta[NODE_BUMP] + SPARE_NODES > scalars[NODES]
            or meta[CHILD_BUMP] + SPARE_NODES * FANOUT > scalars[CHILDREN]
            or meta[SKETCH_BUMP] + SPARE_NODES > scalars[BLOCKS]
        ):
            return i, change, MORE_ROOM
        while change < scalars[CHANGES] and change_row[change] <= i:
            entity = entity_of[_i4(at, CHANGE_RECORD)[change]]
            if entity >= 0 and scalars[FRAUD_COLUMN] >= 0:
                _change_outcome(
                    at,
                    entity,
                    _i8(at, CHANGE_TIME)[change],
                    _i8(at, CHANGE_SEQUENCE)[change],
                    _u1(at, CHANGE_FRAUD)[change] != 0,
                )
            change += 1
        _fetch_ahead(at, i, scalars[ROWS])
        if row_entity[i] >= 0 and entity_root[row_entity[i]] == -2:
            entity_root[row_entity[i]] = -1  # a swept slot has a new owner
        if row_disposition[i] > 1:
            continue
        record = row_record[i]
        if row_disposition[i] == 1:
            old = entity_of[record]
            if old >= 0:
                _remove(at, old, _i8(at, ROW_OLD_TIME)[i], _i8(at, ROW_SEQUENCE)[i])
        entity_of[record] = -1
        _collect_garbage(at, 4)
        entity = row_entity[i]
        if entity == FOREIGN_ENTITY:
            continue
        horizon = _i8(at, ROW_WATERMARK)[i] - scalars[RETENTION]
        root = -1
        if entity >= 0:
            _evict(at, entity, horizon)
            root = entity_root[entity]
        for group in range(scalars[GROUPS]):
            _answer(at, i, group, entity, root, horizon)
        if entity >= 0 and _i8(at, ROW_TIME)[i] > horizon:
            _insert(at, entity, i)
            entity_of[record] = entity
    return scalars[ROWS], change, DONE


@_entry
def sweep(at: int, entities: int, horizon: int, budget: int) -> NDArray[np.int32]:
    """Look at the next ``budget`` of the entity slots [0, entities) and discard those without a live event.

    Returns the slots that became free. Also works off the garbage list.
    """
    meta = _i8(at, META)
    entity_root = _i4(at, ENTITY_ROOT)
    freed = np.empty(budget, np.int32)
    count = 0
    for _ in range(budget if entities > 0 else 0):
        hand = meta[HAND]
        if hand >= entities:
            hand = 0
        root = entity_root[hand]
        if root >= 0 and _longs(_node(at, root))[LAST_TIME] <= horizon:
            _discard(at, root)
            entity_root[hand] = -1
        if entity_root[hand] == -1:
            entity_root[hand] = -2  # free: its key is gone
            freed[count] = hand
            count += 1
        meta[HAND] = hand + 1
    _collect_garbage(at, 4 * budget)
    return freed[:count]
