"""The windows of one entity kind: a plan compiled from its features, and the pools the kernel works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.features import kernel
from scoring.features.admission import Admitted
from scoring.features.index import KeyIndex, grow
from scoring.features.spec import Aggregation, WindowFeature

_NEVER_MISSING = ("fraud", "amount")
FRAUD = "fraud"  # the value column that outcomes fill; no attribute may have this name
_KINDS = {
    Aggregation.COUNT: kernel.COUNT,
    Aggregation.SUM: kernel.SUM,
    Aggregation.MEAN: kernel.MEAN,
    Aggregation.VARIANCE: kernel.VARIANCE,
    Aggregation.STD: kernel.STD,
    Aggregation.RATE: kernel.RATE,
    Aggregation.DISTINCT: kernel.DISTINCT,
    Aggregation.TIME_SINCE_LAST: kernel.SINCE,
}
_TOPS = {
    kernel.SLOT_TIME: kernel.SLOT_BUMP,
    kernel.SLOT_SEQUENCE: kernel.SLOT_BUMP,
    kernel.SLOT_VALUE: kernel.SLOT_BUMP,
    kernel.SLOT_FLAGS: kernel.SLOT_BUMP,
    kernel.SLOT_KEY: kernel.SLOT_BUMP,
    kernel.NODE_LEVEL: kernel.NODE_BUMP,
    kernel.NODE_LENGTH: kernel.NODE_BUMP,
    kernel.NODE_ROOM: kernel.NODE_BUMP,
    kernel.NODE_START: kernel.NODE_BUMP,
    kernel.NODE_FIRST_TIME: kernel.NODE_BUMP,
    kernel.NODE_FIRST_SEQUENCE: kernel.NODE_BUMP,
    kernel.NODE_LAST_TIME: kernel.NODE_BUMP,
    kernel.NODE_LAST_SEQUENCE: kernel.NODE_BUMP,
    kernel.NODE_STATE: kernel.NODE_BUMP,
    kernel.CHILD: kernel.CHILD_BUMP,
}
_NAMES = {
    getattr(kernel, name): name.lower()
    for name in dir(kernel)
    if name.startswith(("SLOT_", "NODE_", "ENTITY_")) and not name.endswith("_BUMP")
} | {kernel.CHILD: "child", kernel.META: "meta"}
_SPREADS = (Aggregation.VARIANCE, Aggregation.STD)


class EntityWindows:
    """State and windows of one entity kind (``features`` all have the same entity)."""

    def __init__(
        self,
        features: Sequence[WindowFeature],
        columns: Sequence[int],
        bits: Mapping[str, int],
        lateness_us: int,
    ) -> None:
        """``columns``: where each feature goes in the matrix; ``bits``: the flag bit of each filter name."""
        self.entity = features[0].entity
        self.columns = tuple(columns)
        self._layout = _Layout(features, columns, bits)
        span = max(feature.window_us + feature.delay_us for feature in features)
        self.retention_us = span + lateness_us
        self._index = KeyIndex()
        values, keys, lanes = len(self._layout.values), len(self._layout.tellers), len(self._layout.lanes)
        self._plan = self._layout.plan()
        lanes = len(self._layout.lanes)
        self._pool = _empty_pool(values, keys, lanes)
        self._room = _room(lanes, len(self._plan[kernel.TELLING_KEY]))
        self._scalars = np.zeros(kernel.SCALARS_LENGTH, np.int64)
        self._scalars[kernel.FRAUD_COLUMN] = self._layout.values.get(FRAUD, -1)
        self._scalars[kernel.RETENTION] = self.retention_us
        self._scalars[kernel.VALUES] = values
        self._scalars[kernel.KEYS] = keys
        self._scalars[kernel.LANES] = lanes
        self._scalars[kernel.GROUPS] = len(self._plan[kernel.GROUP_DELAY])
        self._scalars[kernel.TELLINGS] = len(self._plan[kernel.TELLING_KEY])
        self._table = np.zeros(kernel.TABLE, np.int64)
        for entry, array in [*self._plan.items(), (kernel.SCALARS, self._scalars)]:
            self._table[entry] = array.ctypes.data
        self._point()

    @property
    def value_columns(self) -> tuple[str, ...]:
        """Numeric attributes stored with each event (``fraud``: its outcome)."""
        return tuple(self._layout.values)

    @property
    def told_entities(self) -> tuple[str, ...]:
        """Entities whose distinct values are counted."""
        return tuple(self._layout.tellers)

    @property
    def has_outcomes(self) -> bool:
        return FRAUD in self._layout.values

    @property
    def entities(self) -> int:
        return len(self._index)

    @property
    def events(self) -> int:
        """Events held, those waiting for eviction included."""
        return int(self._pool[kernel.META][kernel.LIVE_SLOTS])

    @property
    def nbytes(self) -> int:
        return self._index.nbytes + sum(array.nbytes for array in self._pool.values())

    def advance(
        self,
        keys: NDArray[np.uint64],
        owned: NDArray[np.bool_] | None,
        time_us: NDArray[np.int64],
        values: Mapping[str, NDArray[np.float64]],
        told: Mapping[str, NDArray[np.uint64]],
        flags: NDArray[np.int64],
        admitted: Admitted,
        records: int,
        out: NDArray[np.float64],
    ) -> None:
        """Apply a batch; ``records`` bounds the event records; features go to their columns of ``out``."""
        entity = self._index.resolve(keys if owned is None else np.where(owned, keys, np.uint64(0)))
        if owned is not None:
            entity[~owned] = kernel.FOREIGN_ENTITY
        self._open(entity, records)
        rows: dict[int, NDArray[Any]] = {
            kernel.ROW_ENTITY: entity,
            kernel.ROW_TIME: np.ascontiguousarray(time_us),
            kernel.ROW_VALUE: _columns(
                [values.get(name) for name in self._layout.values], len(keys), np.float64
            ),
            kernel.ROW_FLAGS: flags,
            kernel.ROW_KEY: _columns([told[name] for name in self._layout.tellers], len(keys), np.uint64),
            kernel.ROW_DISPOSITION: admitted.disposition,
            kernel.ROW_RECORD: admitted.record,
            kernel.ROW_SEQUENCE: admitted.sequence,
            kernel.ROW_OLD_TIME: admitted.old_time,
            kernel.ROW_FRAUD: admitted.fraud,
            kernel.ROW_WATERMARK: admitted.watermark,
            kernel.CHANGE_ROW: admitted.change_row,
            kernel.CHANGE_RECORD: admitted.change_record,
            kernel.CHANGE_TIME: admitted.change_time,
            kernel.CHANGE_SEQUENCE: admitted.change_sequence,
            kernel.CHANGE_FRAUD: admitted.change_fraud,
            kernel.OUT: out,
        }
        for entry, array in rows.items():
            self._table[entry] = array.ctypes.data
        self._scalars[kernel.ROWS] = len(keys)
        self._scalars[kernel.CHANGES] = len(admitted.change_row)
        self._scalars[kernel.COLUMNS] = out.shape[1]
        row, change, state = kernel.advance(self._address, 0, 0)
        while state != kernel.DONE:
            self._make_room() if state == kernel.MORE_ROOM else self._widen_seen()
            row, change, state = kernel.advance(self._address, row, change)

    def sweep(self, watermark_us: int, budget: int) -> int:
        """Free entities without a live event among the next ``budget``; how many were freed."""
        horizon = watermark_us - self.retention_us
        freed = kernel.sweep(self._address, self._index.bound, horizon, budget)
        if len(freed):
            self._index.remove(freed)
        return len(freed)

    def sweep_all(self, watermark_us: int) -> int:
        """Free every entity without a live event; how many were freed."""
        return self.sweep(watermark_us, self._index.bound)

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the used parts of all arrays, enough for ``restore``."""
        arrays = {f"index.{name}": array for name, array in self._index.state().items()}
        meta = self._pool[kernel.META]
        for entry, name in _NAMES.items():
            array = self._pool[entry]
            arrays[name] = array[: meta[_TOPS[entry]] if entry in _TOPS else len(array)].copy()
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._index.restore(
            {k.removeprefix("index."): v for k, v in arrays.items() if k.startswith("index.")}
        )
        self._pool = {entry: arrays[name].copy() for entry, name in _NAMES.items()}
        self._point()

    @property
    def _address(self) -> int:
        return int(self._table.ctypes.data)

    def _point(self) -> None:
        """Renew the table's addresses of the pools after any of them may have moved."""
        for entry, array in [*self._pool.items(), *self._room.items()]:
            self._table[entry] = array.ctypes.data
        self._scalars[kernel.SLOTS] = len(self._pool[kernel.SLOT_TIME])
        self._scalars[kernel.NODES] = len(self._pool[kernel.NODE_LEVEL])
        self._scalars[kernel.CHILDREN] = len(self._pool[kernel.CHILD])
        self._scalars[kernel.SEEN] = len(self._room[kernel.SEEN_KEY])

    def _open(self, entity: NDArray[np.int32], records: int) -> None:
        for entry, length in ((kernel.ENTITY_ROOT, self._index.bound), (kernel.ENTITY_OF, records)):
            array = self._pool[entry]
            used = len(array)
            if grow(array, length):
                array[used:] = -1
                self._table[entry] = array.ctypes.data
        root = self._pool[kernel.ENTITY_ROOT]
        slots = entity[entity >= 0]
        root[slots[root[slots] == -2]] = -1  # swept slots that have a new owner

    def _make_room(self) -> None:
        meta = self._pool[kernel.META]
        spare = {
            kernel.SLOT_BUMP: 2 * kernel.SPARE_SLOTS,
            kernel.NODE_BUMP: 2 * kernel.SPARE_NODES,
            kernel.CHILD_BUMP: 2 * kernel.SPARE_NODES * kernel.FANOUT,
        }
        for entry, top in _TOPS.items():
            grow(self._pool[entry], int(meta[top]) + spare[top])
        self._point()

    def _widen_seen(self) -> None:
        size = 2 * len(self._room[kernel.SEEN_KEY])
        self._room[kernel.SEEN_KEY] = np.zeros(size, np.uint64)
        self._room[kernel.SEEN_MARK] = np.full(size, -1, np.int64)
        self._point()


class _Layout:
    """Features of one entity arranged as the kernel wants them: shared lanes, groups and nested windows."""

    def __init__(
        self, features: Sequence[WindowFeature], columns: Sequence[int], bits: Mapping[str, int]
    ) -> None:
        self.values: dict[str, int] = {}
        self.tellers: dict[str, int] = {}
        self.lanes: dict[tuple[int, int], bool] = {}
        self.places: list[
            tuple[WindowFeature, int, int]
        ] = []  # feature, column, lane or (telling key, bit) code
        self.tellings: dict[tuple[bool, int, int, int], int] = {}
        self._bits = bits
        for feature in features:
            if feature.aggregation is Aggregation.RATE:
                self.values.setdefault(FRAUD, len(self.values))
            elif feature.aggregation is Aggregation.DISTINCT:
                self.tellers.setdefault(str(feature.value), len(self.tellers))
            elif feature.value is not None:
                self.values.setdefault(feature.value, len(self.values))
        # lanes with values first, so that counts can share one whose values are never missing
        self._features = list(zip(features, columns, strict=True))
        for feature, _ in self._features:
            if feature.aggregation is Aggregation.RATE or (
                feature.value is not None and feature.aggregation is not Aggregation.DISTINCT
            ):
                lane = (self.values[feature.value or FRAUD], self.bit(feature))
                self.lanes[lane] = self.lanes.get(lane, False) or feature.aggregation in _SPREADS

    def bit(self, feature: WindowFeature) -> int:
        return 0 if feature.filter is None else self._bits[feature.filter]

    def lane(self, feature: WindowFeature) -> int:
        bit = self.bit(feature)
        if feature.value is not None or feature.aggregation is Aggregation.RATE:
            return list(self.lanes).index((self.values[feature.value or FRAUD], bit))
        for always in _NEVER_MISSING:
            lane = (self.values.get(always, -2), bit)
            if lane in self.lanes:
                return list(self.lanes).index(lane)
        self.lanes.setdefault((-1, bit), False)
        return list(self.lanes).index((-1, bit))

    def plan(self) -> dict[int, NDArray[Any]]:
        groups: dict[tuple[int, bool], dict[int, list[tuple[WindowFeature, int]]]] = {}
        for feature, column in self._features:
            # a delayed window never reaches the event; the time since the last event is about the others
            exclude = feature.delay_us > 0 or (
                feature.exclude_current or feature.aggregation is Aggregation.TIME_SINCE_LAST
            )
            windows = groups.setdefault((feature.delay_us, exclude), {})
            windows.setdefault(feature.window_us, []).append((feature, column))
        group_windows, group_lanes, group_tellings = [0], [0], [0]
        lanes_used: list[int] = []
        tellings: list[tuple[int, int]] = []
        widths: list[int] = []
        window_features = [0]
        placed: list[tuple[int, int, int, float]] = []
        for windows in groups.values():
            lanes: dict[int, None] = {}
            told: dict[tuple[int, int], int] = {}
            for width in sorted(windows):
                for feature, column in windows[width]:
                    if feature.aggregation is Aggregation.DISTINCT:
                        telling = (self.tellers[str(feature.value)], self.bit(feature))
                        place = told.setdefault(telling, len(tellings) + len(told))
                    else:
                        place = self.lane(feature)
                        lanes[place] = None
                    placed.append((_KINDS[feature.aggregation], place, column, feature.empty))
                widths.append(width)
                window_features.append(len(placed))
            lanes_used += lanes
            tellings += told
            group_windows.append(len(widths))
            group_lanes.append(len(lanes_used))
            group_tellings.append(len(tellings))
        names = {**{place: name for name, place in self.values.items()}, -1: ""}
        return {
            kernel.LANE_VALUE: _int32([value for value, _ in self.lanes]),
            kernel.LANE_BIT: _int32([bit for _, bit in self.lanes]),
            kernel.LANE_SPREAD: np.array(list(self.lanes.values()), np.bool_),
            kernel.LANE_PLAIN: np.array(
                [bit == 0 and names[value] in _NEVER_MISSING for value, bit in self.lanes], np.bool_
            ),
            kernel.GROUP_DELAY: np.array([delay for delay, _ in groups], np.int64),
            kernel.GROUP_EXCLUDE: np.array([exclude for _, exclude in groups], np.bool_),
            kernel.GROUP_WINDOWS: _int32(group_windows),
            kernel.GROUP_LANES: _int32(group_lanes),
            kernel.LANES_USED: _int32(lanes_used),
            kernel.GROUP_TELLINGS: _int32(group_tellings),
            kernel.TELLING_KEY: _int32([key for key, _ in tellings]),
            kernel.TELLING_BIT: _int32([bit for _, bit in tellings]),
            kernel.WINDOW_WIDTH: np.array(widths, np.int64),
            kernel.WINDOW_FEATURES: _int32(window_features),
            kernel.FEATURE_KIND: _int32([kind for kind, _, _, _ in placed]),
            kernel.FEATURE_LANE: _int32([place for _, place, _, _ in placed]),
            kernel.FEATURE_COLUMN: _int32([column for _, _, column, _ in placed]),
            kernel.FEATURE_EMPTY: np.array([empty for _, _, _, empty in placed], np.float64),
        }


def _int32(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def _columns(arrays: Sequence[NDArray[Any] | None], rows: int, dtype: type[Any]) -> NDArray[Any]:
    matrix = np.zeros((rows, len(arrays)), dtype)
    for place, array in enumerate(arrays):
        if array is not None:
            matrix[:, place] = array
    return matrix


def _empty_pool(values: int, keys: int, lanes: int) -> dict[int, NDArray[Any]]:
    meta = np.zeros(kernel.META_LENGTH, np.int64)
    meta[kernel.FREE_NODE : kernel.FREE_64 + 1] = -1
    long = (kernel.SLOT_TIME, kernel.SLOT_SEQUENCE, kernel.SLOT_FLAGS, kernel.NODE_START)
    bounds = (
        kernel.NODE_FIRST_TIME,
        kernel.NODE_FIRST_SEQUENCE,
        kernel.NODE_LAST_TIME,
        kernel.NODE_LAST_SEQUENCE,
    )
    pool: dict[int, NDArray[Any]] = {entry: np.zeros(64, np.int64) for entry in (*long, *bounds)}
    pool |= {entry: np.zeros(64, np.int32) for entry in (kernel.NODE_LENGTH, kernel.NODE_ROOM, kernel.CHILD)}
    pool |= {entry: np.full(64, -1, np.int32) for entry in (kernel.ENTITY_ROOT, kernel.ENTITY_OF)}
    return pool | {
        kernel.SLOT_VALUE: np.zeros((64, values), np.float64),
        kernel.SLOT_KEY: np.zeros((64, keys), np.uint64),
        kernel.NODE_LEVEL: np.zeros(64, np.int8),
        kernel.NODE_STATE: np.zeros((64, lanes, 4), np.float64),
        kernel.META: meta,
    }


def _room(lanes: int, tellings: int) -> dict[int, NDArray[Any]]:
    """Arrays a query works in; nothing in them outlives it."""
    return {
        kernel.PATH_NODE: np.zeros(kernel.DEPTH, np.int64),
        kernel.PATH_PLACE: np.zeros(kernel.DEPTH, np.int64),
        kernel.STACK: np.zeros(kernel.DEPTH * kernel.FANOUT, np.int64),
        kernel.STATE: np.zeros((lanes, 4), np.float64),
        kernel.COUNTS: np.zeros(1 + tellings, np.int64),
        kernel.SEEN_KEY: np.zeros(256, np.uint64),
        kernel.SEEN_MARK: np.full(256, -1, np.int64),
    }
