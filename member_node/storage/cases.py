"""Alerts, grouped into cases by customer, and what staff did with them. Every public method is one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Select, case, func, insert, select, update

from member_node.storage.case_tables import ALERTS, CASE_NOTES, CASES
from member_node.storage.database import Connection, Database
from member_node.storage.outcome_tables import STREAM_CURSORS

VERDICT, BRAKE, DRIFT = "verdict", "brake", "drift"
OPEN, CLOSED = "open", "closed"
MAX_PAGE = 500
_CHUNK = 500
# The newest journal frame whose alerts are stored.
ALERTED = "alerted_frame"


@dataclass(frozen=True)
class Alert:
    """One reason to look: ``source`` is unique (frame and row, or the alarm's own), ``time_us`` the event's.

    ``customer`` is empty where the event names none; such an alert is a case of its own. ``reasons``: JSON text.
    """

    source: str
    kind: str
    customer: str
    event_id: str
    time_us: int
    verdict: int
    rule: str
    amount: float
    score: float | None
    reasons: str


@dataclass(frozen=True)
class CaseRow:
    """A case as it stands; see ``case_tables``."""

    case_id: int
    kind: str
    customer: str
    status: str
    severity: int
    first_us: int
    last_us: int
    alerts: int
    amount: float
    assignee: str
    decision: str
    decided_by: str
    decided_at: int
    opened_at: int


@dataclass(frozen=True)
class CaseFilter:
    """Which cases to list; empty fields do not restrict. ``opened_before``: unix seconds of the bank's clock."""

    status: str = ""
    kind: str = ""
    customer: str = ""
    assignee: str | None = None
    least_severity: int = 0
    opened_before: int | None = None


@dataclass
class _Group:
    """A case under way while a batch of alerts is laid out; ``case_id`` is 0 for a new one."""

    case_id: int
    kind: str
    customer: str
    first_us: int
    last_us: int
    severity: int = 0
    amount: float = 0.0
    added: list[Alert] = field(default_factory=list)

    def add(self, alert: Alert) -> None:
        self.added.append(alert)
        self.first_us, self.last_us = min(self.first_us, alert.time_us), max(self.last_us, alert.time_us)
        self.severity = max(self.severity, alert.verdict)
        self.amount += alert.amount


class CaseStore:
    """Cases and their alerts and notes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open_alerts(
        self, alerts: Sequence[Alert], *, window_us: int, now: int, through: int | None = None
    ) -> int:
        """Store new alerts (known sources are left out) and group them; how many were new.

        An alert joins the open case of its customer and kind whose newest alert lies at most ``window_us`` from it.
        ``now``: unix seconds; ``through``: the journal frame whose alerts are all stored with this call.
        """
        with self._database.write() as connection:
            fresh = self._unknown(connection, alerts)
            groups = self._grouped(connection, fresh, window_us)
            rows = []
            for group in groups:
                case_id = self._keep(connection, group, now)
                rows += [_alert_row(alert, case_id) for alert in group.added]
            if rows:
                connection.execute(insert(ALERTS), rows)
            if through is not None:
                _advance(connection, through)
            return len(fresh)

    def alerted_through(self) -> int:
        """The newest journal frame whose alerts are all stored; 0 before the first."""
        with self._database.read() as connection:
            query = select(STREAM_CURSORS.c.value).where(STREAM_CURSORS.c.name == ALERTED)
            return int(connection.execute(query).scalar() or 0)

    def find(self, wanted: CaseFilter, *, limit: int = 50, offset: int = 0) -> list[CaseRow]:
        """Cases by severity, then age (oldest first)."""
        query = _filtered(select(CASES), wanted).order_by(
            CASES.c.severity.desc(), CASES.c.opened_at, CASES.c.case_id
        )
        with self._database.read() as connection:
            rows = connection.execute(query.limit(min(limit, MAX_PAGE)).offset(offset))
            return [CaseRow(**row._mapping) for row in rows]

    def counts(self, now: int, ages: Sequence[int]) -> dict[str, Any]:
        """Open cases by severity, by assignee and by age (older than each of ``ages`` seconds), decisions in all."""
        waiting = CASES.c.status == OPEN
        with self._database.read() as connection:
            by_severity = connection.execute(
                select(CASES.c.severity, func.count()).where(waiting).group_by(CASES.c.severity)
            ).all()
            by_assignee = connection.execute(
                select(CASES.c.assignee, func.count()).where(waiting).group_by(CASES.c.assignee)
            ).all()
            decisions = connection.execute(
                select(CASES.c.decision, func.count())
                .where(CASES.c.status == CLOSED)
                .group_by(CASES.c.decision)
            ).all()
            older = connection.execute(
                select(
                    *(
                        func.coalesce(func.sum(case((CASES.c.opened_at <= now - age, 1), else_=0)), 0)
                        for age in ages
                    )
                ).where(waiting)
            ).one()
            alerts = connection.execute(select(func.count()).select_from(ALERTS)).scalar()
        return {
            "open": sum(count for _, count in by_severity),
            "alerts": int(alerts or 0),
            "by_severity": {int(severity): count for severity, count in by_severity},
            "by_assignee": dict(by_assignee),
            "decisions": dict(decisions),
            "older_than": {age: int(count) for age, count in zip(ages, older, strict=True)},
        }

    def show(self, case_id: int) -> tuple[CaseRow, list[dict[str, Any]], list[dict[str, Any]]]:
        """A case, its newest alerts (at most :data:`MAX_PAGE`) and all its notes; raises KeyError."""
        with self._database.read() as connection:
            found = connection.execute(select(CASES).where(CASES.c.case_id == case_id)).first()
            if found is None:
                raise KeyError(case_id)
            alerts = connection.execute(
                select(ALERTS)
                .where(ALERTS.c.case_id == case_id)
                .order_by(ALERTS.c.time_us.desc())
                .limit(MAX_PAGE)
            )
            notes = connection.execute(
                select(CASE_NOTES).where(CASE_NOTES.c.case_id == case_id).order_by(CASE_NOTES.c.note_id)
            )
            return (
                CaseRow(**found._mapping),
                [dict(row._mapping) for row in alerts],
                [dict(row._mapping) for row in notes],
            )

    def events(self, case_id: int) -> list[str]:
        """The distinct events of a case's alerts, as text."""
        query = (
            select(ALERTS.c.event_id).where(ALERTS.c.case_id == case_id, ALERTS.c.event_id != "").distinct()
        )
        with self._database.read() as connection:
            return [row[0] for row in connection.execute(query)]

    def assign(self, case_id: int, assignee: str, *, author: str, at: int) -> bool:
        """Give an open case to somebody (empty: to nobody); False if it is closed."""
        with self._database.write() as connection:
            changed = connection.execute(
                update(CASES)
                .where(CASES.c.case_id == case_id, CASES.c.status == OPEN)
                .values(assignee=assignee)
            ).rowcount
            if changed:
                add_note(connection, case_id, at, author, "assign", assignee)
            return bool(changed)

    def note(self, case_id: int, text: str, *, author: str, at: int, action: str = "note") -> None:
        """Add a note."""
        with self._database.write() as connection:
            add_note(connection, case_id, at, author, action, text)

    def decide(
        self,
        case_id: int,
        decision: str,
        text: str,
        *,
        author: str,
        at: int,
        also: Callable[[Connection], None] = lambda connection: None,
    ) -> bool:
        """Close an open case; False if it is closed already (the first decision stands). ``also`` is done with it."""
        with self._database.write() as connection:
            changed = connection.execute(
                update(CASES)
                .where(CASES.c.case_id == case_id, CASES.c.status == OPEN)
                .values(status=CLOSED, decision=decision, decided_by=author, decided_at=at)
            ).rowcount
            if changed:
                add_note(
                    connection, case_id, at, author, "decide", f"{decision}: {text}" if text else decision
                )
                also(connection)
            return bool(changed)

    def _unknown(self, connection: Connection, alerts: Sequence[Alert]) -> list[Alert]:
        sources = [alert.source for alert in alerts]
        known: set[str] = set()
        for start in range(0, len(sources), _CHUNK):
            query = select(ALERTS.c.source).where(ALERTS.c.source.in_(sources[start : start + _CHUNK]))
            known.update(row[0] for row in connection.execute(query))
        return [alert for alert in alerts if alert.source not in known]

    def _grouped(self, connection: Connection, alerts: Sequence[Alert], window_us: int) -> list[_Group]:
        customers = sorted({alert.customer for alert in alerts if alert.customer})
        open_groups: dict[tuple[str, str], _Group] = {}
        for start in range(0, len(customers), _CHUNK):
            query = (
                select(CASES)
                .where(CASES.c.status == OPEN, CASES.c.customer.in_(customers[start : start + _CHUNK]))
                .order_by(CASES.c.last_us)
            )
            for row in connection.execute(query):
                open_groups[row.kind, row.customer] = _Group(
                    row.case_id, row.kind, row.customer, row.first_us, row.last_us
                )
        touched: dict[int, _Group] = {}
        for alert in sorted(alerts, key=lambda each: each.time_us):
            group = open_groups.get((alert.kind, alert.customer)) if alert.customer else None
            if group is None or not group.first_us - window_us <= alert.time_us <= group.last_us + window_us:
                group = _Group(0, alert.kind, alert.customer, alert.time_us, alert.time_us)
                if alert.customer:
                    open_groups[alert.kind, alert.customer] = group
            group.add(alert)
            touched[id(group)] = group
        return list(touched.values())

    def _keep(self, connection: Connection, group: _Group, now: int) -> int:
        if group.case_id == 0:
            made = connection.execute(
                insert(CASES).values(
                    kind=group.kind,
                    customer=group.customer,
                    status=OPEN,
                    severity=group.severity,
                    first_us=group.first_us,
                    last_us=group.last_us,
                    alerts=len(group.added),
                    amount=group.amount,
                    assignee="",
                    decision="",
                    decided_by="",
                    decided_at=0,
                    opened_at=now,
                )
            ).inserted_primary_key
            assert made is not None
            return int(made[0])
        connection.execute(
            update(CASES)
            .where(CASES.c.case_id == group.case_id)
            .values(
                first_us=group.first_us,
                last_us=group.last_us,
                alerts=CASES.c.alerts + len(group.added),
                amount=CASES.c.amount + group.amount,
                severity=case((CASES.c.severity < group.severity, group.severity), else_=CASES.c.severity),
            )
        )
        return group.case_id


def _alert_row(alert: Alert, case_id: int) -> dict[str, Any]:
    row = asdict(alert) | {"case_id": case_id}
    del row["kind"], row["customer"]
    return row


def add_note(connection: Connection, case_id: int, at: int, author: str, action: str, text: str) -> None:
    """Add to what was done to a case, in somebody's transaction."""
    connection.execute(
        insert(CASE_NOTES).values(case_id=case_id, at=at, author=author, action=action, text=text)
    )


def _advance(connection: Connection, through: int) -> None:
    cursor = STREAM_CURSORS.c
    changed = connection.execute(
        update(STREAM_CURSORS).where(cursor.name == ALERTED).values(value=through)
    ).rowcount
    if not changed:
        connection.execute(insert(STREAM_CURSORS).values(name=ALERTED, value=through))


def _filtered(query: Select[Any], wanted: CaseFilter) -> Select[Any]:
    conditions = [
        column == value
        for column, value in (
            (CASES.c.status, wanted.status),
            (CASES.c.kind, wanted.kind),
            (CASES.c.customer, wanted.customer),
        )
        if value
    ]
    if wanted.assignee is not None:
        conditions.append(CASES.c.assignee == wanted.assignee)
    if wanted.least_severity:
        conditions.append(CASES.c.severity >= wanted.least_severity)
    if wanted.opened_before is not None:
        conditions.append(CASES.c.opened_at <= wanted.opened_before)
    return query.where(*conditions)
