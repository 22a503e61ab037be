"""The streaming engine: batches in, one row of features per event out, state kept between batches.

Contract (the window of width w at event time T covers (T - w, T], the event itself included unless the spec excludes
it, ties in arrival order):

- an event older than the newest by more than the lateness is refused; a late one within it enters the windows of
  later events;
- a correction (same id, marked) within the correction horizon replaces the event, keeps its place in arrival order
  and never adds; an id already applied is acknowledged and not applied again; beyond the horizon both are refused;
- an outcome is visible to every event at or after the time it became known.

Rows that are refused or duplicates have NaN in windowed and derived features, and so has a window of a correction that
reaches back further than events are kept. Features do not depend on how the stream is cut into batches or shards, to
the bit. Exact windows are kept by ``EntityWindows``, one per entity kind, those with ``panes`` by ``EntityPanes``, one
per entity kind and width of pane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.features.admission import Admission, Disposition
from scoring.features.columns import entity_column
from scoring.features.derived import Derivations
from scoring.features.frame import Frame
from scoring.features.immediate import Immediate
from scoring.features.index import owners
from scoring.features.panes import EntityPanes
from scoring.features.pending import NOTHING_PENDING, Part, PendingOutcomes
from scoring.features.spec import FeatureSpec, WindowFeature, checked
from scoring.features.windows import FRAUD, EntityWindows
from scoring.row_codes import validate
from scoring.schema import OutcomeBatch, TransactionBatch, entity_keys

_LAST_APPLIED = np.uint8(Disposition.CORRECTED)
# After so many events' share, for a sweep costs a single event more than what it looks at.
_SWEEP_LEAST = 128
_SWEEP_FLOOR = 64
# Fewer rows are not worth waking a thread.
_SHARED_ROWS = 512
STATE_LAYOUT = 2  # of the arrays of a state: goes up when they are arranged in another way


@dataclass(frozen=True, eq=False)
class FeatureMatrix:
    """``values`` float64 [n, f] under ``names``; ``disposition`` uint8 [n] of ``Disposition``; ``refusal`` uint8 [n] of
    ``scoring.row_codes.RowCode`` (non-zero only where the disposition is REFUSED_INVALID)."""

    names: tuple[str, ...]
    values: NDArray[np.float64]
    disposition: NDArray[np.uint8]
    refusal: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.values)

    def column(self, name: str) -> NDArray[np.float64]:
        """One feature, float64 [n] (a view). Raises KeyError."""
        try:
            return self.values[:, self.names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """All features by name (views)."""
        return {name: self.values[:, place] for place, name in enumerate(self.names)}

    @property
    def applied(self) -> NDArray[np.bool_]:
        """Rows that changed state and may be judged."""
        return self.disposition <= _LAST_APPLIED


@dataclass(frozen=True)
class EngineSize:
    """What an engine holds: entities and events per table, event records, outcomes to come, bytes.

    A table is an entity kind (``customer``, ``card+terminal``) or, for panes, that and their width in microseconds
    (``customer:86400000000``); paned tables count the events they still hold one by one.
    """

    entities: Mapping[str, int]
    events: Mapping[str, int]
    records: int
    pending_outcomes: int
    unmatched_outcomes: int
    nbytes: int


def shard_of(keys: NDArray[np.uint64], shards: int) -> NDArray[np.int64]:
    """The shard 0..shards-1 that owns each entity, int64 [n]; a missing entity (0) belongs to shard 0."""
    return owners(keys, shards)


def _work_off(waiting: deque[EntityWindows | EntityPanes], frame: Frame) -> None:
    """Apply the frame's batch to one table after the other until none is left."""
    while True:
        try:
            table = waiting.popleft()
        except IndexError:
            return
        table.advance(frame)


def join_shards(matrices: list[FeatureMatrix], spec: FeatureSpec, batch: TransactionBatch) -> FeatureMatrix:
    """The matrix one engine would have given, from those of shards 0..n-1 on the same batch."""
    first = matrices[0]
    values = first.values.copy()
    owners: dict[str, NDArray[np.int64]] = {}
    for place, feature in enumerate(spec.features):
        if isinstance(feature, WindowFeature):
            if feature.entity not in owners:
                owners[feature.entity] = shard_of(entity_column(batch, feature.entity), len(matrices))
            for shard, matrix in enumerate(matrices[1:], 1):
                rows = owners[feature.entity] == shard
                values[rows, place] = matrix.values[rows, place]
    Derivations(spec).fill(batch, values, first.applied)
    return FeatureMatrix(first.names, values, first.disposition, first.refusal)


class FeatureEngine:
    """Computes a spec over a stream.

    With ``shards`` > 1 the engine is shard ``shard``: it gets every batch whole, so that all shards decide alike about
    late events and duplicates, but keeps windows only of the entities it owns (``shard_of``), and gives NaN for the
    others; ``join_shards`` puts the parts together. An engine is used by one thread at a time; its kernels release the
    interpreter lock.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        lateness_us: int | None = None,
        correction_us: int | None = None,
        shard: int = 0,
        shards: int = 1,
        threads: int = 1,
    ) -> None:
        """Times default to the spec's. ``threads``: how many may work at a batch; what comes out is the same.

        Raises SpecError for an unusable spec, ValueError for an impossible shard.
        """
        if not 0 <= shard < shards:
            raise ValueError(f"shard {shard} of {shards} does not exist")
        lateness = spec.lateness_us if lateness_us is None else lateness_us
        correction = spec.correction_us if correction_us is None else correction_us
        self.spec = checked(FeatureSpec(spec.features, spec.filters, lateness, correction))
        self._shard, self._shards = shard, shards
        names = dict.fromkeys([f.name for f in spec.filters] + [f.filter for f in spec.windows if f.filter])
        self._bits = {name: bit for bit, name in enumerate(names, 1)}
        self._tables = self._layout(lateness, correction)
        self._names = spec.names
        self._immediate = Immediate(self.spec, self._bits)
        self._derivations = Derivations(spec)
        tables = tuple(self._tables.values())
        self._frame = Frame(
            [name for table in tables for name in table.value_columns if name != FRAUD]
            + self._immediate.numbers,
            [name for table in tables for name in (table.entity, *table.told_entities)]
            + self._immediate.categories,
            len(self._names),
            shard=shard,
            shards=shards,
        )
        for part in (self._immediate, *tables):
            part.bind(self._frame)
        # The dearest first, so that those who share the work end together.
        self._dearest = sorted(tables, key=lambda table: -len(table.columns))
        # Its threads end with the engine: the pool holds no reference to it.
        self._others = ThreadPoolExecutor(threads - 1, "features") if threads > 1 else None
        self._owed = 0  # entities to be looked at for something to free
        outcomes = max(
            (table.retention_us for table in self._tables.values() if table.has_outcomes), default=0
        )
        self._admission = Admission(lateness_us=lateness, correction_us=correction, retention_us=outcomes)
        self._pending = PendingOutcomes()

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def watermark_us(self) -> int | None:
        """The latest event time so far."""
        return self._admission.watermark_us

    def update(
        self,
        batch: TransactionBatch,
        outcomes: OutcomeBatch | None = None,
        *,
        filters: Mapping[str, NDArray[np.bool_]] | None = None,
    ) -> FeatureMatrix:
        """Features of a batch; outcomes may lie in the future and wait until the stream has come to them.

        ``filters``: a boolean column [n] for every filter name that the spec uses and does not define.
        Raises SchemaError when a column the spec needs is missing; then nothing has changed.
        """
        frame = self._frame
        frame.read(batch)
        self._immediate.fill(batch, filters or {}, frame)
        if outcomes is not None and len(outcomes):
            self._pending.add(entity_keys(outcomes.event_id, column="event_id"), outcomes)
        due = self._due(batch.time_us, frame.refusal) if len(self._pending) else NOTHING_PENDING
        consumed = self._admission.admit(frame, due)
        if consumed:
            self._pending.drop(consumed)
        self._advance(frame)
        self._owed += 2 * len(batch)
        if self._owed >= _SWEEP_LEAST:
            self._tidy(self._owed + _SWEEP_FLOOR)
            self._owed = 0
        matrix = FeatureMatrix(self._names, frame.release(), frame.disposition, frame.refusal)
        if self._shards == 1:  # one of several lacks what others own: join_shards does it
            self._derivations.fill(batch, matrix.values, matrix.applied)
        return matrix

    def _advance(self, frame: Frame) -> None:
        """Have every table apply the batch. They share nothing that they change, and each writes columns of its own."""
        waiting = deque(self._dearest)
        if self._others is None or frame.rows < _SHARED_ROWS:
            _work_off(waiting, frame)
            return
        helping = self._others.submit(_work_off, waiting, frame)
        try:
            _work_off(waiting, frame)
        finally:
            if not helping.cancel():  # the processors may have had better to do than to begin it
                helping.result()

    def foresee(self, batch: TransactionBatch) -> NDArray[np.uint8]:
        """The dispositions uint8 [n] that :meth:`update` would give a batch now; nothing changes.

        For whoever keeps state of its own beside the windows, which duplicates and refused events must not touch.
        """
        correction = batch.correction if batch.correction is not None else np.zeros(len(batch), np.bool_)
        ids = entity_keys(batch.event_id, column="event_id")
        return self._admission.foresee(ids, batch.time_us, validate(batch) == 0, correction)

    def sweep(self, now_us: int | None = None) -> int:
        """Free every entity without a live event; how many were freed.

        A given ``now_us`` declares that time has come this far: events older than it by more than the lateness are
        refused from here on, exactly as if an event at ``now_us`` had arrived.
        """
        if now_us is not None:
            self._admission.declare(now_us)
        watermark = self.watermark_us
        if watermark is None:
            return 0
        self._admission.forget(len(self._admission))
        return sum(table.sweep_all(watermark) for table in self._tables.values())

    def size(self) -> EngineSize:
        return EngineSize(
            entities={name: table.entities for name, table in self._tables.items()},
            events={name: table.events for name, table in self._tables.items()},
            records=len(self._admission),
            pending_outcomes=len(self._pending),
            unmatched_outcomes=self._admission.unmatched,
            nbytes=self._admission.nbytes + sum(table.nbytes for table in self._tables.values()),
        )

    def state(self, copy: bool = True) -> dict[str, NDArray[Any]]:
        """All state as plain arrays, for a snapshot; ``restore`` continues bit-identically.

        Without ``copy`` they are views, good until the next change.
        """
        arrays = {f"admission/{name}": array for name, array in self._admission.state().items()}
        arrays |= {f"pending/{name}": array for name, array in self._pending.state().items()}
        for part, table in self._tables.items():
            arrays |= {f"{part}/{name}": array for name, array in table.state().items()}
        arrays["owed"] = np.array([self._owed], np.int64)
        arrays["digest"] = np.frombuffer(self._digest().encode(), np.uint8)
        return {name: array.copy() for name, array in arrays.items()} if copy else arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over the state of an engine with the same spec and shard. Raises ValueError for another one's."""
        digest = arrays.get("digest")
        if digest is None or digest.tobytes() != self._digest().encode():
            raise ValueError("the state belongs to another feature spec or shard: replay the journal instead")
        parts: dict[str, dict[str, NDArray[Any]]] = {}
        for name, array in arrays.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = array
        self._admission.restore(parts["admission"])
        self._pending.restore(parts["pending"])
        self._owed = int(arrays["owed"][0])
        for part, table in self._tables.items():
            table.restore(parts[part])

    def _digest(self) -> str:
        return f"{self.spec.digest}/{self._shard}/{self._shards}/{STATE_LAYOUT}"

    def _tidy(self, budget: int) -> None:
        watermark = self.watermark_us
        if watermark is None:
            return
        self._admission.forget(budget)
        for table in self._tables.values():
            table.sweep(watermark, budget)

    def _layout(self, lateness_us: int, correction_us: int) -> dict[str, EntityWindows | EntityPanes]:
        """A table for every entity kind with exact windows, and for every kind and width of pane."""
        groups: dict[tuple[str, int], list[tuple[WindowFeature, int]]] = {}
        for entity in self.spec.entities:
            for place, feature in enumerate(self.spec.features):
                if isinstance(feature, WindowFeature) and feature.entity == entity:
                    groups.setdefault((entity, feature.pane_us), []).append((feature, place))
        tables: dict[str, EntityWindows | EntityPanes] = {}
        for (entity, pane_us), placed in groups.items():
            features, places = [feature for feature, _ in placed], [place for _, place in placed]
            if pane_us:
                tables[f"{entity}:{pane_us}"] = EntityPanes(
                    features, places, self._bits, lateness_us, correction_us
                )
            else:
                tables[entity] = EntityWindows(features, places, self._bits, lateness_us)
        return tables

    def _due(self, time_us: NDArray[np.int64], refusal: NDArray[np.uint8]) -> Part:
        """The outcomes that may become visible within a batch."""
        valid = refusal == 0
        reach = int(time_us[valid].max()) if valid.any() else None
        return self._pending.due(self.watermark_us, reach)
