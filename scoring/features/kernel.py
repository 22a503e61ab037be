"""Numba kernels over one entity kind: every entity's events in a B+ tree of pooled arrays with cached aggregates.

An entity's tree holds its events by (time, arrival). Leaves are runs of 4, 16 or 64 slots; inner nodes have up to 32
children; every node caches, per lane, (count, sum, M2, last time). A window is the merge of O(32 levels) cached
states and two partly covered leaves, so nothing is ever subtracted, a late event or a correction is as local as a
new one, and no event waits for the size of its entity. The shape is that of FiBA (Tangwongsan, Hirzel, Schneider
2019) with wide leaves for the cache lines.

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
from numba.core import cgutils, types
from numba.np.arrayobj import make_array, populate_array
from numpy.typing import NDArray

LEAF = 64
FANOUT = 32
DEPTH = 16

# Entries of the table: state (SLOT_ per event, NODE_ per chunk of events or of nodes, ENTITY_ and ENTITY_OF per entity
# and per event record) ...
(
    SLOT_TIME,
    SLOT_SEQUENCE,
    SLOT_VALUE,  # [slot, value column]
    SLOT_FLAGS,  # bit b: passes filter b; bit 0 always
    SLOT_KEY,  # [slot, key column] for distinct
    NODE_LEVEL,  # 0: leaf
    NODE_LENGTH,
    NODE_ROOM,  # slots of a leaf's run
    NODE_START,  # first slot, or first place in CHILD
    NODE_FIRST_TIME,
    NODE_FIRST_SEQUENCE,  # of a freed node: the next one in its list
    NODE_LAST_TIME,
    NODE_LAST_SEQUENCE,
    NODE_STATE,  # [node, lane, (count, sum, M2, last time)]
    CHILD,
    ENTITY_ROOT,  # -1: no events, -2: no owner
    ENTITY_OF,  # -1: the record's event is not in this pool
    META,
) = range(18)
# ... the plan: lanes are what nodes cache; a group is one (delay, exclude_current) pair, its windows ascend in width;
# a telling is what a distinct count tells apart ...
(
    LANE_VALUE,  # value column, -1: count only
    LANE_BIT,
    LANE_SPREAD,  # whether M2 is kept
    LANE_PLAIN,  # no filter and no missing values
    GROUP_DELAY,
    GROUP_EXCLUDE,
    GROUP_WINDOWS,  # [groups + 1] offsets into WINDOW_WIDTH
    GROUP_LANES,  # [groups + 1] offsets into LANES_USED
    LANES_USED,
    GROUP_TELLINGS,  # [groups + 1] offsets into TELLING_*
    TELLING_KEY,
    TELLING_BIT,
    WINDOW_WIDTH,
    WINDOW_FEATURES,  # [windows + 1] offsets into FEATURE_*
    FEATURE_KIND,
    FEATURE_LANE,  # lane, or telling for distinct
    FEATURE_COLUMN,
    FEATURE_EMPTY,
) = range(18, 36)
# ... the batch (see admission.Admitted) ...
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
) = range(36, 53)
# ... and room to work in.
PATH_NODE, PATH_PLACE, STACK, STATE, COUNTS, SEEN_KEY, SEEN_MARK, SCALARS = range(53, 61)
TABLE = 61

# entries of META: tops of the pools, heads of the lists of free room, what is in use, and where the sweep stands
SLOT_BUMP, NODE_BUMP, CHILD_BUMP, FREE_NODE, FREE_CHILD, GARBAGE, FREE_4, FREE_16, FREE_64 = range(9)
LIVE_SLOTS, LIVE_NODES, HAND = 9, 10, 11
META_LENGTH = 12
# entries of SCALARS: widths, lengths and settings
FRAUD_COLUMN, RETENTION, VALUES, KEYS, LANES, GROUPS, TELLINGS, COLUMNS = range(8)
ROWS, CHANGES, SLOTS, NODES, CHILDREN, SEEN, MARK = range(8, 15)
SCALARS_LENGTH = 15

# a row needs at most this much fresh room
SPARE_SLOTS = 4 * LEAF
SPARE_NODES = 4 * DEPTH
DONE, MORE_ROOM, MORE_SEEN = range(3)
COUNT, SUM, MEAN, VARIANCE, STD, RATE, DISTINCT, SINCE = range(8)
MISSING_ENTITY, FOREIGN_ENTITY = -1, -2
_END = (1 << 63) - 1
_NO_TIME = -1.0e300

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    """A helper that only kernels call (and are cached with): no wrapper for callers in Python, no cache of its own."""
    options = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(_Function, cast(Any, numba.njit)(**options)(function))


def _entry(function: _Function) -> _Function:
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))


# ---- views of the table -------------------------------------------------------------------------------------------


def _view_of(dtype: Any) -> Any:
    """A Numba function (address) -> endless one-dimensional array there, without an owner to be counted."""

    def typed(context: Any, address: Any) -> Any:
        kind = types.Array(dtype, 1, "C")

        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            view = make_array(kind)(context, builder)
            size = context.get_abi_sizeof(context.get_data_type(dtype))
            length = context.get_constant(types.intp, 1 << 48)
            populate_array(
                view,
                data=builder.inttoptr(arguments[0], view.data.type),
                shape=cgutils.pack_array(builder, [length]),
                strides=cgutils.pack_array(builder, [context.get_constant(types.intp, size)]),
                itemsize=context.get_constant(types.intp, size),
                meminfo=None,
            )
            return view._getvalue()

        return kind(types.int64), make

    return numba.extending.intrinsic(typed)


_floats = _view_of(types.float64)
_longs = _view_of(types.int64)
_keys = _view_of(types.uint64)
_ints = _view_of(types.int32)
_levels = _view_of(types.int8)
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
def _i1(at: int, entry: int) -> NDArray[np.int8]:
    return _levels(_longs(at)[entry])


@_compiled
def _u1(at: int, entry: int) -> NDArray[np.uint8]:
    return _bytes(_longs(at)[entry])


# ---- lists of free room -------------------------------------------------------------------------------------------


@_compiled
def _free_list(room: int) -> int:
    return FREE_4 if room == 4 else (FREE_16 if room == 16 else FREE_64)


@_compiled
def _take_run(at: int, room: int) -> int:
    meta = _i8(at, META)
    slot_time = _i8(at, SLOT_TIME)
    head = _free_list(room)
    start = meta[head]
    if start >= 0:
        meta[head] = slot_time[start]
        return start
    start = meta[SLOT_BUMP]
    meta[SLOT_BUMP] += room
    return start


@_compiled
def _free_run(at: int, start: int, room: int) -> None:
    slot_time = _i8(at, SLOT_TIME)
    meta = _i8(at, META)
    head = _free_list(room)
    slot_time[start] = meta[head]
    meta[head] = start


@_compiled
def _new_node(at: int, level: int, room: int) -> int:
    meta = _i8(at, META)
    node_first_sequence = _i8(at, NODE_FIRST_SEQUENCE)
    node_level = _i1(at, NODE_LEVEL)
    node_length = _i4(at, NODE_LENGTH)
    node_room = _i4(at, NODE_ROOM)
    node_start = _i8(at, NODE_START)
    child = _i4(at, CHILD)
    node = meta[FREE_NODE]
    if node >= 0:
        meta[FREE_NODE] = node_first_sequence[node]
    else:
        node = meta[NODE_BUMP]
        meta[NODE_BUMP] += 1
    meta[LIVE_NODES] += 1
    node_level[node] = level
    node_length[node] = 0
    node_room[node] = room
    if level == 0:
        node_start[node] = _take_run(at, room)
    else:
        block = meta[FREE_CHILD]
        if block >= 0:
            meta[FREE_CHILD] = child[block]
        else:
            block = meta[CHILD_BUMP]
            meta[CHILD_BUMP] += FANOUT
        node_start[node] = block
    return node


@_compiled
def _free_node(at: int, node: int) -> None:
    node_level = _i1(at, NODE_LEVEL)
    node_start = _i8(at, NODE_START)
    node_room = _i4(at, NODE_ROOM)
    meta = _i8(at, META)
    node_length = _i4(at, NODE_LENGTH)
    child = _i4(at, CHILD)
    node_first_sequence = _i8(at, NODE_FIRST_SEQUENCE)
    if node_level[node] == 0:
        _free_run(at, node_start[node], node_room[node])
        meta[LIVE_SLOTS] -= node_length[node]
    else:
        child[node_start[node]] = meta[FREE_CHILD]
        meta[FREE_CHILD] = node_start[node]
    node_first_sequence[node] = meta[FREE_NODE]
    meta[FREE_NODE] = node
    meta[LIVE_NODES] -= 1


@_compiled
def _discard(at: int, node: int) -> None:
    """Give a whole subtree to the garbage list in constant time."""
    node_first_sequence = _i8(at, NODE_FIRST_SEQUENCE)
    meta = _i8(at, META)
    node_first_sequence[node] = meta[GARBAGE]
    meta[GARBAGE] = node


@_compiled
def _collect(at: int, budget: int) -> int:
    """Free at most ``budget`` nodes of the garbage list; how many."""
    meta = _i8(at, META)
    node_first_sequence = _i8(at, NODE_FIRST_SEQUENCE)
    node_level = _i1(at, NODE_LEVEL)
    node_length = _i4(at, NODE_LENGTH)
    child = _i4(at, CHILD)
    node_start = _i8(at, NODE_START)
    done = 0
    while done < budget and meta[GARBAGE] >= 0:
        node = meta[GARBAGE]
        meta[GARBAGE] = node_first_sequence[node]
        if node_level[node] > 0:
            for j in range(node_length[node]):
                _discard(at, child[node_start[node] + j])
        _free_node(at, node)
        done += 1
    return done


# ---- aggregates ---------------------------------------------------------------------------------------------------


@_compiled
def _merge(into: int, count: float, total: float, m2: float, last: float, spread: int) -> None:
    """Merge a state into the four floats at address ``into`` (Chan, Golub, LeVeque 1979)."""
    if count == 0.0:
        return
    state = _floats(into)
    have = state[0]
    if have == 0.0:
        state[0] = count
        state[1] = total
        state[2] = m2
        state[3] = last
        return
    if spread:
        difference = total / count - state[1] / have
        state[2] += m2 + difference * difference * (have * (count / (have + count)))
    state[0] = have + count
    state[1] += total
    if last > state[3]:
        state[3] = last


@_compiled
def _clear(into: int) -> None:
    state = _floats(into)
    state[0] = 0.0
    state[1] = 0.0
    state[2] = 0.0
    state[3] = _NO_TIME


@_compiled
def _node_lane(at: int, node: int, lane: int) -> int:
    """Address of a node's cached state of a lane."""
    return _longs(at)[NODE_STATE] + 32 * (node * _i8(at, SCALARS)[LANES] + lane)


@_compiled
def _query_lane(at: int, lane: int) -> int:
    """Address of the state of a lane in the query at hand."""
    return _longs(at)[STATE] + 32 * lane


@_compiled
def _sum(at: int, column: int, low: int, high: int) -> float:
    """Sum of a value column over slots, in four chains so that additions need not wait for each other."""
    values = _i8(at, SCALARS)[VALUES]
    slot_value = _f8(at, SLOT_VALUE)
    a = b = c = d = 0.0
    place = low * values + column
    whole = (high - low) // 4
    for _ in range(whole):
        a += slot_value[place]
        b += slot_value[place + values]
        c += slot_value[place + 2 * values]
        d += slot_value[place + 3 * values]
        place += 4 * values
    for _ in range(high - low - 4 * whole):
        a += slot_value[place]
        place += values
    return (a + b) + (c + d)


@_compiled
def _merge_slots(at: int, lane: int, low: int, high: int, into: int) -> None:
    """Merge the events of slots [low, high) into a lane: two passes, so the spread is about their own mean."""
    lane_value = _i4(at, LANE_VALUE)
    lane_bit = _i4(at, LANE_BIT)
    lane_spread = _u1(at, LANE_SPREAD)
    slot_flags = _i8(at, SLOT_FLAGS)
    slot_time = _i8(at, SLOT_TIME)
    slot_value = _f8(at, SLOT_VALUE)
    values = _i8(at, SCALARS)[VALUES]
    column = lane_value[lane]
    bit = lane_bit[lane]
    spread = lane_spread[lane]
    count = 0.0
    total = 0.0
    last = -1
    if column < 0:
        for slot in range(low, high):
            if (slot_flags[slot] >> bit) & 1:
                count += 1.0
                last = slot
        if last >= 0:
            _merge(into, count, 0.0, 0.0, float(slot_time[last]), spread)
        return
    if _u1(at, LANE_PLAIN)[lane] and not spread:
        if high > low:
            total = _sum(at, column, low, high)
            _merge(into, float(high - low), total, 0.0, float(slot_time[high - 1]), spread)
        return
    for slot in range(low, high):
        x = slot_value[slot * values + column]
        if (slot_flags[slot] >> bit) & 1 and x == x:
            count += 1.0
            total += x
            last = slot
    m2 = 0.0
    if spread and count > 1.0:
        mean = total / count
        for slot in range(low, high):
            x = slot_value[slot * values + column]
            if (slot_flags[slot] >> bit) & 1 and x == x:
                m2 += (x - mean) * (x - mean)
    if last >= 0:
        _merge(into, count, total, m2, float(slot_time[last]), spread)


@_compiled
def _merge_row(at: int, i: int, lane: int, into: int) -> None:
    """Merge row ``i`` itself into a lane."""
    row_flags = _i8(at, ROW_FLAGS)
    lane_bit = _i4(at, LANE_BIT)
    lane_value = _i4(at, LANE_VALUE)
    row_fraud = _u1(at, ROW_FRAUD)
    fraud_column = _i8(at, SCALARS)[FRAUD_COLUMN]
    row_value = _f8(at, ROW_VALUE)
    row_time = _i8(at, ROW_TIME)
    lane_spread = _u1(at, LANE_SPREAD)
    if (row_flags[i] >> lane_bit[lane]) & 1 == 0:
        return
    column = lane_value[lane]
    x = 0.0
    if column >= 0:
        x = (
            (1.0 if row_fraud[i] else 0.0)
            if column == fraud_column
            else row_value[i * _i8(at, SCALARS)[VALUES] + column]
        )
        if x != x:
            return
    _merge(into, 1.0, x, 0.0, float(row_time[i]), lane_spread[lane])


@_compiled
def _refresh(at: int, node: int) -> None:
    """Recompute a node's bounds and cached states from its own content (never empty)."""
    node_start = _i8(at, NODE_START)
    node_length = _i4(at, NODE_LENGTH)
    node_level = _i1(at, NODE_LEVEL)
    node_first_time = _i8(at, NODE_FIRST_TIME)
    slot_time = _i8(at, SLOT_TIME)
    node_first_sequence = _i8(at, NODE_FIRST_SEQUENCE)
    slot_sequence = _i8(at, SLOT_SEQUENCE)
    node_last_time = _i8(at, NODE_LAST_TIME)
    node_last_sequence = _i8(at, NODE_LAST_SEQUENCE)
    child = _i4(at, CHILD)
    lane_spread = _u1(at, LANE_SPREAD)
    start = node_start[node]
    length = node_length[node]
    lanes = _i8(at, SCALARS)[LANES]
    for lane in range(lanes):
        _clear(_node_lane(at, node, lane))
    if node_level[node] == 0:
        node_first_time[node] = slot_time[start]
        node_first_sequence[node] = slot_sequence[start]
        node_last_time[node] = slot_time[start + length - 1]
        node_last_sequence[node] = slot_sequence[start + length - 1]
        for lane in range(lanes):
            _merge_slots(at, lane, start, start + length, _node_lane(at, node, lane))
        return
    first = child[start]
    last = child[start + length - 1]
    node_first_time[node] = node_first_time[first]
    node_first_sequence[node] = node_first_sequence[first]
    node_last_time[node] = node_last_time[last]
    node_last_sequence[node] = node_last_sequence[last]
    for j in range(length):
        for lane in range(lanes):
            other = _floats(_node_lane(at, child[start + j], lane))
            into = _node_lane(at, node, lane)
            _merge(into, other[0], other[1], other[2], other[3], lane_spread[lane])


# ---- the tree -----------------------------------------------------------------------------------------------------


@_compiled
def _descend(at: int, root: int, time: int, sequence: int) -> int:
    """Fill the path to the leaf where (time, sequence) belongs; its depth (the leaf is ``path_node[depth]``)."""
    path_node = _i8(at, PATH_NODE)
    path_place = _i8(at, PATH_PLACE)
    node_level = _i1(at, NODE_LEVEL)
    node_start = _i8(at, NODE_START)
    node_length = _i4(at, NODE_LENGTH)
    child = _i4(at, CHILD)
    node_first_time = _i8(at, NODE_FIRST_TIME)
    node_first_sequence = _i8(at, NODE_FIRST_SEQUENCE)
    depth = 0
    node = root
    while node_level[node] > 0:
        start = node_start[node]
        low = 1
        high = node_length[node]
        while low < high:  # the first child beyond the key
            middle = (low + high) // 2
            other = child[start + middle]
            first = node_first_time[other]
            if first > time or (first == time and node_first_sequence[other] > sequence):
                high = middle
            else:
                low = middle + 1
        path_node[depth] = node
        path_place[depth] = low - 1
        node = child[start + low - 1]
        depth += 1
    path_node[depth] = node
    return depth


@_compiled
def _upper(at: int, leaf: int, time: int, sequence: int) -> int:
    """How many events of the leaf are at or before (time, sequence)."""
    node_start = _i8(at, NODE_START)
    node_length = _i4(at, NODE_LENGTH)
    slot_time = _i8(at, SLOT_TIME)
    slot_sequence = _i8(at, SLOT_SEQUENCE)
    start = node_start[leaf]
    low = 0
    high = node_length[leaf]
    last = start + high - 1
    if slot_time[last] < time or (slot_time[last] == time and slot_sequence[last] <= sequence):
        return high
    while low < high:
        middle = (low + high) // 2
        slot = start + middle
        if slot_time[slot] > time or (slot_time[slot] == time and slot_sequence[slot] > sequence):
            high = middle
        else:
            low = middle + 1
    return low


@_compiled
def _copy_slot(at: int, source: int, target: int) -> None:
    slot_time = _i8(at, SLOT_TIME)
    slot_sequence = _i8(at, SLOT_SEQUENCE)
    slot_flags = _i8(at, SLOT_FLAGS)
    slot_value = _f8(at, SLOT_VALUE)
    slot_key = _u8(at, SLOT_KEY)
    values = _i8(at, SCALARS)[VALUES]
    keys = _i8(at, SCALARS)[KEYS]
    slot_time[target] = slot_time[source]
    slot_sequence[target] = slot_sequence[source]
    slot_flags[target] = slot_flags[source]
    for column in range(values):
        slot_value[target * values + column] = slot_value[source * values + column]
    for column in range(keys):
        slot_key[target * keys + column] = slot_key[source * keys + column]


@_compiled
def _put(at: int, leaf: int, place: int, i: int) -> None:
    """Write row ``i`` at a place of a leaf that has room."""
    node_start = _i8(at, NODE_START)
    node_length = _i4(at, NODE_LENGTH)
    slot_time = _i8(at, SLOT_TIME)
    row_time = _i8(at, ROW_TIME)
    slot_sequence = _i8(at, SLOT_SEQUENCE)
    row_sequence = _i8(at, ROW_SEQUENCE)
    slot_flags = _i8(at, SLOT_FLAGS)
    row_flags = _i8(at, ROW_FLAGS)
    slot_value = _f8(at, SLOT_VALUE)
    row_value = _f8(at, ROW_VALUE)
    fraud_column = _i8(at, SCALARS)[FRAUD_COLUMN]
    row_fraud = _u1(at, ROW_FRAUD)
    slot_key = _u8(at, SLOT_KEY)
    row_key = _u8(at, ROW_KEY)
    meta = _i8(at, META)
    values = _i8(at, SCALARS)[VALUES]
    keys = _i8(at, SCALARS)[KEYS]
    start = node_start[leaf]
    for j in range(node_length[leaf], place, -1):
        _copy_slot(at, start + j - 1, start + j)
    slot = start + place
    slot_time[slot] = row_time[i]
    slot_sequence[slot] = row_sequence[i]
    slot_flags[slot] = row_flags[i]
    for column in range(values):
        slot_value[slot * values + column] = row_value[i * values + column]
    if fraud_column >= 0:
        slot_value[slot * values + fraud_column] = 1.0 if row_fraud[i] else 0.0
    for column in range(keys):
        slot_key[slot * keys + column] = row_key[i * keys + column]
    node_length[leaf] += 1
    meta[LIVE_SLOTS] += 1


@_compiled
def _add_row(at: int, node: int, i: int) -> None:
    """Widen a node's bounds and states by row ``i``."""
    row_time = _i8(at, ROW_TIME)
    row_sequence = _i8(at, ROW_SEQUENCE)
    node_first_time = _i8(at, NODE_FIRST_TIME)
    node_first_sequence = _i8(at, NODE_FIRST_SEQUENCE)
    node_last_time = _i8(at, NODE_LAST_TIME)
    node_last_sequence = _i8(at, NODE_LAST_SEQUENCE)
    time = row_time[i]
    sequence = row_sequence[i]
    if time < node_first_time[node] or (
        time == node_first_time[node] and sequence < node_first_sequence[node]
    ):
        node_first_time[node] = time
        node_first_sequence[node] = sequence
    if time > node_last_time[node] or (time == node_last_time[node] and sequence > node_last_sequence[node]):
        node_last_time[node] = time
        node_last_sequence[node] = sequence
    for lane in range(_i8(at, SCALARS)[LANES]):
        _merge_row(at, i, lane, _node_lane(at, node, lane))


@_compiled
def _widen(at: int, leaf: int) -> None:
    """Move a full leaf to the next size of run."""
    node_room = _i4(at, NODE_ROOM)
    node_start = _i8(at, NODE_START)
    node_length = _i4(at, NODE_LENGTH)
    room = node_room[leaf] * 4
    start = node_start[leaf]
    target = _take_run(at, room)
    for j in range(node_length[leaf]):
        _copy_slot(at, start + j, target + j)
    _free_run(at, start, node_room[leaf])
    node_start[leaf] = target
    node_room[leaf] = room


@_compiled
def _insert(at: int, entity: int, i: int) -> None:
    path_node = _i8(at, PATH_NODE)
    path_place = _i8(at, PATH_PLACE)
    entity_root = _i4(at, ENTITY_ROOT)
    row_time = _i8(at, ROW_TIME)
    row_sequence = _i8(at, ROW_SEQUENCE)
    node_length = _i4(at, NODE_LENGTH)
    node_room = _i4(at, NODE_ROOM)
    node_start = _i8(at, NODE_START)
    node_level = _i1(at, NODE_LEVEL)
    child = _i4(at, CHILD)
    root = entity_root[entity]
    if root < 0:
        leaf = _new_node(at, 0, 4)
        _put(at, leaf, 0, i)
        _refresh(at, leaf)
        entity_root[entity] = leaf
        return
    time = row_time[i]
    sequence = row_sequence[i]
    depth = _descend(at, root, time, sequence)
    leaf = path_node[depth]
    place = _upper(at, leaf, time, sequence)
    length = node_length[leaf]
    if length < LEAF:
        if length == node_room[leaf]:
            _widen(at, leaf)
        _put(at, leaf, place, i)
        for d in range(depth, -1, -1):
            _add_row(at, path_node[d], i)
        return
    if place == LEAF:  # in order: leave the full leaf packed
        fresh = _new_node(at, 0, 4)
        _put(at, fresh, 0, i)
    else:
        fresh = _new_node(at, 0, LEAF)
        half = LEAF // 2
        for j in range(half):
            _copy_slot(at, node_start[leaf] + half + j, node_start[fresh] + j)
        node_length[leaf] = half
        node_length[fresh] = half
        if place <= half:
            _put(at, leaf, place, i)
        else:
            _put(at, fresh, place - half, i)
        _refresh(at, leaf)
    _refresh(at, fresh)
    for d in range(depth - 1, -1, -1):
        parent = path_node[d]
        if fresh >= 0:
            fresh = _adopt(at, parent, path_place[d] + 1, fresh)
        _refresh(at, parent)
    if fresh >= 0:
        top = _new_node(at, node_level[root] + 1, 0)
        child[node_start[top]] = root
        child[node_start[top] + 1] = fresh
        node_length[top] = 2
        _refresh(at, top)
        entity_root[entity] = top


@_compiled
def _place_child(at: int, parent: int, place: int, node: int) -> None:
    node_start = _i8(at, NODE_START)
    node_length = _i4(at, NODE_LENGTH)
    child = _i4(at, CHILD)
    start = node_start[parent]
    for j in range(node_length[parent], place, -1):
        child[start + j] = child[start + j - 1]
    child[start + place] = node
    node_length[parent] += 1


@_compiled
def _adopt(at: int, parent: int, place: int, node: int) -> int:
    """Insert a child; when the parent is full, the new (refreshed) sibling that took a part of it, else -1."""
    node_length = _i4(at, NODE_LENGTH)
    node_level = _i1(at, NODE_LEVEL)
    child = _i4(at, CHILD)
    node_start = _i8(at, NODE_START)
    if node_length[parent] < FANOUT:
        _place_child(at, parent, place, node)
        return -1
    sibling = _new_node(at, node_level[parent], 0)
    if place == FANOUT:
        _place_child(at, sibling, 0, node)
    else:
        half = FANOUT // 2
        for j in range(half):
            moved = child[node_start[parent] + half + j]
            child[node_start[sibling] + j] = moved
        node_length[parent] = half
        node_length[sibling] = half
        if place <= half:
            _place_child(at, parent, place, node)
        else:
            _place_child(at, sibling, place - half, node)
    _refresh(at, sibling)
    return sibling


@_compiled
def _drop_children(at: int, node: int, place: int, count: int) -> None:
    node_start = _i8(at, NODE_START)
    node_length = _i4(at, NODE_LENGTH)
    child = _i4(at, CHILD)
    start = node_start[node]
    for j in range(place + count, node_length[node]):
        child[start + j - count] = child[start + j]
    node_length[node] -= count


@_compiled
def _lower_root(at: int, entity: int) -> None:
    entity_root = _i4(at, ENTITY_ROOT)
    node_level = _i1(at, NODE_LEVEL)
    node_length = _i4(at, NODE_LENGTH)
    child = _i4(at, CHILD)
    node_start = _i8(at, NODE_START)
    root = entity_root[entity]
    while root >= 0 and node_level[root] > 0 and node_length[root] == 1:
        entity_root[entity] = child[node_start[root]]
        _free_node(at, root)
        root = entity_root[entity]


@_compiled
def _find(at: int, entity: int, time: int, sequence: int) -> int:
    """Depth of the leaf that holds exactly (time, sequence), its place in ``path_place[depth]``; -1 if none does."""
    path_node = _i8(at, PATH_NODE)
    path_place = _i8(at, PATH_PLACE)
    entity_root = _i4(at, ENTITY_ROOT)
    node_start = _i8(at, NODE_START)
    slot_time = _i8(at, SLOT_TIME)
    slot_sequence = _i8(at, SLOT_SEQUENCE)
    root = entity_root[entity]
    if root < 0:
        return -1
    depth = _descend(at, root, time, sequence)
    leaf = path_node[depth]
    place = _upper(at, leaf, time, sequence) - 1
    if place < 0:
        return -1
    slot = node_start[leaf] + place
    if slot_time[slot] != time or slot_sequence[slot] != sequence:
        return -1
    path_place[depth] = place
    return depth


@_compiled
def _remove(at: int, entity: int, time: int, sequence: int) -> None:
    path_node = _i8(at, PATH_NODE)
    path_place = _i8(at, PATH_PLACE)
    node_start = _i8(at, NODE_START)
    node_length = _i4(at, NODE_LENGTH)
    meta = _i8(at, META)
    entity_root = _i4(at, ENTITY_ROOT)
    depth = _find(at, entity, time, sequence)
    if depth < 0:  # evicted already, or the slot has a new owner
        return
    leaf = path_node[depth]
    start = node_start[leaf]
    for j in range(path_place[depth] + 1, node_length[leaf]):
        _copy_slot(at, start + j, start + j - 1)
    node_length[leaf] -= 1
    meta[LIVE_SLOTS] -= 1
    for d in range(depth, -1, -1):
        node = path_node[d]
        if node_length[node] > 0:
            _refresh(at, node)
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
    node_last_time = _i8(at, NODE_LAST_TIME)
    node_level = _i1(at, NODE_LEVEL)
    node_start = _i8(at, NODE_START)
    child = _i4(at, CHILD)
    root = entity_root[entity]
    if root < 0:
        return
    if node_last_time[root] <= horizon:
        entity_root[entity] = -1
        _discard(at, root)
        return
    depth = 0
    deepest = -1
    node = root
    while node_level[node] > 0:
        start = node_start[node]
        dead = 0
        while node_last_time[child[start + dead]] <= horizon:  # the last child lives
            _discard(at, child[start + dead])
            dead += 1
        if dead:
            _drop_children(at, node, 0, dead)
            deepest = depth
        path_node[depth] = node
        depth += 1
        node = child[start]
    for d in range(deepest, -1, -1):
        _refresh(at, path_node[d])
    if deepest >= 0:
        _lower_root(at, entity)


@_compiled
def _change_outcome(at: int, entity: int, time: int, sequence: int, fraud: bool) -> None:
    path_node = _i8(at, PATH_NODE)
    path_place = _i8(at, PATH_PLACE)
    node_start = _i8(at, NODE_START)
    slot_value = _f8(at, SLOT_VALUE)
    fraud_column = _i8(at, SCALARS)[FRAUD_COLUMN]
    depth = _find(at, entity, time, sequence)
    if depth < 0:
        return
    slot = node_start[path_node[depth]] + path_place[depth]
    slot_value[slot * _i8(at, SCALARS)[VALUES] + fraud_column] = 1.0 if fraud else 0.0
    for d in range(depth, -1, -1):
        _refresh(at, path_node[d])


# ---- queries ------------------------------------------------------------------------------------------------------


@_compiled
def _gather(at: int, group: int, root: int, after: int, time: int, sequence: int) -> None:
    """Merge all events with time > ``after`` and at or before (time, sequence) into the lanes of a group."""
    stack = _i8(at, STACK)
    group_lanes = _i4(at, GROUP_LANES)
    node_last_time = _i8(at, NODE_LAST_TIME)
    node_first_time = _i8(at, NODE_FIRST_TIME)
    node_first_sequence = _i8(at, NODE_FIRST_SEQUENCE)
    node_last_sequence = _i8(at, NODE_LAST_SEQUENCE)
    lanes_used = _i4(at, LANES_USED)
    lane_spread = _u1(at, LANE_SPREAD)
    node_level = _i1(at, NODE_LEVEL)
    node_start = _i8(at, NODE_START)
    node_length = _i4(at, NODE_LENGTH)
    child = _i4(at, CHILD)
    lane_low = group_lanes[group]
    lane_high = group_lanes[group + 1]
    if lane_low == lane_high:
        return
    stack[0] = root
    height = 1
    while height > 0:
        height -= 1
        node = stack[height]
        last = node_last_time[node]
        first = node_first_time[node]
        if last <= after or first > time or (first == time and node_first_sequence[node] > sequence):
            continue
        if first > after and (last < time or (last == time and node_last_sequence[node] <= sequence)):
            for k in range(lane_low, lane_high):
                lane = lanes_used[k]
                whole = _floats(_node_lane(at, node, lane))
                _merge(_query_lane(at, lane), whole[0], whole[1], whole[2], whole[3], lane_spread[lane])
        elif node_level[node] > 0:
            start = node_start[node]
            for j in range(node_length[node] - 1, -1, -1):
                stack[height] = child[start + j]
                height += 1
        else:
            start = node_start[node]
            low = start + _upper(at, node, after, _END)
            high = start + _upper(at, node, time, sequence)
            for k in range(lane_low, lane_high):
                _merge_slots(at, lanes_used[k], low, high, _query_lane(at, lanes_used[k]))


@_compiled
def _tell(
    at: int,
    group: int,
    root: int,
    after: int,
    time: int,
    sequence: int,
) -> bool:
    """Count keys not seen yet among the events of a range; false when the scratch set is too small (then repeat)."""
    stack = _i8(at, STACK)
    node_first_time = _i8(at, NODE_FIRST_TIME)
    node_last_time = _i8(at, NODE_LAST_TIME)
    node_start = _i8(at, NODE_START)
    node_level = _i1(at, NODE_LEVEL)
    node_length = _i4(at, NODE_LENGTH)
    child = _i4(at, CHILD)
    group_tellings = _i4(at, GROUP_TELLINGS)
    slot_flags = _i8(at, SLOT_FLAGS)
    telling_bit = _i4(at, TELLING_BIT)
    slot_key = _u8(at, SLOT_KEY)
    telling_key = _i4(at, TELLING_KEY)
    stack[0] = root
    height = 1
    while height > 0:
        height -= 1
        node = stack[height]
        first = node_first_time[node]
        if node_last_time[node] <= after or first > time:
            continue
        start = node_start[node]
        if node_level[node] > 0:
            for j in range(node_length[node] - 1, -1, -1):
                stack[height] = child[start + j]
                height += 1
            continue
        low = start + _upper(at, node, after, _END)
        high = start + _upper(at, node, time, sequence)
        for k in range(group_tellings[group], group_tellings[group + 1]):
            for slot in range(low, high):
                if (slot_flags[slot] >> telling_bit[k]) & 1:
                    key = slot_key[slot * _i8(at, SCALARS)[KEYS] + telling_key[k]]
                    if not _see(at, k, key):
                        return False
    return True


@_compiled
def _see(at: int, telling: int, key: np.uint64) -> bool:
    """Add a key to the set of a telling; false when the set is more than half full. Key 0 is not a value."""
    if key == np.uint64(0):
        return True
    seen_key = _u8(at, SEEN_KEY)
    seen_mark = _i8(at, SEEN_MARK)
    counts = _i8(at, COUNTS)
    mark = _i8(at, SCALARS)[MARK]
    size = _i8(at, SCALARS)[SEEN]
    stamp = mark + telling
    h = (key ^ (np.uint64(telling) << np.uint64(40))) * np.uint64(0x9E3779B97F4A7C15)
    place = np.int64(h >> np.uint64(20)) & (size - 1)
    while seen_mark[place] >= mark:
        if seen_mark[place] == stamp and seen_key[place] == key:
            return True
        place = (place + 1) & (size - 1)
    if counts[0] * 2 >= size:
        return False
    seen_mark[place] = stamp
    seen_key[place] = key
    counts[0] += 1
    counts[1 + telling] += 1
    return True


@_compiled
def _emit(at: int, i: int, window: int) -> None:
    """Write the features of a window from the states merged so far."""
    window_features = _i4(at, WINDOW_FEATURES)
    feature_kind = _i4(at, FEATURE_KIND)
    feature_lane = _i4(at, FEATURE_LANE)
    feature_empty = _f8(at, FEATURE_EMPTY)
    feature_column = _i4(at, FEATURE_COLUMN)
    counts = _i8(at, COUNTS)
    out = _f8(at, OUT)
    base = i * _i8(at, SCALARS)[COLUMNS]
    for f in range(window_features[window], window_features[window + 1]):
        kind = feature_kind[f]
        lane = feature_lane[f]
        value = feature_empty[f]
        if kind == DISTINCT:
            if counts[1 + lane] > 0:
                value = float(counts[1 + lane])
        else:
            state = _floats(_query_lane(at, lane))
            count = state[0]
            if kind in (VARIANCE, STD):
                if count >= 2.0:
                    value = state[2] / (count - 1.0)
                    if kind == STD:
                        value = np.sqrt(value)
            elif count > 0.0:
                if kind == COUNT:
                    value = count
                elif kind == SUM:
                    value = state[1]
                elif kind == SINCE:
                    value = (float(_i8(at, ROW_TIME)[i]) - state[3]) / 1e6
                else:
                    value = state[1] / count
        out[base + feature_column[f]] = value


@_entry
def advance(at: int, begin: int, change: int) -> tuple[int, int, int]:
    """Process rows from ``begin`` and outcome changes from ``change`` in order.

    Returns how far both have come and DONE, or what the caller must enlarge before it continues from there; a row that
    is begun a second time ends as if it had been begun once.
    """
    telling_key = _i4(at, TELLING_KEY)
    row_time = _i8(at, ROW_TIME)
    meta = _i8(at, META)
    change_row = _i8(at, CHANGE_ROW)
    entity_of = _i4(at, ENTITY_OF)
    change_record = _i4(at, CHANGE_RECORD)
    fraud_column = _i8(at, SCALARS)[FRAUD_COLUMN]
    change_time = _i8(at, CHANGE_TIME)
    change_sequence = _i8(at, CHANGE_SEQUENCE)
    change_fraud = _u1(at, CHANGE_FRAUD)
    row_disposition = _u1(at, ROW_DISPOSITION)
    row_record = _i4(at, ROW_RECORD)
    row_old_time = _i8(at, ROW_OLD_TIME)
    row_sequence = _i8(at, ROW_SEQUENCE)
    row_entity = _i4(at, ROW_ENTITY)
    row_watermark = _i8(at, ROW_WATERMARK)
    retention = _i8(at, SCALARS)[RETENTION]
    entity_root = _i4(at, ENTITY_ROOT)
    group_delay = _i8(at, GROUP_DELAY)
    group_lanes = _i4(at, GROUP_LANES)
    group_windows = _i4(at, GROUP_WINDOWS)
    lanes_used = _i4(at, LANES_USED)
    group_exclude = _u1(at, GROUP_EXCLUDE)
    group_tellings = _i4(at, GROUP_TELLINGS)
    row_flags = _i8(at, ROW_FLAGS)
    telling_bit = _i4(at, TELLING_BIT)
    row_key = _u8(at, ROW_KEY)
    window_width = _i8(at, WINDOW_WIDTH)
    window_features = _i4(at, WINDOW_FEATURES)
    feature_column = _i4(at, FEATURE_COLUMN)
    scalars = _i8(at, SCALARS)
    counts = _i8(at, COUNTS)
    out = _f8(at, OUT)
    tellings = scalars[TELLINGS]
    for i in range(begin, scalars[ROWS]):
        if (
            meta[SLOT_BUMP] + SPARE_SLOTS > scalars[SLOTS]
            or meta[NODE_BUMP] + SPARE_NODES > scalars[NODES]
            or meta[CHILD_BUMP] + SPARE_NODES * FANOUT > scalars[CHILDREN]
        ):
            return i, change, MORE_ROOM
        while change < scalars[CHANGES] and change_row[change] <= i:
            entity = entity_of[change_record[change]]
            if entity >= 0 and fraud_column >= 0:
                _change_outcome(
                    at,
                    entity,
                    change_time[change],
                    change_sequence[change],
                    change_fraud[change],
                )
            change += 1
        if row_disposition[i] > 1:
            continue
        record = row_record[i]
        if row_disposition[i] == 1:
            old = entity_of[record]
            if old >= 0:
                _remove(at, old, row_old_time[i], row_sequence[i])
        entity_of[record] = -1
        _collect(at, 4)
        entity = row_entity[i]
        if entity == FOREIGN_ENTITY:
            continue
        time = row_time[i]
        horizon = row_watermark[i] - retention
        root = -1
        if entity >= 0:
            _evict(at, entity, horizon)
            root = entity_root[entity]
        for group in range(scalars[GROUPS]):
            delay = group_delay[group]
            high_time = time - delay
            high_sequence = row_sequence[i] if delay == 0 else _END
            lane_low = group_lanes[group]
            lane_high = group_lanes[group + 1]
            window_low = group_windows[group]
            window_high = group_windows[group + 1]
            for k in range(lane_low, lane_high):
                lane = lanes_used[k]
                _clear(_query_lane(at, lane))
                if entity >= 0 and delay == 0 and not group_exclude[group]:
                    _merge_row(at, i, lane, _query_lane(at, lane))
            telling_low = group_tellings[group]
            telling_high = group_tellings[group + 1]
            for k in range(1 + tellings):
                counts[k] = 0
            if telling_low < telling_high:
                scalars[MARK] += tellings
                if entity >= 0 and delay == 0 and not group_exclude[group]:
                    for k in range(telling_low, telling_high):
                        if (row_flags[i] >> telling_bit[k]) & 1:
                            _see(at, k, row_key[i * scalars[KEYS] + telling_key[k]])
            for window in range(window_low, window_high):
                after = time - delay - window_width[window]
                if after < horizon:  # a correction from so far back that this window is not kept whole
                    for f in range(window_features[window], window_features[window + 1]):
                        out[i * scalars[COLUMNS] + feature_column[f]] = np.nan
                    continue
                if root >= 0:
                    _gather(at, group, root, after, high_time, high_sequence)
                    if telling_low < telling_high and not _tell(
                        at, group, root, after, high_time, high_sequence
                    ):
                        return i, change, MORE_SEEN
                    high_time = after
                    high_sequence = _END
                _emit(at, i, window)
        if entity >= 0 and time > horizon:
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
    node_last_time = _i8(at, NODE_LAST_TIME)
    freed = np.empty(budget, np.int32)
    count = 0
    for _ in range(budget if entities > 0 else 0):
        hand = meta[HAND]
        if hand >= entities:
            hand = 0
        root = entity_root[hand]
        if root >= 0 and node_last_time[root] <= horizon:
            _discard(at, root)
            entity_root[hand] = -1
        if entity_root[hand] == -1:
            entity_root[hand] = -2  # free: its key is gone
            freed[count] = hand
            count += 1
        meta[HAND] = hand + 1
    _collect(at, 4 * budget)
    return freed[:count]
