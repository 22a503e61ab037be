"""The streaming engine: batches in, one row of features per event out, state kept between batches.

Contract (the window of width w at event time T covers (T - w, T], the event itself included unless the spec excludes
it, ties in arrival order):

- an event older than the newest by more than the lateness is refused; a late one within it enters the windows of
  later events;
- a correction (same id, marked) within the correction horizon replaces the event, keeps its place in arrival order
  and never adds; an id already applied is acknowledged and not applied again; beyond the horizon both are refused;
- an outcome is visible to every event at or after the time it became known.

Rows that are refused or duplicates have NaN in windowed features, and so has a window of a correction that reaches
back further than events are kept. Features do not depend on how the stream is cut into batches or shards, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.features.admission import Admission, Disposition
from scoring.features.spec import (
    DAY_US,
    HOUR_US,
    Calendar,
    CalendarFeature,
    FeatureSpec,
    FieldFeature,
    Filter,
    SpecError,
    WindowFeature,
    checked,
)
from scoring.features.windows import FRAUD, EntityWindows
from scoring.schema import OutcomeBatch, SchemaError, TransactionBatch, entity_keys, validate

_SWEEP_FLOOR = 64
_EXACT_INTEGERS = 1 << 53


@dataclass(frozen=True, eq=False)
class FeatureMatrix:
    """``values`` float64 [n, f] under ``names``; ``disposition`` uint8 [n] of ``Disposition``; ``refusal`` uint8 [n] of
    ``scoring.schema.RowCode`` (non-zero only where the disposition is REFUSED_INVALID)."""

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
        return self.disposition <= Disposition.CORRECTED


@dataclass(frozen=True)
class EngineSize:
    """What an engine holds: entities and events per entity kind, event records, outcomes to come, bytes."""

    entities: Mapping[str, int]
    events: Mapping[str, int]
    records: int
    pending_outcomes: int
    unmatched_outcomes: int
    nbytes: int


def shard_of(keys: NDArray[np.uint64], shards: int) -> NDArray[np.int64]:
    """The shard 0..shards-1 that owns each entity, int64 [n]; a missing entity (0) belongs to shard 0."""
    mixed = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    owner = ((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(3)) % np.uint64(shards)
    return np.where(keys == 0, 0, owner.astype(np.int64))


def join_shards(matrices: list[FeatureMatrix], spec: FeatureSpec, batch: TransactionBatch) -> FeatureMatrix:
    """The matrix one engine would have given, from those of shards 0..n-1 on the same batch."""
    first = matrices[0]
    values = first.values.copy()
    for place, feature in enumerate(spec.features):
        if isinstance(feature, WindowFeature):
            owner = shard_of(_keys(batch, feature.entity), len(matrices))
            for shard, matrix in enumerate(matrices[1:], 1):
                rows = owner == shard
                values[rows, place] = matrix.values[rows, place]
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
    ) -> None:
        """Times default to the spec's. Raises SpecError for an unusable spec, ValueError for an impossible shard."""
        if not 0 <= shard < shards:
            raise ValueError(f"shard {shard} of {shards} does not exist")
        lateness = spec.lateness_us if lateness_us is None else lateness_us
        correction = spec.correction_us if correction_us is None else correction_us
        self.spec = checked(FeatureSpec(spec.features, spec.filters, lateness, correction))
        self._shard, self._shards = shard, shards
        names = dict.fromkeys([f.name for f in spec.filters] + [f.filter for f in spec.windows if f.filter])
        self._bits = {name: bit for bit, name in enumerate(names, 1)}
        self._tables: list[EntityWindows] = []
        for entity in spec.entities:
            placed = [
                (feature, place)
                for place, feature in enumerate(spec.features)
                if isinstance(feature, WindowFeature) and feature.entity == entity
            ]
            for feature, _ in placed:
                if feature.value == FRAUD:
                    raise SpecError(f"feature {feature.name!r}", "fraud is no value; use aggregation rate")
            self._tables.append(
                EntityWindows([f for f, _ in placed], [place for _, place in placed], self._bits, lateness)
            )
        outcomes = max((table.retention_us for table in self._tables if table.has_outcomes), default=0)
        self._admission = Admission(lateness_us=lateness, correction_us=correction, retention_us=outcomes)
        self._pending = _Pending()

    @property
    def names(self) -> tuple[str, ...]:
        return self.spec.names

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
        flags = self._flags(batch, filters or {})
        values = np.full((len(batch), len(self.spec.features)), np.nan)
        self._stateless(batch, values)
        numbers = {table.entity: self._numbers(batch, table) for table in self._tables}
        refusal = validate(batch)
        valid = refusal == 0
        if outcomes is not None and len(outcomes):
            self._pending.add(entity_keys(outcomes.event_id, column="event_id"), outcomes)
        times = batch.time_us
        reach = int(times[valid].max()) if valid.any() else None
        due = self._pending.due(self.watermark_us, reach)
        correction = batch.correction if batch.correction is not None else np.zeros(len(batch), np.bool_)
        ids = entity_keys(batch.event_id, column="event_id")
        admitted = self._admission.admit(ids, times, valid, correction, *due)
        self._pending.drop(admitted.consumed)
        for table in self._tables:
            keys = _keys(batch, table.entity)
            table.advance(
                keys,
                None if self._shards == 1 else shard_of(keys, self._shards) == self._shard,
                times,
                numbers[table.entity],
                {name: _keys(batch, name) for name in table.told_entities},
                flags,
                admitted,
                self._admission.bound,
                values,
            )
        self._tidy(2 * len(batch) + _SWEEP_FLOOR)
        return FeatureMatrix(self.names, values, admitted.disposition, refusal)

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
        return sum(table.sweep_all(watermark) for table in self._tables)

    def size(self) -> EngineSize:
        return EngineSize(
            entities={table.entity: table.entities for table in self._tables},
            events={table.entity: table.events for table in self._tables},
            records=len(self._admission),
            pending_outcomes=len(self._pending),
            unmatched_outcomes=self._admission.unmatched,
            nbytes=self._admission.nbytes + sum(table.nbytes for table in self._tables),
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of all state as plain arrays, for a snapshot; ``restore`` continues bit-identically."""
        arrays = {f"admission/{name}": array for name, array in self._admission.state().items()}
        arrays |= {f"pending/{name}": array for name, array in self._pending.state().items()}
        for table in self._tables:
            arrays |= {f"{table.entity}/{name}": array for name, array in table.state().items()}
        arrays["digest"] = np.frombuffer(self._digest().encode(), np.uint8).copy()
        return arrays

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
        for table in self._tables:
            table.restore(parts[table.entity])

    def _digest(self) -> str:
        return f"{self.spec.digest}/{self._shard}/{self._shards}"

    def _tidy(self, budget: int) -> None:
        watermark = self.watermark_us
        if watermark is None:
            return
        self._admission.forget(budget)
        for table in self._tables:
            table.sweep(watermark, budget)

    def _flags(self, batch: TransactionBatch, given: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.int64]:
        flags = np.ones(len(batch), np.int64)
        defined = {f.name: f for f in self.spec.filters}
        for name, bit in self._bits.items():
            if name in defined:
                passes = _passes(defined[name], batch)
            elif name in given:
                passes = given[name]
                if passes.shape != (len(batch),) or passes.dtype != np.bool_:
                    raise SchemaError(name, f"must be a boolean column of {len(batch)} rows")
            else:
                raise SchemaError(
                    name, "is a filter that the spec does not define: give it as a boolean column"
                )
            flags |= passes.astype(np.int64) << bit
        return flags

    def _numbers(self, batch: TransactionBatch, table: EntityWindows) -> dict[str, NDArray[np.float64]]:
        return {name: _number(batch, name) for name in table.value_columns if name != FRAUD}

    def _stateless(self, batch: TransactionBatch, values: NDArray[np.float64]) -> None:
        for place, feature in enumerate(self.spec.features):
            if isinstance(feature, CalendarFeature):
                values[:, place] = _calendar(feature, batch.time_us)
            elif isinstance(feature, FieldFeature):
                values[:, place] = _field(feature, batch)


class _Pending:
    """Outcomes that the stream has not come to yet, sorted by the time they become known (ties: as given)."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.int64]]] = []

    def __len__(self) -> int:
        return sum(len(known) for _, _, known in self._parts)

    def add(self, ids: NDArray[np.uint64], outcomes: OutcomeBatch) -> None:
        order = np.argsort(outcomes.known_at_us, kind="stable")
        part = (ids[order], outcomes.fraud[order], outcomes.known_at_us[order])
        if self._parts and part[2][0] < self._parts[-1][2][-1]:
            ids, fraud, known = self._joined([*self._parts, part])
            order = np.argsort(known, kind="stable")
            self._parts = [(ids[order], fraud[order], known[order])]
        else:
            self._parts.append(part)

    def due(
        self, watermark_us: int | None, reach_us: int | None
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.int64]]:
        """All that may become visible within a batch whose latest time is ``reach_us``."""
        until = max((t for t in (watermark_us, reach_us) if t is not None), default=None)
        parts = []
        for ids, fraud, known in self._parts:
            count = 0 if until is None else int(np.searchsorted(known, until, side="right"))
            parts.append((ids[:count], fraud[:count], known[:count]))
            if count < len(known):
                break
        return self._joined(parts)

    def drop(self, count: int) -> None:
        while count and self._parts:
            ids, fraud, known = self._parts[0]
            taken = min(count, len(known))
            count -= taken
            if taken == len(known):
                self._parts.pop(0)
            else:
                self._parts[0] = (ids[taken:], fraud[taken:], known[taken:])

    def state(self) -> dict[str, NDArray[Any]]:
        ids, fraud, known = self._joined(self._parts)
        return {"ids": ids.copy(), "fraud": fraud.copy(), "known": known.copy()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        part = (arrays["ids"].copy(), arrays["fraud"].copy(), arrays["known"].copy())
        self._parts = [part] if len(part[0]) else []

    @staticmethod
    def _joined(
        parts: list[tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.int64]]],
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.int64]]:
        if len(parts) == 1:
            return parts[0]
        return (
            np.concatenate([np.empty(0, np.uint64), *(part[0] for part in parts)]),
            np.concatenate([np.empty(0, np.bool_), *(part[1] for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part[2] for part in parts)]),
        )


def _keys(batch: TransactionBatch, entity: str) -> NDArray[np.uint64]:
    keys = batch.entities.get(entity)
    return np.zeros(len(batch), np.uint64) if keys is None else keys


def _number(batch: TransactionBatch, name: str) -> NDArray[np.float64]:
    if name == "amount":
        return batch.amount
    numbers = batch.numbers.get(name)
    if numbers is None:
        raise SchemaError(name, "is used by the feature spec and missing in the batch")
    return numbers


def _passes(condition: Filter, batch: TransactionBatch) -> NDArray[np.bool_]:
    passes = (batch.amount >= condition.amount_min) & (batch.amount <= condition.amount_max)
    if condition.channels is not None:
        passes &= np.isin(batch.channel, np.array(condition.channels, np.uint8))
    return passes


def _calendar(feature: CalendarFeature, time_us: NDArray[np.int64]) -> NDArray[np.float64]:
    local = time_us + feature.utc_offset_us
    hour = (local % DAY_US) // HOUR_US
    weekday = (local // DAY_US + 3) % 7  # 1970-01-01 was a Thursday
    part = {
        Calendar.HOUR: hour,
        Calendar.WEEKDAY: weekday,
        Calendar.WEEKEND: weekday >= 5,
        Calendar.NIGHT: hour <= feature.last_hour,
    }[feature.part]
    return part.astype(np.float64)


def _field(feature: FieldFeature, batch: TransactionBatch) -> NDArray[np.float64]:
    if feature.field == "channel":
        return batch.channel.astype(np.float64)
    if feature.field != "event_id":
        return _number(batch, feature.field)
    if batch.event_id.dtype == object:
        raise SchemaError(
            "event_id", f"holds texts, which feature {feature.name!r} cannot pass on as numbers"
        )
    if len(batch) and max(abs(int(batch.event_id.min())), abs(int(batch.event_id.max()))) > _EXACT_INTEGERS:
        raise SchemaError("event_id", f"is beyond 2^53, which feature {feature.name!r} cannot hold exactly")
    return batch.event_id.astype(np.float64)
