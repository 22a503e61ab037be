"""Windows at the resolution of panes: for windows so long, or entities so busy, that every event is not affordable.

A feature of window w with ``panes = N`` has panes of p = w / N, at least a minute, on a grid common to all entities:
pane k is (k p, (k + 1) p], counted from 1970 UTC. At event time T it covers the panes that intersect
(T - delay - w, T - delay], as they stand when the event arrives: every event after floor((T - delay - w) / p) p whose
pane is not later than that of T - delay. So it reaches back less than p further than the exact window; at its recent
end it includes what has already arrived of the pane of T - delay beyond T - delay, which without delay is only what
has overtaken a late event. The event itself counts as in an exact window. When T - delay is a multiple of p the feature
is the exact one.

Corrections replace, as for exact windows: the events of a pane are kept beside its aggregate until the correction
horizon has passed, and a changed pane is computed anew from them, or from parts of 1,024 of them and their merge.
Outcomes move integer counts and reach every pane still in a window. Results depend on the entity's own events and
their order of arrival alone, to the bit, but the order in which a pane's values are added may change their last bits:
1e-9 of the condition of the data is the bound, as everywhere.

``distinct`` is exact while the panes of an entity that have more than four events hold at most 1,024 keys between
them; beyond it is the rounded estimate of a HyperLogLog of 4,096 registers (DataSketches, HLL_8; standard error 1.6 %)
until those panes have left the window.

Bytes: 16 an entity and about 20 in the index; 16 + 8 per value column + 8 per key column an event of a quiet pane, of
which there are at most four (an entity's run of them doubles in size); 20 a busy pane, + 4 per count, 8 per sum,
moment, minimum and maximum of each lane, and 8 per category counted + 8.5 per distinct key; an event in its log 12 + 8
per value and key column, until the correction horizon has passed. ``docs/scoring-memory.md`` has the arithmetic.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.features import pane_kernel as kernel
from scoring.features.frame import NO_NUMBER, TIME_NUMBER, Frame
from scoring.features.index import KeyIndex, grow
from scoring.features.intake import Intake
from scoring.features.pane_layout import TIME, PaneLayout
from scoring.features.spec import WindowFeature
from scoring.features.windows import FRAUD

_TOPS = {
    kernel.FEW: kernel.FEW_TOP,
    kernel.FEW_FREE: kernel.FEW_TOP,
    kernel.EVENT: kernel.EVENT_TOP,
    kernel.EVENT_VALUE: kernel.EVENT_TOP,
    kernel.EVENT_KEY: kernel.EVENT_TOP,
    kernel.ROW: kernel.ROW_TOP,
    kernel.ROW_COUNT: kernel.ROW_TOP,
    kernel.ROW_FLOAT: kernel.ROW_TOP,
    kernel.ROW_SET: kernel.ROW_TOP,
    kernel.CHUNK: kernel.CHUNK_TOP,
    kernel.CHUNK_NEXT: kernel.CHUNK_TOP,
    kernel.SKETCH: kernel.SKETCH_TOP,
    kernel.SKETCH_NEXT: kernel.SKETCH_TOP,
}
_NAMES = {
    kernel.FEW: "few",
    kernel.FEW_FREE: "few_free",
    kernel.EVENT: "event",
    kernel.EVENT_VALUE: "event_value",
    kernel.EVENT_KEY: "event_key",
    kernel.ROW: "row",
    kernel.ROW_COUNT: "row_count",
    kernel.ROW_FLOAT: "row_float",
    kernel.ROW_SET: "row_set",
    kernel.CHUNK: "chunk",
    kernel.CHUNK_NEXT: "chunk_next",
    kernel.SKETCH: "sketch",
    kernel.SKETCH_NEXT: "sketch_next",
    kernel.ENTITY: "entity",
    kernel.ENTITY_SKETCHED: "entity_sketched",
    kernel.ENTITY_KEYS: "entity_keys",
    kernel.ENTITY_OF: "entity_of",
    kernel.EVENT_OF: "event_of",
    kernel.FLAGS_OF: "flags_of",
    kernel.META: "meta",
}
_ROOMS = {
    kernel.FEW: kernel.FEW_ROOM,
    kernel.EVENT: kernel.EVENT_ROOM,
    kernel.ROW: kernel.ROW_ROOM,
    kernel.CHUNK_NEXT: kernel.CHUNK_ROOM,
    kernel.SKETCH_NEXT: kernel.SKETCH_ROOM,
}
_SWEEP_SHARE = 4  # an entity's panes are a walk: look at fewer entities per event than EntityWindows does


class EntityPanes:
    """State and paned windows of one entity kind (``features`` have the same entity and width of pane).

    The same face as ``EntityWindows``.
    """

    def __init__(
        self,
        features: Sequence[WindowFeature],
        columns: Sequence[int],
        bits: Mapping[str, int],
        lateness_us: int,
        correction_us: int,
    ) -> None:
        """``columns``: where each feature goes in the matrix; ``bits``: the flag bit of each filter name."""
        self.entity = features[0].entity
        self.columns = tuple(columns)
        self.retention_us = max(feature.window_us + feature.delay_us for feature in features) + lateness_us
        self._correction_us = correction_us
        self._layout = layout = PaneLayout(features, columns, bits)
        self._index = KeyIndex()
        self._plan = layout.plan()
        self._pool = _empty_pool(layout)
        panes = self.retention_us // features[0].pane_us + 2  # that an entity may have at a time
        self._room = _room(len(layout.lanes), len(layout.tellers), panes)
        self._scalars = np.zeros(kernel.SCALARS_LENGTH, np.int64)
        settings = {
            kernel.PANE_US: features[0].pane_us,
            kernel.RETENTION: self.retention_us,
            kernel.CORRECTION: correction_us,
            kernel.VALUES: len(layout.values),
            kernel.KEYS: len(layout.tellers),
            kernel.LANES: len(layout.lanes),
            kernel.GROUPS: len(self._plan[kernel.GROUP_DELAY]),
            kernel.TELLINGS: len(layout.tellings),
            kernel.COUNT_WIDTH: layout.count_width,
            kernel.FLOAT_WIDTH: layout.float_width,
            kernel.HAS_FRAUD: int(self.has_outcomes),
            kernel.DISTINCTS: layout.distincts,
            kernel.SEEN: len(self._room[kernel.SEEN_KEY]),
            kernel.FEW_WIDTH: self._pool[kernel.FEW].shape[1],
            kernel.FEW_SPARE: 3 * (4 * kernel.FEW_MAX * panes + (1 << kernel.RUN_BLOCK)),
        }
        for scalar, value in settings.items():
            self._scalars[scalar] = value
        if layout.tellings:
            _distinct(
                np.zeros(kernel.REGISTERS, np.uint8)
            )  # loads the library, which no event should wait for
        self._table = np.zeros(kernel.TABLE, np.int64)
        self._at = int(self._table.ctypes.data)
        for entry, array in [*self._plan.items(), *self._room.items(), (kernel.SCALARS, self._scalars)]:
            self._table[entry] = array.ctypes.data
        self._intake = Intake(
            self._index,
            self._table,
            self._scalars,
            first=kernel.BATCH_ENTITY,
            lengths=(kernel.ROWS, kernel.CHANGES, kernel.COLUMNS),
        )
        self._intake.narrow(layout.narrowed, kernel.FRAUD_BIT)
        self._point()

    @property
    def value_columns(self) -> tuple[str, ...]:
        """Numeric attributes stored with each event (``fraud``: its outcome is)."""
        numbers = tuple(name for name in self._layout.values if name != TIME)
        return (*numbers, FRAUD) if self.has_outcomes else numbers

    @property
    def told_entities(self) -> tuple[str, ...]:
        """Categories whose distinct values are counted."""
        return tuple(self._layout.tellers)

    @property
    def has_outcomes(self) -> bool:
        return self._layout.has_outcomes

    @property
    def entities(self) -> int:
        return len(self._index)

    @property
    def events(self) -> int:
        """Events held one by one, in quiet panes and in the logs of busy ones."""
        meta = self._pool[kernel.META]
        return int(meta[kernel.LIVE_FEW] + meta[kernel.LIVE_EVENTS])

    @property
    def rows(self) -> int:
        """Aggregates held: one for every busy pane, and one for every part of a log in parts."""
        return int(self._pool[kernel.META][kernel.LIVE_ROWS])

    @property
    def nbytes(self) -> int:
        return self._index.nbytes + sum(array.nbytes for array in self._pool.values())

    def bind(self, frame: Frame) -> None:
        """Say whose batches are to come; once, before the first."""
        places = {TIME: TIME_NUMBER, FRAUD: NO_NUMBER}
        self._intake.bind(frame, self.entity, tuple(self._layout.values), self.told_entities, places)

    def advance(self, frame: Frame) -> None:
        """Apply the frame's batch; features go to their columns of its matrix."""
        bound = self._intake.read(frame)
        if bound > self._entities or frame.records > self._records:
            self._open(bound, frame.records)
        row, change, state = kernel.advance(self._at, 0, 0)
        while state != kernel.DONE:
            if state == kernel.MORE_ROOM:
                self._make_room()
            else:
                self._estimate(frame.values)
            row, change, state = kernel.advance(self._at, row, change)
        if self._layout.distincts:
            self._estimate(frame.values)

    def sweep(self, watermark_us: int, budget: int) -> int:
        """Free what can matter no more of some entities, in turn; how many were freed whole."""
        return self._sweep(watermark_us, min(-(-budget // _SWEEP_SHARE), self._index.bound))

    def sweep_all(self, watermark_us: int) -> int:
        """Free every entity without a live pane, and what can matter no more of the others; how many were freed."""
        return self._sweep(watermark_us, self._index.bound)

    def state(self) -> dict[str, NDArray[Any]]:
        """The used parts of all arrays, enough for ``restore``: views, good until the next change."""
        arrays = {f"index.{name}": array for name, array in self._index.state().items()}
        meta = self._pool[kernel.META]
        for entry, name in _NAMES.items():
            array = self._pool[entry]
            arrays[name] = array[: meta[_TOPS[entry]] if entry in _TOPS else len(array)]
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._index.restore(
            {k.removeprefix("index."): v for k, v in arrays.items() if k.startswith("index.")}
        )
        self._pool = {entry: arrays[name].copy() for entry, name in _NAMES.items()}
        self._point()

    def _sweep(self, watermark_us: int, budget: int) -> int:
        freed = kernel.sweep(
            self._at,
            self._index.bound,
            watermark_us - self.retention_us,
            watermark_us - self._correction_us,
            budget,
        )
        if len(freed):
            self._index.remove(freed)
        return len(freed)

    def _point(self) -> None:
        """Renew the table's addresses of the pools after any of them may have moved."""
        for entry, array in self._pool.items():
            self._table[entry] = array.ctypes.data
        for entry, scalar in _ROOMS.items():
            self._scalars[scalar] = len(self._pool[entry])
        self._entities = len(self._pool[kernel.ENTITY])
        self._records = len(self._pool[kernel.ENTITY_OF])

    def _open(self, entities: int, records: int) -> None:
        pool = self._pool
        lengths = {kernel.ENTITY: entities, kernel.ENTITY_OF: records, kernel.EVENT_OF: records}
        if self._layout.tellings:
            lengths |= {kernel.ENTITY_SKETCHED: entities, kernel.ENTITY_KEYS: entities}
        if self.has_outcomes:
            lengths[kernel.FLAGS_OF] = records
        for entry, length in lengths.items():
            used = len(pool[entry])
            if grow(pool[entry], length) and entry in (kernel.ENTITY, kernel.ENTITY_OF):
                pool[entry][used:] = -1
        self._point()

    def _make_room(self) -> None:
        meta = self._pool[kernel.META]
        tellings = len(self._layout.tellings)
        wanted = int(self._scalars[kernel.SKETCHES_WANTED])
        spare = {
            kernel.FEW_TOP: 2 * int(self._scalars[kernel.FEW_SPARE]),
            kernel.EVENT_TOP: 2 * kernel.SPARE,
            kernel.ROW_TOP: 2 * kernel.SPARE,
            kernel.CHUNK_TOP: 2 * kernel.SPARE_CHUNKS * tellings,
            kernel.SKETCH_TOP: wanted + 2 * kernel.SPARE * tellings,
        }
        for entry, top in _TOPS.items():
            grow(self._pool[entry], int(meta[top]) + spare[top])
        self._scalars[kernel.SKETCHES_WANTED] = 0
        self._point()

    def _estimate(self, out: NDArray[np.float64]) -> None:
        """Write the distinct counts whose registers wait."""
        waiting = int(self._scalars[kernel.WAITING])
        if not waiting:
            return
        places = self._plan[kernel.FEATURE_COLUMN]
        empty = self._plan[kernel.FEATURE_EMPTY]
        for registers, (row, feature) in zip(
            self._room[kernel.ESTIMATES][:waiting], self._room[kernel.ESTIMATE_AT][:waiting], strict=True
        ):
            distinct = _distinct(registers)
            out[row, places[feature]] = distinct if distinct else empty[feature]
        self._scalars[kernel.WAITING] = 0


def _distinct(registers: NDArray[np.uint8]) -> float:
    """How many keys made HyperLogLog registers uint8 [4096] what they are: DataSketches' estimate, rounded."""
    return _distinct_of(registers.tobytes())


@lru_cache(maxsize=256)  # the registers of a hot entity seldom change, and an estimate takes 20 us
def _distinct_of(registers: bytes) -> float:
    from datasketches import hll_sketch

    used = np.bincount(np.frombuffer(registers, np.uint8), minlength=64)
    weights = used * 0.5 ** np.arange(64)
    # The library's updatable image of an HLL_8 sketch in HLL mode (preamble of ten ints, version 1, family 7), marked
    # as out of order so that the estimate is made from the registers alone.
    image = struct.pack(
        "<8B3d2I", 10, 1, 7, 12, 0, 16, 0, 10, 0.0, weights[:32].sum(), weights[32:].sum(), used[0], 0
    )
    return float(np.rint(hll_sketch.deserialize(image + registers).get_estimate()))


def _empty_pool(layout: PaneLayout) -> dict[int, NDArray[Any]]:
    meta = np.zeros(kernel.META_LENGTH, np.int64)
    meta[kernel.FREE_EVENT : kernel.FREE_RUN + kernel.RUN_SIZES] = -1
    tellings = len(layout.tellings)
    sketches = 64 if tellings else 0
    return {
        kernel.FEW: np.zeros((64, 2 + len(layout.values) + len(layout.tellers)), np.int64),
        kernel.FEW_FREE: np.zeros(64, np.uint8),
        kernel.EVENT: np.zeros((64, 3), np.int32),
        kernel.EVENT_VALUE: np.zeros((64, len(layout.values)), np.float64),
        kernel.EVENT_KEY: np.zeros((64, len(layout.tellers)), np.uint64),
        kernel.ROW: np.zeros((64, 5), np.int32),
        kernel.ROW_COUNT: np.zeros((64, layout.count_width), np.uint32),
        kernel.ROW_FLOAT: np.zeros((64, layout.float_width), np.float64),
        kernel.ROW_SET: np.zeros((64, tellings, 2), np.int32),
        kernel.CHUNK: np.zeros((sketches, 8), np.uint64),
        kernel.CHUNK_NEXT: np.zeros(sketches, np.int32),
        kernel.SKETCH: np.zeros((0, kernel.REGISTERS), np.uint8),
        kernel.SKETCH_NEXT: np.zeros(0, np.int32),
        kernel.ENTITY: np.full((64, 4), -1, np.int32),
        kernel.ENTITY_SKETCHED: np.zeros(sketches, np.int32),
        kernel.ENTITY_KEYS: np.zeros((sketches, tellings), np.int32),
        kernel.ENTITY_OF: np.full(64, -1, np.int32),
        kernel.EVENT_OF: np.full(64, -1, np.int32),
        kernel.FLAGS_OF: np.zeros(64 if layout.has_outcomes else 0, np.int32),
        kernel.META: meta,
    }


def _room(lanes: int, tellings: int, panes: int) -> dict[int, NDArray[Any]]:
    """Arrays a query works in; nothing in them outlives it."""
    keys = tellings * (kernel.CAP + 1 + kernel.FEW_MAX * panes)
    seen = 1 << (2 * max(keys, 32)).bit_length()
    estimates = kernel.ESTIMATE_ROOM if tellings else 0
    return {
        kernel.STATE: np.zeros((lanes, kernel.WIDTH), np.float64),
        kernel.TEMPORARY: np.zeros((2, kernel.WIDTH), np.float64),
        kernel.SEEN_KEY: np.zeros(seen, np.uint64),
        kernel.SEEN_MARK: np.full(seen, -1, np.int64),
        kernel.COUNTS: np.zeros(max(tellings, 1), np.int64),
        kernel.MERGED: np.zeros((tellings, kernel.REGISTERS), np.uint8),
        kernel.ESTIMATES: np.zeros((estimates, kernel.REGISTERS), np.uint8),
        kernel.ESTIMATE_AT: np.zeros((estimates, 2), np.int64),
        kernel.PANE_AHEAD: np.full(kernel.AHEAD, -1, np.int32),
    }
