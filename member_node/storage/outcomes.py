"""What became of the bank's transactions, the evidence in it, and how far its stream has come.

Every public method is one transaction. Cursors live in the same database as what they count, so a step and its
cursor are durable together or not at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import delete, func, insert, select, update

from member_node.storage.database import Connection, Database
from member_node.storage.outcome_tables import (
    CONFIRMED_FRAUDS,
    DAILY_AGGREGATES,
    FRAUD_INDICATORS,
    OUTCOMES,
    PENDING_FINDINGS,
    STREAM_CURSORS,
    STREAM_SOURCES,
)

DAY_US = 86_400_000_000
_CHUNK = 500
_LABELS_AT_ONCE = 50_000


@dataclass(frozen=True)
class ConfirmedFraud:
    """A confirmed fraud with what the evidence rule needs; ``indicators``: (kind, normal form) pairs."""

    event_id: str
    time_us: int
    day: int
    cell: int
    known_at_us: int
    customer: str
    indicators: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PendingFinding:
    """Evidence for one value that is to be contributed: distinct own victims within the policy's window."""

    kind: str
    value: str
    distinct_victims: int
    first_seen_ms: int
    last_seen_ms: int
    found_at_ms: int


class OutcomeStore:
    """Outcomes, confirmed frauds and findings."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def known(self, event_ids: Sequence[str]) -> set[str]:
        """Those of ``event_ids`` whose outcome is recorded already."""
        found: set[str] = set()
        with self._database.read() as connection:
            for start in range(0, len(event_ids), _CHUNK):
                query = select(OUTCOMES.c.event_id).where(
                    OUTCOMES.c.event_id.in_(event_ids[start : start + _CHUNK])
                )
                found.update(row[0] for row in connection.execute(query))
        return found

    def record(
        self,
        outcomes: Sequence[tuple[str, bool, int]],
        frauds: Sequence[ConfirmedFraud],
        *,
        cursors: Mapping[str, int] | None = None,
    ) -> int:
        """Store outcomes (event id, fraud, known at in us) and the frauds among them; how many were new.

        An outcome that is already known is left as it is. ``cursors`` advance in the same transaction.
        """
        with self._database.write() as connection:
            ids = [outcome[0] for outcome in outcomes]
            present: set[str] = set()
            for start in range(0, len(ids), _CHUNK):
                query = select(OUTCOMES.c.event_id).where(
                    OUTCOMES.c.event_id.in_(ids[start : start + _CHUNK])
                )
                present.update(row[0] for row in connection.execute(query))
            fresh = {each[0]: each for each in outcomes if each[0] not in present}
            if fresh:
                connection.execute(
                    insert(OUTCOMES),
                    [
                        {"event_id": i, "fraud": int(fraud), "known_at_us": at}
                        for i, fraud, at in fresh.values()
                    ],
                )
            confirmed = [fraud for fraud in frauds if fraud.event_id in fresh]
            if confirmed:
                connection.execute(insert(CONFIRMED_FRAUDS), [_fraud_row(fraud) for fraud in confirmed])
            pairs = [
                {"kind": kind, "value": value, "event_id": fraud.event_id}
                for fraud in confirmed
                for kind, value in fraud.indicators
            ]
            if pairs:
                connection.execute(insert(FRAUD_INDICATORS), pairs)
            _advance(connection, cursors or {})
        return len(fresh)

    def labels(self) -> pa.Table:
        """All outcomes: event_id (text), fraud (bool), known_at_us (int64); for training."""
        query = select(OUTCOMES.c.event_id, OUTCOMES.c.fraud, OUTCOMES.c.known_at_us)
        schema = pa.schema([("event_id", pa.string()), ("fraud", pa.bool_()), ("known_at_us", pa.int64())])
        batches = []
        with self._database.read() as connection:
            for part in connection.execution_options(yield_per=_LABELS_AT_ONCE).execute(query).partitions():
                ids, fraud, known = zip(*part, strict=True)
                columns = [pa.array(ids), pa.array([value == 1 for value in fraud]), pa.array(known)]
                batches.append(pa.record_batch(columns, schema=schema))
        return pa.Table.from_batches(batches, schema=schema)

    def weigh(self, now_us: int, victim_window_days: Mapping[str, int]) -> int:
        """Apply the evidence rule to frauds confirmed up to ``now_us`` and not weighed before; findings made.

        For each value they name: the distinct own customers with a fraud confirmed within the kind's victim window
        (now - window, now]. A finding is made where at least one of these victims is new, that is, was not among the
        victims the rule had counted in this window before. Kinds without a window are not contributed.
        """
        made = 0
        with self._database.write() as connection:
            fresh = (
                select(FRAUD_INDICATORS.c.kind, FRAUD_INDICATORS.c.value)
                .join(CONFIRMED_FRAUDS, CONFIRMED_FRAUDS.c.event_id == FRAUD_INDICATORS.c.event_id)
                .where(CONFIRMED_FRAUDS.c.weighed == 0, CONFIRMED_FRAUDS.c.known_at_us <= now_us)
                .distinct()
            )
            for kind, value in connection.execute(fresh).all():
                days = victim_window_days.get(kind)
                if days is None:
                    continue
                finding = _finding(connection, kind, value, now_us, days * DAY_US)
                if finding is not None:
                    _save_finding(connection, finding)
                    made += 1
            connection.execute(
                update(CONFIRMED_FRAUDS)
                .where(CONFIRMED_FRAUDS.c.weighed == 0, CONFIRMED_FRAUDS.c.known_at_us <= now_us)
                .values(weighed=1)
            )
        return made

    def pending(self) -> list[PendingFinding]:
        """Findings not yet contributed, by kind and value."""
        query = select(PENDING_FINDINGS).order_by(PENDING_FINDINGS.c.kind, PENDING_FINDINGS.c.value)
        with self._database.read() as connection:
            return [PendingFinding(**row._mapping) for row in connection.execute(query)]

    def contributed(self, findings: Sequence[PendingFinding]) -> None:
        """Forget findings the index has acknowledged, unless newer evidence has replaced them meanwhile."""
        with self._database.write() as connection:
            for finding in findings:
                connection.execute(
                    delete(PENDING_FINDINGS).where(
                        PENDING_FINDINGS.c.kind == finding.kind,
                        PENDING_FINDINGS.c.value == finding.value,
                        PENDING_FINDINGS.c.found_at_ms == finding.found_at_ms,
                    )
                )

    def counts(self, first_day: int, last_day: int, cells: int) -> NDArray[np.int64]:
        """Confirmed frauds by day of the transaction and directory cell: int64 [days, cells]."""
        counts = np.zeros((last_day - first_day + 1, cells), dtype=np.int64)
        query = (
            select(CONFIRMED_FRAUDS.c.day, CONFIRMED_FRAUDS.c.cell, func.count())
            .where(CONFIRMED_FRAUDS.c.day.between(first_day, last_day), CONFIRMED_FRAUDS.c.cell >= 0)
            .group_by(CONFIRMED_FRAUDS.c.day, CONFIRMED_FRAUDS.c.cell)
        )
        with self._database.read() as connection:
            for day, cell, count in connection.execute(query):
                counts[day - first_day, cell] = count
        return counts

    def totals(self) -> dict[str, int]:
        """How many outcomes, frauds and waiting findings there are."""
        with self._database.read() as connection:
            return {
                name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
                for name, table in (
                    ("outcomes", OUTCOMES),
                    ("confirmed_frauds", CONFIRMED_FRAUDS),
                    ("pending_findings", PENDING_FINDINGS),
                )
            }


class StreamStore:
    """Cursors, the open replay's description, and the consortium's aggregates day by day."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def cursor(self, name: str) -> int | None:
        """The value of a cursor, None if it was never set."""
        with self._database.read() as connection:
            row = connection.execute(
                select(STREAM_CURSORS.c.value).where(STREAM_CURSORS.c.name == name)
            ).first()
        return None if row is None else int(row[0])

    def advance(self, cursors: Mapping[str, int]) -> None:
        """Set cursors; one never moves back."""
        with self._database.write() as connection:
            _advance(connection, cursors)

    def source(self, name: str) -> str | None:
        """The description stored under ``name``."""
        with self._database.read() as connection:
            row = connection.execute(
                select(STREAM_SOURCES.c.content).where(STREAM_SOURCES.c.name == name)
            ).first()
        return None if row is None else str(row[0])

    def save_source(self, name: str, content: str) -> None:
        """Store a description, replacing the one of the same name."""
        with self._database.write() as connection:
            connection.execute(delete(STREAM_SOURCES).where(STREAM_SOURCES.c.name == name))
            connection.execute(insert(STREAM_SOURCES).values(name=name, content=content))

    def save_aggregates(self, dataset: str, first_day: int, counts: NDArray[np.int64]) -> None:
        """Store aggregates int64 [days, cells]; a day that is stored already keeps its first value."""
        with self._database.write() as connection:
            known = {
                row[0]
                for row in connection.execute(
                    select(DAILY_AGGREGATES.c.day).where(DAILY_AGGREGATES.c.dataset == dataset)
                )
            }
            rows = [
                {
                    "dataset": dataset,
                    "day": first_day + offset,
                    "counts": zlib.compress(day.astype("<i8").tobytes(), 1),
                }
                for offset, day in enumerate(counts)
                if first_day + offset not in known
            ]
            if rows:
                connection.execute(insert(DAILY_AGGREGATES), rows)

    def aggregates(self, dataset: str) -> list[tuple[int, NDArray[np.int64]]]:
        """All stored days in order with their counts int64 [cells]."""
        query = (
            select(DAILY_AGGREGATES.c.day, DAILY_AGGREGATES.c.counts)
            .where(DAILY_AGGREGATES.c.dataset == dataset)
            .order_by(DAILY_AGGREGATES.c.day)
        )
        with self._database.read() as connection:
            return [
                (day, np.frombuffer(zlib.decompress(raw), dtype="<i8"))
                for day, raw in connection.execute(query)
            ]


def _advance(connection: Connection, cursors: Mapping[str, int]) -> None:
    for name, value in cursors.items():
        held = connection.execute(select(STREAM_CURSORS.c.value).where(STREAM_CURSORS.c.name == name)).first()
        if held is None:
            connection.execute(insert(STREAM_CURSORS).values(name=name, value=value))
        elif held[0] < value:
            connection.execute(
                update(STREAM_CURSORS).where(STREAM_CURSORS.c.name == name).values(value=value)
            )


def _fraud_row(fraud: ConfirmedFraud) -> dict[str, object]:
    return {
        "event_id": fraud.event_id,
        "time_us": fraud.time_us,
        "day": fraud.day,
        "cell": fraud.cell,
        "known_at_us": fraud.known_at_us,
        "customer": fraud.customer,
        "weighed": 0,
    }


def _finding(
    connection: Connection, kind: str, value: str, now_us: int, window_us: int
) -> PendingFinding | None:
    query = (
        select(CONFIRMED_FRAUDS.c.customer, CONFIRMED_FRAUDS.c.time_us, CONFIRMED_FRAUDS.c.weighed)
        .join(FRAUD_INDICATORS, CONFIRMED_FRAUDS.c.event_id == FRAUD_INDICATORS.c.event_id)
        .where(
            FRAUD_INDICATORS.c.kind == kind,
            FRAUD_INDICATORS.c.value == value,
            CONFIRMED_FRAUDS.c.known_at_us > now_us - window_us,
            CONFIRMED_FRAUDS.c.known_at_us <= now_us,
        )
    )
    rows = connection.execute(query).all()
    victims = {row.customer for row in rows}
    if victims <= {row.customer for row in rows if row.weighed}:
        return None
    times = [row.time_us for row in rows]
    return PendingFinding(kind, value, len(victims), min(times) // 1000, max(times) // 1000, now_us // 1000)


def _save_finding(connection: Connection, finding: PendingFinding) -> None:
    connection.execute(
        delete(PENDING_FINDINGS).where(
            PENDING_FINDINGS.c.kind == finding.kind, PENDING_FINDINGS.c.value == finding.value
        )
    )
    connection.execute(insert(PENDING_FINDINGS).values(**finding.__dict__))
