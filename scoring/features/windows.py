"""The windows of one entity kind: the pools the kernel works on, and a plan compiled from the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.features import kernel
from scoring.features.frame import NO_NUMBER, Frame
from scoring.features.index import KeyIndex
from scoring.features.intake import Intake
from scoring.features.layout import FRAUD, Layout
from scoring.features.pool import Pool
from scoring.features.spec_model import WindowFeature

__all__ = ["FRAUD", "EntityWindows"]

_NAMES = {
    kernel.SLOT: "slot",
    kernel.NODE: "node",
    kernel.CHILD: "child",
    kernel.SKETCH_OF: "sketch_of",
    kernel.SKETCH: "sketch",
    kernel.ENTITY_ROOT: "entity_root",
    kernel.ENTITY_OF: "entity_of",
}
_FILLS = {kernel.ENTITY_ROOT: -1, kernel.ENTITY_OF: -1}
_TOPS = {
    kernel.SLOT: kernel.SLOT_BUMP,
    kernel.NODE: kernel.NODE_BUMP,
    kernel.CHILD: kernel.CHILD_BUMP,
    kernel.SKETCH_OF: kernel.NODE_BUMP,
    kernel.SKETCH: kernel.SKETCH_BUMP,
}
_SPARE = {
    kernel.SLOT_BUMP: 2 * kernel.SPARE_SLOTS,
    kernel.NODE_BUMP: 2 * kernel.SPARE_NODES,
    kernel.CHILD_BUMP: 2 * kernel.SPARE_NODES * kernel.FANOUT,
    kernel.SKETCH_BUMP: 2 * kernel.SPARE_NODES,
}


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
        self._layout = _layout = Layout(features, columns, bits)
        span = max(feature.window_us + feature.delay_us for feature in features)
        self.retention_us = span + lateness_us
        self._index = KeyIndex()
        self._plan = _layout.plan()
        values, keys = len(_layout.values), len(_layout.categories)
        first_value = 3 if _layout.has_flags else 2
        settings = {
            kernel.FRAUD_COLUMN: _layout.values.get(FRAUD, -1),
            kernel.RETENTION: self.retention_us,
            kernel.VALUES: values,
            kernel.KEYS: keys,
            kernel.LANES: _layout.lanes,
            kernel.GROUPS: len(self._plan[kernel.GROUP_DELAY]),
            kernel.SKETCHES: len(_layout.sketches),
            kernel.LISTS: len(_layout.lists),
            kernel.SHELVES: len(self._plan[kernel.SHELF_LANE]),
            kernel.TELLINGS: int(np.diff(self._plan[kernel.GROUP_TELLINGS]).max(initial=0)),
            kernel.BLOCK_BYTES: len(_layout.sketches) * kernel.REGISTERS
            + len(_layout.lists) * kernel.LIST_BYTES,
            kernel.SLOT_WORDS: first_value + values + keys,
            kernel.NODE_WORDS: kernel.STATE + _layout.width,
            kernel.FLAG_FIELD: 2 if _layout.has_flags else -1,
            kernel.VALUE_FIELD: first_value,
            kernel.KEY_FIELD: first_value + values,
            kernel.TOTAL_LANE: _layout.total_lane,
        }
        self._scalars = np.zeros(kernel.SCALARS_LENGTH, np.int64)
        for entry, setting in settings.items():
            self._scalars[entry] = setting
        self._meta = np.zeros(kernel.META_LENGTH, np.int64)
        self._meta[kernel.FREE_NODE : kernel.FREE_64 + 1] = -1
        self._pools = self._empty_pools()
        self._room = self._working_room()
        self._table = np.zeros(kernel.TABLE, np.int64)
        self._at = int(self._table.ctypes.data)
        for entry, array in [*self._plan.items(), *self._room.items(), (kernel.SCALARS, self._scalars)]:
            self._table[entry] = array.ctypes.data
        self._intake = Intake(
            self._index,
            self._table,
            self._scalars,
            first=kernel.ROW_ENTITY,
            lengths=(kernel.ROWS, kernel.CHANGES, kernel.COLUMNS),
        )
        self._point()

    @property
    def value_columns(self) -> tuple[str, ...]:
        """Numeric attributes stored with each event (``fraud``: its outcome)."""
        return tuple(self._layout.values)

    @property
    def told_entities(self) -> tuple[str, ...]:
        """Entities, pairs of them or ``channel`` whose values are told apart."""
        return tuple(self._layout.categories)

    @property
    def has_outcomes(self) -> bool:
        return FRAUD in self._layout.values

    @property
    def entities(self) -> int:
        return len(self._index)

    @property
    def events(self) -> int:
        """Events held, those waiting for eviction included."""
        return int(self._meta[kernel.LIVE_SLOTS])

    @property
    def nbytes(self) -> int:
        return self._index.nbytes + sum(pool.nbytes for pool in self._pools.values())

    def bind(self, frame: Frame) -> None:
        """Say whose batches are to come; once, before the first."""
        self._intake.bind(frame, self.entity, self.value_columns, self.told_entities, {FRAUD: NO_NUMBER})

    def advance(self, frame: Frame) -> None:
        """Apply the frame's batch; features go to their columns of its matrix."""
        bound = self._intake.read(frame)
        if bound > self._entities or frame.records > self._records:
            self._pools[kernel.ENTITY_ROOT].grow(bound)
            self._pools[kernel.ENTITY_OF].grow(frame.records)
            self._point()
        row, change, state = kernel.advance(self._at, 0, 0)
        while state != kernel.DONE:
            self._make_room()
            row, change, state = kernel.advance(self._at, row, change)

    def sweep(self, watermark_us: int, budget: int) -> int:
        """Free entities without a live event among the next ``budget``; how many were freed."""
        horizon = watermark_us - self.retention_us
        freed = kernel.sweep(self._at, self._index.bound, horizon, budget)
        if len(freed):
            self._index.remove(freed)
        return len(freed)

    def sweep_all(self, watermark_us: int) -> int:
        """Free every entity without a live event; how many were freed."""
        return self.sweep(watermark_us, self._index.bound)

    def state(self) -> dict[str, NDArray[Any]]:
        """The used parts of all arrays, enough for ``restore``: views, good until the next change."""
        arrays = {f"index.{name}": array for name, array in self._index.state().items()}
        for entry, name in _NAMES.items():
            used = self._meta[_TOPS[entry]] if entry in _TOPS else len(self._pools[entry])
            arrays[name] = self._pools[entry].array[:used]
        return arrays | {"meta": self._meta}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._index.restore(
            {k.removeprefix("index."): v for k, v in arrays.items() if k.startswith("index.")}
        )
        self._pools = {
            entry: Pool.of(arrays[name], fill=_FILLS.get(entry, 0)) for entry, name in _NAMES.items()
        }
        self._meta = arrays["meta"].copy()
        self.forget()
        self._point()

    def forget(self) -> None:
        """Drop what is carried over from one event to the next for speed; answers do not depend on it."""
        self._room[kernel.SHELF][:] = -1

    def _point(self) -> None:
        """Renew the table's addresses of the pools after any of them may have moved, and their lengths."""
        for entry, pool in self._pools.items():
            self._table[entry] = pool.address
        self._table[kernel.META] = self._meta.ctypes.data
        self._scalars[kernel.SLOTS] = len(self._pools[kernel.SLOT])
        self._scalars[kernel.NODES] = len(self._pools[kernel.NODE])
        self._scalars[kernel.CHILDREN] = len(self._pools[kernel.CHILD])
        self._scalars[kernel.BLOCKS] = len(self._pools[kernel.SKETCH])
        self._entities = len(self._pools[kernel.ENTITY_ROOT])
        self._records = len(self._pools[kernel.ENTITY_OF])

    def _make_room(self) -> None:
        for entry, top in _TOPS.items():
            self._pools[entry].grow(int(self._meta[top]) + _SPARE[top])
        self._point()

    def _empty_pools(self) -> dict[int, Pool]:
        words = self._scalars
        return {
            kernel.SLOT: Pool((int(words[kernel.SLOT_WORDS]),), np.int64),
            kernel.NODE: Pool((int(words[kernel.NODE_WORDS]),), np.int64),
            kernel.CHILD: Pool((), np.int32),
            kernel.SKETCH_OF: Pool((), np.int32),
            kernel.SKETCH: Pool((int(words[kernel.BLOCK_BYTES]),), np.uint8),
            kernel.ENTITY_ROOT: Pool((), np.int32, fill=-1),
            kernel.ENTITY_OF: Pool((), np.int32, fill=-1),
        }

    def _working_room(self) -> dict[int, NDArray[Any]]:
        """Arrays a query works in; nothing in them outlives it."""
        tellings, shelves = int(self._scalars[kernel.TELLINGS]), int(self._scalars[kernel.SHELVES])
        per_telling = (
            kernel.TELLING_COUNT,
            kernel.TELLING_SIZE,
            kernel.TELLING_SHELF,
            kernel.TELLING_MARK,
            kernel.TELLING_TIME,
            kernel.TELLING_SEQUENCE,
            kernel.TELLING_BEGUN,
        )
        return {entry: np.zeros(tellings, np.int64) for entry in per_telling} | {
            kernel.PATH_NODE: np.zeros(kernel.DEPTH, np.int64),
            kernel.PATH_PLACE: np.zeros(kernel.DEPTH, np.int64),
            kernel.CURSOR: np.zeros((4, kernel.DEPTH), np.int64),
            kernel.QUERY: np.zeros(self._layout.width, np.float64),
            kernel.SCRATCH: np.zeros(2 * 32, np.float64),
            kernel.PICKED_VALUE: np.zeros(kernel.LEAF + 1, np.float64),
            kernel.PICKED_SECOND: np.zeros(kernel.LEAF + 1, np.float64),
            kernel.PICKED_TIME: np.zeros(kernel.LEAF + 1, np.float64),
            kernel.SEEN_KEY: np.zeros((tellings, 2 * kernel.SCAN), np.uint64),
            kernel.SEEN_MARK: np.zeros((tellings, 2 * kernel.SCAN), np.int64),
            kernel.SEEN_PLACE: np.zeros((tellings, kernel.SCAN), np.int32),
            kernel.TOLD_VALUE: np.zeros((tellings, kernel.SCAN), np.uint64),
            kernel.RANKED: np.zeros(kernel.SCAN if tellings else 0, np.uint64),
            kernel.TOLD_REGISTER: np.zeros((tellings, kernel.REGISTERS), np.uint8),
            kernel.COMING: np.zeros(kernel.SCAN if shelves else 0, np.uint64),
            kernel.GOING: np.zeros(kernel.SCAN if shelves else 0, np.uint64),
            kernel.MOVING: np.zeros(2, np.int64),
            kernel.SHELF: np.full((shelves, kernel.SHELF_WORDS), -1, np.int64),
            kernel.SHELF_KEY: np.zeros((shelves, 2 * kernel.SCAN), np.uint64),
            kernel.SHELF_COUNT: np.zeros((shelves, 2 * kernel.SCAN), np.int32),
            kernel.SHELF_SORTED: np.zeros((shelves, kernel.SCAN), np.uint64),
            kernel.SHELF_REGISTER: np.zeros((shelves, kernel.REGISTERS), np.uint8),
        }
